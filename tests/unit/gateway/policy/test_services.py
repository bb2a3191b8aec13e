"""Services: names to numbers per family, ranges to prefixes, and which prefixes are kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_gateway.policy.services import (
    ANY_PROTOCOL,
    ANYTHING,
    ICMP_NAMES,
    IcmpType,
    PortRange,
    Prefix,
    Protocol,
    Service,
    encloses,
    merge,
    prefixes_of,
    resolve,
    services_of,
)

ALL = 65535


def named(*names):
    return tuple(map(Protocol, names))


@pytest.mark.parametrize(
    ("protocols", "ipv4", "ipv6"),
    [
        (None, [ANY_PROTOCOL], [ANY_PROTOCOL]),
        (named("any", "tcp"), [ANY_PROTOCOL], [ANY_PROTOCOL]),
        (named("udp", "tcp", "6"), [6, 17], [6, 17]),
        (named("icmp"), [1], [58]),
        (named("icmpv6"), [], [58]),
        (named("58", "1"), [1, 58], [1, 58]),
        (named("sctp", "0", "255"), [0, 132, 255], [0, 132, 255]),
    ],
)
def test_protocols(protocols, ipv4, ipv6):
    for family, numbers in ((4, ipv4), (6, ipv6)):
        expected = tuple(Service(number, 0, ALL) for number in numbers)
        assert services_of(protocols, None, None, family) == expected


def test_ports_without_protocols_are_tcp_and_udp_and_touching_ranges_join():
    ports = [PortRange(90, 99), PortRange(53, 53), PortRange(80, 89), PortRange(85, 87)]
    expected = tuple(Service(n, *r) for n in (6, 17) for r in ((53, 53), (80, 99)))
    assert services_of(None, ports, None, 4) == expected


@pytest.mark.parametrize(
    ("protocols", "family", "expected"),
    [
        (None, 4, [Service(1, 0x0800, 0x08FF)]),
        (None, 6, [Service(58, 0x8000, 0x80FF)]),
        (named("icmpv6"), 4, []),
        (named("icmpv6"), 6, [Service(58, 0x8000, 0x80FF)]),
        (named("1"), 6, []),  # protocol 1 in IPv6 is not ICMP: it has no types
        (named("58"), 4, []),
        (named("1"), 4, [Service(1, 0x0800, 0x08FF)]),
    ],
)
def test_icmp_types_exist_in_the_icmp_of_the_family_only(protocols, family, expected):
    types = [IcmpType(name="echo-request")]
    assert services_of(protocols, None, types, family) == tuple(expected)


def test_icmp_type_with_code():
    (service,) = services_of(None, None, [IcmpType(number=3, code=4)], 4)
    assert service == Service(1, 0x0304, 0x0304)


def test_things_print_as_they_are_written():
    assert [str(PortRange(1, 1)), str(PortRange(1, 9))] == ["1", "1-9"]
    types = [IcmpType(number=3), IcmpType(number=3, code=4), IcmpType(name="echo-reply")]
    assert list(map(str, types)) == ["3", "3/4", "echo-reply"]
    assert ICMP_NAMES["echo-reply"] == (0, 129)


@given(st.integers(0, ALL), st.integers(0, ALL))
def test_a_range_becomes_few_aligned_prefixes_that_are_the_range(one, other):
    first, last = min(one, other), max(one, other)
    prefixes = prefixes_of((Service(6, first, last),))
    assert len(prefixes) <= 30
    port = first
    for prefix in prefixes:
        assert prefix.port == port
        assert prefix.port & (ALL >> prefix.bits) == 0
        port = prefix.last + 1
    assert port == last + 1


prefixes = st.one_of(
    st.just(ANYTHING),
    st.tuples(st.sampled_from([6, 17]), st.integers(0, ALL), st.integers(0, 16)).map(
        lambda p: Prefix(p[0], p[1] & ~(ALL >> p[2]), p[2])
    ),
    st.integers(0, 16).map(lambda bits: Prefix(6, 80 & ~(ALL >> bits), bits)),
)


@given(st.dictionaries(prefixes, st.integers(0, 20), max_size=20), st.integers(0, ALL))
def test_the_longest_kept_prefix_has_the_lowest_rule_around_a_packet(entries, port):
    kept = resolve(entries)
    assert list(kept) == sorted(kept)
    assert resolve(kept) == kept
    named = [prefix._replace(bits=16) for prefix in entries if prefix != ANYTHING]
    for packet in [Prefix(6, port, 16), Prefix(17, port, 16), *named]:
        around = [rule for prefix, rule in entries.items() if contains(prefix, packet)]
        longest = max(
            (prefix for prefix in kept if contains(prefix, packet)), default=None, key=len_
        )
        assert (kept[longest] if longest else None) == min(around, default=None)


def len_(prefix):
    return -1 if prefix == ANYTHING else prefix.bits


def contains(outer, inner):
    return outer == ANYTHING or (
        outer.protocol == inner.protocol and outer.port <= inner.port <= outer.last
    )


def test_encloses_asks_for_the_protocol_and_the_range():
    outer = Prefix(6, 80, 12)
    assert encloses(outer, Prefix(6, 95, 16))
    assert not encloses(outer, Prefix(6, 96, 16))
    assert not encloses(outer, Prefix(17, 80, 16))


def test_merge_takes_the_lower_rule():
    a, b, c = Prefix(6, 0, 1), Prefix(6, 0, 2), Prefix(6, 0, 3)
    assert merge({a: 1, b: 5}, {a: 2, b: 3, c: 4}) == {a: 1, b: 3, c: 4}
