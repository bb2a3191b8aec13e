"""Sets of ports and services; what a policy allows as a whole is asked in `test_diff.py`."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_gateway.policy import PolicySet
from zgate_gateway.policy.flow_sets import FlowSets, Span, networks_of, subtract

cuts = st.lists(st.integers(0, 40), unique=True, max_size=12).map(sorted)


def to_ranges(borders):
    """Every other stretch between the borders, none touching."""
    pairs = zip(borders[::2], borders[1::2], strict=False)
    return tuple((first, last - 1) for first, last in pairs if first < last)


def numbers(ranges):
    return {number for first, last in ranges for number in range(first, last + 1)}


@given(cuts, cuts)
def test_subtract(some, others):
    ranges, less = to_ranges(some), to_ranges(others)
    left = subtract(ranges, less)
    assert numbers(left) == numbers(ranges) - numbers(less)
    assert list(left) == sorted(left) and all(first <= last for first, last in left)


@pytest.mark.parametrize(
    ("span", "family", "text"),
    [
        (Span(0, 255, 0, 65535), 4, "any"),
        (Span(6, 6, 0, 65535), 4, "tcp"),
        (Span(17, 17, 53, 53), 6, "udp/53"),
        (Span(132, 132, 1, 9), 4, "sctp/1-9"),
        (Span(47, 47, 0, 65535), 4, "protocol 47"),
        (Span(7, 16, 0, 65535), 4, "protocols 7-16"),
        (Span(1, 1, 0, 65535), 4, "icmp"),
        (Span(1, 1, 0, 65535), 6, "protocol 1"),
        (Span(58, 58, 128 << 8, (128 << 8) + 255), 6, "icmpv6 type 128"),
        (Span(1, 1, 0x0301, 0x0304), 4, "icmp type 3 codes 1-4"),
        (Span(1, 1, 0x0301, 0x0404), 4, "icmp type 3 code 1 to type 4 code 4"),
    ],
)
def test_words(span, family, text):
    assert span.text(family) == text


def test_regions_are_the_whole_space_without_gaps():
    text = (
        'version: "1.0"\nclients: {a: {rules: ['
        "{id: x, type: ip_cidr, action: allow, destinations: [0.0.0.0/1, 10.0.0.0/8, 10.0.0.0/9,"
        " 255.255.255.255, 10.255.0.0/16], ports: [80]}]}}"
    )
    policy = PolicySet.parse(text).compiled_for("a")
    for family, width in ((4, 32), (6, 128)):
        regions = list(FlowSets(policy).regions(family))
        assert regions[0].first == 0 and regions[-1].last == (1 << width) - 1
        for one, after in pairwise(regions):
            assert one.last + 1 == after.first


def test_networks_are_the_fewest():
    assert [str(n) for n in networks_of([(0, 127), (128, 255), (512, 512)], 4)] == [
        "0.0.0.0/24",
        "0.0.2.0/32",
    ]
