"""A WAN between two namespaces: delay, jitter, loss, duplicates, reordering, a rate limit.

For kernels without netem. One TUN in each namespace, and this process carries packets between
them, holding each back for as long as the settings say. It is the only path whose behaviour is
emulated; everything else in the lab is the kernel's own.

    python -m zgate_lab.wan NAMESPACE_A NAMESPACE_B --interface wan0 --delay-ms 20 --loss 0.01
"""

import argparse
import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time
from dataclasses import dataclass, fields

from zgate_lab.namespace import in_namespace, ip_batch

READY = "wan ready"
DEFAULT_LIFETIME_S = 3600.0
READS_PER_TURN = 64
QUEUE_LENGTH_PACKETS = 2000

TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000


@dataclass(frozen=True, slots=True)
class WanSettings:
    """What the path does to packets, the same in both directions. Probabilities are 0 to 1."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0  # the delay varies by up to this much, evenly, both ways
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0  # this share is sent on without delay, ahead of those that wait
    rate_mbit: float = 0.0  # 0: unlimited
    queue_ms: float = 500.0  # with a rate: what would wait longer than this is lost
    seed: int = 0  # 0: another sequence in every run

    def to_arguments(self) -> list[str]:
        """Return the command line options of these settings."""
        return [
            f"--{field.name.replace('_', '-')}={getattr(self, field.name)}"
            for field in fields(self)
        ]


class WanPath:
    """The packets under way, without sockets or clock: the caller says what time it is."""

    def __init__(self, settings: WanSettings):
        self._settings = settings
        self._random = random.Random(settings.seed or None)
        self._under_way: list[tuple[float, int, int, bytes]] = []
        self._sequence = 0
        self._line_free_s = [0.0, 0.0]
        self.lost_packets = 0

    def send(self, now_s: float, towards: int, packet: bytes) -> None:
        """Take a packet in, towards end 0 or 1."""
        if self._random.random() < self._settings.loss:
            self.lost_packets += 1
            return
        copies = 2 if self._random.random() < self._settings.duplicate else 1
        for _ in range(copies):
            self._queue(now_s, towards, packet)

    def next_due_s(self) -> float | None:
        """When the next packet arrives; None with nothing under way."""
        return self._under_way[0][0] if self._under_way else None

    def receive(self, now_s: float) -> list[tuple[int, bytes]]:
        """Return the packets that have arrived by now, each with its end."""
        arrived = []
        while self._under_way and self._under_way[0][0] <= now_s:
            _, _, towards, packet = heapq.heappop(self._under_way)
            arrived.append((towards, packet))
        return arrived

    def _queue(self, now_s: float, towards: int, packet: bytes) -> None:
        leaves_s = now_s
        if self._settings.rate_mbit:
            leaves_s = max(self._line_free_s[towards], now_s)
            leaves_s += len(packet) * 8 / self._settings.rate_mbit / 1e6
            if leaves_s - now_s > self._settings.queue_ms / 1e3:
                self.lost_packets += 1
                return
            self._line_free_s[towards] = leaves_s
        if self._random.random() >= self._settings.reorder:
            leaves_s += max(0.0, self._draw_delay_ms()) / 1e3
        self._sequence += 1
        heapq.heappush(self._under_way, (leaves_s, self._sequence, towards, packet))

    def _draw_delay_ms(self) -> float:
        jitter_ms = self._settings.jitter_ms
        return self._settings.delay_ms + self._random.uniform(-jitter_ms, jitter_ms)


def open_tun(namespace: str, interface: str) -> int:
    """Make a TUN in a namespace, still down; return its non-blocking descriptor.

    The interface lives as long as the descriptor is open.
    """
    with in_namespace(namespace):
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        request = struct.pack("16sH22x", interface.encode(), IFF_TUN | IFF_NO_PI)
        fcntl.ioctl(descriptor, TUNSETIFF, request)
    return descriptor


def _open_end(namespace: str, interface: str, mtu_bytes: int) -> int:
    descriptor = open_tun(namespace, interface)
    settings = f"mtu {mtu_bytes} txqueuelen {QUEUE_LENGTH_PACKETS} up"
    ip_batch(namespace, [f"link set dev {interface} {settings}"])
    return descriptor


def carry(path: WanPath, descriptors: tuple[int, int], lifetime_s: float) -> None:
    """Carry packets until the time is over or the process that started this one is gone."""
    started_by = os.getppid()
    ends = {descriptors[0]: 1, descriptors[1]: 0}  # what is read at one goes to the other
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    end_s = time.monotonic() + lifetime_s
    while time.monotonic() < end_s and os.getppid() == started_by:
        for descriptor, _ in poll.poll(_patience_ms(path)):
            _read_into(path, descriptor, ends[descriptor])
        for towards, packet in path.receive(time.monotonic()):
            _write(descriptors[towards], packet)


def _patience_ms(path: WanPath) -> float:
    due_s = path.next_due_s()
    if due_s is None:
        return 100.0
    wait_ms = (due_s - time.monotonic()) * 1e3
    # poll() rounds up to whole milliseconds: in the last one, look without waiting.
    return 0.0 if wait_ms < 1.0 else min(100.0, wait_ms - 0.5)


def _read_into(path: WanPath, descriptor: int, towards: int) -> None:
    for _ in range(READS_PER_TURN):
        try:
            packet = os.read(descriptor, 65535)
        except BlockingIOError:
            return
        path.send(time.monotonic(), towards, packet)


def _write(descriptor: int, packet: bytes) -> None:
    try:
        os.write(descriptor, packet)
    except OSError as error:  # the far end refuses it (its interface is down): lost, as on a wire
        print(f"lost a packet of {len(packet)} bytes: {error}", file=sys.stderr)


def main() -> None:
    """Run the emulator until it is told to stop."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("namespaces", nargs=2)
    parser.add_argument("--interface", default="wan0")
    parser.add_argument("--mtu-bytes", type=int, default=1500)
    parser.add_argument("--lifetime-s", type=float, default=DEFAULT_LIFETIME_S)
    for field in fields(WanSettings):
        kind = int if field.name == "seed" else float
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=kind, default=field.default)
    arguments = parser.parse_args()
    settings = WanSettings(
        **{one.name: getattr(arguments, one.name) for one in fields(WanSettings)}
    )
    one, other = (
        _open_end(name, arguments.interface, arguments.mtu_bytes) for name in arguments.namespaces
    )
    print(READY, flush=True)
    carry(WanPath(settings), (one, other), arguments.lifetime_s)


if __name__ == "__main__":
    main()
