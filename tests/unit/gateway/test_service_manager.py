"""What systemd is told of the gateway, over a real socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from zgate_gateway import service_manager
from zgate_gateway.service_manager import ServiceManager, describe


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("WATCHDOG_USEC", "10000000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        yield sock


def heard(systemd: socket.socket) -> list[str]:
    return systemd.recv(4096).decode().split("\n")


def test_a_life(systemd: socket.socket) -> None:
    manager = ServiceManager(lambda: "0 sessions")
    manager.opening_state()
    longer, status = heard(systemd)
    assert longer == "EXTEND_TIMEOUT_USEC=300000000"
    assert status == "STATUS=starting: opening the database and the audit log"
    manager.loading_programs()
    longer, status = heard(systemd)
    assert longer == "EXTEND_TIMEOUT_USEC=900000000"
    assert status == "STATUS=starting: loading the kernel's programs"
    manager.starting_workers()
    longer, status = heard(systemd)
    assert longer == "EXTEND_TIMEOUT_USEC=300000000"
    assert status == "STATUS=starting: starting the workers"
    manager.ready()
    assert heard(systemd) == ["READY=1", "WATCHDOG=1", "STATUS=0 sessions"]
    manager.alive()
    assert heard(systemd) == ["WATCHDOG=1"]
    manager.reloading()
    assert heard(systemd)[0] == "RELOADING=1"
    manager.ready()
    assert heard(systemd)[0] == "READY=1"
    manager.stopping("SIGTERM")
    assert heard(systemd) == ["STOPPING=1", "STATUS=stopping: SIGTERM"]


async def test_the_status_is_told_when_it_changes(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_manager, "_STATUS_INTERVAL_S", 0.01)
    texts = iter(["one", "one", "one", "two"])
    last = ""

    def current() -> str:
        nonlocal last
        last = next(texts, last)
        return last

    manager = ServiceManager(current)
    manager.ready()
    task = asyncio.create_task(manager.keep())
    told = [await asyncio.to_thread(heard, systemd) for _ in range(2)]
    task.cancel()
    assert told == [["READY=1", "WATCHDOG=1", "STATUS=one"], ["STATUS=two"]]


async def test_without_a_service_manager_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC"):
        monkeypatch.delenv(name, raising=False)
    manager = ServiceManager(lambda: "0 sessions")
    manager.ready()
    manager.alive()
    await asyncio.wait_for(manager.keep(), 5)


def test_without_a_watchdog_it_is_not_fed(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC")
    manager = ServiceManager(lambda: "0 sessions")
    manager.alive()
    manager.reloading()
    assert heard(systemd)[0] == "RELOADING=1"


def test_the_status_in_words() -> None:
    one = describe(state="ready", sessions=1, revision=7, problems=[])
    assert one == "1 session, policy revision 7"
    two = describe(state="draining", sessions=2, revision=7, problems=["dns_down", "disk_full"])
    assert two == "draining: 2 sessions, policy revision 7; look at: dns_down, disk_full"
