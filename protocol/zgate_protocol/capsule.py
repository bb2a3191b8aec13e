"""Capsules (RFC 9297 section 3) and the three of CONNECT-IP (RFC 9484 section 4.7)."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from zgate_protocol.ip_range import IpRange


@dataclass(frozen=True, slots=True)
class AssignedAddress:
    """One address or prefix, assigned or asked for (RFC 9484 sections 4.7.1 and 4.7.2)."""

    request_id: int
    prefix: IPv4Network | IPv6Network

    @property
    def address(self) -> IPv4Address | IPv6Address:
        """The first (often the only) address of the prefix."""
        return self.prefix.network_address

    @property
    def is_refusal(self) -> bool:
        """True of 0.0.0.0/32 and ::/128, which answer a request with "none"."""
        return int(self.address) == 0 and self.prefix.prefixlen == self.prefix.max_prefixlen
