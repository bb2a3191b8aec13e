"""Minutes of hard use: bulk transfers both ways over a bad path, with new keys and new addresses.

    python tests/soak/soak.py 300

A gateway and an agent with the native engine, as their command lines; between them an emulated
WAN that loses, reorders and duplicates. All the time TCP streams flow both ways whose bytes are
compared by SHA-256, both ends change keys every 10,000 packets, and the agent's device changes its
address. Ends with a table, and with status 1 if a byte was wrong, a stream stood still, the session
was lost, or memory grew.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zgate_lab.deployment import Deployment
from zgate_lab.errors import LabError
from zgate_lab.internet import Internet
from zgate_lab.stream import TcpStream
from zgate_lab.waiting import wait_until
from zgate_lab.wan import WanSettings

KEY_UPDATE_PACKETS = 10_000
MOVE_INTERVAL_S = 7.0
SAMPLE_INTERVAL_S = 2.0
STREAM_S = 10.0
STUCK_S = 30.0
UPLOAD_PORT, DOWNLOAD_PORT = 5002, 5003
HOST_NUMBERS = tuple(range(60, 90))
WAN = WanSettings(delay_ms=5, jitter_ms=1, loss=0.002, reorder=0.01, duplicate=0.005)
#: Memory may settle for this share of the time; after that it may grow by so much in all.
SETTLING = 0.3
MOST_GROWTH_BYTES = 8 << 20

POLICY = """\
version: "1.0"
metadata: {name: soak}
default_action: deny
clients:
  alice:
    rules:
      - {id: office, type: ip_cidr, action: allow, destinations: [10.20.0.0/24], protocols: [tcp]}
"""


class Transfer:
    """Streams one way, one after the other, each compared at its end."""

    def __init__(self, zgate: Deployment, port: int, *, upload: bool) -> None:
        self._zgate = zgate
        self._port = port
        self._upload = upload
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.streams = self.carried_bytes = 0
        self.longest_silence_s = 0.0
        self.failures: list[str] = []

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._stream()
            except (LabError, OSError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                self._stop.wait(1.0)

    def _stream(self) -> None:
        internet = self._zgate.internet
        office = internet.office
        namespace = internet.device1.namespace.name
        with TcpStream(namespace, office, office.ipv4, self._port, upload=self._upload) as stream:
            end_s = time.monotonic() + STREAM_S
            while time.monotonic() < end_s and not self._stop.is_set():
                before_s = time.monotonic()
                stream.wait_for_more(1, STUCK_S)
                self.longest_silence_s = max(self.longest_silence_s, time.monotonic() - before_s)
                time.sleep(0.05)
            stream.finish()
            self.streams += 1
            self.carried_bytes += stream.received_bytes


def resident_bytes(pid: int) -> int:
    """A process's memory, with that of its children."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) * 1024
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return total + sum(resident_bytes(int(child)) for child in children)


@dataclass
class Memory:
    """Samples of one process, and how they grew."""

    pid: int
    samples: list[tuple[float, int]] = field(default_factory=list)

    def sample(self) -> None:
        self.samples.append((time.monotonic(), resident_bytes(self.pid)))

    @property
    def settled(self) -> list[tuple[float, int]]:
        return self.samples[int(len(self.samples) * SETTLING) :]

    @property
    def slope_bytes_per_s(self) -> float:
        """Least squares over what follows the settling."""
        points = self.settled
        mean_s = sum(at for at, _ in points) / len(points)
        mean = sum(size for _, size in points) / len(points)
        spread = sum((at - mean_s) ** 2 for at, _ in points)
        return sum((at - mean_s) * (size - mean) for at, size in points) / spread if spread else 0.0

    @property
    def growth_bytes(self) -> float:
        return self.slope_bytes_per_s * (self.settled[-1][0] - self.settled[0][0])


