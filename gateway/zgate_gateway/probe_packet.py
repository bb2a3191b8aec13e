"""One packet as a client would send it, to ask the loaded program what it would do."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

TCP, UDP, ICMP, ICMPV6, SCTP = 6, 17, 1, 58, 132
# An ephemeral port that the flow table is unlikely to know.
_SOURCE_PORT = 61001
_ECHO_REQUEST, _ECHO_REQUEST_V6 = 8, 128


def build_probe_packet(
    source: IPv4Address | IPv6Address,
    destination: IPv4Address | IPv6Address,
    protocol: int,
    port: int | None,
) -> bytes:
    """An IP packet of `protocol` to `port`; ICMP is an echo request, TCP a SYN.

    Checksums are zero: the packet is judged, never sent.

    Raises:
        ValueError: the addresses are of two families.
    """
    if source.version != destination.version:
        raise ValueError(f"{source} and {destination} are of two IP versions")
    payload = _transport(protocol, port or 0)
    if source.version == 4:
        header = struct.pack(
            "!BBHHHBBH4s4s",
            0x45,
            0,
            20 + len(payload),
            0,
            0,
            64,
            protocol,
            0,
            source.packed,
            destination.packed,
        )
    else:
        header = struct.pack(
            "!IHBB16s16s",
            6 << 28,
            len(payload),
            protocol,
            64,
            source.packed,
            destination.packed,
        )
    return header + payload


def _transport(protocol: int, port: int) -> bytes:
    if protocol == TCP:
        return struct.pack("!HHIIBBHHH", _SOURCE_PORT, port, 0, 0, 5 << 4, 0x02, 65535, 0, 0)
    if protocol == UDP:
        return struct.pack("!HHHH", _SOURCE_PORT, port, 8, 0)
    if protocol == ICMP:
        return struct.pack("!BBHHH", _ECHO_REQUEST, 0, 0, _SOURCE_PORT, 0)
    if protocol == ICMPV6:
        return struct.pack("!BBHHH", _ECHO_REQUEST_V6, 0, 0, _SOURCE_PORT, 0)
    return struct.pack("!HHI", _SOURCE_PORT, port, 0) + bytes(8)
