"""UDP in batches: GRO on receive, GSO on send, and what ICMP said of the path.

One system call moves up to 64 packets of one peer (UDP_GRO, UDP_SEGMENT). Path MTU
discovery is on and fragmentation off (RFC 9000 section 14): a packet that is too big for
the path is lost, and the error queue says how big the path is.
"""

from __future__ import annotations

import errno
import itertools
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zgate_datapath.local_address import (
    Address,
    Control,
    answer_from,
    ask_for_local_addresses,
    is_bound_to_all,
    local_address,
    with_local_host,
)
from zgate_datapath.path_mtu import BASE_BYTES

__all__ = [
    "Address",
    "PathError",
    "UdpSocket",
    "format_address",
    "udp_overhead_bytes",
]

_SOL_UDP = 17
_UDP_SEGMENT = 103
_UDP_GRO = 104
_IP_MTU_DISCOVER, _IP_RECVERR = 10, 11
_IPV6_MTU_DISCOVER, _IPV6_RECVERR = 23, 25
_PMTUDISC_DO, _PMTUDISC_PROBE = 2, 3
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33

_GSO_MAX_SEGMENTS = 64
_GSO_MAX_BYTES = 65000
_RECEIVE_SIZE_BYTES = 65535
# What a packet's control messages need: merged size, traffic class, local address.
_CONTROL_BYTES = 128
_SOCKET_BUFFER_BYTES = 8 << 20
# struct sock_extended_err of linux/errqueue.h: errno, origin, type, code, pad, info, data.
_EXTENDED_ERROR = struct.Struct("=IBBBxII")

IPV4_UDP_OVERHEAD_BYTES = 28
IPV6_UDP_OVERHEAD_BYTES = 48


@dataclass(frozen=True, slots=True)
class PathError:
    """What the kernel or a router said of the path to `address`.

    `mtu_bytes` is the path's IP MTU when the error was "too big", else None.
    """

    address: Address
    error_number: int
    mtu_bytes: int | None


def format_address(address: Address | None) -> str:
    """`host:port` for people; an IPv4 peer of a dual-stack socket is shown as such."""
    if address is None:
        return "-"
    host = str(address[0]).removeprefix("::ffff:")
    return f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"


def udp_overhead_bytes(address: Address) -> int:
    """IP and UDP header bytes towards `address`."""
    host = str(address[0])
    is_ipv6 = ":" in host and not host.startswith("::ffff:")
    return IPV6_UDP_OVERHEAD_BYTES if is_ipv6 else IPV4_UDP_OVERHEAD_BYTES