@dataclass
class Result:
    """What happened."""

    seconds: float
    up: Transfer
    down: Transfer
    moves: int
    key_updates: int
    reconnects: int
    statistics: dict[str, Any]
    gateway: Memory
    agent: Memory

    def failures(self) -> list[str]:
        found = [f"up: {text}" for text in self.up.failures]
        found += [f"down: {text}" for text in self.down.failures]
        if self.reconnects:
            found.append(f"the session was lost {self.reconnects} times")
        if not self.moves or not self.key_updates:
            found.append("nothing moved, or no key changed: the soak was none")
        for name, memory in (("gateway", self.gateway), ("agent", self.agent)):
            if memory.growth_bytes > MOST_GROWTH_BYTES:
                found.append(f"the {name} grew by {memory.growth_bytes / 1e6:.1f} MB")
        return found

    def table(self) -> str:
        def rate(transfer: Transfer) -> str:
            mbit = transfer.carried_bytes * 8 / self.seconds / 1e6
            return (
                f"{transfer.carried_bytes / 1e6:,.0f} MB in {transfer.streams} streams, "
                f"{mbit:.0f} Mbit/s, longest silence {transfer.longest_silence_s:.2f} s"
            )

        def memory(one: Memory) -> str:
            sizes = [size / 1e6 for _, size in one.settled]
            slope = one.slope_bytes_per_s * 60 / 1e3
            return f"{sizes[0]:.1f} MB, then {sizes[-1]:.1f} MB; {slope:+.0f} kB per minute"

        rows = [
            ("duration", f"{self.seconds:.0f} s"),
            (
                "path",
                f"{WAN.delay_ms:g} ms, {WAN.loss:.1%} lost, {WAN.reorder:.1%} reordered, "
                f"{WAN.duplicate:.1%} duplicated",
            ),
            ("up", rate(self.up)),
            ("down", rate(self.down)),
            ("key updates", str(self.key_updates)),
            ("address changes", str(self.moves)),
            ("sessions lost", str(self.reconnects)),
            ("agent's packets lost", str(self.statistics.get("lost_packets"))),
            ("agent's probe timeouts", str(self.statistics.get("probe_timeouts"))),
            ("gateway's memory", memory(self.gateway)),
            ("agent's memory", memory(self.agent)),
            ("failures", "; ".join(self.failures()) or "none"),
        ]
        return "\n".join(f"{name:24}{value}" for name, value in rows)


def soak(zgate: Deployment, seconds: float, *, log: bool = False) -> Result:
    """Use a deployment hard for so long. Nothing is started in it yet."""
    environment = {"ZGATE_KEY_UPDATE_PACKETS": str(KEY_UPDATE_PACKETS)}
    internet = zgate.internet
    internet.shape_path(WAN)
    gateway = _with_environment(environment, lambda: zgate.start_gateway(engine="native"))
    _with_environment(
        environment, lambda: zgate.start_agent("alice", internet.device1, engine="native")
    )
    up = Transfer(zgate, UPLOAD_PORT, upload=True)
    down = Transfer(zgate, DOWNLOAD_PORT, upload=False)
    memories = Memory(gateway.pid), Memory(zgate.agents["alice"].pid)
    began_s = time.monotonic()
    up.start()
    down.start()
    try:
        moves = _disturb(zgate, began_s + seconds, memories, log=log)
    finally:
        up.finish()
        down.finish()
    status = zgate.agent_status("alice")
    statistics = status.get("counters", {})
    return Result(
        time.monotonic() - began_s,
        up,
        down,
        moves,
        int(statistics.get("key_updates", 0)),
        int(status["reconnects"]),
        statistics,
        *memories,
    )


def _with_environment(environment: dict[str, str], start: Any) -> Any:
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        return start()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _disturb(zgate: Deployment, until_s: float, memories: Sequence[Memory], *, log: bool) -> int:
    """Move the device again and again until the time is over; how often the gateway followed."""
    internet = zgate.internet
    moves = 0
    next_move_s = time.monotonic() + MOVE_INTERVAL_S
    while time.monotonic() < until_s:
        for memory in memories:
            memory.sample()
        if time.monotonic() >= next_move_s:
            moved = internet.move_device(internet.device1, HOST_NUMBERS[moves % len(HOST_NUMBERS)])
            wait_until(
                lambda: zgate.sessions()["alice"]["peer"].startswith(f"{moved.ipv4}:"),  # noqa: B023
                STUCK_S,
                f"the gateway to follow to {moved.ipv4}",
            )
            moves += 1
            next_move_s = time.monotonic() + MOVE_INTERVAL_S
            if log:
                print(f"{moves} moves, {memories[0].samples[-1][1] / 1e6:.1f} MB", flush=True)
        time.sleep(SAMPLE_INTERVAL_S)
    return moves


def main() -> int:
    """Soak for as many seconds as the command line says."""
    parser = argparse.ArgumentParser(description="Use gateway and agent hard for some minutes.")
    parser.add_argument("seconds", type=float, nargs="?", default=300.0)
    seconds = parser.parse_args().seconds
    with Internet.open() as internet:
        zgate = Deployment(internet, POLICY)
        zgate.make_identities({"alice": []})
        try:
            result = soak(zgate, seconds, log=True)
        finally:
            zgate.stop()
    print(result.table())
    return 1 if result.failures() else 0


if __name__ == "__main__":
    sys.exit(main())
