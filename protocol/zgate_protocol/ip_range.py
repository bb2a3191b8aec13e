"""Ranges of IP addresses, as ROUTE_ADVERTISEMENT carries them (RFC 9484 section 4.7.3)."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address


@dataclass(frozen=True, slots=True)
class IpRange:
    """Inclusive range of addresses; ``ip_protocol`` 0 means every protocol."""

    start: IPv4Address | IPv6Address
    end: IPv4Address | IPv6Address
    ip_protocol: int = 0
