"""ICMP and ICMPv6 messages that a tunnel end makes itself (RFC 792, RFC 1812, RFC 4443).

Errors go back to whoever sent the packet that is not forwarded (RFC 9484 section 7.2.1).
None is ever made about an ICMP error, a multicast, a later fragment or a source that is no
single host: such answers are how loops and amplifiers are built.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from zgate_protocol.drop_reason import DropReason
from zgate_protocol.errors import PacketError
from zgate_protocol.ip_header import (
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    IpHeader,
    is_host_only,
    is_multicast,
    parse_ip,
)
from zgate_protocol.ip_range import ICMP, ICMPV6

_HOP_LIMIT: Final = 64
_INTERNETWORK_CONTROL: Final = 0xC0  # RFC 1812 section 4.3.2.5
_DONT_FRAGMENT: Final = b"\x40\x00"  # allows an identification of 0 (RFC 6864)
_MAX_ICMPV4_BYTES: Final = 576  # RFC 1812 section 4.3.2.3
_MAX_ICMPV6_BYTES: Final = 1280  # RFC 4443 section 2.4(c)
_ICMPV4_ERRORS: Final = frozenset((3, 4, 5, 11, 12))
_ICMPV6_REDIRECT: Final = 137
_ICMPV6_FIRST_INFORMATIONAL: Final = 128
_QUOTE_OFFSET: Final = 8

ECHO_REQUEST_V6: Final = 128
ECHO_REPLY_V6: Final = 129
PROBE_DATA_BYTES: Final = 1232
"""Echo data that makes an IPv6 packet of exactly 1280 bytes (RFC 9484 section 7.2)."""
ALL_NODES: Final = bytes.fromhex("ff020000000000000000000000000001")


class IcmpError(Enum):
    """An error message, with its type and code in version 4 and in version 6."""

    SOURCE_POLICY = ((3, 13), (1, 5))
    """The source address failed the ingress policy."""
    NO_ROUTE = ((3, 0), (1, 0))
    PROHIBITED = ((3, 13), (1, 1))
    """Communication is administratively prohibited."""
    ADDRESS_UNREACHABLE = ((3, 1), (1, 3))
    PORT_UNREACHABLE = ((3, 3), (1, 4))
    PACKET_TOO_BIG = ((3, 4), (2, 0))
    """In version 4: fragmentation needed."""
    TIME_EXCEEDED = ((11, 0), (3, 0))


_ERROR_OF: Final = {
    DropReason.SOURCE_NOT_ASSIGNED: IcmpError.SOURCE_POLICY,
    DropReason.SOURCE_SPOOFED: IcmpError.SOURCE_POLICY,
    DropReason.DESTINATION_NOT_ROUTED: IcmpError.NO_ROUTE,
    DropReason.DESTINATION_NOT_ASSIGNED: IcmpError.NO_ROUTE,
    DropReason.NO_SESSION: IcmpError.ADDRESS_UNREACHABLE,
    DropReason.PROTOCOL_OUT_OF_SCOPE: IcmpError.PROHIBITED,
    DropReason.POLICY_RULE: IcmpError.PROHIBITED,
    DropReason.POLICY_DEFAULT: IcmpError.PROHIBITED,
    DropReason.NO_BACKEND: IcmpError.PROHIBITED,
    DropReason.TOO_BIG: IcmpError.PACKET_TOO_BIG,
    DropReason.TTL_EXPIRED: IcmpError.TIME_EXCEEDED,
}


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of ``data``, padded with a zero if odd."""
    # The one's complement sum of 16-bit words is the number modulo 65535.
    number = int.from_bytes(data, "big") << (8 * (len(data) % 2))
    rest = number % 0xFFFF
    return 0xFFFF - rest if rest or not number else 0


def error_for_drop(
    reason: DropReason,
    packet: bytes,
    sources: tuple[bytes, bytes],
    mtu_bytes: int = 0,
) -> bytes | None:
    """Return the ICMP packet that tells the sender of ``packet`` why it was dropped.

    ``sources`` are this end's own addresses, 4 and 16 bytes. None when the reason is not
    told, or must not be told for this packet.
    """
    kind = _ERROR_OF.get(reason)
    if kind is None or not packet:
        return None
    return build_icmp_error(kind, packet, sources[packet[0] >> 4 == 6], mtu_bytes)


