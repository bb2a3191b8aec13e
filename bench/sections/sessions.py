"""New sessions: what one costs the gateway in CPU time, and what an idle one costs in memory.

The clients are one process (load/sessions.py) on the client's host. Its own CPU time does not
count: the gateway's is read from /proc, and where there are two processors each has one of them.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from zgate_identity.authority import CertificateAuthority
from zgate_lab.process import Process

from bench.build import ROOT
from bench.cpu import cpu_seconds, process_ids, resident_bytes
from bench.errors import MeasurementFailed
from bench.hosts import UPLINK, Hosts
from bench.load.sessions import DONE
from bench.peers.zgate import Zgate
from bench.sections.section import Record, Section

HELD = 2000
RATE_SECONDS = 6.0
RATE_CLIENTS = 64
CONCURRENCY = 16
HOLD_TIMEOUT_S = 300.0
WARM_UP_SECONDS = 1.5
EXTRA_S = 60.0
#: A few may: on a busy machine a handshake can take longer than somebody's patience.
MOST_FAILED = 0.01
#: Connections that ended are remembered for three PTOs, and handshakes' leftovers are freed.
SETTLE_S = 3.0


class ManySessions(Zgate):
    """zgate with room for them, and idle ones that stay."""

    name = "sessions"

    def _gateway_config(self) -> dict[str, object]:
        return {
            **super()._gateway_config(),
            "sessions": {"idle_timeout_s": 600, "max": 4 * HELD},
            "limits": {"max_clients": 8 * HELD},
            "edge": {"enabled": "off"},
            "workers": 1,
        }

    def issue_many(self, count: int) -> Path:
        """A folder with so many identities, by number."""
        self._ensure_files()
        folder = self._directory / "many"
        folder.mkdir(exist_ok=True)
        authority = CertificateAuthority.load(self._directory / "pki")
        (folder / "ca.crt").write_bytes(authority.ca_pem)
        now = datetime.now(UTC)
        for number in range(count):
            made = authority.issue(f"idle-{number}", now=now)
            (folder / f"{number}.crt").write_bytes(made.certificate_pem)
            (folder / f"{number}.key").write_bytes(made.key_pem)
        return folder

    def gateway(self) -> Process:
        """The gateway's process, which must be running."""
        assert self.gateway_process is not None
        return self.gateway_process


def measure(record: Record) -> None:
    """Rate, in every round; memory once."""
    with Hosts.open() as hosts:
        peer = ManySessions(hosts)
        record.show(f"issuing {HELD} certificates")
        folder = peer.issue_many(HELD)
        with peer.running():
            gateway = peer.gateway()
            for pid in process_ids(gateway.pid):
                _pin(pid, last=True)
            _dial(hosts, folder, "rate", RATE_CLIENTS, WARM_UP_SECONDS)
            for number in range(1, record.settings.rounds + 1):
                record.show(f"round {number}: sessions up and down")
                _measure_rate(record, hosts, gateway, folder)
        with peer.running():
            record.show(f"holding {HELD} sessions")
            _measure_memory(record, hosts, peer.gateway(), folder)


def _measure_rate(record: Record, hosts: Hosts, gateway: Process, folder: Path) -> None:
    before_s = cpu_seconds(gateway.pid)
    said = _dial(hosts, folder, "rate", RATE_CLIENTS, RATE_SECONDS)
    time.sleep(SETTLE_S)
    used_s = cpu_seconds(gateway.pid) - before_s
    record.put("sessions_per_cpu_s", said["opened"] / used_s)
    record.put("sessions_per_s", said["opened"] / said["seconds"])
    record.put("gateway_cores", used_s / said["seconds"])
    _note_failures(record, said)


def _note_failures(record: Record, said: dict[str, float]) -> None:
    if said["failed"]:
        tried = said["opened"] + said["failed"]
        record.note(f"{said['failed']:g} of {tried:g} failed: {said['failure']}")


def _measure_memory(record: Record, hosts: Hosts, gateway: Process, folder: Path) -> None:
    _dial(hosts, folder, "rate", RATE_CLIENTS, WARM_UP_SECONDS)
    time.sleep(SETTLE_S)
    before = resident_bytes(gateway.pid)
    with _generator(hosts, folder, "hold", HELD, 0.0) as process:
        said = _wait(process, HOLD_TIMEOUT_S)
        time.sleep(SETTLE_S)
        grown = resident_bytes(gateway.pid) - before
    record.put("kb_per_session", grown / said["opened"] / 1e3)
    record.put("held_sessions", said["opened"])
    _note_failures(record, said)
    record.put("gateway_before_mb", before / 1e6)


def _dial(hosts: Hosts, folder: Path, mode: str, count: int, seconds: float) -> dict[str, float]:
    with _generator(hosts, folder, mode, count, seconds) as process:
        return _wait(process, seconds + EXTRA_S)


@contextmanager
def _generator(
    hosts: Hosts, folder: Path, mode: str, count: int, seconds: float
) -> Iterator[Process]:
    process = hosts.client.spawn(
        f"sessions-{time.monotonic_ns()}",
        *(sys.executable, "-m", "bench.load.sessions", mode, str(UPLINK.ip), folder),
        *("--count", str(count), "--seconds", f"{seconds:g}"),
        *("--concurrency", str(CONCURRENCY)),
        environment={"PYTHONPATH": str(ROOT)},
    )
    if mode == "rate":
        _pin(process.pid, last=False)
    try:
        yield process
    finally:
        process.kill()


def _wait(process: Process, timeout_s: float) -> dict[str, float]:
    said = process.wait_for_output(f"^{DONE}(.*)$", timeout_s)
    result: dict[str, float] = json.loads(said[1])
    if not result["opened"]:
        raise MeasurementFailed(f"no session came up: {result['failure']}")
    if result["failed"] > 1 + MOST_FAILED * result["opened"]:
        raise MeasurementFailed(f"{result['failed']:g} sessions failed: {result['failure']}")
    return result


def _pin(pid: int, *, last: bool) -> None:
    """The gateway gets the last processor for itself, the generator the others."""
    every = sorted(os.sched_getaffinity(0))
    if len(every) > 1:
        os.sched_setaffinity(pid, every[-1:] if last else every[:-1])


SESSIONS = Section("sessions", "sessions", measure)
