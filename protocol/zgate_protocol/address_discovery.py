"""QUIC address discovery: draft-ietf-quic-address-discovery-01 (August 2026).

    address_discovery (0x9f81a176)   a transport parameter: a varint, 0, 1 or 2
    OBSERVED_ADDRESS (0x9f81a6..7)   { Type (i), Sequence Number (i),
                                       IPv4 (32) or IPv6 (128), Port (16) }

The lowest bit of the type says which address it is. The frame only stands in 1-RTT packets
here (we have no 0-RTT), is ack-eliciting, and counts as a probing frame.
"""

from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from zgate_protocol.ip_range import IpAddress
from zgate_protocol.service_capsule import ObservedAddress
from zgate_protocol.varint import Truncated, decode_varint, encode_varint

ADDRESS_DISCOVERY_PARAMETER: Final = 0x9F81A176
OBSERVED_IPV4: Final = 0x9F81A6
OBSERVED_IPV6: Final = 0x9F81A7
MAX_FRAME_BYTES: Final = 4 + 8 + 16 + 2


class DiscoveryMode(IntEnum):
    """The values of the transport parameter (section 3)."""

    PROVIDES = 0
    RECEIVES = 1
    BOTH = 2

    @property
    def provides(self) -> bool:
        """Whether this end tells what it sees."""
        return self is not DiscoveryMode.RECEIVES

    @property
    def receives(self) -> bool:
        """Whether this end wants to be told."""
        return self is not DiscoveryMode.PROVIDES


def parse_discovery_mode(value: bytes) -> DiscoveryMode:
    """Return the parameter's meaning; ValueError calls for TRANSPORT_PARAMETER_ERROR."""
    number, end = decode_varint(value)
    if end != len(value):
        raise ValueError("bytes after the value of address_discovery")
    return DiscoveryMode(number)


def seen_address(host: str) -> IpAddress:
    """Return the address of a socket's peer; one that IPv6 maps from IPv4 is the IPv4 address."""
    # A zone, as in fe80::1%eth0, means nothing to the peer.
    address_text = host.partition("%")[0]
    if ":" not in address_text:
        return IPv4Address(address_text)
    address = IPv6Address(address_text)
    return address.ipv4_mapped or address


def encode_observed_address(observed: ObservedAddress) -> bytes:
    """Return the frame, its type included."""
    frame_type = OBSERVED_IPV4 if observed.address.version == 4 else OBSERVED_IPV6
    place = observed.address.packed + observed.port.to_bytes(2, "big")
    return encode_varint(frame_type) + encode_varint(observed.sequence) + place


def decode_observed_address(
    frame_type: int, data: bytes, offset: int = 0
) -> tuple[ObservedAddress, int]:
    """Return what the frame says, and the offset after it; ``offset`` is after its type.

    Truncated calls for FRAME_ENCODING_ERROR.
    """
    sequence, at = decode_varint(data, offset)
    size = 4 if frame_type == OBSERVED_IPV4 else 16
    end = at + size + 2
    if end > len(data):
        raise Truncated("an OBSERVED_ADDRESS frame that is not complete")
    packed, port = data[at : at + size], int.from_bytes(data[at + size : end], "big")
    address = IPv4Address(packed) if size == 4 else IPv6Address(packed)
    return ObservedAddress(sequence, address, port), end
