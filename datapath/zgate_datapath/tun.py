"""A TUN device: IP packets in and out, without an Ethernet header.

The device is not persistent: it, its addresses and its routes vanish with the last
descriptor, so that a killed process leaves no open way behind.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_TUNSETSTEERINGEBPF = 0x800454E0
_IFF_TUN = 0x0001
_IFF_MULTI_QUEUE = 0x0100
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_TUN_EXCL = 0x8000
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_TSO_ECN = 0x01, 0x02, 0x04, 0x08
_TUN_F_USO4, _TUN_F_USO6 = 0x20, 0x40
_TCP_OFFLOADS = _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6 | _TUN_F_TSO_ECN
_UDP_OFFLOADS = _TUN_F_USO4 | _TUN_F_USO6
#: struct virtio_net_hdr: before every packet of a TUN with super-packets.
VNET_HEADER_BYTES = 10
_PLAIN_VNET_HEADER = bytes(VNET_HEADER_BYTES)
_IFNAMSIZ = 16
# The kernel never hands out more than one packet of the device's MTU per read.
_READ_SIZE_BYTES = 65535


class TunError(OSError):
    """A TUN device could not be made; the text names cause and cure."""


class Tun:
    """One TUN queue, non-blocking.

    Attributes:
        is_gone: a read has found that the device exists no more; stop reading.
        has_vnet_header: packets have a vnet header, and may be super-packets (IFF_VNET_HDR).
        takes_tcp, takes_udp: the kernel takes and gives super-packets of that kind.
    """

    def __init__(self, fd: int, name: str, *, has_vnet_header: bool = False) -> None:
        self.fd = fd
        self.name = name
        self.is_gone = False
        self.has_vnet_header = has_vnet_header
        self.takes_tcp = self.takes_udp = False
        if has_vnet_header:
            self.takes_udp = self._offload(_TCP_OFFLOADS | _UDP_OFFLOADS)  # Linux 6.2
            self.takes_tcp = self.takes_udp or self._offload(_TCP_OFFLOADS)

    def _offload(self, flags: int) -> bool:
        try:
            fcntl.ioctl(self.fd, _TUNSETOFFLOAD, flags)
        except OSError:
            return False
        return True

    @classmethod
    def open(cls, name: str, *, has_vnet_header: bool = False) -> Tun:
        """Make the device `name` in this thread's network namespace.

        Raises:
            TunError: no /dev/net/tun, no permission, or the name is taken.
        """
        return cls._attach(name, 0, has_vnet_header=has_vnet_header)

    @classmethod
    def open_queues(cls, name: str, count: int, *, has_vnet_header: bool = False) -> list[Tun]:
        """Make the device `name` with `count` queues, in the order of their numbers.

        The kernel chooses a queue by the flow, until `steer` tells it otherwise.

        Raises:
            TunError: as `open`.
        """
        queues: list[Tun] = []
        try:
            for _ in range(count):
                # Only the first one makes the device: another process's is not to be joined.
                exclusive = 0 if queues else _IFF_TUN_EXCL
                flags = _IFF_MULTI_QUEUE | exclusive
                queues.append(cls._attach(name, flags, has_vnet_header=has_vnet_header))
        except TunError:
            for queue in queues:
                queue.close()
            raise
        return queues

    def steer(self, program_fd: int) -> None:
        """Let a BPF program (SOCKET_FILTER) choose the queue: it returns the number.

        Raises:
            TunError: the kernel refused.
        """
        try:
            fcntl.ioctl(self.fd, _TUNSETSTEERINGEBPF, struct.pack("=i", program_fd))
        except OSError as error:
            raise TunError(
                f"cannot steer the queues of TUN device {self.name}: {error.strerror}"
            ) from error

    @classmethod
    def _attach(cls, name: str, flags: int, *, has_vnet_header: bool) -> Tun:
        if not name or len(name.encode()) >= _IFNAMSIZ:
            raise TunError(f"TUN name {name!r}: expected 1 to {_IFNAMSIZ - 1} bytes")
        device = Path("/dev/net/tun")
        try:
            fd = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise TunError(
                f"cannot open {device}: {error.strerror}; load the tun module and run as root"
            ) from error
        flags |= _IFF_TUN | _IFF_NO_PI | (_IFF_VNET_HDR if has_vnet_header else 0)
        request = struct.pack("16sH22x", name.encode(), flags)
        try:
            answer = fcntl.ioctl(fd, _TUNSETIFF, request)
        except OSError as error:
            os.close(fd)
            cause = {
                errno.EBUSY: "another process holds it",
                errno.EPERM: "CAP_NET_ADMIN is missing",
                errno.EINVAL: "a link of another kind has that name",
            }.get(error.errno or 0, error.strerror)
            raise TunError(f"cannot make TUN device {name}: {cause}") from error
        made = answer[:_IFNAMSIZ].rstrip(b"\0").decode()
        return cls(fd, made, has_vnet_header=has_vnet_header)

    def read_batch(self, limit: int) -> list[bytes]:
        """Up to `limit` packets that wait; empty when none does. Not with vnet headers."""
        packets: list[bytes] = []
        append, read, fd = packets.append, os.read, self.fd
        try:
            for _ in range(limit):
                append(read(fd, _READ_SIZE_BYTES))
        except BlockingIOError:
            pass
        except OSError:
            # EBADFD: somebody has deleted the device. The descriptor stays readable for
            # good, so a caller that does not look would spin.
            self.is_gone = True
        return packets

    def write(self, packet: bytes) -> bool:
        """Give one packet to the kernel; False when it does not take it."""
        try:
            os.write(self.fd, _PLAIN_VNET_HEADER + packet if self.has_vnet_header else packet)
        except OSError:
            # Full queue, link down, or a header the kernel rejects: a drop, which the
            # caller counts. Never a reason to end the process.
            return False
        return True

    def close(self) -> None:
        """Remove the device."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
