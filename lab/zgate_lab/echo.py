"""A UDP echo service in a namespace, as a thread of the caller, and a client that asks it."""

from __future__ import annotations

import select
import socket
import threading
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import Self

from zgate_lab.internet import Host
from zgate_lab.namespace import in_namespace

Address = IPv4Address | IPv6Address

_READ_BYTES = 65535


class UdpEcho:
    """Sends every datagram back, both families, while the context lasts.

    Attributes:
        received: source address and length of each datagram so far, in order.
    """

    def __init__(self, host: Host, port: int) -> None:
        with host.namespace.entered():
            self._socket = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self._socket.bind(("::", port))
        self._stop_read, self._stop_write = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name=f"echo on {host.namespace.role}")
        self.received: list[tuple[str, int]] = []

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

    def set_traffic_class(self, traffic_class: int) -> None:
        """DSCP and ECN of the answers, both families."""
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, traffic_class)
        self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, traffic_class)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._stop_read, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._stop_read.fileno() in ready:
                return
            self._answer()

    def _answer(self) -> None:
        try:
            data, source = self._socket.recvfrom(_READ_BYTES)
            self.received.append((str(source[0]).removeprefix("::ffff:"), len(data)))
            self._socket.sendto(data, source)
        except OSError:
            return  # an ICMP error for an earlier answer


class UdpClient:
    """A connected UDP socket in a namespace. Use it as a context manager."""

    def __init__(self, namespace: str, destination: Address, port: int) -> None:
        family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
        with in_namespace(namespace):
            self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.connect((str(destination), port))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.socket.close()

    def ask(self, payload: bytes, timeout_s: float = 5.0) -> bytes | None:
        """Send a payload and wait for one datagram; None when there is none in time.

        Raises:
            OSError: the kernel refused to send it, or an ICMP error came back.
        """
        self.socket.settimeout(timeout_s)
        self.socket.send(payload)
        try:
            return self.socket.recv(_READ_BYTES)
        except TimeoutError:
            return None
