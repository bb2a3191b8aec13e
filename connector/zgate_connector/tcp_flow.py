"""One TCP flow: a client's connection in the chamber, one to the backend, and bytes between them.

Each direction has a pipe while bytes wait in it: `splice` moves them from socket to pipe to socket
without their coming to Python. A pipe is filled only when it is empty; when the reader is slow
nothing more is taken from the sender, its kernel's window closes, and it waits as it would without
us. The end of a direction is passed on when its pipe is empty; a reset of either connection
resets the other.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable

from zgate_connector.backends import close_with_reset
from zgate_connector.limits import ServiceCounters
from zgate_connector.pipes import Pipe, PipePool
from zgate_connector.poller import Poller

PIECE_BYTES = 512 * 1024
"""What one direction of a flow moves before others have their turn."""
_READABLE = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR
_WRITABLE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
_SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class _End:
    """One of the two connections: what its socket would do now, as far as is known."""

    __slots__ = ("_on_ready", "descriptor", "is_readable", "is_writable", "may_have_failed", "sock")

    def __init__(self, sock: socket.socket, on_ready: Callable[[], None]) -> None:
        self.sock = sock
        self.descriptor = sock.fileno()
        self.is_readable = self.is_writable = self.may_have_failed = False
        self._on_ready = on_ready

    def ready(self, events: int) -> None:
        if events & _READABLE:
            self.is_readable = True
        if events & _WRITABLE:
            self.is_writable = True
        if events & select.EPOLLERR:
            self.may_have_failed = True
        self._on_ready()

    def has_failed(self) -> bool:
        if not self.may_have_failed:
            return False
        self.may_have_failed = False
        return self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


class _Way:
    """One direction."""

    __slots__ = ("_pipes", "_source", "_target", "held_bytes", "is_over", "moved_bytes", "pipe")

    def __init__(self, source: _End, target: _End, pipes: PipePool) -> None:
        self._source = source
        self._target = target
        self._pipes = pipes
        self.pipe: Pipe | None = None
        self.held_bytes = 0
        self.moved_bytes = 0
        self.is_over = False

    def move(self) -> bool:
        """Move a piece; whether more could be moved at once. OSError: a connection has failed."""
        left_bytes = PIECE_BYTES
        while left_bytes > 0:
            if not self.held_bytes and not self._fill():
                return False
            if not self._target.is_writable:
                return False
            assert self.pipe is not None
            try:
                count = os.splice(
                    self.pipe.read_fd,
                    self._target.descriptor,
                    self.held_bytes,
                    flags=_SPLICE_FLAGS,
                )
            except BlockingIOError:
                self._target.is_writable = False
                return False
            self.held_bytes -= count
            self.moved_bytes += count
            left_bytes -= count
        self._put_away()
        return True

    def _fill(self) -> bool:
        """Take bytes from the source into the empty pipe; False when there are none now."""
        if self.is_over or not self._source.is_readable:
            self._put_away()
            return False
        if self.pipe is None:
            self.pipe = self._pipes.take()
        try:
            # Into an empty pipe: EAGAIN can only be the socket's.
            self.held_bytes = os.splice(
                self._source.descriptor,
                self.pipe.write_fd,
                self.pipe.size_bytes,
                flags=_SPLICE_FLAGS,
            )
        except BlockingIOError:
            self._source.is_readable = False
            self._put_away()
            return False
        if not self.held_bytes:
            self.is_over = True
            self._put_away()
            self._target.sock.shutdown(socket.SHUT_WR)
            return False
        return True

    def _put_away(self) -> None:
        if self.pipe is not None and not self.held_bytes:
            self._pipes.give_back(self.pipe)
            self.pipe = None

    def drop(self) -> None:
        """Let go of the pipe and what is in it."""
        if self.pipe is not None:
            self._pipes.give_back(self.pipe, is_empty=not self.held_bytes)
            self.pipe = None


class TcpFlow:
    """A flow, from the accepted connection to the end of both.

    Attributes:
        client: the client's address.
        on_closed: called once, when both connections are closed; before the backend's is open, too.
        is_queued: see `Job`.
    """

    def __init__(
        self,
        client: str,
        accepted: socket.socket,
        *,
        poller: Poller,
        pipes: PipePool,
        counters: ServiceCounters,
        on_closed: Callable[[TcpFlow], None],
    ) -> None:
        self.client = client
        self.counters = counters
        self.is_queued = False
        self.on_closed = on_closed
        self._poller = poller
        self._pipes = pipes
        self._is_closed = False
        self._client_end = _End(accepted, self._wake)
        self._backend_end: _End | None = None
        self._ways: tuple[_Way, ...] = ()
        # From now on, so that a client that gives up while we connect is noticed.
        poller.watch(accepted.fileno(), self._client_end)

    @property
    def is_closed(self) -> bool:
        """Whether it is over."""
        return self._is_closed

    @property
    def held_bytes(self) -> int:
        """Bytes that wait in pipes."""
        return sum(way.held_bytes for way in self._ways)

    def connected(self, backend: socket.socket) -> None:
        """The connection to the backend is there; it is closed with the flow."""
        if self._is_closed:
            close_with_reset(backend)
            return
        end = self._backend_end = _End(backend, self._wake)
        self._ways = (
            _Way(self._client_end, end, self._pipes),
            _Way(end, self._client_end, self._pipes),
        )
        self._poller.watch(backend.fileno(), end)

    def work(self) -> bool:
        """See `Job.work`."""
        if self._is_closed:
            return False
        client, backend = self._client_end, self._backend_end
        if client.has_failed() or (backend is not None and backend.has_failed()):
            self.abort()
            return False
        if backend is None:
            return False
        up, down = self._ways
        try:
            has_more = up.move()
            has_more |= down.move()
        except OSError:
            self._count()
            self.abort()
            return False
        self._count()
        if up.is_over and down.is_over:
            self._close(socket.socket.close)
            return False
        return has_more

    def abort(self) -> None:
        """Reset both connections. Safe to call twice."""
        self._close(close_with_reset)

    def _wake(self) -> None:
        self._poller.queue(self)

    def _count(self) -> None:
        up, down = self._ways
        self.counters.bytes_up += up.moved_bytes
        self.counters.bytes_down += down.moved_bytes
        up.moved_bytes = down.moved_bytes = 0

    def _close(self, close: Callable[[socket.socket], None]) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        for end in (self._client_end, self._backend_end):
            if end is not None:
                self._poller.forget(end.descriptor)
                close(end.sock)
        for way in self._ways:
            way.drop()
        self.on_closed(self)
