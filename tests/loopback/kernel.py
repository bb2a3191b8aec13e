"""What the kernel and the store would do, for a gateway without root."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any

from zgate_gateway.pool import PoolExhausted


class FakeTun:
    """A TUN made of a socket pair: what the test injects, the other side reads."""

    def __init__(self) -> None:
        self._ours, self._kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._ours, self._kernels):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.name = "fake0"
        self.has_vnet_header = False
        self.is_gone = False
        self.takes = True
        self.written: list[bytes] = []

    @property
    def fd(self) -> int:
        return self._ours.fileno()

    def inject(self, packet: bytes) -> None:
        """The kernel routes a packet into the device."""
        self._kernels.send(packet)

    def read_batch(self, limit: int) -> list[bytes]:
        packets: list[bytes] = []
        while len(packets) < limit:
            try:
                packets.append(self._ours.recv(65535))
            except BlockingIOError:
                break
        return packets

    def write(self, packet: bytes) -> bool:
        if self.takes:
            self.written.append(packet)
        return self.takes

    def close(self) -> None:
        self._ours.close()
        self._kernels.close()


class FakeKernel:
    """Which clients the kernel knows; `fails` is raised by the next call."""

    def __init__(self) -> None:
        self.clients: dict[str, tuple[IPv4Address | IPv6Address, ...]] = {}
        self.groups: dict[str, tuple[str, ...]] = {}
        self.reaches: dict[str, Sequence[str] | None] = {}
        self.calls: list[str] = []
        self.counted: dict[str, tuple[int, int]] = {}
        self.fails: Exception | None = None

    def _fail(self) -> None:
        error, self.fails = self.fails, None
        if error is not None:
            raise error

    def add_client(
        self,
        name: str,
        groups: Sequence[str],
        addresses: Sequence[IPv4Address | IPv6Address],
        reaches: Sequence[str] | None,
    ) -> None:
        self._fail()
        self.calls.append(f"add {name}")
        self.clients[name] = tuple(addresses)
        self.groups[name] = tuple(groups)
        self.reaches[name] = reaches

    def remove_client(self, name: str) -> None:
        self._fail()
        self.calls.append(f"remove {name}")
        self.clients.pop(name, None)

    def client_bytes(self, name: str) -> tuple[int, int]:
        return self.counted.get(name, (0, 0))


@dataclass
class FakeLease:
    address: IPv4Address | IPv6Address


class FakePool:
    """Hands out addresses in order; a client keeps its own."""

    def __init__(self, network: str) -> None:
        self.network = ip_network(network)
        self.family = self.network.version
        self.gateway = self.network[1]
        self.leases: dict[str, Any] = {}
        self.held: list[str] = []

    def acquire(self, client: str, now: datetime) -> FakeLease:
        if client not in self.leases:
            offset = 2 + len(self.leases)
            if offset >= self.network.num_addresses - 1:
                raise PoolExhausted(f"all addresses of {self.network} are leased")
            self.leases[client] = self.network[offset]
        self.held.append(client)
        return FakeLease(self.leases[client])

    def release(self, client: str, now: datetime) -> None:
        if client in self.held:
            self.held.remove(client)

    def touch_connected(self, now: datetime) -> None:
        return None


class FakeIcmp:
    """Collects what would leave by raw sockets."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def send(self, packet: bytes) -> None:
        self.sent.append(packet)

    def close(self) -> None:
        self.closed = True


class FakeSteering:
    """Which worker gets the packets for an address."""

    def __init__(self) -> None:
        self.owners: dict[bytes, int] = {}

    def assign(self, address: IPv4Address | IPv6Address, owner: int) -> None:
        self.owners[address.packed] = owner

    def release(self, address: IPv4Address | IPv6Address, owner: int) -> None:
        if self.owners.get(address.packed) == owner:
            del self.owners[address.packed]
