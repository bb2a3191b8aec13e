"""A DNS question by hand, so that a test sees the answer's code and records as they were sent."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from zgate_lab.namespace import in_namespace

Address = IPv4Address | IPv6Address
A, AAAA = 1, 28
NOERROR, NXDOMAIN, REFUSED = 0, 3, 5
HEADER = struct.Struct("!HHHHHH")


@dataclass(frozen=True)
class DnsAnswer:
    """What came back: the code, whether it is authoritative, addresses of the answer section."""

    code: int
    is_authoritative: bool
    addresses: tuple[Address, ...]


def ask_dns(
    namespace: str, server: Address, name: str, kind: int = A, *, tcp: bool = False, port: int = 53
) -> DnsAnswer:
    """Ask a server out of a namespace. Raises OSError (TimeoutError) without an answer."""
    labels = b"".join(bytes([len(one)]) + one.encode() for one in name.split("."))
    query = HEADER.pack(0x4D5A, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)
    family = socket.AF_INET if server.version == 4 else socket.AF_INET6
    with in_namespace(namespace):
        client = socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    with client:
        client.settimeout(3.0)
        client.connect((str(server), port))
        client.sendall(len(query).to_bytes(2) + query if tcp else query)
        return _parse(_read(client) if tcp else client.recv(4096), len(query))


def _read(client: socket.socket) -> bytes:
    data = b""
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2]):
        more = client.recv(4096)
        assert more, "the server closed before its answer was whole"
        data += more
    return data[2:]


def _parse(answer: bytes, query_bytes: int) -> DnsAnswer:
    identifier, flags, questions, answers, _, _ = HEADER.unpack_from(answer)
    assert (identifier, flags >> 15, questions) == (0x4D5A, 1, 1)
    found: list[Address] = []
    position = query_bytes  # the question comes back as it was
    for _ in range(answers):
        position += 2 if answer[position] >= 0xC0 else answer.index(0, position) - position + 1
        kind, _, _, length = struct.unpack_from("!HHIH", answer, position)
        data = answer[position + 10 : position + 10 + length]
        position += 10 + length
        if kind == A:
            found.append(IPv4Address(data))
        elif kind == AAAA:
            found.append(IPv6Address(data))
    return DnsAnswer(flags & 15, bool(flags & 0x0400), tuple(found))
