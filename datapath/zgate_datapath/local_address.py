"""The local end of a path, where a socket is bound to all addresses of the host.

A client drops what comes from another address than the one that it has dialled (RFC 9000 section
9), and a NAT or a firewall on the way drops it before. A socket that is bound to one address sends
from that one. One that is bound to `::` or 0.0.0.0 sends from the address that the kernel picks for
the route, unless told: so the kernel says with each packet which address it came to, and is told
the same with each answer.

A local address has the form of an answer's control message: `struct in_pktinfo` (ip(7)) on an IPv4
socket, `struct in6_pktinfo` (ipv6(7)) on any other, where IPv4 addresses are mapped. It is the last
element of the peer's address, and so of what aioquic and the engines compare: a path has two ends.

RFC 9000 section 9.6 knows no server that changes its address. But something between may send a
client's packets to another address of ours, a load balancer or a NAT, and the client knows nothing
of it. That is another path then: the challenge leaves from where the packet came to, as all answers
would, and counts as proof only if the client has heard it. One that has dialled another address
drops it, and aioquic goes back to the path that is proved.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

Address = tuple[Any, ...]
"""A peer's socket address as Python gives it: (host, port) or (host, port, flow, scope).

On a socket without an address of its own with one element more: the local address (bytes) that the
peer's packets came to.
"""

Control = tuple[int, int, bytes]

_IP_PKTINFO = 8
_MESSAGE_TYPES = (
    (socket.IPPROTO_IP, _IP_PKTINFO),
    (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO),
)
# Interface index, the address that an answer leaves from, the packet's destination.
_IPV4 = struct.Struct("=i4s4s")
# The address, interface index.
_IPV6 = struct.Struct("=16sI")
_NO_ADDRESS = _NO_INTERFACE = bytes(4)


def is_bound_to_all(sock: socket.socket) -> bool:
    """Whether the socket takes what comes to any address of the host."""
    return ip_address(sock.getsockname()[0].partition("%")[0]).is_unspecified


def ask_for_local_addresses(sock: socket.socket) -> None:
    """Have the kernel tell with each packet which address it came to."""
    if sock.family == socket.AF_INET6:
        # On a dual-stack socket it is told of IPv4 packets, too.
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)


def local_address(level: int, kind: int, value: bytes) -> tuple[bytes, ...]:
    """The local address out of a received control message; nothing if it is another message.

    Routing picks the interface of answers, as always: it is part only of link-local addresses,
    which mean nothing without.
    """
    if (level, kind) not in _MESSAGE_TYPES:
        return ()
    if level == socket.IPPROTO_IP:
        _, _, destination = _IPV4.unpack(value)
        return (_IPV4.pack(0, destination, _NO_ADDRESS),)
    is_link_local = value[0] == 0xFE and value[1] & 0xC0 == 0x80
    return (value if is_link_local else value[:16] + _NO_INTERFACE,)


def answer_from(address: Address) -> tuple[Address, Sequence[Control]]:
    """The peer's address for the kernel, and where to send from: a control message or none."""
    local = address[-1]
    if not isinstance(local, bytes):
        return address, ()
    return address[:-1], ((*_MESSAGE_TYPES[len(local) == _IPV6.size], local),)


def local_host(address: Address) -> str:
    """The local address for people and files; empty where the socket has one of its own."""
    local = address[-1]
    if not isinstance(local, bytes):
        return ""
    if len(local) == _IPV4.size:
        return str(IPv4Address(_IPV4.unpack(local)[1]))
    host = IPv6Address(_IPV6.unpack(local)[0])
    return str(host.ipv4_mapped or host)


def with_local_host(address: Address, host: str, family: int) -> Address:
    """The peer's address with what `local_host` gave, for a socket of this family.

    As it was where nothing is to be said, or nothing can be: an IPv6 address on an IPv4 socket.
    """
    if not host:
        return address
    local = ip_address(host)
    if family == socket.AF_INET6:
        packed = local.packed if local.version == 6 else bytes(10) + b"\xff\xff" + local.packed
        return (*address, _IPV6.pack(packed, 0))
    if local.version == 6:
        return address
    return (*address, _IPV4.pack(0, local.packed, _NO_ADDRESS))
