"""Both ends of a TCP flow, as threads of the test."""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BLOCK = random.Random(5).randbytes(1 << 20)
READ_BYTES = 1 << 20


def reset(sock: socket.socket) -> None:
    """Close with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def send_blocks(sock: socket.socket, count: int) -> str:
    """Send so many blocks, none of them twice the same, then the end; their checksum."""
    digest = hashlib.sha256()
    for number in range(count):
        block = number.to_bytes(8, "big") + BLOCK[8:]
        sock.sendall(block)
        digest.update(block)
    sock.shutdown(socket.SHUT_WR)
    return digest.hexdigest()


def receive_all(sock: socket.socket) -> tuple[int, str]:
    """Everything up to the end: length and checksum."""
    digest = hashlib.sha256()
    size_bytes = 0
    buffer = bytearray(READ_BYTES)
    view = memoryview(buffer)
    while count := sock.recv_into(buffer):
        digest.update(view[:count])
        size_bytes += count
    return size_bytes, digest.hexdigest()


def receive_exactly(sock: socket.socket, size_bytes: int) -> bytes:
    data = b""
    while len(data) < size_bytes:
        more = sock.recv(size_bytes - len(data))
        assert more, f"the end after {len(data)} of {size_bytes} bytes"
        data += more
    return data


class Both:
    """Functions that run at the same time; their results in order."""

    def __init__(self, *functions: Callable[[], object]) -> None:
        self._results: list[object] = [None] * len(functions)
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number, function), daemon=True)
            for number, function in enumerate(functions)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int, function: Callable[[], object]) -> None:
        try:
            self._results[number] = function()
        except BaseException as error:
            self._errors.append(error)

    def results(self, timeout_s: float) -> list[object]:
        for thread in self._threads:
            thread.join(timeout_s)
            assert not thread.is_alive(), f"not done in {timeout_s} s"
        if self._errors:
            raise self._errors[0]
        return self._results


@contextmanager
def echoing(listener: socket.socket) -> Iterator[None]:
    """Every connection gets back what it sends, until the block ends."""
    listener.settimeout(None)

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(sock,), daemon=True).start()

    def echo(sock: socket.socket) -> None:
        with sock:
            try:
                while data := sock.recv(65536):
                    sock.sendall(data)
            except OSError:
                return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield
    listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    listener.close()
