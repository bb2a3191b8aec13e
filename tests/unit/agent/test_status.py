"""The status socket, asked and abused."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zgate_agent.config import Mode
from zgate_agent.machine import State
from zgate_agent.status import (
    AgentStatus,
    StatusServer,
    StatusUnavailable,
    fetch_status,
)


def a_status(state: State = State.CONNECTED, reason: str = "") -> AgentStatus:
    return AgentStatus(
        state=state,
        reason=reason,
        since=datetime(2026, 3, 1, 12, tzinfo=UTC),
        gateway="gw.example:443",
        server_name="gw.example",
        gateway_address="203.0.113.10:443",
        local_address="198.18.1.2",
        addresses=["10.100.0.2/32"],
        routes=["10.20.0.0/24"],
        pinned=[],
        mode=Mode.SPLIT,
        tun="zgate-agent0",
        mtu_bytes=1400,
        reconnects=1,
        rebinds=0,
        next_attempt_s=None,
        failed_addresses=[],
        notes=[],
        counters={"packets_up": 3.0, "bytes_up": 2520.0},
        drops={"TOO_BIG": 1},
        pid=1,
    )


@asynccontextmanager
async def serving(file: Path) -> AsyncIterator[StatusServer]:
    server = StatusServer(file, a_status)
    await server.start()
    try:
        yield server
    finally:
        server.close()


async def ask(file: Path, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(file))
    writer.write(request)
    if writer.can_write_eof():
        writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


async def test_the_whole_status_arrives(tmp_path: Path) -> None:
    file = tmp_path / "agent.sock"
    async with serving(file):
        assert await asyncio.to_thread(fetch_status, file) == a_status()
        assert file.stat().st_mode & 0o777 == 0o666
    assert not file.exists()


async def test_a_killed_agents_socket_is_no_agent(tmp_path: Path) -> None:
    file = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(file))
    with pytest.raises(StatusUnavailable, match=r"no agent answers on .*refused"):
        fetch_status(file)
    async with serving(file):
        assert (await asyncio.to_thread(fetch_status, file)).is_connected


def test_no_socket_is_no_agent(tmp_path: Path) -> None:
    with pytest.raises(StatusUnavailable, match=r"No such file or directory.*zgate-agent run"):
        fetch_status(tmp_path / "agent.sock")


async def test_something_else_is_no_agent(tmp_path: Path) -> None:
    file = tmp_path / "agent.sock"

    async def strange(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    server = await asyncio.start_unix_server(strange, file)
    with pytest.raises(StatusUnavailable, match="is no agent"):
        await asyncio.to_thread(fetch_status, file)
    server.close()


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /v1/status", b"200"),
        (b"HEAD /v1/status", b"200"),
        (b"GET /", b"404"),
        (b"POST /v1/status", b"405"),
    ],
)
async def test_answers(tmp_path: Path, request_line: bytes, status: bytes) -> None:
    file = tmp_path / "agent.sock"
    async with serving(file):
        answer = await ask(file, request_line + b" HTTP/1.1\r\nHost: agent\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 " + status)
    body = answer.partition(b"\r\n\r\n")[2]
    assert bool(body) == (not request_line.startswith(b"HEAD"))


REQUEST = b"GET /v1/status HTTP/1.1\r\nHost: agent\r\n\r\n"


async def test_requests_cut_off_anywhere_get_no_answer(tmp_path: Path) -> None:
    file = tmp_path / "agent.sock"
    async with serving(file):
        for end in range(len(REQUEST)):
            assert await ask(file, REQUEST[:end]) == b""
        assert (await ask(file, REQUEST)).startswith(b"HTTP/1.1 200")


async def test_an_endless_request_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "agent.sock"
    async with serving(file):
        with pytest.raises((AssertionError, ConnectionError)):
            assert await ask(file, b"GET /" + b"x" * 10_000_000)
        assert (await ask(file, REQUEST)).startswith(b"HTTP/1.1 200")


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
async def test_any_bytes_leave_it_serving(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "agent.sock"
    async with serving(file):
        await ask(file, data)
        assert (await ask(file, REQUEST)).startswith(b"HTTP/1.1 200")
