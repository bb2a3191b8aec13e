"""One end of the socket pair between supervisor and worker: messages, and descriptors with them.

SOCK_SEQPACKET keeps messages apart and in order, and tells when the other end has died. Nothing
here blocks: what does not fit the socket's buffer waits, and an end that lets too much wait counts
as dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

from zgate_gateway.worker.messages import (
    MAX_MESSAGE_BYTES,
    Message,
    MessageError,
    decode,
    encode,
)

_BUFFER_BYTES = 4 << 20
_MAX_WAITING = 20_000
_MAX_DESCRIPTORS = 16
_MESSAGES_PER_TURN = 64


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends, not blocking, closed on exec."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    return ends


class Channel:
    """Sends and receives messages.

    `on_message` gets each message; `on_lost` is called once, with the reason, when the other end
    is gone or does not make sense. Neither is called after `close`.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        *,
        on_message: Callable[[Message], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._socket = sock
        self._loop = loop
        self._on_message = on_message
        self._on_lost = on_lost
        self._waiting: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._is_open = True
        loop.add_reader(sock.fileno(), self._on_readable)

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send, or keep for later; `descriptors` must stay open until then. Lost after the end."""
        if not self._is_open:
            return
        self._waiting.append((encode(message), tuple(descriptors)))
        if len(self._waiting) == 1:
            self._write()
        elif len(self._waiting) > _MAX_WAITING:
            self._lose("it does not read what it is told")

    def close(self) -> None:
        """Say and hear nothing more; twice is no error."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
            self._waiting.clear()

    def _write(self) -> None:
        while self._waiting:
            data, descriptors = self._waiting[0]
            try:
                socket.send_fds(self._socket, [data], list(descriptors))
            except BlockingIOError:
                self._loop.add_writer(self._socket.fileno(), self._write)
                return
            except OSError as error:
                # Told from the loop: whoever sends is not ready to hear of it.
                self._waiting.clear()
                self._loop.call_soon(self._lose, error.strerror or str(error))
                return
            self._waiting.popleft()
        self._loop.remove_writer(self._socket.fileno())

    def _on_readable(self) -> None:
        for _ in range(_MESSAGES_PER_TURN):
            if not self._is_open:
                return
            try:
                data, _, _, _ = self._socket.recvmsg(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._lose(error.strerror or str(error))
                return
            if not data:
                self._lose("it has ended")
                return
            try:
                message = decode(data)
            except MessageError as error:
                self._lose(str(error))
                return
            self._on_message(message)

    def _lose(self, reason: str) -> None:
        if self._is_open:
            self.close()
            self._on_lost(reason)


def receive_first(sock: socket.socket) -> tuple[Message, list[int]]:
    """Wait for the first message and the descriptors that come with it.

    Raises:
        EOFError: the other end is gone.
        MessageError: what came is no message.
    """
    sock.setblocking(True)
    data, descriptors, _, _ = socket.recv_fds(sock, MAX_MESSAGE_BYTES, _MAX_DESCRIPTORS)
    sock.setblocking(False)
    if not data:
        raise EOFError("the supervisor has ended")
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    try:
        return decode(data), descriptors
    except MessageError:
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        raise