class UdpSocket:
    """One non-blocking UDP socket with batch calls.

    Bound to all addresses of the host, it answers from the one that the peer has sent to: that is
    in the addresses that `receive_batch` gives (`zgate_datapath.local_address`).

    Attributes:
        dropped_on_send: datagrams that the kernel did not take.
        error_pending: the error queue may hold something (`path_errors`).
        believes_kernel: the kernel refuses what it has been told is too big for a path. It is no
            longer asked once that leaves less than a session needs: it believes any ICMP message
            for ten minutes, forged or out of date, and would refuse the probes that find out
            better, too (RFC 8899 section 4.6). `believe_kernel` is for when it has forgotten.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._gso = True
        self._is_bound_to_all = is_bound_to_all(sock)
        self.dropped_on_send = 0
        self.error_pending = False
        sock.setblocking(False)
        _prefer_large_buffers(sock)
        _report_path_errors(sock)
        self.believe_kernel()
        # An old kernel without GRO hands out packets one by one: slower, as correct.
        _try_option(sock, _SOL_UDP, _UDP_GRO, 1)
        if self._is_bound_to_all:
            ask_for_local_addresses(sock)

    @classmethod
    def bind(cls, host: str, port: int) -> UdpSocket:
        """A server's socket; "::" takes both address families where IPv6 is there.

        Raises:
            OSError: the address or port cannot be bound.
        """
        return cls.bind_group(host, port, 1)[0]

    @classmethod
    def bind_group(cls, host: str, port: int, count: int) -> list[UdpSocket]:
        """`count` sockets on one port, among which the kernel shares out what arrives.

        Port 0: a free one, the same for all. Nobody else can join: the first socket claims the
        port for itself, and only then lets the others in (SO_REUSEPORT).

        Raises:
            OSError: the address or port cannot be bound.
        """
        made: list[socket.socket] = []
        try:
            made.append(_bound(host, port, shared=False))
            made[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            port = made[0].getsockname()[1]
            while len(made) < count:
                made.append(_bound(host, port, shared=True))
            if count == 1:
                # One that has joined makes it a group, which can be steered; and leaves again.
                _bound(host, port, shared=True).close()
        except OSError:
            for sock in made:
                sock.close()
            raise
        return [cls(sock) for sock in made]

    @classmethod
    def towards(cls, address: Address, *, local_port: int = 0) -> UdpSocket:
        """A client's socket, bound to the local address that the route to `address` picks."""
        family = socket.AF_INET6 if ":" in str(address[0]) else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            if local_port:
                sock.bind(("", local_port))
            sock.connect(address)
        except OSError:
            sock.close()
            raise
        return cls(sock)

    def fileno(self) -> int:
        """The descriptor, for the event loop."""
        return self._socket.fileno()

    @property
    def local_address(self) -> Address:
        """The address and port this socket is bound to."""
        name: Address = self._socket.getsockname()
        return name

    def peer_at(self, host: str, port: int, local_host: str) -> Address:
        """The address of a peer that sent to `local_host`, for `send_batch`."""
        if not self._is_bound_to_all:
            return (host, port)
        return with_local_host((host, port), local_host, self._socket.family)

    def believe_kernel(self, believes: bool = True) -> None:
        """Whether what the kernel knows of paths holds; nothing is sent in fragments either way."""
        self.believes_kernel = believes
        mode = _PMTUDISC_DO if believes else _PMTUDISC_PROBE
        self._socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, mode)
        if self._socket.family == socket.AF_INET6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, mode)

    def close(self) -> None:
        """Close the socket; twice is no error."""
        self._socket.close()

    def receive_batch(self, calls: int) -> Iterator[tuple[list[bytes], Address]]:
        """Drain the socket: at most `calls` times up to 64 datagrams of one peer."""
        receive = self._socket.recvmsg
        for _ in range(calls):
            try:
                data, ancillary, _flags, address = receive(_RECEIVE_SIZE_BYTES, _CONTROL_BYTES)
            except BlockingIOError:
                return
            except OSError:
                # A pending ICMP error: reported by `path_errors`, never fatal.
                self.error_pending = True
                continue
            segment_bytes = 0
            for level, kind, value in ancillary:
                if level == _SOL_UDP and kind == _UDP_GRO:
                    segment_bytes = int.from_bytes(value[:4], "little")
                elif self._is_bound_to_all:
                    address += local_address(level, kind, value)
            if 0 < segment_bytes < len(data):
                yield (
                    [data[i : i + segment_bytes] for i in range(0, len(data), segment_bytes)],
                    address,
                )
            else:
                yield [data], address

    def send_batch(self, datagrams: Sequence[bytes], address: Address) -> bool:
        """Send all to `address`; False when one was too big for the path.

        A full socket buffer drops (and counts), as any network would. So does a local address
        that the host has no more.
        """
        fits = True
        address, source = answer_from(address)
        for run in _segment_runs(datagrams):
            fits = self._send_run(run, source, address) and fits
        return fits

    def _send_run(self, run: Sequence[bytes], source: Sequence[Control], address: Address) -> bool:
        if len(run) == 1 or not self._gso:
            return self._send_singly(run, source, address)
        segment_bytes = struct.pack("=H", len(run[0]))
        try:
            self._sendmsg(run, ((_SOL_UDP, _UDP_SEGMENT, segment_bytes), *source), address)
        except BlockingIOError:
            self.dropped_on_send += len(run)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EMSGSIZE):
                # The kernel answers EINVAL both for a segment above the path's MTU and
                # where it has no GSO: one by one tells which.
                return self._send_singly(run, source, address)
            if error.errno == errno.EIO:
                self._gso = False  # no checksum offload on this device
                return self._send_run(run, source, address)
            self.dropped_on_send += len(run)
        return True

    def _sendmsg(self, run: Sequence[bytes], control: Sequence[Control], address: Address) -> None:
        """Send; OSError only for what is wrong with this packet.

        On a socket of many peers, the error that a call reports may be an ICMP message about an
        earlier packet to somebody else. Reported, it is gone: the second try is the real one.
        """
        try:
            self._socket.sendmsg(run, control, 0, address)
        except OSError as error:
            if isinstance(error, BlockingIOError) or error.errno == errno.EINVAL:
                raise
            self.error_pending = True
            self._socket.sendmsg(run, control, 0, address)

    def _send_singly(
        self, run: Sequence[bytes], source: Sequence[Control], address: Address
    ) -> bool:
        fits = True
        for datagram in run:
            fits = self._send_one(datagram, source, address) and fits
        return fits

    def _send_one(self, datagram: bytes, source: Sequence[Control], address: Address) -> bool:
        try:
            self._sendmsg((datagram,), source, address)
        except OSError as error:
            is_too_big = error.errno == errno.EMSGSIZE
            if is_too_big and len(datagram) <= BASE_BYTES and self.believes_kernel:
                self.believe_kernel(False)
                return self._send_one(datagram, source, address)
            self.dropped_on_send += 1
            self.error_pending = True
            return not is_too_big
        return True

    def path_errors(self, limit: int = 16) -> list[PathError]:
        """What waits in the error queue, at most `limit` entries.

        The native engine's packets go past `send_batch`: here is told what became of them.
        """
        errors: list[PathError] = []
        self.error_pending = False
        for _ in range(limit):
            try:
                _, ancillary, _, address = self._socket.recvmsg(
                    512, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT
                )
            except OSError:
                break
            for level, kind, value in ancillary:
                if (level, kind) in (
                    (socket.IPPROTO_IP, _IP_RECVERR),
                    (socket.IPPROTO_IPV6, _IPV6_RECVERR),
                ):
                    number, _origin, _type, _code, info, _ = _EXTENDED_ERROR.unpack_from(value)
                    mtu = info if number == errno.EMSGSIZE and info else None
                    errors.append(PathError(address, number, mtu))
                    if mtu and mtu < BASE_BYTES + udp_overhead_bytes(address):
                        self.believe_kernel(False)
        return errors


