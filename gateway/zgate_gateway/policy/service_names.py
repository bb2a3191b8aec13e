"""Services by name: what a pattern matches, and which addresses stand for a name.

A service's virtual IPs are the gateway's to give (`zgate_gateway.services`), and a policy is to be
checked, tested and compared without one. There, and for names that the gateway has not met yet, a
name has a *stand-in*: addresses of the service pools that no known service has. A pattern gets one
as well, for the services that will match it: the pattern's own text, read as a name, matches
whatever every such name matches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import NamedTuple

from zgate_gateway.policy.services import IpAddress, IpNetwork

Services = Mapping[str, tuple[IpAddress, ...]]
"""Services by name, and the virtual IPs of each."""

WILDCARD = "*"
"""In a pattern: any characters, or none. No service's name holds it."""


class ServicePools(NamedTuple):
    """Where services' virtual IPs come from."""

    ipv4: IPv4Network
    ipv6: IPv6Network

    @property
    def room(self) -> int:
        """For how many services there are addresses of both families; the upper halves are not
        services' (`zgate_gateway.services.directory`).
        """
        return max(0, min(self.ipv4.num_addresses, self.ipv6.num_addresses) // 2 - 1)


#: As in `zgate_gateway.config`: for whoever looks at a policy without a gateway's configuration.
DEFAULT_POOLS = ServicePools(IPv4Network("10.101.0.0/16"), IPv6Network("fd7a:7a67:6174:66::/64"))


def is_pattern(name: str) -> bool:
    """Whether it may match several services."""
    return WILDCARD in name


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern means a service of that name. Takes no more time than both are long."""
    first, *rest = pattern.split(WILDCARD)
    if not rest:
        return pattern == name
    *middle, last = rest
    if len(name) < len(first) + len(last) or not name.startswith(first) or not name.endswith(last):
        return False
    place, end = len(first), len(name) - len(last)
    for part in middle:
        place = name.find(part, place, end)
        if place < 0:
            return False
        place += len(part)
    return True


def matching(patterns: Iterable[str], services: Services) -> Iterator[str]:
    """The names of the services that one of the patterns means."""
    for pattern in patterns:
        if not is_pattern(pattern):
            if pattern in services:
                yield pattern
            continue
        yield from (name for name in services if matches(pattern, name))


def addresses_of(patterns: Iterable[str], services: Services) -> tuple[IpAddress, ...]:
    """The virtual IPs of the services that one of the patterns means, each once."""
    names = dict.fromkeys(matching(patterns, services))
    return tuple(dict.fromkeys(address for name in names for address in services[name]))


def network_of(address: IpAddress) -> IpNetwork:
    """The network that holds this address alone."""
    return ip_network(address)


def name_of(network: IpNetwork, services: Services) -> str:
    """The service that has this address as a virtual IP, else the network."""
    if network.num_addresses == 1:
        for name, addresses in services.items():
            if network.network_address in addresses:
                return f"service {name}"
    return str(network)


def with_stand_ins(
    names: Iterable[str], known: Services, pools: ServicePools
) -> dict[str, tuple[IpAddress, ...]]:
    """Return the known services, and addresses for the names (and patterns) that are not known.

    Fewer than there are names if the pools are too small.
    """
    made = dict(known)
    missing = sorted(set(names) - made.keys())
    if missing:
        taken = {address for addresses in known.values() for address in addresses}
        free = ((host for host in pool.hosts() if host not in taken) for pool in pools)
        made.update(zip(missing, zip(*free, strict=False), strict=False))
    return made
