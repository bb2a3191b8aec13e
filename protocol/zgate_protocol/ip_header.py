"""IPv4 and IPv6 headers (RFC 791, RFC 8200): enough to check, to route and to quote.

``parse_ip`` looks at everything that forwarding may need. The ``quick_`` functions are for
the path of every packet: one call, no object, and no walk over extension headers.
"""

from dataclasses import dataclass
from typing import Final

from zgate_protocol.drop_reason import DropReason
from zgate_protocol.errors import PacketError

IPV4_HEADER_BYTES: Final = 20
IPV6_HEADER_BYTES: Final = 40

HOP_BY_HOP: Final = 0
ROUTING: Final = 43
FRAGMENT: Final = 44
AUTHENTICATION: Final = 51
DESTINATION_OPTIONS: Final = 60
MOBILITY: Final = 135
HOST_IDENTITY: Final = 139
SHIM6: Final = 140

# ESP is an extension header too (RFC 7045), but hides what follows, and 59 is "nothing
# follows": both end the walk, and are what a scope can name.
EXTENSION_HEADERS: Final = frozenset(
    (
        HOP_BY_HOP,
        ROUTING,
        FRAGMENT,
        AUTHENTICATION,
        DESTINATION_OPTIONS,
        MOBILITY,
        HOST_IDENTITY,
        SHIM6,
    )
)
MAX_EXTENSION_HEADERS: Final = 8
"""A longer chain is an attack on whoever walks it."""


@dataclass(frozen=True, slots=True)
class IpHeader:
    """What a packet's headers say; addresses are 4 or 16 bytes."""

    version: int
    source: bytes
    destination: bytes
    total_length_bytes: int
    hop_limit: int
    upper_protocol: int
    """The outermost number that is no extension header (RFC 9484 section 4.8)."""
    upper_offset: int
    """Where that protocol's header begins; in a later fragment, where its data does."""
    is_fragment: bool
    fragment_offset_bytes: int
    """0 for a whole packet and for a first fragment."""


def parse_ip(packet: bytes) -> IpHeader:
    """Parse a packet that must be complete; PacketError says why it is not."""
    version = _checked_version(packet)
    return _parse_ipv4(packet) if version == 4 else _parse_ipv6(packet)


def _checked_version(packet: bytes) -> int:
    """Return 4 or 6 if the fixed header is there and the lengths agree."""
    if not packet:
        raise PacketError(DropReason.BAD_LENGTH)
    version = packet[0] >> 4
    if version == 4:
        _check_ipv4_lengths(packet)
    elif version == 6:
        if len(packet) < IPV6_HEADER_BYTES:
            raise PacketError(DropReason.BAD_LENGTH)
        if (packet[4] << 8 | packet[5]) + IPV6_HEADER_BYTES != len(packet):
            raise PacketError(DropReason.BAD_LENGTH)
    else:
        raise PacketError(DropReason.BAD_VERSION)
    return version


def _check_ipv4_lengths(packet: bytes) -> None:
    header_bytes = (packet[0] & 15) * 4
    if not IPV4_HEADER_BYTES <= header_bytes <= len(packet):
        raise PacketError(DropReason.BAD_LENGTH)
    if packet[2] << 8 | packet[3] != len(packet):
        raise PacketError(DropReason.BAD_LENGTH)


def _parse_ipv4(packet: bytes) -> IpHeader:
    flags = packet[6] << 8 | packet[7]
    return IpHeader(
        version=4,
        source=bytes(packet[12:16]),
        destination=bytes(packet[16:20]),
        total_length_bytes=len(packet),
        hop_limit=packet[8],
        upper_protocol=packet[9],
        upper_offset=(packet[0] & 15) * 4,
        is_fragment=bool(flags & 0x3FFF),
        fragment_offset_bytes=(flags & 0x1FFF) * 8,
    )


def _parse_ipv6(packet: bytes) -> IpHeader:
    protocol, offset, fragment = _walk_extensions(packet)
    return IpHeader(
        version=6,
        source=bytes(packet[8:24]),
        destination=bytes(packet[24:40]),
        total_length_bytes=len(packet),
        hop_limit=packet[7],
        upper_protocol=protocol,
        upper_offset=offset,
        is_fragment=fragment is not None,
        fragment_offset_bytes=(fragment or 0) & 0xFFF8,
    )


