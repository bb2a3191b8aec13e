"""Addresses of an IP packet exchanged for others, checksums following incrementally (RFC 1624).

A table says which address becomes which; it is asked for the source, for the destination, and
for both in the packet that an ICMP error quotes. Ports stay.
"""

from collections.abc import Mapping
from typing import Final

from zgate_protocol.icmp import is_icmp_error
from zgate_protocol.ip_header import IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, IpHeader, parse_ip
from zgate_protocol.ip_range import ICMP, ICMPV6

_TCP: Final = 6
_UDP: Final = 17
# Where the checksum stands, in the protocols whose checksum covers the addresses.
_CHECKSUM_AT: Final = {_TCP: 16, _UDP: 6, ICMPV6: 2}
_ICMP_CHECKSUM_AT: Final = 2
_IPV4_CHECKSUM_AT: Final = 10
_QUOTE_OFFSET: Final = 8
_MODULUS: Final = 0xFFFF

AddressTable = Mapping[bytes, bytes]
"""Addresses of 4 or 16 bytes, each with what it becomes, which is as long."""


def translate_addresses(packet: bytes, table: AddressTable) -> bytes:
    """Return the packet with its addresses exchanged.

    PacketError if its headers do not parse.
    """
    header = parse_ip(packet)
    data = bytearray(packet)
    difference = _translate_header(data, 0, header.version, table)
    if not header.fragment_offset_bytes:
        _follow_upper(data, header, difference, table)
    return bytes(data)


def _translate_header(data: bytearray, at: int, version: int, table: AddressTable) -> int:
    """Exchange the addresses of the IP header at ``at``; return by how much their sum rose."""
    first, size = (at + 12, 4) if version == 4 else (at + 8, 16)
    before = bytes(data[first : first + 2 * size])
    source, destination = before[:size], before[size:]
    after = table.get(source, source) + table.get(destination, destination)
    data[first : first + 2 * size] = after
    difference = _difference(before, after)
    if version == 4:
        _add_to_checksum(data, at + _IPV4_CHECKSUM_AT, difference)
    return difference


def _follow_upper(data: bytearray, header: IpHeader, difference: int, table: AddressTable) -> None:
    """Put the upper layer's checksum right, and what an ICMP error quotes."""
    upper, protocol = header.upper_offset, header.upper_protocol
    if is_icmp_error(bytes(data)):
        quote = upper + _QUOTE_OFFSET
        before = bytes(data[quote:])
        _translate_quote(data, quote, header.version, table)
        quoted = _difference(before, bytes(data[quote:]))
        covered = quoted if protocol == ICMP else quoted + difference
        if upper + _ICMP_CHECKSUM_AT + 2 <= len(data):
            _add_to_checksum(data, upper + _ICMP_CHECKSUM_AT, covered)
    else:
        _follow_pseudo_header(data, upper, protocol, difference)


def _translate_quote(data: bytearray, quote: int, version: int, table: AddressTable) -> None:
    """The quoted packet is cut off somewhere: what is there of it follows."""
    least = IPV4_HEADER_BYTES if version == 4 else IPV6_HEADER_BYTES
    if len(data) < quote + least or data[quote] >> 4 != version:
        return
    difference = _translate_header(data, quote, version, table)
    if version == 4:
        is_first = not int.from_bytes(data[quote + 6 : quote + 8], "big") & 0x1FFF
        upper, protocol = quote + (data[quote] & 15) * 4, data[quote + 9]
    else:
        # Behind extension headers the checksum stays as it is: nobody looks at a quoted one.
        is_first, upper, protocol = True, quote + IPV6_HEADER_BYTES, data[quote + 6]
    if is_first:
        _follow_pseudo_header(data, upper, protocol, difference)


def _follow_pseudo_header(data: bytearray, upper: int, protocol: int, difference: int) -> None:
    at = upper + _CHECKSUM_AT.get(protocol, len(data))
    if at + 2 > len(data):
        return
    if protocol == _UDP and not data[at] | data[at + 1]:
        return  # the sender has computed none
    _add_to_checksum(data, at, difference)


def _difference(before: bytes, after: bytes) -> int:
    """Return by how much the one's complement sum has risen; the lengths are equal."""
    shift = 8 * (len(before) % 2)
    return (int.from_bytes(after, "big") - int.from_bytes(before, "big") << shift) % _MODULUS


def _add_to_checksum(data: bytearray, at: int, difference: int) -> None:
    """RFC 1624, equation 3: the complement of the sum follows the sum.

    The result is never 0, which would be "no checksum" in UDP, and is as good as 0xFFFF
    everywhere else.
    """
    if not difference:
        return
    total = _MODULUS - int.from_bytes(data[at : at + 2], "big") + difference
    data[at : at + 2] = (_MODULUS - total % _MODULUS).to_bytes(2, "big")
