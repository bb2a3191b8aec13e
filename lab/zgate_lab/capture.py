"""What passes an interface, as IP packets: an AF_PACKET socket read by a thread."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import TracebackType
from typing import Self

from zgate_lab.lab import Namespace
from zgate_lab.waiting import wait_until

Address = IPv4Address | IPv6Address

MAX_PACKETS = 200_000

_ETH_P_ALL = 0x0003
_PACKET_OUTGOING = 4
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 32 << 20
_READ_BYTES = 65535
_IPV4_HEADER_BYTES, _IPV6_HEADER_BYTES = 20, 40


@dataclass(frozen=True, slots=True)
class CapturedPacket:
    """One IP packet, headers and all, as it went by."""

    is_outgoing: bool
    data: bytes

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.data[0] >> 4

    @property
    def source(self) -> Address:
        """Where it says it comes from."""
        return ip_address(self.data[12:16] if self.version == 4 else self.data[8:24])

    @property
    def destination(self) -> Address:
        """Where it goes."""
        return ip_address(self.data[16:20] if self.version == 4 else self.data[24:40])

    @property
    def hop_limit(self) -> int:
        """TTL or hop limit."""
        return self.data[8] if self.version == 4 else self.data[7]

    @property
    def traffic_class(self) -> int:
        """DSCP and ECN: the TOS byte or the traffic class."""
        if self.version == 4:
            return self.data[1]
        return (self.data[0] & 0x0F) << 4 | self.data[1] >> 4

    @property
    def protocol(self) -> int:
        """Protocol or next header."""
        return self.data[9] if self.version == 4 else self.data[6]

    @property
    def payload(self) -> bytes:
        """What follows the IP header (IPv6: the fixed one)."""
        size = (self.data[0] & 0x0F) * 4 if self.version == 4 else _IPV6_HEADER_BYTES
        return self.data[size:]


class Capture:
    """Collects the IP packets that an interface sends and receives while the context lasts.

    At most `MAX_PACKETS` are kept. Super-packets of segmentation offload are one packet here.
    """

    def __init__(self, namespace: Namespace, interface: str) -> None:
        with namespace.entered():
            # SOCK_DGRAM: no link-layer header, the same on Ethernet and on a TUN.
            self._socket = socket.socket(
                socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL)
            )
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            self._socket.bind((interface, _ETH_P_ALL))
        self._stop_read, self._stop_write = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name=f"capture on {interface}")
        self.packets: list[CapturedPacket] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop_write.close()
        self._thread.join()
        self._stop_read.close()
        self._socket.close()

    def wait_for(
        self, fits: Callable[[CapturedPacket], bool], what: str, timeout_s: float = 5.0
    ) -> CapturedPacket:
        """Wait for a packet that fits; the first one."""
        found = wait_until(
            lambda: [one for one in list(self.packets) if fits(one)], timeout_s, what
        )
        return found[0]

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._stop_read, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._socket.fileno() in ready:
                self._take()
            elif self._stop_read.fileno() in ready:
                return

    def _take(self) -> None:
        try:
            data, address = self._socket.recvfrom(_READ_BYTES)
        except OSError:
            return  # the interface has gone
        is_ip = (len(data) >= _IPV4_HEADER_BYTES and data[0] >> 4 == 4) or (
            len(data) >= _IPV6_HEADER_BYTES and data[0] >> 4 == 6
        )
        if is_ip and len(self.packets) < MAX_PACKETS:
            self.packets.append(CapturedPacket(address[2] == _PACKET_OUTGOING, data))