def _walk_extensions(packet: bytes) -> tuple[int, int, int | None]:
    """Return upper protocol, its offset, and the fragment header's offset word if there is one."""
    protocol, offset = packet[6], IPV6_HEADER_BYTES
    fragment: int | None = None
    for count in range(MAX_EXTENSION_HEADERS + 1):
        if protocol not in EXTENSION_HEADERS:
            return protocol, offset, fragment
        if protocol == HOP_BY_HOP and count:
            raise PacketError(DropReason.MALFORMED)
        if offset + 8 > len(packet):
            raise PacketError(DropReason.BAD_LENGTH)
        if protocol == FRAGMENT:
            fragment = packet[offset + 2] << 8 | packet[offset + 3]
            if fragment & 0xFFF8:
                # The rest of the chain is in the first fragment only.
                return packet[offset], offset + 8, fragment
        protocol, offset = packet[offset], offset + _extension_bytes(packet, protocol, offset)
        if offset > len(packet):
            raise PacketError(DropReason.BAD_LENGTH)
    raise PacketError(DropReason.UNKNOWN_NEXT_HEADER)


def _extension_bytes(packet: bytes, protocol: int, offset: int) -> int:
    if protocol == FRAGMENT:
        return 8
    if protocol == AUTHENTICATION:
        return (packet[offset + 1] + 2) * 4
    return (packet[offset + 1] + 1) * 8


def quick_source(packet: bytes) -> bytes:
    """Return the source address (4 or 16 bytes); PacketError if version or length is wrong."""
    length = len(packet)
    if length >= IPV4_HEADER_BYTES:
        version = packet[0] >> 4
        if version == 4:
            if packet[2] << 8 | packet[3] == length:
                return packet[12:16]
        elif version == 6 and length >= 40 and (packet[4] << 8 | packet[5]) + 40 == length:
            return packet[8:24]
    _checked_version(packet)
    raise PacketError(DropReason.BAD_LENGTH)


def quick_destination(packet: bytes) -> bytes:
    """Return the destination address (4 or 16 bytes), under the checks of ``quick_source``."""
    length = len(packet)
    if length >= IPV4_HEADER_BYTES:
        version = packet[0] >> 4
        if version == 4:
            if packet[2] << 8 | packet[3] == length:
                return packet[16:20]
        elif version == 6 and length >= 40 and (packet[4] << 8 | packet[5]) + 40 == length:
            return packet[24:40]
    _checked_version(packet)
    raise PacketError(DropReason.BAD_LENGTH)


def check_packet(packet: bytes) -> DropReason:
    """Say whether version and lengths are right (NONE), without walking the extensions."""
    try:
        _checked_version(packet)
    except PacketError as error:
        return error.reason
    return DropReason.NONE


def decrement_hop_limit(packet: bytes) -> bytes:
    """Return the packet with its TTL or hop limit one lower, for whoever *forwards* it.

    An endpoint's own packets are not forwarded (RFC 9484 section 7.2). PacketError
    (TTL_EXPIRED) when nothing would be left: answer with Time Exceeded. The IPv4 checksum
    is updated incrementally (RFC 1624, equation 3).
    """
    if _checked_version(packet) == 6:
        if packet[7] <= 1:
            raise PacketError(DropReason.TTL_EXPIRED)
        return packet[:7] + bytes((packet[7] - 1,)) + packet[8:]
    if packet[8] <= 1:
        raise PacketError(DropReason.TTL_EXPIRED)
    # ~m + m' of the equation is 0xFEFF, for m' is m - 0x100 whatever m is.
    total = (~(packet[10] << 8 | packet[11]) & 0xFFFF) + 0xFEFF
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    changed = bytes((packet[8] - 1, packet[9], checksum >> 8, checksum & 0xFF))
    return packet[:8] + changed + packet[12:]


# Addresses that never leave a link or a host.


def is_link_local(address: bytes) -> bool:
    """Say whether an address (4 or 16 bytes) has link-local or smaller scope.

    169.254/16, 224.0.0/24, 255.255.255.255; fe80::/10, multicast of scope 0 to 2.
    """
    if len(address) == 4:
        return address[:2] == b"\xa9\xfe" or address[:3] == b"\xe0\0\0" or address == b"\xff" * 4
    if address[0] == 0xFF:
        return address[1] & 15 <= 2
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def is_host_only(address: bytes) -> bool:
    """Say whether an address (4 or 16 bytes) is unspecified or loopback."""
    if len(address) == 4:
        return address[0] in (0, 127)
    return address[:15] == bytes(15) and address[15] <= 1


def is_multicast(address: bytes) -> bool:
    """Say whether an address (4 or 16 bytes) is multicast, or the IPv4 broadcast."""
    if len(address) == 4:
        return address[0] >> 4 == 14 or address == b"\xff" * 4
    return address[0] == 0xFF
