"""One process under a service manager, over a real socket."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from zgate_host.supervised import supervised


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("WATCHDOG_USEC", "40000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        yield sock


async def heard(manager: socket.socket) -> str:
    return (await asyncio.to_thread(manager.recv, 4096)).decode().replace("\n", " ")


async def test_ready_then_alive_then_stopping(manager: socket.socket) -> None:
    text = "connecting"
    async with supervised(lambda: text):
        assert await heard(manager) == "READY=1 STATUS=connecting"
        assert await heard(manager) == "WATCHDOG=1 STATUS=connecting"
        assert await heard(manager) == "WATCHDOG=1"
        text = "connected"
        while (now := await heard(manager)) == "WATCHDOG=1":
            pass
        assert now == "WATCHDOG=1 STATUS=connected"
    while (now := await heard(manager)).startswith("WATCHDOG=1"):
        pass
    assert now == "STOPPING=1 STATUS=stopping"


async def test_a_loop_that_does_not_turn_feeds_nothing(manager: socket.socket) -> None:
    async with supervised(lambda: "connected"):
        await heard(manager)
        await heard(manager)
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                manager.recv(4096)
        time.sleep(0.2)  # five times the watchdog's patience, and the loop stands still
        with pytest.raises(BlockingIOError):
            manager.recv(4096)


async def test_without_a_watchdog_only_changes_are_told(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC")
    monkeypatch.setattr("zgate_host.supervised._STATUS_INTERVAL_S", 0.01)
    text = "one"
    async with supervised(lambda: text):
        assert await heard(manager) == "READY=1 STATUS=one"
        assert await heard(manager) == "STATUS=one"
        await asyncio.sleep(0.05)
        text = "two"
        assert await heard(manager) == "STATUS=two"


async def test_without_a_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    async with supervised(lambda: pytest.fail("nobody asks")):
        await asyncio.sleep(0)
