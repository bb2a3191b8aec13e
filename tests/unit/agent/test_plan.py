"""Routes, narrowed and halved; pins."""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv6Address,
    collapse_addresses,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_agent.config import Mode
from zgate_agent.plan import (
    HALVES,
    IpAddress,
    IpNetwork,
    NetworkPlan,
    covers,
    make_plan,
    tunnel_routes,
)
from zgate_protocol.ip_range import EVERYTHING, IpRange

GATEWAY = ip_address("203.0.113.10")


def networks(*texts: str) -> tuple[IpNetwork, ...]:
    return tuple(ip_network(text) for text in texts)


def ranges(*texts: str) -> list[IpRange]:
    return [IpRange.of(network) for network in networks(*texts)]


def test_a_full_tunnel_is_the_halves_whatever_is_advertised() -> None:
    assert tunnel_routes(ranges("10.0.0.0/8"), Mode.FULL, None) == HALVES
    assert tunnel_routes([], Mode.FULL, None) == HALVES


def test_a_split_tunnel_is_what_is_advertised() -> None:
    found = tunnel_routes(ranges("10.20.0.0/24", "fd00:20::/64"), Mode.SPLIT, None)
    assert found == networks("10.20.0.0/24", "fd00:20::/64")


def test_an_advertised_default_route_becomes_two_halves() -> None:
    assert tunnel_routes(EVERYTHING, Mode.SPLIT, None) == HALVES


def test_two_advertised_halves_stay_halves() -> None:
    found = tunnel_routes(ranges("0.0.0.0/1", "128.0.0.0/1"), Mode.SPLIT, None)
    assert found == networks("0.0.0.0/1", "128.0.0.0/1")


def test_the_own_list_narrows() -> None:
    own = networks("10.20.0.0/16", "10.99.0.0/16", "192.168.0.0/16")
    found = tunnel_routes(ranges("10.20.7.0/24", "10.64.0.0/10", "fd00::/8"), Mode.SPLIT, own)
    assert found == networks("10.20.7.0/24", "10.99.0.0/16")


def test_an_empty_own_list_routes_nothing() -> None:
    assert tunnel_routes(EVERYTHING, Mode.SPLIT, ()) == ()


def test_a_range_of_one_protocol_is_routed_whole() -> None:
    network = ip_network("10.20.0.0/24")
    assert tunnel_routes([IpRange.of(network, 6)], Mode.SPLIT, None) == (network,)


def test_a_range_that_is_no_network() -> None:
    item = IpRange(ip_address("10.0.0.1"), ip_address("10.0.0.4"))
    found = tunnel_routes([item], Mode.SPLIT, None)
    assert found == networks("10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/32")


def _networks(version: int, base: int, bits: int) -> st.SearchStrategy[IpNetwork]:
    width = 32 if version == 4 else 128
    make = IPv4Address if version == 4 else IPv6Address

    def build(low: int, prefix: int) -> IpNetwork:
        return ip_network(f"{make(base + low)}/{prefix}", strict=False)

    return st.builds(build, st.integers(0, 2**bits - 1), st.integers(width - bits, width))


SMALL = st.lists(st.one_of(_networks(4, 0x0A000000, 6), _networks(6, 0xFD << 120, 6)), max_size=6)
PROBES: list[IpAddress] = [
    *(IPv4Address(0x0A000000 + n) for n in range(-2, 66)),
    *(IPv6Address((0xFD << 120) + n) for n in range(-2, 66)),
]


@given(SMALL, SMALL)
def test_the_routes_are_exactly_what_is_in_both_lists(
    advertised: list[IpNetwork], own: list[IpNetwork]
) -> None:
    found = tunnel_routes([IpRange.of(one) for one in advertised], Mode.SPLIT, own)
    for probe in PROBES:
        assert covers(found, probe) == (covers(advertised, probe) and covers(own, probe))


@given(SMALL, st.none() | SMALL)
def test_the_routes_are_few_and_no_default_route(
    advertised: list[IpNetwork], own: list[IpNetwork] | None
) -> None:
    found = tunnel_routes([IpRange.of(one) for one in advertised], Mode.SPLIT, own)
    assert all(network.prefixlen for network in found)
    for version in (4, 6):
        mine: list[Any] = [one for one in found if one.version == version]
        assert list(collapse_addresses(mine)) == mine


def plan(mode: Mode = Mode.FULL, mtu_bytes: int = 1400) -> NetworkPlan:
    return make_plan(
        addresses=[ip_interface("10.100.0.2/32"), ip_interface("fd7a::2/128")],
        advertised=ranges("10.20.0.0/24"),
        mtu_bytes=mtu_bytes,
        mode=mode,
        own_routes=None,
        gateway=GATEWAY,
    )


def test_the_gateway_is_pinned_when_a_route_covers_it() -> None:
    assert plan().pins == (GATEWAY,)
    assert plan(Mode.SPLIT).pins == ()


def test_only_covered_gateways_are_pinned() -> None:
    inside, outside = ip_address("10.20.0.9"), ip_address("10.21.0.9")
    assert plan(Mode.SPLIT).with_pins([inside, outside]).pins == (inside,)


@pytest.mark.parametrize("mtu_bytes", [0, 576, 1279])
def test_the_link_is_never_too_small_for_ipv6(mtu_bytes: int) -> None:
    assert plan(mtu_bytes=mtu_bytes).mtu_bytes == 1280


def test_a_host_without_ipv6_gets_the_rest() -> None:
    left = plan().with_pins([GATEWAY, ip_address("2001:db8::1")]).without_version(6)
    assert left.addresses == (ip_interface("10.100.0.2/32"),)
    assert left.routes == networks("0.0.0.0/1", "128.0.0.0/1")
    assert left.pins == (GATEWAY,)
