"""Traffic on purpose, and always with an end: every generator has a count or a duration."""

import re
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from pathlib import Path

from zgate_lab.errors import LabError
from zgate_lab.namespace import in_namespace, run_in

Address = IPv4Address | IPv6Address

MAX_PACKETS = 1_000_000
MAX_DURATION_S = 120.0


@dataclass(frozen=True, slots=True)
class PingResult:
    """What `ping` counted; round-trip times are None when nothing came back.

    `under_way` are the last requests, which it did not wait for.
    """

    sent: int
    received: int
    duplicates: int
    under_way: int
    rtt_min_ms: float | None
    rtt_average_ms: float | None
    rtt_max_ms: float | None
    output: str

    @property
    def lost(self) -> int:
        """Requests without an answer, but for those under way at the end."""
        return self.sent - self.received - self.under_way


_COUNTS = re.compile(r"(\d+) packets transmitted, (\d+) received(?:, \+(\d+) duplicates)?")
_TIMES = re.compile(r"= ([\d.]+)/([\d.]+)/([\d.]+)/[\d.]+ ms")
_ANSWER = re.compile(r"icmp_seq=(\d+) ttl")
#: Answers that come so late are late, not lost.
_LATE_S = 0.5


def parse_ping(output: str, *, interval_s: float | None = None) -> PingResult:
    """Read the summary that iputils' ping prints; LabError when there is none.

    Once an answer has come, ping waits for the last ones for two round trips or an interval only,
    whatever its -W says. Given the interval and a line for each answer, those that were sent in
    the last half second, and behind the last answer, count as under way.
    """
    counts = _COUNTS.search(output)
    if counts is None:
        raise LabError(f"ping printed no summary: {output.strip()[-400:]}")
    times = _TIMES.search(output)
    minimum, average, maximum = map(float, times.groups()) if times else (None, None, None)
    sent, received, under_way = int(counts[1]), int(counts[2]), 0
    answered = [int(one) for one in _ANSWER.findall(output)]
    if interval_s is not None and answered and sent < 1 << 16:
        behind = max(0, sent - max(answered))
        under_way = min(behind, sent - received, round(_LATE_S / interval_s))
    duplicates = int(counts[3] or 0)
    return PingResult(sent, received, duplicates, under_way, minimum, average, maximum, output)


def ping(
    namespace: str,
    destination: Address,
    *,
    count: int = 3,
    interval_s: float = 0.05,
    payload_bytes: int = 56,
    dont_fragment: bool = False,
    timeout_s: float = 5.0,
) -> PingResult:
    """Ping from a namespace; `timeout_s` is the wait for the last answers.

    Three or fewer are sent at once: then it is kept (see `parse_ping`).
    """
    _check_bounds(count, count * interval_s)
    argv = ["ping", "-n", "-c", str(count), "-i", str(interval_s)]
    argv += ["-l", str(count)] if count <= 3 else []
    argv += ["-s", str(payload_bytes), "-W", str(timeout_s)]
    argv += ["-M", "do"] if dont_fragment else []
    limit_s = count * interval_s + timeout_s + 30.0
    result = run_in(namespace, [*argv, str(destination)], check=False, timeout_s=limit_s)
    return parse_ping(result.stdout + result.stderr, interval_s=interval_s if count > 3 else None)


def answers(namespace: str, destination: Address) -> bool:
    """Whether a host answers pings; asked once more, and longer, before it is said that not."""
    return any(
        ping(namespace, destination, count=1, timeout_s=timeout_s).lost == 0
        for timeout_s in (0.3, 2.0)
    )


@dataclass(frozen=True, slots=True)
class HttpResult:
    """What curl got; `status` is 0 when there was no answer, and `error` says why."""

    status: int
    body: str
    body_bytes: int
    duration_s: float
    error: str


def https_get(
    namespace: str, url: str, certificate_file: Path, *, timeout_s: float = 10.0
) -> HttpResult:
    """Fetch a URL with curl from a namespace, trusting just that certificate."""
    summary = "\n%{http_code} %{size_download} %{time_total}"
    argv = ["curl", "--silent", "--show-error", "--globoff", "--max-time", str(timeout_s)]
    argv += ["--noproxy", "*", "--cacert", str(certificate_file), "--write-out", summary, url]
    result = run_in(namespace, argv, check=False, timeout_s=timeout_s + 10.0)
    body, _, numbers = result.stdout.rpartition("\n")
    status, size, duration = numbers.split()
    return HttpResult(int(status), body, int(size), float(duration), result.stderr.strip())


def send_udp(
    namespace: str,
    destination: Address,
    port: int,
    payloads: Iterable[bytes],
    *,
    count: int,
    duration_s: float = MAX_DURATION_S,
    rate_per_s: float | None = None,
    source_port: int = 0,
) -> int:
    """Send UDP payloads from a namespace, `count` at most and for `duration_s` at most.

    Returns how many the kernel took. What it refuses for lack of room or because an ICMP error
    came back is not sent again.
    """
    _check_bounds(count, duration_s)
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    with in_namespace(namespace):
        sender = socket.socket(family, socket.SOCK_DGRAM)
    with sender:
        sender.bind(("", source_port))
        target = (str(destination), port)
        start_s = time.monotonic()
        sent = 0
        for number, payload in enumerate(islice(payloads, count)):
            now_s = time.monotonic()
            if now_s - start_s > duration_s:
                break
            if rate_per_s is not None:
                time.sleep(max(0.0, start_s + number / rate_per_s - now_s))
            try:
                sender.sendto(payload, target)
                sent += 1
            except OSError:
                continue
        return sent


def _check_bounds(count: int, duration_s: float) -> None:
    if not 0 < count <= MAX_PACKETS:
        raise LabError(f"between 1 and {MAX_PACKETS} packets, not {count}")
    if not 0 < duration_s <= MAX_DURATION_S:
        raise LabError(f"at most {MAX_DURATION_S:g} s, not {duration_s:g}")
