"""Packets, byte by byte, as the tests want them: valid unless told otherwise.

Checksums are zero: the programs leave them to the kernel's stack.
"""

import struct
from ipaddress import ip_address

ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
HOP_BY_HOP, ROUTING, FRAGMENT, ESP, AUTHENTICATION, NO_NEXT, DESTINATION_OPTIONS = (
    0, 43, 44, 50, 51, 59, 60,
)  # fmt: skip
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
MORE = 1


def ipv4(
    source,
    destination,
    protocol,
    payload,
    *,
    options=b"",
    identification=1,
    offset=0,
    more=False,
    total_length=None,
    version=4,
    header_words=None,
):
    """An IPv4 packet; `offset` in units of 8 bytes."""
    words = 5 + len(options) // 4 if header_words is None else header_words
    length = 20 + len(options) + len(payload) if total_length is None else total_length
    header = struct.pack(
        "!BBHHHBBH4s4s",
        version << 4 | words,
        0,
        length,
        identification,
        (0x2000 if more else 0) | offset,
        64,
        protocol,
        0,
        ip_address(source).packed,
        ip_address(destination).packed,
    )
    return header + options + payload


def ipv6(source, destination, next_header, payload, *, payload_length=None, version=6):
    """An IPv6 packet; extension headers come with the payload, see `chain`."""
    length = len(payload) if payload_length is None else payload_length
    return (
        struct.pack("!IHBB", version << 28, length, next_header, 64)
        + ip_address(source).packed
        + ip_address(destination).packed
        + payload
    )


def chain(*headers, upper, payload):
    """Extension headers before an upper layer: gives the first next header, and the bytes.

    A header is (number, body): the body without its first byte, which is filled in.
    """
    numbers = [number for number, _ in headers] + [upper]
    body = b"".join(
        bytes([numbers[index + 1]]) + content for index, (_, content) in enumerate(headers)
    )
    return numbers[0], body + payload


def options_header(number=HOP_BY_HOP, units=0):
    """Hop-by-hop or destination options of 8 * (units + 1) bytes."""
    return number, bytes([units]) + bytes(6 + 8 * units)


def routing_header(segments_left=0):
    return ROUTING, bytes([0, 0, segments_left]) + bytes(4)


def authentication_header():
    return AUTHENTICATION, bytes([4]) + bytes(22)


def fragment_header(offset=0, more=False, identification=1):
    return FRAGMENT, bytes(1) + struct.pack("!HI", offset << 3 | more, identification)


def tcp(source_port, destination_port, flags=SYN, data=b"", *, words=5):
    return (
        struct.pack(
            "!HHIIBBHHH", source_port, destination_port, 1, 2, words << 4, flags, 1000, 0, 0
        )
        + bytes(max(words - 5, 0) * 4)
        + data
    )


def udp(source_port, destination_port, data=b"data", *, length=None):
    size = 8 + len(data) if length is None else length
    return struct.pack("!HHHH", source_port, destination_port, size, 0) + data


def sctp(source_port, destination_port):
    return struct.pack("!HHII", source_port, destination_port, 7, 0)


def icmp(kind, code=0, identifier=0, data=b"data"):
    """ICMP or ICMPv6; `data` follows the first 8 bytes."""
    return struct.pack("!BBHHH", kind, code, 0, identifier, 1) + data


def ip(source, destination, protocol, payload, **keywords):
    """An IPv4 or IPv6 packet, by the address."""
    build = ipv4 if ip_address(source).version == 4 else ipv6
    return build(source, destination, protocol, payload, **keywords)


def echo_types(version):
    """Protocol, request and reply of a family's ping."""
    return (ICMP, 8, 0) if version == 4 else (ICMPV6, 128, 129)


def ping(source, destination, identifier=7):
    protocol, request, _ = echo_types(ip_address(source).version)
    return ip(source, destination, protocol, icmp(request, 0, identifier))


def pong(source, destination, identifier=7):
    protocol, _, reply = echo_types(ip_address(source).version)
    return ip(source, destination, protocol, icmp(reply, 0, identifier))


def icmp_error(source, destination, quoted, *, kind=None, code=0):
    """An ICMP error about a packet; destination unreachable unless told otherwise."""
    if ip_address(source).version == 4:
        return ipv4(source, destination, ICMP, icmp(3 if kind is None else kind, code, 0, quoted))
    return ipv6(source, destination, ICMPV6, icmp(1 if kind is None else kind, code, 0, quoted))
