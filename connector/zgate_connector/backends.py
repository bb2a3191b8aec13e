"""Where backends are: names become addresses beforehand, not when a client waits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Iterable
from ipaddress import ip_address

logger = logging.getLogger(__name__)

REFRESH_S = 10.0
_RETRY_S = 1.0
# As for what is accepted in the chamber (`chamber_child`).
_KEEPALIVE_IDLE_S = 60
_KEEPALIVE_INTERVAL_S = 15
_KEEPALIVE_PROBES = 4
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class BackendNames:
    """Addresses of hosts by name, looked up again and again; an address stands for itself.

    A name that does not resolve any more keeps the addresses that it had.
    """

    def __init__(self, hosts: Iterable[str]) -> None:
        self._found: dict[str, tuple[str, ...]] = {}
        self._looked_up: dict[str, asyncio.Event] = {}
        for host in sorted(set(hosts)):
            try:
                self._found[host] = (str(ip_address(host)),)
            except ValueError:
                self._looked_up[host] = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to look names up."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._keep(name)) for name in self._looked_up]

    async def close(self) -> None:
        """Stop looking."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def addresses(self, host: str) -> tuple[str, ...]:
        """What is known now; empty: the name has not been resolved."""
        return self._found.get(host, ())

    async def look_up(self, host: str) -> tuple[str, ...]:
        """What is known, at the end of the first attempt at the latest."""
        if host in self._looked_up:
            await self._looked_up[host].wait()
        return self.addresses(host)

    async def _keep(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
                self._found[name] = tuple(dict.fromkeys(str(one[4][0]) for one in found))
            except OSError as error:
                logger.info(
                    "backend %(backend)s: %(error)s",
                    {"event": "backend_unresolved", "backend": name, "error": error},
                )
            self._looked_up[name].set()
            await asyncio.sleep(REFRESH_S if name in self._found else _RETRY_S)


async def connect_tcp(addresses: Iterable[str], port: int) -> socket.socket:
    """Open a connection to the first address that takes one.

    Raises:
        OSError: none does; the last one's error. ConnectionError without any address.
    """
    failure: OSError = ConnectionError("the backend's name does not resolve")
    for address in addresses:
        sock = _tcp_socket(address)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (address, port))
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            close_with_reset(sock)  # it may just have been accepted
            raise
        else:
            return sock
    raise failure


def connect_udp(addresses: Iterable[str], port: int) -> socket.socket:
    """A UDP socket connected to the first address that there is a way to.

    Raises:
        OSError: as `connect_tcp`.
    """
    failure: OSError = ConnectionError("the backend's name does not resolve")
    for address in addresses:
        sock = socket.socket(_family(address), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect((address, port))
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure


def close_with_reset(sock: socket.socket) -> None:
    """Close, and tell the other end by a reset; what it has not received yet is lost."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


def _tcp_socket(address: str) -> socket.socket:
    sock = socket.socket(_family(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
    return sock


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
