"""The order of the steps; the kernel's part is tested in tests/netns."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

from hypothesis import given
from hypothesis import strategies as st
from zgate_agent.physical import BACKSTOP_METRIC, PIN_METRIC
from zgate_agent.routing import Step, TunState, steps
from zgate_agent.rtnl import UNREACHABLE, Route

TUN, ETH = 9, 2
PIN = Route(ip_network("203.0.113.10/32"), PIN_METRIC, ip_address("198.18.1.1"), ETH)
BACKSTOP = Route(ip_network("203.0.113.10/32"), BACKSTOP_METRIC, kind=UNREACHABLE)
ROUTE = Route(ip_network("10.20.0.0/24"), 50, interface=TUN)
ROUTE6 = Route(ip_network("fd00:20::/64"), 50, interface=TUN)
ADDRESS, ADDRESS6 = ip_interface("10.100.0.2/32"), ip_interface("fd7a::2/128")

EMPTY = TunState(1500, False, frozenset(), frozenset(), frozenset())
FULL = TunState(
    1400,
    True,
    frozenset({ADDRESS, ADDRESS6}),
    frozenset({ROUTE, ROUTE6}),
    frozenset({PIN, BACKSTOP}),
)


def test_up_pins_come_first_and_routes_last() -> None:
    assert list(steps(EMPTY, FULL)) == [
        Step("put", BACKSTOP),
        Step("put", PIN),
        Step("set mtu", 1400),
        Step("put", ADDRESS),
        Step("put", ADDRESS6),
        Step("set up"),
        Step("put", ROUTE),
        Step("put", ROUTE6),
    ]


def test_down_is_the_opposite() -> None:
    nothing = replace(EMPTY, mtu_bytes=1400, is_up=True)
    assert list(steps(FULL, nothing)) == [
        Step("remove", ROUTE6),
        Step("remove", ROUTE),
        Step("remove", ADDRESS),
        Step("remove", ADDRESS6),
        Step("remove", PIN),
        Step("remove", BACKSTOP),
    ]


def test_what_is_there_is_left_alone() -> None:
    assert list(steps(FULL, FULL)) == []


def test_a_pin_that_moves_is_replaced_and_never_removed() -> None:
    moved = replace(PIN, via=ip_address("198.18.2.1"))
    wanted = replace(FULL, pins=frozenset({moved, BACKSTOP}))
    assert list(steps(FULL, wanted)) == [Step("put", moved)]


def test_new_addresses_come_before_old_ones_go() -> None:
    new = ip_interface("10.100.0.7/32")
    wanted = replace(FULL, addresses=frozenset({new, ADDRESS6}))
    assert list(steps(FULL, wanted)) == [Step("put", new), Step("remove", ADDRESS)]


STATES = st.builds(
    TunState,
    mtu_bytes=st.sampled_from([1280, 1400]),
    is_up=st.just(True),
    addresses=st.frozensets(st.sampled_from([ADDRESS, ADDRESS6])),
    routes=st.frozensets(st.sampled_from([ROUTE, ROUTE6])),
    pins=st.frozensets(st.sampled_from([PIN, BACKSTOP])),
)


@given(STATES, STATES)
def test_the_steps_lead_from_any_state_to_any_other(actual: TunState, wanted: TunState) -> None:
    mtu_bytes, things = actual.mtu_bytes, {*actual.addresses, *actual.routes, *actual.pins}
    for step in steps(actual, wanted):
        match step:
            case Step("set mtu", int() as value):
                mtu_bytes = value
            case Step("put", what):
                things.add(what)  # type: ignore[arg-type]
            case Step("remove", what):
                things.remove(what)  # type: ignore[arg-type]
        if ROUTE in things and PIN in (actual.pins & wanted.pins):
            assert PIN in things
    assert mtu_bytes == wanted.mtu_bytes
    assert things == {*wanted.addresses, *wanted.routes, *wanted.pins}
