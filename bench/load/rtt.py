"""Round-trip times by ping, each answer on its own: medians and percentiles need them all."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address

from zgate_lab.lab import Namespace
from zgate_lab.process import Process

from bench.errors import MeasurementFailed
from bench.stats import median, percentile

INTERVAL_S = 0.01
LAST_ANSWER_TIMEOUT_S = 1
EXTRA_TIME_S = 10.0

_ANSWER = re.compile(r"icmp_seq=(\d+) .*time=([\d.]+) ms(?P<duplicate> \(DUP!\))?")
_COUNTS = re.compile(r"(\d+) packets transmitted")


@dataclass(frozen=True, slots=True)
class RttResult:
    """The answers to a series of pings."""

    sent: int
    times_ms: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Share of the requests without an answer, 0 to 1."""
        return 1 - len(self.times_ms) / self.sent

    @property
    def median_ms(self) -> float:
        """The median round-trip time."""
        return median(self.times_ms)

    @property
    def p99_ms(self) -> float:
        """What 99 of 100 answers did not exceed."""
        return percentile(self.times_ms, 99)


class PingSeries:
    """Pings at a fixed interval that run beside something else.

    `skip_s`: the requests of the first seconds do not count (the flow beside is just starting).
    """

    def __init__(
        self, client: Namespace, target: IPv4Address, duration_s: float, *, skip_s: float = 0.0
    ):
        self._skip = round(skip_s / INTERVAL_S)
        self._duration_s = duration_s
        count = max(1, round(duration_s / INTERVAL_S))
        # A name of its own for each series: the lab appends to a log that is there already.
        self._process: Process = client.spawn(
            f"ping-{next_number()}",
            *("ping", "-n", "-c", str(count), "-i", str(INTERVAL_S)),
            *("-W", str(LAST_ANSWER_TIMEOUT_S), str(target)),
        )

    def result(self) -> RttResult:
        """Wait for the last answer and return them all."""
        self._process.wait(self._duration_s + EXTRA_TIME_S)
        return parse_ping(self._process.output(), skip=self._skip)

    def cancel(self) -> None:
        """End it; there will be no result."""
        self._process.kill()


def parse_ping(output: str, *, skip: int = 0) -> RttResult:
    """Read the answers that iputils' ping printed, without the first `skip` requests."""
    counts = _COUNTS.search(output)
    if counts is None:
        raise MeasurementFailed(f"ping printed no summary: {output.strip()[-300:]}")
    times = {
        int(answer[1]): float(answer[2])
        for answer in _ANSWER.finditer(output)
        if answer["duplicate"] is None
    }
    counted = tuple(time for number, time in times.items() if number > skip)
    if not counted:
        raise MeasurementFailed("no ping was answered")
    return RttResult(int(counts[1]) - skip, counted)


_numbers = iter(range(1, 1_000_000))


def next_number() -> int:
    """Return a number that was not there before."""
    return next(_numbers)
