"""A TCP connection between two namespaces over which bytes flow one way until told to stop."""

from __future__ import annotations

import hashlib
import socket
import threading
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import Self

from zgate_lab.errors import LabError
from zgate_lab.internet import Host
from zgate_lab.namespace import in_namespace
from zgate_lab.waiting import wait_until

Address = IPv4Address | IPv6Address

_CHUNK = bytes(range(256)) * 64
_CONNECT_TIMEOUT_S = 10.0
_IDLE_TIMEOUT_S = 30.0
MAX_BYTES = 1 << 30


class TcpStream:
    """Bytes from client to server (`upload`) or the other way, at full speed unless told otherwise.

    Use it as a context manager: entering connects, leaving aborts what still flows.
    """

    def __init__(
        self,
        client: str,
        server: Host,
        address: Address,
        port: int,
        *,
        upload: bool,
        bytes_per_s: float | None = None,
    ):
        self._upload = upload
        self._pause_s = len(_CHUNK) / bytes_per_s if bytes_per_s is not None else 0.0
        self._target = (str(address), port)
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        with server.namespace.entered():
            self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.settimeout(_CONNECT_TIMEOUT_S)
        self._listener.bind((str(address), port))
        self._listener.listen(1)
        with in_namespace(client):
            self.client_socket = socket.socket(family, socket.SOCK_STREAM)
        self._stop = threading.Event()
        self._sent, self._received = hashlib.sha256(), hashlib.sha256()
        self.sent_bytes = self.received_bytes = 0
        self.error: OSError | None = None

    def __enter__(self) -> Self:
        try:
            self.client_socket.settimeout(_CONNECT_TIMEOUT_S)
            self.client_socket.connect(self._target)
            self.server_socket, _ = self._listener.accept()
        except OSError:
            self.client_socket.close()
            raise
        finally:
            self._listener.close()
        ends = (self.client_socket, self.server_socket)
        sender, receiver = ends if self._upload else ends[::-1]
        for end in ends:
            end.settimeout(_IDLE_TIMEOUT_S)
        self._threads = [
            threading.Thread(target=self._send, args=(sender,), name="sender"),
            threading.Thread(target=self._receive, args=(receiver,), name="receiver"),
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        for end in (self.client_socket, self.server_socket):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it is over already
        for thread in self._threads:
            thread.join()
        self.client_socket.close()
        self.server_socket.close()

    def wait_for_more(self, size_bytes: int, timeout_s: float) -> None:
        """Wait until this many more bytes have arrived; LabError when the stream breaks."""
        goal = self.received_bytes + size_bytes

        def arrived() -> bool:
            if self.error is not None:
                raise LabError(f"the TCP stream broke: {self.error}")
            return self.received_bytes >= goal

        wait_until(arrived, timeout_s, f"{size_bytes} more bytes ({self.received_bytes} so far)")

    def finish(self) -> None:
        """Let the sender end, and wait until all has arrived, unchanged.

        Raises:
            LabError: the stream broke, or other bytes arrived than were sent.
        """
        self._stop.set()
        for thread in self._threads:
            thread.join(_IDLE_TIMEOUT_S)
        if self.error is not None:
            raise LabError(f"the TCP stream broke: {self.error}")
        if self._sent.digest() != self._received.digest():
            raise LabError(f"{self.sent_bytes} bytes sent, {self.received_bytes} other received")

    def _send(self, sender: socket.socket) -> None:
        try:
            while not self._stop.is_set() and self.sent_bytes < MAX_BYTES:
                count = sender.send(_CHUNK)
                self._sent.update(_CHUNK[:count])
                self.sent_bytes += count
                if self._pause_s:
                    self._stop.wait(self._pause_s)
            sender.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._note(error)

    def _receive(self, receiver: socket.socket) -> None:
        try:
            while data := receiver.recv(len(_CHUNK)):
                self._received.update(data)
                self.received_bytes += len(data)
        except OSError as error:
            self._note(error)

    def _note(self, error: OSError) -> None:
        if not self._stop.is_set():
            self.error = error
