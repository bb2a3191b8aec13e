"""Which physical way leads to the gateway, while the tunnel's own routes hide it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_network

from zgate_agent.plan import IpAddress
from zgate_agent.rtnl import (
    FLAG_DEAD,
    FLAG_LINKDOWN,
    FLAG_ONLINK,
    ROUTE_PROTOCOL,
    UNICAST,
    UNREACHABLE,
    Route,
)

PIN_METRIC = 5
BACKSTOP_METRIC = 0xFFFF_FFFE
"""Any other route to the same address is better."""


def pins(address: IpAddress, table: Sequence[Route], tun_index: int) -> tuple[Route, ...]:
    """The host routes that keep an address out of the tunnel.

    The first follows the physical way, if there is one now. The second says "unreachable" and is
    used only while the first is missing: when an interface goes down the kernel removes the routes
    over it at once, and the tunnel's packets would go round in the tunnel until we noticed.
    """
    host = ip_network(address)
    backstop = Route(host, BACKSTOP_METRIC, kind=UNREACHABLE)
    way = physical_route(address, table, tun_index)
    if way is None:
        return (backstop,)
    pin = Route(
        destination=host,
        metric=PIN_METRIC,
        via=way.via,
        interface=way.interface,
        source=way.source,
        flags=way.flags & FLAG_ONLINK,
    )
    return backstop, pin


def physical_route(address: IpAddress, table: Iterable[Route], tun_index: int) -> Route | None:
    """What the kernel would choose from the main table if the agent had no routes.

    Longest prefix, then lowest metric. A next hop whose link has no carrier is taken only when
    there is no other.
    """
    matching = [
        route
        for route in table
        if address in route.destination
        and route.protocol != ROUTE_PROTOCOL
        and route.interface != tun_index
        and not route.flags & FLAG_DEAD
    ]
    alive = [route for route in matching if not route.flags & FLAG_LINKDOWN]
    best = min(alive or matching, key=_preference, default=None)
    return best if best is not None and best.kind == UNICAST else None


def _preference(route: Route) -> tuple[int, int]:
    return -route.destination.prefixlen, route.metric
