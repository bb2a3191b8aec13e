"""Names of IP protocols, as they are written and shown."""

from __future__ import annotations

ICMP, TCP, UDP, ICMPV6, SCTP, DCCP, UDPLITE = 1, 6, 17, 58, 132, 33, 136
NUMBERS = {
    "icmp": ICMP,
    "icmpv6": ICMPV6,
    "tcp": TCP,
    "udp": UDP,
    "sctp": SCTP,
    "dccp": DCCP,
    "udplite": UDPLITE,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "ospf": 89,
}
WITH_PORTS = frozenset({TCP, UDP, SCTP, DCCP, UDPLITE})
_NAMES = {number: name for name, number in NUMBERS.items()}


def protocol_name(number: int) -> str:
    """Return the name, or ``protocol 99``."""
    return _NAMES.get(number, f"protocol {number}")