def build_icmp_error(
    kind: IcmpError, original: bytes, source_address: bytes, mtu_bytes: int = 0
) -> bytes | None:
    """Return the ICMP error about ``original``, or None where the RFCs forbid one.

    ``source_address`` (4 or 16 bytes, of the packet's version) is who sends the error, and
    is not unspecified; ``mtu_bytes`` is what fits (PACKET_TOO_BIG only).
    """
    try:
        header = parse_ip(original)
    except PacketError:
        return None
    if not any(source_address) or not _may_be_answered(header, original, kind):
        return None
    if header.version == 4:
        icmp_type, code = kind.value[0]
        limit = _MAX_ICMPV4_BYTES - IPV4_HEADER_BYTES - _QUOTE_OFFSET
        build = _build_ipv4
    else:
        icmp_type, code = kind.value[1]
        limit = _MAX_ICMPV6_BYTES - IPV6_HEADER_BYTES - _QUOTE_OFFSET
        build = _build_ipv6
    rest = _rest_of_header(kind, header.version, mtu_bytes)
    message = bytes((icmp_type, code, 0, 0)) + rest + original[:limit]
    return build(source_address, header.source, message)


def _rest_of_header(kind: IcmpError, version: int, mtu_bytes: int) -> bytes:
    """Return the second 32 bits: the MTU, in 16 bits in version 4 (RFC 1191)."""
    if kind is not IcmpError.PACKET_TOO_BIG:
        return bytes(4)
    return min(mtu_bytes, 0xFFFF if version == 4 else 0xFFFFFFFF).to_bytes(4, "big")


def _may_be_answered(header: IpHeader, packet: bytes, kind: IcmpError) -> bool:
    """RFC 1122 section 3.2.2 and RFC 4443 section 2.4(e)."""
    if is_host_only(header.source) or is_multicast(header.source) or header.source[0] == 0xFF:
        return False
    if header.version == 4 and header.source[0] >= 240:
        return False
    told_anyway = header.version == 6 and kind is IcmpError.PACKET_TOO_BIG
    if is_multicast(header.destination) and not told_anyway:
        return False
    if header.fragment_offset_bytes:
        return False
    return not _may_be_error(header, packet)


def _may_be_error(header: IpHeader, packet: bytes) -> bool:
    """Say whether the packet is an ICMP error, or an ICMP message too short to tell."""
    if header.upper_protocol != (ICMP if header.version == 4 else ICMPV6):
        return False
    if header.upper_offset >= len(packet):
        return True
    icmp_type = packet[header.upper_offset]
    if header.version == 4:
        return icmp_type in _ICMPV4_ERRORS
    return icmp_type < _ICMPV6_FIRST_INFORMATIONAL or icmp_type == _ICMPV6_REDIRECT


def _build_ipv4(source: bytes, destination: bytes, message: bytes) -> bytes:
    message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    total = IPV4_HEADER_BYTES + len(message)
    fixed = bytes((0x45, _INTERNETWORK_CONTROL)) + total.to_bytes(2, "big") + b"\0\0"
    fixed += _DONT_FRAGMENT + bytes((_HOP_LIMIT, ICMP))
    header_sum = checksum(fixed + b"\0\0" + source + destination)
    return fixed + header_sum.to_bytes(2, "big") + source + destination + message


def _build_ipv6(source: bytes, destination: bytes, message: bytes) -> bytes:
    length = len(message).to_bytes(2, "big")
    pseudo = source + destination + b"\0\0" + length + bytes((0, 0, 0, ICMPV6))
    message = message[:2] + checksum(pseudo + message).to_bytes(2, "big") + message[4:]
    return b"\x60\0\0\0" + length + bytes((ICMPV6, _HOP_LIMIT)) + source + destination + message


# Looking inside an error.


@dataclass(frozen=True, slots=True)
class InvokingPacket:
    """The packet that an ICMP error is about, as far as the quote shows it."""

    source: bytes
    destination: bytes
    protocol: int


