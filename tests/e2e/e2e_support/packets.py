"""IP packets by hand, for tests that put them where no socket would."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

UDP = 17


def ipv4_packet(source: IPv4Address, destination: IPv4Address, protocol: int, body: bytes) -> bytes:
    head = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0, source.packed, destination.packed),
    )
    return head[:10] + checksum(head).to_bytes(2) + head[12:] + body


def ipv6_packet(source: IPv6Address, destination: IPv6Address, protocol: int, body: bytes) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(body), protocol, 64)
    return head + source.packed + destination.packed + body


def udp_packet(
    source: IPv4Address | IPv6Address,
    destination: IPv4Address | IPv6Address,
    source_port: int,
    destination_port: int,
    data: bytes,
) -> bytes:
    ports_and_length = struct.pack("!HHH", source_port, destination_port, 8 + len(data))
    pseudo = source.packed + destination.packed + struct.pack("!II", 8 + len(data), UDP)
    summed = pseudo + ports_and_length + b"\0\0" + data + b"\0" * (len(data) % 2)
    body = ports_and_length + (checksum(summed) or 0xFFFF).to_bytes(2) + data
    if isinstance(source, IPv4Address) and isinstance(destination, IPv4Address):
        return ipv4_packet(source, destination, UDP, body)
    assert isinstance(source, IPv6Address) and isinstance(destination, IPv6Address)
    return ipv6_packet(source, destination, UDP, body)


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
