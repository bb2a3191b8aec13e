"""Which of the kernel's messages matter."""

from __future__ import annotations

import asyncio
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_host.netwatch import AGENT_ROUTES as ROUTE_PROTOCOL
from zgate_host.netwatch import NetWatch, can_matter

TUN, ETH = 9, 2
NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE = 16, 17, 20, 21, 24, 25
KERNEL, STATIC, CLONED, UP = 2, 4, 0x200, 1


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body + bytes(-len(body) % 4)


def route(kind: int, protocol: int, flags: int = 0) -> bytes:
    return message(kind, struct.pack("=8BI", 2, 0, 0, 0, 254, protocol, 0, 1, flags) + b"attr")


def address(kind: int, index: int) -> bytes:
    return message(kind, struct.pack("=4BI", 2, 24, 0, 0, index))


def link(kind: int, index: int, flags: int) -> bytes:
    return message(kind, struct.pack("=BxHiII", 0, 1, index, flags, 0))


MATTERS = {
    "a default route": route(NEWROUTE, STATIC),
    "a lost route": route(DELROUTE, STATIC),
    "somebody removed one of ours": route(DELROUTE, ROUTE_PROTOCOL),
    "a route that went with an address": route(DELROUTE, KERNEL),
    "a new address": address(NEWADDR, ETH),
    "a lost address": address(DELADDR, ETH),
    "a virtual IP taken away": address(DELADDR, TUN),
    "a link": link(NEWLINK, ETH, UP),
    "a removed link": link(DELLINK, ETH, 0),
    "the TUN went down": link(NEWLINK, TUN, 0),
    "the TUN was removed": link(DELLINK, TUN, 0),
    "something unknown": message(99, b""),
}
DOES_NOT = {
    "our own route": route(NEWROUTE, ROUTE_PROTOCOL),
    "the route that comes with an address": route(NEWROUTE, KERNEL),
    "a cached route": route(NEWROUTE, STATIC, CLONED),
    "our own address": address(NEWADDR, TUN),
    "our own TUN": link(NEWLINK, TUN, UP),
}


@pytest.mark.parametrize("name", MATTERS)
def test_this_matters(name: str) -> None:
    assert can_matter(MATTERS[name], TUN)


@pytest.mark.parametrize("name", DOES_NOT)
def test_this_does_not(name: str) -> None:
    assert not can_matter(DOES_NOT[name], TUN)


def test_one_that_matters_among_many() -> None:
    assert not can_matter(b"".join(DOES_NOT.values()), TUN)
    assert can_matter(b"".join(DOES_NOT.values()) + MATTERS["a lost route"], TUN)


@pytest.mark.parametrize("data", [*MATTERS.values(), *DOES_NOT.values()])
def test_what_is_cut_off_matters(data: bytes) -> None:
    # The last four bytes of the routes are attributes, which are not read here.
    for end in range(1, 28):
        if end < min(len(data), 28):
            assert can_matter(data[:end], TUN)
    assert not can_matter(b"", TUN)


@given(st.binary(max_size=200))
def test_any_bytes_are_answered(data: bytes) -> None:
    assert can_matter(data, TUN) in (True, False)


async def test_a_burst_is_told_once_and_the_next_one_again(monkeypatch: pytest.MonkeyPatch) -> None:
    told = 0
    again = asyncio.Event()

    def on_change() -> None:
        nonlocal told
        told += 1
        again.set()

    monkeypatch.setattr("zgate_host.netwatch.SETTLE_S", 0.01)
    watch = NetWatch(TUN, on_change)
    try:
        for expected in (1, 2):
            again.clear()
            for _ in range(5):
                watch._something_changed()
            await asyncio.wait_for(again.wait(), 5)
            assert told == expected
    finally:
        watch.close()
    watch._something_changed()
    watch.close()