def invoking_packet(packet: bytes) -> InvokingPacket | None:
    """Return what an ICMP error quotes; None if the packet is no error or quotes too little.

    Quotes are cut off, so their lengths are not checked (RFC 9484 section 11).
    """
    try:
        header = parse_ip(packet)
    except PacketError:
        return None
    if header.fragment_offset_bytes or not _may_be_error(header, packet):
        return None
    quote = packet[header.upper_offset + _QUOTE_OFFSET :]
    if header.version == 4:
        if len(quote) < IPV4_HEADER_BYTES or quote[0] >> 4 != 4:
            return None
        return InvokingPacket(quote[12:16], quote[16:20], quote[9])
    if len(quote) < IPV6_HEADER_BYTES or quote[0] >> 4 != 6:
        return None
    whole = quote[:4] + (len(quote) - IPV6_HEADER_BYTES).to_bytes(2, "big") + quote[6:]
    try:
        inner = parse_ip(whole)
    except PacketError:
        return None
    return InvokingPacket(inner.source, inner.destination, inner.upper_protocol)


def is_icmp_error(packet: bytes) -> bool:
    """Say whether a packet is an ICMP error message, or pretends to be one."""
    try:
        header = parse_ip(packet)
    except PacketError:
        return False
    return _may_be_error(header, packet)


# The probe of RFC 9484 section 7.2: an ICMPv6 echo of 1280 bytes.


def build_probe(source: bytes, identifier: int, sequence: int, destination: bytes = b"") -> bytes:
    """Return the echo request that shows whether the tunnel carries 1280-byte packets.

    It goes to ``destination`` (16 bytes), or to all nodes of the link, ff02::1.
    """
    fields = identifier.to_bytes(2, "big") + sequence.to_bytes(2, "big")
    message = bytes((ECHO_REQUEST_V6, 0, 0, 0)) + fields + bytes(PROBE_DATA_BYTES)
    return _build_ipv6(source, destination or ALL_NODES, message)


def answer_echo(packet: bytes, source_address: bytes) -> bytes | None:
    """Return the echo reply from ``source_address`` (16 bytes) to an ICMPv6 echo request.

    None for anything else: this answers what is sent to the tunnel's own link-local
    addresses (DropReason.LINK_LOCAL_PEER), for which there is no interface that could.
    """
    message = _echo_message(packet, ECHO_REQUEST_V6)
    if message is None or is_multicast(packet[8:24]) or is_host_only(packet[8:24]):
        return None
    reply = bytes((ECHO_REPLY_V6, 0, 0, 0)) + message[4:]
    return _build_ipv6(source_address, packet[8:24], reply)


def is_probe_reply(packet: bytes, identifier: int) -> bool:
    """Say whether a packet is the full-sized echo reply to a probe with this identifier."""
    message = _echo_message(packet, ECHO_REPLY_V6)
    if message is None or len(message) != _QUOTE_OFFSET + PROBE_DATA_BYTES:
        return False
    return int.from_bytes(message[4:6], "big") == identifier


def _echo_message(packet: bytes, icmp_type: int) -> bytes | None:
    """Return the ICMPv6 message of a whole packet of that type with a right checksum."""
    try:
        header = parse_ip(packet)
    except PacketError:
        return None
    if header.version != 6 or header.upper_protocol != ICMPV6 or header.is_fragment:
        return None
    message = packet[header.upper_offset :]
    if len(message) < _QUOTE_OFFSET or message[0] != icmp_type or message[1] != 0:
        return None
    length = len(message).to_bytes(4, "big")
    pseudo = header.source + header.destination + length + bytes((0, 0, 0, ICMPV6))
    return message if checksum(pseudo + message) == 0 else None


class TokenBucket:
    """Limits how many errors are sent (RFC 4443 section 2.4(f)); the caller brings the clock."""

    def __init__(self, rate_per_s: float, burst: int) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._tokens = float(burst)
        self._updated_s: float | None = None

    def allow(self, now_s: float) -> bool:
        """Take a token if there is one; ``now_s`` is any clock that does not go back."""
        if self._updated_s is not None:
            earned = max(0.0, now_s - self._updated_s) * self._rate_per_s
            self._tokens = min(float(self._burst), self._tokens + earned)
        self._updated_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
