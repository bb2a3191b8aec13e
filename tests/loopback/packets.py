"""Addresses of both ends, and packets between them."""

from __future__ import annotations

from ipaddress import ip_address

from zgate_protocol.icmp import checksum

POOLS = ("10.100.0.0/29", "fd7a:7a67:6174:65::/125")
GATEWAY_V4, GATEWAY_V6 = ip_address("10.100.0.1"), ip_address("fd7a:7a67:6174:65::1")
ROUTES = ("0.0.0.0/0", "::/0")
OFFICE_V4, OFFICE_V6 = "10.20.0.5", "fd00:20::5"


def udp_packet(source: object, destination: object, data: bytes = b"hello", ttl: int = 64) -> bytes:
    """A UDP packet of either family; the UDP checksum is left out."""
    one, other = ip_address(str(source)), ip_address(str(destination))
    upper = b"\x30\x39\x00\x35" + (8 + len(data)).to_bytes(2, "big") + b"\0\0" + data
    if one.version == 6:
        head = b"\x60\0\0\0" + len(upper).to_bytes(2, "big") + bytes((17, ttl))
        return head + one.packed + other.packed + upper
    head = b"\x45\0" + (20 + len(upper)).to_bytes(2, "big") + b"\0\1\0\0" + bytes((ttl, 17))
    total = checksum(head + b"\0\0" + one.packed + other.packed).to_bytes(2, "big")
    return head + total + one.packed + other.packed + upper


def sized_packet(source: object, destination: object, size_bytes: int) -> bytes:
    """A UDP packet of exactly this size."""
    return udp_packet(
        source, destination, bytes(size_bytes - len(udp_packet(source, destination, b"")))
    )


def icmp_type_and_code(packet: bytes) -> tuple[int, int]:
    offset = 20 if packet[0] >> 4 == 4 else 40
    return packet[offset], packet[offset + 1]
