"""Ranges: order, overlap, scope and lookup, each against the plain definition."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_protocol.ip_range import (
    EVERYTHING,
    IpRange,
    Match,
    RouteError,
    RouteTable,
    check_ranges,
    limit_ranges,
    networks_of,
    normalize_ranges,
    ranges_of,
)

# A small world, so that ranges meet: 40 addresses of each version, 4 protocols.
WORLD = 40
TCP, UDP = 6, 17


def v4(number: int) -> IPv4Address:
    return IPv4Address(0x0A000000 + number)


def v6(number: int) -> IPv6Address:
    return IPv6Address((0x20010DB8 << 96) + number)


@st.composite
def small_ranges(draw: st.DrawFn) -> IpRange:
    start = draw(st.integers(0, WORLD - 1))
    end = draw(st.integers(start, WORLD - 1))
    protocol = draw(st.sampled_from([0, 1, TCP, UDP]))
    if draw(st.booleans()):
        return IpRange(v4(start), v4(end), protocol)
    return IpRange(v6(start), v6(end), protocol)


range_lists = st.lists(small_ranges(), max_size=8)


def points(ranges: list[IpRange] | tuple[IpRange, ...]) -> set[tuple[int, int, int]]:
    """Every (version, address, protocol) that the list allows, protocol 0 spelled out."""
    found = set()
    for item in ranges:
        protocols = (
            range(4) if item.ip_protocol == 0 else [[0, 1, TCP, UDP].index(item.ip_protocol)]
        )
        for address in range(int(item.start), int(item.end) + 1):
            found |= {(item.version, address, protocol) for protocol in protocols}
    return found


@given(range_lists)
def test_normalized_lists_are_in_order_and_mean_the_same(ranges: list[IpRange]) -> None:
    normal = normalize_ranges(ranges)
    check_ranges(normal)
    assert points(normal) == points(ranges)


@given(range_lists)
def test_normalizing_twice_changes_nothing(ranges: list[IpRange]) -> None:
    assert normalize_ranges(normalize_ranges(ranges)) == normalize_ranges(ranges)


@given(st.lists(small_ranges(), min_size=2, max_size=4))
def test_check_follows_the_definition(ranges: list[IpRange]) -> None:
    def overlap(a: IpRange, b: IpRange) -> bool:
        return a.version == b.version and int(a.start) <= int(b.end) and int(b.start) <= int(a.end)

    pairs = [(a, b) for i, a in enumerate(ranges) for b in ranges[i + 1 :]]
    ordered = all(
        (a.version, a.ip_protocol) < (b.version, b.ip_protocol)
        or ((a.version, a.ip_protocol) == (b.version, b.ip_protocol) and int(a.end) < int(b.start))
        for a, b in pairs
    )
    mixed = any((a.ip_protocol == 0) != (b.ip_protocol == 0) and overlap(a, b) for a, b in pairs)
    if ordered and not mixed:
        check_ranges(ranges)
    else:
        with pytest.raises(RouteError):
            check_ranges(ranges)


@given(range_lists, st.integers(0, WORLD - 1), st.sampled_from([1, TCP, UDP, 58]))
def test_lookup_follows_the_definition(ranges: list[IpRange], number: int, protocol: int) -> None:
    table = RouteTable(ranges)
    for address in (v4(number), v6(number)):
        holding = [
            item
            for item in ranges
            if item.version == address.version and int(item.start) <= int(address) <= int(item.end)
        ]
        icmp = protocol == (1 if address.version == 4 else 58)
        expected = Match.OTHER_PROTOCOL if holding else Match.NO_RANGE
        if holding and (icmp or any(item.ip_protocol == protocol for item in holding)):
            expected = Match.THIS_PROTOCOL
        if any(item.ip_protocol == 0 for item in holding):
            expected = Match.ALL_PROTOCOLS
        assert table.match(address.packed, protocol) is expected
        assert table.lookup(address.packed, protocol) == (expected >= Match.THIS_PROTOCOL)
        assert table.holds(address.packed) == bool(holding)
        assert table.all_protocols(address.packed) == (expected is Match.ALL_PROTOCOLS)


def test_protocol_0_in_a_packet_is_hop_by_hop_and_no_wildcard() -> None:
    table = RouteTable([IpRange(v6(0), v6(9), TCP)])
    assert table.match(v6(5).packed, 0) is Match.OTHER_PROTOCOL


def test_an_empty_table_holds_nothing() -> None:
    assert RouteTable().match(v4(0).packed, TCP) is Match.NO_RANGE
    assert RouteTable().match(b"", TCP) is Match.NO_RANGE


def test_everything() -> None:
    table = RouteTable(EVERYTHING)
    for text in ("0.0.0.0", "255.255.255.255", "::", "ffff::ffff"):
        assert table.lookup(ip_address(text).packed, 132)


@given(range_lists, range_lists, st.sampled_from([None, TCP, UDP]))
def test_a_scope_is_an_intersection(
    ranges: list[IpRange], windows: list[IpRange], protocol: int | None
) -> None:
    targets = networks_of(windows)
    limited = limit_ranges(ranges, targets, protocol)
    check_ranges(limited)
    inside = {(version, address) for version, address, _ in points(windows)}
    index = None if protocol is None else [0, 1, TCP, UDP].index(protocol)
    expected = {
        point
        for point in points(ranges)
        if point[:2] in inside and (index is None or point[2] == index)
    }
    assert points(limited) == expected


def test_no_limit_is_no_change() -> None:
    assert limit_ranges(EVERYTHING, None, None) == EVERYTHING


@given(range_lists)
def test_networks_cover_the_same_addresses(ranges: list[IpRange]) -> None:
    covered = {
        (network.version, int(network.network_address) + i)
        for network in networks_of(ranges)
        for i in range(network.num_addresses)
    }
    assert covered == {(version, address) for version, address, _ in points(ranges)}


@given(small_ranges())
def test_networks_of_one_range(item: IpRange) -> None:
    total = sum(network.num_addresses for network in item.networks())
    assert total == int(item.end) - int(item.start) + 1


def test_ranges_of_networks() -> None:
    networks = [ip_network("10.1.0.0/16"), ip_network("10.0.0.0/16"), ip_network("fd00::/8")]
    assert ranges_of(networks) == (
        IpRange(ip_address("10.0.0.0"), ip_address("10.1.255.255")),
        IpRange(ip_address("fd00::"), ip_address("fdff" + ":ffff" * 7)),
    )


@pytest.mark.parametrize(
    ("start", "end", "protocol"),
    [(v4(1), v6(1), 0), (v4(2), v4(1), 0), (v4(1), v4(1), 256), (v4(1), v4(1), -1)],
)
def test_impossible_ranges(start: IPv4Address, end: IPv4Address, protocol: int) -> None:
    with pytest.raises(RouteError):
        IpRange(start, end, protocol)
