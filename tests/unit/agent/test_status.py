"""What an agent says of itself arrives whole."""

from __future__ import annotations

import asyncio
from pathlib import Path

from zgate_agent.machine import State
from zgate_agent.status import fetch_status
from zgate_host.status_socket import StatusServer

from .conftest import a_status


async def test_the_whole_status_arrives(tmp_path: Path) -> None:
    server = StatusServer(tmp_path / "agent.sock", a_status)
    await server.start()
    try:
        assert await asyncio.to_thread(fetch_status, tmp_path / "agent.sock") == a_status()
    finally:
        server.close()


def test_only_a_session_is_connected() -> None:
    assert a_status(State.CONNECTED).is_connected
    assert not a_status(State.BACKOFF).is_connected


def test_one_line_for_a_service_manager() -> None:
    assert a_status().summary == "connected to 203.0.113.10:443: 10.100.0.2/32"
    assert a_status(State.BACKOFF, "no answer").summary == "backoff: no answer"
    assert a_status(State.CONNECTING).summary == "connecting"
