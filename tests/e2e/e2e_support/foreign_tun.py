"""Another holder of a daemon's TUN: writes packets into it, and reads what comes out."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

TUNGETIFF, TUNGETVNETHDRSZ = 0x800454D2, 0x800454D7
IFF_VNET_HDR = 0x4000
PIDFD_GETFD = 438  # the same on every architecture
READ_BYTES = 70_000

_libc = ctypes.CDLL(None, use_errno=True)


class ForeignTun:
    """The same queues as the daemon's, by duplicates of its and its children's descriptors.

    While the daemon is stopped, all that the kernel sends into the device is ours to read.
    """

    def __init__(self, pid: int) -> None:
        self.queues = [
            _take(holder, number)
            for holder in _group_of(pid)
            for number in _tun_descriptors(holder)
        ]
        assert self.queues, f"no process of the group {pid} holds a TUN"
        self._header_bytes = _vnet_header_bytes(self.queues[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for queue in self.queues:
            os.close(queue)

    def write(self, packet: bytes) -> None:
        os.write(self.queues[0], bytes(self._header_bytes) + packet)

    def read(self, timeout_s: float) -> bytes | None:
        """The next packet out of any queue; None when there is none in time."""
        for queue in select.select(self.queues, [], [], timeout_s)[0]:
            with suppress(BlockingIOError):
                return os.read(queue, READ_BYTES)[self._header_bytes :]
        return None


def _group_of(leader: int) -> list[int]:
    """The processes of a process group; a daemon of the lab leads one."""
    found = []
    for one in Path("/proc").iterdir():
        if one.name.isdecimal():
            with suppress(ProcessLookupError):
                if os.getpgid(int(one.name)) == leader:
                    found.append(int(one.name))
    return found


def _tun_descriptors(pid: int) -> list[int]:
    found = []
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            if os.readlink(one) == "/dev/net/tun":  # noqa: PTH115 - no path to follow
                found.append(int(one.name))
    return found


def _take(pid: int, number: int) -> int:
    pidfd = os.pidfd_open(pid)
    try:
        fd = int(_libc.syscall(PIDFD_GETFD, pidfd, number, 0))
        if fd < 0:
            raise OSError(ctypes.get_errno(), f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
        return fd
    finally:
        os.close(pidfd)


def _vnet_header_bytes(fd: int) -> int:
    """What stands before each packet, by the device's flags."""
    (flags,) = struct.unpack_from("H", fcntl.ioctl(fd, TUNGETIFF, bytes(40)), 16)
    if not flags & IFF_VNET_HDR:
        return 0
    return int(struct.unpack("i", fcntl.ioctl(fd, TUNGETVNETHDRSZ, bytes(4)))[0])
