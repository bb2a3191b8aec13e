"""The status socket, asked and abused."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from zgate_host.status_socket import StatusServer, StatusUnavailable, fetch_status


class Status(BaseModel):
    """What the daemon says here."""

    state: str
    count: int = 3


STATUS = Status(state="connected")


def fetch(file: Path) -> Status:
    return fetch_status(file, Status, "agent", "zgate-agent run")


@asynccontextmanager
async def serving(file: Path) -> AsyncIterator[StatusServer]:
    server = StatusServer(file, lambda: STATUS)
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
        assert await asyncio.to_thread(fetch, file) == STATUS
        assert file.stat().st_mode & 0o777 == 0o666
    assert not file.exists()


async def test_a_killed_agents_socket_is_no_agent(tmp_path: Path) -> None:
    file = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(file))
    with pytest.raises(StatusUnavailable, match=r"no agent answers on .*refused"):
        fetch(file)
    async with serving(file):
        assert await asyncio.to_thread(fetch, file) == STATUS


def test_no_socket_is_no_agent(tmp_path: Path) -> None:
    with pytest.raises(StatusUnavailable, match=r"No such file or directory.*zgate-agent run"):
        fetch(tmp_path / "agent.sock")


async def test_something_else_is_no_agent(tmp_path: Path) -> None:
    file = tmp_path / "agent.sock"

    async def strange(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    server = await asyncio.start_unix_server(strange, file)
    with pytest.raises(StatusUnavailable, match="is no agent"):
        await asyncio.to_thread(fetch, file)
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
