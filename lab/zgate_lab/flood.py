"""Junk at a UDP port, from many sources, as fast as it is told: `python -m zgate_lab.flood`.

Frames leave as a network card's would arrive: BPF_PROG_TEST_RUN with live frames (Linux 5.18) puts
them on the peer of a veth without a socket buffer, so that the generator costs little of the
machine that it shares with what it tests. A veth takes such frames where an XDP program or GRO is
on. It ends by itself, and prints one JSON line: how many it sent, in how long, for how much CPU.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address

from zgate_lab.errors import LabError
from zgate_lab.tiny_bpf import ATTRIBUTES_BYTES, BPF_SYSCALLS

MAX_SECONDS = 120.0
MAX_RATE_PER_S = 2_000_000
FRAMES = 512
READY = "flooding"

_BATCH = 1024
_THREADS = 32
_LIVE_BATCH = 64
_PROG_LOAD, _PROG_TEST_RUN, _TYPE_XDP, _LIVE_FRAMES = 5, 10, 6, 2
_TICK_S = 0.001
# What fell due longer ago than this is left out: a late burst would be another load.
_MAX_BEHIND_S = 0.05
# Of 198.18.0.0/15, which is there for benches (RFC 2544). The low half is made while sending.
_SOURCE = IPv4Address("198.19.0.0")

Maker = Callable[[random.Random], bytes]


@dataclass(frozen=True, slots=True)
class Flooded:
    """What was sent."""

    packets: int
    seconds: float
    cpu_seconds: float

    @property
    def rate_per_s(self) -> float:
        """Packets per second."""
        return self.packets / self.seconds if self.seconds else 0.0


def _noise(source: random.Random) -> bytes:
    """Random bytes of any length."""
    return source.randbytes(source.randint(1, 120))


def _short_headers(source: random.Random) -> bytes:
    """What looks like packets of connections that there are not."""
    return bytes([0x40 | source.getrandbits(6)]) + source.randbytes(60)


def _unknown_versions(source: random.Random) -> bytes:
    return b"\xc0" + source.randbytes(4) + b"\x08" + source.randbytes(1194)


def _initials(source: random.Random) -> bytes:
    """Well-formed first packets of version 1, with nothing that decrypts inside."""
    head = b"\xc3\0\0\0\1\x08" + source.randbytes(8) + b"\0\0" + struct.pack("!H", 0x4000 | 1182)
    return (head + source.randbytes(1200))[:1200]


KINDS: dict[str, Maker] = {
    "noise": _noise,
    "short": _short_headers,
    "versions": _unknown_versions,
    "initials": _initials,
}


def make_frame(payload: bytes, target: IPv4Address, port: int, mac: bytes) -> bytes:
    """An Ethernet frame with UDP over IPv4; no UDP checksum, which IPv4 allows."""
    udp = struct.pack("!HHHH", 40000, port, 8 + len(payload), 0) + payload
    head = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x45, 0, 20 + len(udp), 0xFFFF, 0, 64, 17, 0),
        *(_SOURCE.packed, target.packed),
    )
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = 0xFFFF - ((total & 0xFFFF) + (total >> 16))
    head = head[:10] + struct.pack("!H", checksum) + head[12:]
    return mac + b"\x02\0\0\0\0\1" + b"\x08\0" + head + udp


def make_frames(
    kinds: list[str], target: IPv4Address, port: int, mac: bytes, count: int = FRAMES
) -> list[bytes]:
    """So many frames, of each kind as many. The same every time."""
    dice = random.Random(port)
    makers = [KINDS[kind] for kind in kinds]
    frames = []
    for number in range(count):
        payload = makers[number % len(makers)](dice)
        frames.append(make_frame(payload, target, port, mac))
    return frames


def _instruction(code: int, registers: int, offset: int, immediate: int) -> bytes:
    return struct.pack("<BBhi", code, registers, offset, immediate)


def _program(interface_index: int) -> bytes:
    """An XDP program that gives each frame another source and sends it to the interface.

    The low half of the source is random, and the IP identification its complement: so the
    header's checksum stays what it is.
    """
    return b"".join(
        (
            _instruction(0xBF, 0x16, 0, 0),  # r6 = context
            _instruction(0x85, 0, 0, 7),  # r0 = bpf_get_prandom_u32()
            _instruction(0x61, 0x62, 0, 0),  # r2 = data
            _instruction(0x61, 0x63, 4, 0),  # r3 = data_end
            _instruction(0xBF, 0x24, 0, 0),
            _instruction(0x07, 0x04, 0, 34),
            _instruction(0x2D, 0x34, 7, 0),  # too short: drop
            _instruction(0x6B, 0x02, 28, 0),  # source, low half
            _instruction(0xA7, 0x00, 0, 0xFFFF),
            _instruction(0x6B, 0x02, 18, 0),  # identification
            _instruction(0xB7, 0x01, 0, interface_index),
            _instruction(0xB7, 0x02, 0, 0),
            _instruction(0x85, 0, 0, 23),  # bpf_redirect(interface, 0)
            _instruction(0x95, 0, 0, 0),
            _instruction(0xB7, 0x00, 0, 1),  # XDP_DROP
            _instruction(0x95, 0, 0, 0),
        )
    )


class Sender:
    """Sends prepared frames round and round, each a few hundred times."""

    def __init__(self, interface: str, frames: list[bytes]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._load(_program(socket.if_nametoindex(interface)))
        self._buffers = [ctypes.create_string_buffer(frame, len(frame)) for frame in frames]
        self._next = 0

    def send(self, count: int) -> int:
        """Send up to `count`, one system call; how many it tried."""
        data = self._buffers[self._next]
        self._next = (self._next + 1) % len(self._buffers)
        attributes = struct.pack(
            "=iIIIQQIIIIQQIII",
            *(self._fd, 0, len(data), 0, ctypes.addressof(data), 0, count, 0),
            *(0, 0, 0, 0, _LIVE_FRAMES, 0, min(count, _LIVE_BATCH)),
        )
        self._bpf(_PROG_TEST_RUN, attributes)
        return count

    def close(self) -> None:
        """Unload the program."""
        os.close(self._fd)

    def _load(self, code: bytes) -> int:
        text = ctypes.create_string_buffer(code, len(code))
        licence = ctypes.create_string_buffer(b"GPL")
        attributes = struct.pack(
            "=IIQQ", _TYPE_XDP, len(code) // 8, ctypes.addressof(text), ctypes.addressof(licence)
        )
        return self._bpf(_PROG_LOAD, attributes)

    def _bpf(self, command: int, attributes: bytes) -> int:
        buffer = ctypes.create_string_buffer(attributes, ATTRIBUTES_BYTES)
        number = BPF_SYSCALLS.get(os.uname().machine)
        if number is None:
            raise LabError(f"the lab does not know bpf(2)'s number on {os.uname().machine}")
        result = int(self._libc.syscall(number, command, buffer, ATTRIBUTES_BYTES))
        if result < 0:
            raise LabError(f"bpf({command}): {os.strerror(ctypes.get_errno())}")
        return result


class Flood:
    """Sends at a rate, for a time, in several threads.

    A call of the kernel's sends its frames within a millisecond and then waits some thirty for
    the end of a grace period: so many calls are under way at once.
    """

    def __init__(self, sender: Sender, rate_per_s: float, seconds: float) -> None:
        self._sender = sender
        self._rate_per_s = rate_per_s
        self._seconds = seconds
        self._lock = threading.Lock()
        self._accounted = 0
        self._sent = 0
        self._errors: list[LabError] = []
        self._start_s = 0.0

    def run(self) -> Flooded:
        """Send, and say what was sent.

        Raises:
            LabError: the kernel refused.
        """
        self._start_s = time.monotonic()
        cpu_s = time.process_time()
        threads = [threading.Thread(target=self._work) for _ in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]
        elapsed_s = time.monotonic() - self._start_s
        return Flooded(self._sent, elapsed_s, time.process_time() - cpu_s)

    def _work(self) -> None:
        try:
            while (elapsed_s := time.monotonic() - self._start_s) < self._seconds:
                count = self._take(elapsed_s)
                if count:
                    self._sender.send(count)
                else:
                    time.sleep(_TICK_S)
        except LabError as error:
            self._errors.append(error)

    def _take(self, elapsed_s: float) -> int:
        """How many are due, as far as one call goes. What is long overdue is left out."""
        with self._lock:
            due = int(elapsed_s * self._rate_per_s) - self._accounted
            late = max(0, due - int(self._rate_per_s * _MAX_BEHIND_S) - _BATCH)
            count = min(due - late, _BATCH)
            if count < _LIVE_BATCH:
                return 0
            self._accounted += late + count
            self._sent += count
            return count


def main(argv: list[str] | None = None) -> int:
    """The command line; the lab starts it in a namespace of its own."""
    parser = argparse.ArgumentParser(prog="zgate_lab.flood", description=__doc__)
    parser.add_argument("interface")
    parser.add_argument("mac", help="of whoever is to take the frames")
    parser.add_argument("target", type=IPv4Address)
    parser.add_argument("--port", type=int, default=443)
    parser.add_argument("--rate", type=float, default=100_000, help="packets per second")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--kinds", default=",".join(KINDS), help="of " + ", ".join(KINDS))
    options = parser.parse_args(argv)
    kinds = options.kinds.split(",")
    if not set(kinds) <= set(KINDS):
        parser.error(f"kinds are {', '.join(KINDS)}")
    if not 0 < options.rate <= MAX_RATE_PER_S or not 0 < options.seconds <= MAX_SECONDS:
        parser.error(f"at most {MAX_RATE_PER_S} packets per second, and {MAX_SECONDS:g} s")
    mac = bytes.fromhex(options.mac.replace(":", ""))
    sender = Sender(options.interface, make_frames(kinds, options.target, options.port, mac))
    print(READY, os.getpid(), flush=True)
    try:
        result = Flood(sender, options.rate, options.seconds).run()
    finally:
        sender.close()
    print(json.dumps({**asdict(result), "rate_per_s": result.rate_per_s}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
