"""What lies between a client and a gateway on loopback: packets can be lost, changed, held back.

Also a peer's engine that is aioquic alone, and a TUN with vnet headers made of sockets.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any

from zgate_datapath.engine import Opened
from zgate_datapath.python_engine import PythonEngine
from zgate_protocol.drop_reason import DropReason

from ...loopback import FakeTun  # noqa: TID252

VNET_HEADER = bytes(10)
_BUFFER_BYTES = 1 << 22

Change = Callable[[bytes], Sequence[bytes]]


def unchanged(packet: bytes) -> Sequence[bytes]:
    """Let it pass."""
    return [packet]


def lost(packet: bytes) -> Sequence[bytes]:
    """Let it not pass."""
    return []


def tampered(packet: bytes, at: int = -1) -> bytes:
    """The packet with one bit changed."""
    changed = bytearray(packet)
    changed[at] ^= 1
    return bytes(changed)


def has_short_header(packet: bytes) -> bool:
    """Whether it is a 1-RTT packet."""
    return packet[:1] < b"\x80"


class Wire:
    """A relay in front of a gateway: clients dial `address`.

    `up` and `down` say what becomes of each packet; `sent_up` and `sent_down` hold what passed, and
    `bytes_up` and `bytes_down` count it since the last `move`.
    """

    def __init__(self, gateway_address: tuple[Any, ...]) -> None:
        self._loop = asyncio.get_running_loop()
        self._gateway = gateway_address
        self._family = socket.AF_INET6 if ":" in gateway_address[0] else socket.AF_INET
        self._client: tuple[Any, ...] | None = None
        self._front = self._open(self._from_client)
        self._backs: list[socket.socket] = []
        self.up: Change = unchanged
        self.down: Change = unchanged
        self.sent_up: list[bytes] = []
        self.sent_down: list[bytes] = []
        self.move()

    @property
    def address(self) -> tuple[Any, ...]:
        """Where the client sends to."""
        return self._front.getsockname()

    def _open(self, read: Callable[[socket.socket], None]) -> socket.socket:
        made = socket.socket(self._family, socket.SOCK_DGRAM)
        made.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            made.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        made.bind(("::1" if self._family == socket.AF_INET6 else "127.0.0.1", 0))
        self._loop.add_reader(made.fileno(), read, made)
        return made

    def move(self) -> None:
        """The gateway sees the client at another address from now on; the old one still hears."""
        self._backs.append(self._open(self._from_gateway))
        self.bytes_up = self.bytes_down = 0

    def _from_client(self, front: socket.socket) -> None:
        for _ in range(256):
            try:
                packet, self._client = front.recvfrom(65535)
            except BlockingIOError:
                return
            for out in self.up(packet):
                self.send_up(out)

    def send_up(self, packet: bytes) -> None:
        """To the gateway, from where the client is now."""
        self.sent_up.append(packet)
        self.bytes_up += len(packet)
        self._backs[-1].sendto(packet, self._gateway)

    def send_up_from_elsewhere(self, packet: bytes) -> None:
        """To the gateway, from an address of nobody."""
        with socket.socket(self._family, socket.SOCK_DGRAM) as other:
            other.sendto(packet, self._gateway)

    def _from_gateway(self, back: socket.socket) -> None:
        for _ in range(256):
            try:
                packet = back.recv(65535)
            except (BlockingIOError, ConnectionRefusedError):
                return
            if back is self._backs[-1]:
                self.bytes_down += len(packet)
            for out in self.down(packet):
                self.send_down(out)

    def send_down(self, packet: bytes) -> None:
        """To the client."""
        self.sent_down.append(packet)
        if self._client is not None:
            self._front.sendto(packet, self._client)

    def close(self) -> None:
        """Nothing passes any more."""
        for each in (self._front, *self._backs):
            self._loop.remove_reader(each.fileno())
            each.close()


class Holder:
    """Holds back the first 1-RTT packet of so many bytes, and lets others pass."""

    def __init__(self, least_bytes: int = 100) -> None:
        self.held: bytes | None = None
        self.passed = 0
        self._least_bytes = least_bytes

    def __call__(self, packet: bytes) -> Sequence[bytes]:
        if self.held is None and has_short_header(packet) and len(packet) >= self._least_bytes:
            self.held = packet
            return []
        self.passed += 1
        return [packet]


class AioquicAlone(PythonEngine):
    """No engine: aioquic opens, seals and acknowledges every packet."""

    name = "aioquic"

    def open(self, packets: Sequence[bytes], address: Any, now: float) -> Opened:
        return Opened(rest=list(packets))

    def enqueue(self, frame: bytes) -> DropReason:
        self._quic.send_datagram_frame(frame[1:])
        return DropReason.NONE


class VnetTun(FakeTun):
    """A TUN with vnet headers: every read and write begins with one."""

    def __init__(self) -> None:
        super().__init__()
        self.has_vnet_header = True
        self.takes_tcp = self.takes_udp = False
        self._kernels.setblocking(False)

    def inject(self, packet: bytes) -> None:
        super().inject(VNET_HEADER + packet)

    def delivered(self) -> list[bytes]:
        """What the engine has written since the last call, without the vnet headers."""
        packets = []
        while True:
            try:
                packets.append(self._kernels.recv(65535)[len(VNET_HEADER) :])
            except BlockingIOError:
                return packets
