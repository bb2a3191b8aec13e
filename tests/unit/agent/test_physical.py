"""The way that the kernel would take without the tunnel."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from zgate_agent.physical import BACKSTOP_METRIC, PIN_METRIC, physical_route, pins
from zgate_agent.rtnl import (
    FLAG_DEAD,
    FLAG_LINKDOWN,
    FLAG_ONLINK,
    ROUTE_PROTOCOL,
    UNREACHABLE,
    Route,
)

TUN, ETH, WLAN = 9, 2, 3
GATEWAY = ip_address("203.0.113.10")
HOST = ip_network("203.0.113.10/32")
STATIC = 4


def route(
    destination: str,
    interface: int | None,
    metric: int = 0,
    *,
    via: str | None = None,
    protocol: int = STATIC,
    flags: int = 0,
    kind: int = 1,
) -> Route:
    return Route(
        ip_network(destination),
        metric,
        ip_address(via) if via else None,
        interface,
        protocol=protocol,
        flags=flags,
        kind=kind,
    )


DEFAULT = route("0.0.0.0/0", ETH, 100, via="198.18.1.1")
WIFI = route("0.0.0.0/0", WLAN, 600, via="192.168.1.1")
HALF = route("128.0.0.0/1", TUN, 50, protocol=ROUTE_PROTOCOL)


def test_the_tunnels_routes_do_not_count() -> None:
    pinned = route("203.0.113.10/32", ETH, PIN_METRIC, via="198.18.1.9", protocol=ROUTE_PROTOCOL)
    foreign = route("203.0.113.0/24", TUN)
    assert physical_route(GATEWAY, [HALF, pinned, foreign, DEFAULT], TUN) == DEFAULT


def test_the_longest_prefix_wins_then_the_lowest_metric() -> None:
    lan = route("203.0.113.0/24", WLAN, 9000)
    assert physical_route(GATEWAY, [WIFI, DEFAULT], TUN) == DEFAULT
    assert physical_route(GATEWAY, [DEFAULT, lan], TUN) == lan


def test_a_next_hop_without_carrier_is_the_last_resort() -> None:
    unplugged = route("0.0.0.0/0", ETH, 100, via="198.18.1.1", flags=FLAG_LINKDOWN)
    assert physical_route(GATEWAY, [unplugged, WIFI], TUN) == WIFI
    assert physical_route(GATEWAY, [unplugged], TUN) == unplugged


def test_a_dead_next_hop_is_none() -> None:
    assert physical_route(GATEWAY, [route("0.0.0.0/0", ETH, flags=FLAG_DEAD)], TUN) is None


def test_an_administrators_unreachable_route_counts() -> None:
    blocked = route("203.0.113.0/24", None, kind=UNREACHABLE)
    assert physical_route(GATEWAY, [DEFAULT, blocked], TUN) is None


def test_families_are_apart() -> None:
    assert physical_route(ip_address("2001:db8::1"), [DEFAULT], TUN) is None


def test_a_pin_follows_the_way_and_has_a_backstop() -> None:
    way = route("0.0.0.0/0", ETH, via="169.254.1.1", flags=FLAG_ONLINK | FLAG_LINKDOWN)
    backstop, pin = pins(GATEWAY, [HALF, way], TUN)
    assert (pin.destination, pin.metric) == (HOST, PIN_METRIC)
    assert (pin.interface, pin.via) == (ETH, ip_address("169.254.1.1"))
    assert pin.flags == FLAG_ONLINK
    assert (backstop.kind, backstop.metric) == (UNREACHABLE, BACKSTOP_METRIC)


def test_without_a_way_there_is_only_the_backstop() -> None:
    assert [one.kind for one in pins(GATEWAY, [HALF], TUN)] == [UNREACHABLE]
