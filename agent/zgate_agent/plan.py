"""What the host's network should look like, computed from what the gateway gave. Pure.

The host's default route is never touched: "everything" is two half routes for each family, more
specific than any default route, and gone without a trace when they are removed. The gateway's own
address is *pinned* to the physical path by a host route when a tunnel route would swallow it:
else the tunnel's packets would go into the tunnel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)

from zgate_protocol.ip_range import IpRange, limit_ranges, networks_of

from zgate_agent.config import MIN_MTU_BYTES, Mode

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network
IpInterface = IPv4Interface | IPv6Interface

HALVES: tuple[IpNetwork, ...] = (
    IPv4Network("0.0.0.0/1"),
    IPv4Network("128.0.0.0/1"),
    IPv6Network("::/1"),
    IPv6Network("8000::/1"),
)


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """The wanted state: everything that the agent programs, and nothing else.

    Attributes:
        mtu_bytes: of the TUN.
        addresses: virtual IPs, on the TUN.
        routes: networks that go into the TUN, IPv4 first, no default route among them.
        pins: addresses of the gateway that must not go into the TUN.
    """

    mtu_bytes: int
    addresses: tuple[IpInterface, ...] = ()
    routes: tuple[IpNetwork, ...] = ()
    pins: tuple[IpAddress, ...] = ()

    def with_pins(self, gateways: Iterable[IpAddress]) -> NetworkPlan:
        """The same plan for these addresses of the gateway; those are pinned that routes cover."""
        return replace(self, pins=tuple(one for one in gateways if covers(self.routes, one)))

    def without_version(self, version: int) -> NetworkPlan:
        """The same plan on a host that has only the other IP version."""
        return replace(
            self,
            addresses=tuple(one for one in self.addresses if one.version != version),
            routes=tuple(one for one in self.routes if one.version != version),
            pins=tuple(one for one in self.pins if one.version != version),
        )


def covers(routes: Iterable[IpNetwork], address: IpAddress) -> bool:
    """Whether one of the routes leads to the address."""
    return any(address in route for route in routes)


def tunnel_routes(
    advertised: Sequence[IpRange], mode: Mode, own: Sequence[IpNetwork] | None
) -> tuple[IpNetwork, ...]:
    """The networks to route into the tunnel.

    Split: the ranges that are both advertised and in the agent's own list (None: no limit). A
    range of one IP protocol is routed whole, as routes know no protocols; what it does not allow
    is answered with an ICMP error by the tunnel, and so does not leave the device beside it.
    """
    if mode is Mode.FULL:
        return HALVES
    networks = networks_of(limit_ranges(advertised, own, None))
    return tuple(half for network in networks for half in _halved(network))


def _halved(network: IpNetwork) -> tuple[IpNetwork, ...]:
    """A default route as its two halves; every other network as it is."""
    if network.prefixlen:
        return (network,)
    return tuple(half for half in HALVES if half.version == network.version)


def make_plan(
    *,
    addresses: Sequence[IpInterface],
    advertised: Sequence[IpRange],
    mtu_bytes: int,
    mode: Mode,
    own_routes: Sequence[IpNetwork] | None,
    gateway: IpAddress,
) -> NetworkPlan:
    """The plan for one session."""
    plan = NetworkPlan(
        # On a smaller link the kernel switches IPv6 off (RFC 8200 section 5), and it would
        # leave beside the tunnel. A path that is smaller is the tunnel's to refuse.
        mtu_bytes=max(MIN_MTU_BYTES, mtu_bytes),
        addresses=tuple(addresses),
        routes=tunnel_routes(advertised, mode, own_routes),
    )
    return plan.with_pins([gateway])
