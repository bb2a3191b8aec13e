"""Names to addresses."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import pytest
from zgate_host.resolve import ResolveError, resolve


def rows(*texts: str) -> list[tuple[Any, ...]]:
    return [(0, socket.SOCK_DGRAM, 0, "", (text, 0)) for text in texts]


@pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::1"])
async def test_an_address_needs_no_name_server(text: str) -> None:
    def lookup(*_: object, **__: object) -> Sequence[tuple[Any, ...]]:
        raise AssertionError("asked")

    assert await resolve(text, lookup) == (ip_address(text),)


async def test_all_addresses_in_order_each_once() -> None:
    found = await resolve("gw", lambda *_, **__: rows("2001:db8::1", "192.0.2.1", "2001:db8::1"))
    assert found == (ip_address("2001:db8::1"), ip_address("192.0.2.1"))


async def test_a_zone_is_left_out() -> None:
    found = await resolve("gw", lambda *_, **__: rows("fe80::1%eth0"))
    assert found == (ip_address("fe80::1"),)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (UnicodeError("label too long"), "label too long"),
    ],
)
async def test_failures_have_a_cause(error: Exception, text: str) -> None:
    def lookup(*_: object, **__: object) -> Sequence[tuple[Any, ...]]:
        raise error

    with pytest.raises(ResolveError, match=f"cannot resolve gw.example: {text}"):
        await resolve("gw.example", lookup)


async def test_no_address_is_a_failure() -> None:
    with pytest.raises(ResolveError, match="has no address"):
        await resolve("gw", lambda *_, **__: [])


def test_a_name_server_that_hangs_does_not_hold_up_the_end() -> None:
    release, started = threading.Event(), threading.Event()

    def lookup(*_: object, **__: object) -> Sequence[tuple[Any, ...]]:
        started.set()
        release.wait(60)
        return rows("192.0.2.1")

    async def body() -> None:
        task = asyncio.create_task(resolve("gw", lookup))
        while not started.is_set():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(body())  # returns, though the thread still waits
    assert not release.is_set()
    release.set()
