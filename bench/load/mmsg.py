"""sendmmsg(2) and recvmmsg(2): many datagrams in one system call.

A Python loop over `socket.send` would be the slowest part of the bench. The content of what comes
in is of no interest here, so all messages of a batch share one buffer.
"""

import ctypes
import errno
import os
import socket

MSG_DONTWAIT = 0x40
# The queue in front of the socket's network device is full: that datagram is not sent, as it
# would be with a real sender.
_NOT_SENT = frozenset({errno.ENOBUFS, errno.EAGAIN})


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vector", ctypes.POINTER(_Iovec)),
        ("vector_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("header", _Msghdr), ("length", ctypes.c_uint))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
_libc.recvmmsg.argtypes = (
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_uint,
    ctypes.c_int,
    ctypes.c_void_p,
)


class Batch:
    """`count` messages of `size_bytes` each, over one shared buffer of zeros."""

    def __init__(self, count: int, size_bytes: int):
        self.count = count
        self._buffer = ctypes.create_string_buffer(max(size_bytes, 1))
        self._vector = _Iovec(ctypes.addressof(self._buffer), size_bytes)
        self._messages = (_Mmsghdr * count)()
        for message in self._messages:
            message.header.vector = ctypes.pointer(self._vector)
            message.header.vector_length = 1

    def send(self, sock: socket.socket, count: int) -> int:
        """Send `count` datagrams at most from a connected socket; how many the kernel took."""
        sent = _libc.sendmmsg(sock.fileno(), self._messages, min(count, self.count), 0)
        return self._checked(sent, "sendmmsg")

    def receive(self, sock: socket.socket) -> int:
        """Take what waits at the socket, one batch at most; how many datagrams it was."""
        received = _libc.recvmmsg(sock.fileno(), self._messages, self.count, MSG_DONTWAIT, None)
        return self._checked(received, "recvmmsg")

    @staticmethod
    def _checked(result: int, call: str) -> int:
        if result >= 0:
            return result
        number = ctypes.get_errno()
        if number in _NOT_SENT:
            return 0
        raise OSError(number, f"{call}: {os.strerror(number)}")