def _segment_runs(datagrams: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Cut into runs that one GSO send can carry: equal sizes, the last may be shorter."""
    start = 0
    while start < len(datagrams):
        size = len(datagrams[start])
        most = min(_GSO_MAX_SEGMENTS, max(1, _GSO_MAX_BYTES // max(size, 1)))
        end = start + 1
        for datagram in itertools.islice(datagrams, start + 1, start + most):
            if len(datagram) > size:
                break
            end += 1
            if len(datagram) < size:
                break
        yield datagrams[start:end]
        start = end


def _bound(host: str, port: int, *, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        if host != "::" or error.errno != errno.EAFNOSUPPORT:
            raise
        return _bound("0.0.0.0", port, shared=shared)  # noqa: S104 - the IPv4 reading of "::"
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


def _try_option(sock: socket.socket, level: int, option: int, value: int) -> bool:
    try:
        sock.setsockopt(level, option, value)
    except OSError:
        return False
    return True


def _prefer_large_buffers(sock: socket.socket) -> None:
    for force, ordinary in (
        (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
        (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
    ):
        # The forced form needs CAP_NET_ADMIN; the ordinary one is capped by sysctl.
        if not _try_option(sock, socket.SOL_SOCKET, force, _SOCKET_BUFFER_BYTES):
            _try_option(sock, socket.SOL_SOCKET, ordinary, _SOCKET_BUFFER_BYTES)


def _report_path_errors(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
