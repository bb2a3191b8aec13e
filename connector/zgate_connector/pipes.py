"""Pipes that bytes wait in between two sockets, lent out while there are any."""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass

_F_SETPIPE_SZ = 1031
_F_GETPIPE_SZ = 1032
_MAX_IDLE = 64


@dataclass(frozen=True, slots=True)
class Pipe:
    """One pipe, not blocking. `size_bytes` is what the kernel has granted."""

    read_fd: int
    write_fd: int
    size_bytes: int

    def close(self) -> None:
        """Drop it, with what is in it."""
        os.close(self.read_fd)
        os.close(self.write_fd)


class PipePool:
    """Lends pipes of one size.

    A flow whose bytes do not wait needs none, so that thousands of open flows need no more than
    those that move. The kernel lets a user have some 64 MiB of them (fs.pipe-user-pages-soft), and
    gives smaller ones after that: slower, and right all the same.
    """

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._idle: list[Pipe] = []
        self._is_closed = False

    def take(self) -> Pipe:
        """An empty pipe. OSError when the system has none left."""
        return self._idle.pop() if self._idle else self._make()

    def give_back(self, pipe: Pipe, *, is_empty: bool = True) -> None:
        """Not needed any more."""
        if is_empty and not self._is_closed and len(self._idle) < _MAX_IDLE:
            self._idle.append(pipe)
        else:
            pipe.close()

    def close(self) -> None:
        """Close those that are not lent out, and later those that are given back."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()

    def _make(self) -> Pipe:
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.fcntl(write_fd, _F_SETPIPE_SZ, self._size_bytes)
        granted_bytes = fcntl.fcntl(write_fd, _F_GETPIPE_SZ)
        return Pipe(read_fd, write_fd, min(granted_bytes, self._size_bytes))
