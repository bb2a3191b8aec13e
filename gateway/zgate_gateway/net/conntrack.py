"""The kernel's own record of connections (ctnetlink), as far as clients began them.

It outlives the gateway: what a client had open before a restart is in it still. Read with few
attributes looked at, for there may be a hundred thousand entries.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path

from zgate_gateway.net.errors import NetError

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network

TCP, UDP = 6, 17
_NETLINK_NETFILTER = 12
_GET = 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_REQUEST_DUMP = 0x1 | 0x300
_ERROR, _DONE = 2, 3
_TUPLE_ORIGINAL, _STATUS, _PROTOCOL_INFO, _TIMEOUT, _FILTER = 1, 3, 4, 7, 25
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_SOURCE = {4: 1, 6: 3}
_DESTINATION = {4: 2, 6: 4}
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_NESTED, _TYPE_MASK = 0x8000, 0x3FFF
_FILTER_SOURCE = 1
_SEEN_REPLY, _DYING = 0x2, 0x200
_TCP_ESTABLISHED = 3
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_BUFFER_BYTES = 1 << 18
_RECEIVE_TIMEOUT_S = 5.0
#: The kernel keeps idle TCP connections for days. Who lost its address to another client has been
#: away for an hour (`zgate_gateway.pool`): what is newer than this is not that one's.
_RECENT_S = 900
#: What waits for an acknowledgement, and so is in use, is kept for no longer than this.
_UNACKNOWLEDGED_S = 300
_TCP_TIMEOUT = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established")


@dataclass(frozen=True, slots=True)
class Connection:
    """One that was answered: who began it, and to where."""

    client: IpAddress
    remote: IpAddress
    protocol: int
    client_port: int
    remote_port: int


def connections_from(clients: Sequence[IpNetwork | IpAddress]) -> Iterator[Connection]:
    """TCP connections that are established, and UDP flows that were answered, begun from there.

    Those that were used within the last quarter of an hour. Of single IPv4 addresses the kernel
    hands out no others; else all are read through. May run in a thread.

    Raises:
        NetError: the kernel keeps no such record, or does not show it to us.
    """
    try:
        least_s = max(0, int(_TCP_TIMEOUT.read_text()) - _RECENT_S)
        for one in clients:
            yield from _dump(one, least_s)
    except OSError as error:
        raise NetError(f"connections that the kernel knows: {error.strerror}") from error


def _dump(clients: IpNetwork | IpAddress, least_s: int) -> Iterator[Connection]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        netlink.settimeout(_RECEIVE_TIMEOUT_S)
        netlink.bind((0, 0))
        netlink.send(_request(clients))
        while True:
            data = netlink.recv(_BUFFER_BYTES)
            at = 0
            while at < len(data):
                length, kind, _, _, _ = _HEADER.unpack_from(data, at)
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    code = -int(struct.unpack_from("=i", data, at + _HEADER.size)[0])
                    raise OSError(code, os.strerror(code))
                found = _read(data[at + _HEADER.size + 4 : at + length], clients, least_s)
                if found is not None:
                    yield found
                at += (length + 3) & ~3


def _request(clients: IpNetwork | IpAddress) -> bytes:
    version = clients.version
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    body = struct.pack("=BBH", family, 0, 0)
    # Not for IPv6: there kernels leave out just what was asked for.
    if isinstance(clients, IPv4Address):
        source = _attribute(_SOURCE[version], clients.packed)
        body += _attribute(
            _TUPLE_ORIGINAL | _NESTED, _attribute(_TUPLE_IP | _NESTED, source)
        ) + _attribute(
            _FILTER | _NESTED,
            _attribute(1, struct.pack("=I", _FILTER_SOURCE)) + _attribute(2, bytes(4)),
        )
    return _HEADER.pack(_HEADER.size + len(body), _GET, _REQUEST_DUMP, 1, 0) + body


def _attribute(kind: int, data: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(data)
    return _ATTRIBUTE.pack(size, kind) + data + bytes(-size % 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = data[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3
    return found


def _read(data: bytes, clients: IpNetwork | IpAddress, least_s: int) -> Connection | None:
    """The connection in a message, if it is one of these and worth to be known."""
    whole = _attributes(data)
    original = _attributes(whole.get(_TUPLE_ORIGINAL, b""))
    addresses = _attributes(original.get(_TUPLE_IP, b""))
    transport = _attributes(original.get(_TUPLE_PROTOCOL, b""))
    version = clients.version
    source, destination = addresses.get(_SOURCE[version]), addresses.get(_DESTINATION[version])
    if source is None or destination is None or _DESTINATION_PORT not in transport:
        return None
    client, protocol = ip_address(source), transport[_NUMBER][0]
    if not _is_among(client, clients) or not _is_alive(protocol, whole, least_s):
        return None
    return Connection(
        client,
        ip_address(destination),
        protocol,
        int.from_bytes(transport[_SOURCE_PORT], "big"),
        int.from_bytes(transport[_DESTINATION_PORT], "big"),
    )


def _is_among(client: IpAddress, clients: IpNetwork | IpAddress) -> bool:
    if isinstance(clients, IPv4Network | IPv6Network):
        return client in clients
    return client == clients


def _is_alive(protocol: int, whole: dict[int, bytes], least_s: int) -> bool:
    status = int.from_bytes(whole.get(_STATUS, b""), "big")
    if not status & _SEEN_REPLY or status & _DYING:
        return False
    if protocol != TCP:
        return protocol == UDP
    inner = _attributes(_attributes(whole.get(_PROTOCOL_INFO, b"")).get(1, b""))
    left_s = int.from_bytes(whole.get(_TIMEOUT, b""), "big")
    is_recent = left_s >= least_s or left_s <= _UNACKNOWLEDGED_S
    return is_recent and inner.get(1, b"\0")[0] == _TCP_ESTABLISHED
