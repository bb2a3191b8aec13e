"""The TCP port of the probes: whoever holds connections open holds few, and not for long."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from zgate_gateway.api import strangers
from zgate_gateway.api.server import ApiServer

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def port(tmp_path: Path, fake_gateway: Any) -> AsyncIterator[int]:
    server = ApiServer(
        fake_gateway,
        socket_path=tmp_path / "api.sock",
        socket_group=None,
        metrics_address=("127.0.0.1", 0),
    )
    await server.start()
    assert server.metrics_port is not None
    yield server.metrics_port
    await server.stop()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What came before the other end closed."""
    try:
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionError:
        return b""


async def health(port: int) -> int:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"http://127.0.0.1:{port}/health")).status_code


async def test_one_connection_too_many_is_closed_at_once(port: int) -> None:
    held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(60)]
    tasks = [asyncio.create_task(ended(reader)) for reader, _ in held]
    done, silent = await asyncio.wait(tasks, timeout=2)
    assert len(silent) == strangers.MAX_CONNECTIONS
    assert len(done) == 60 - strangers.MAX_CONNECTIONS
    for _, writer in held:
        writer.close()
    await asyncio.gather(*tasks)
    assert await health(port) == 200


@pytest.mark.parametrize("said", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\n", b"GET /hea"])
async def test_who_says_half_or_nothing_is_not_waited_for(
    port: int, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strangers, "PATIENCE_S", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(said)
    assert await ended(reader) == b""
    writer.close()
    monkeypatch.setattr(strangers, "PATIENCE_S", 15.0)
    assert await health(port) == 200


async def test_who_goes_on_half_after_an_answer_is_not_either(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strangers, "PATIENCE_S", 1.0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea")
    assert (await ended(reader)).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_an_answer_that_takes_long_is_given(
    port: int, fake_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strangers, "PATIENCE_S", 0.5)
    looked, look = asyncio.Event(), strangers.StrangersProtocol._look
    ready = fake_gateway.readiness

    def first_look(protocol: strangers.StrangersProtocol) -> None:
        monkeypatch.setattr(strangers, "PATIENCE_S", 15.0)  # until the next one
        look(protocol)
        looked.set()

    async def slow() -> Any:
        await looked.wait()
        return await ready()

    monkeypatch.setattr(strangers.StrangersProtocol, "_look", first_look)

    monkeypatch.setattr(fake_gateway, "readiness", slow)
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{port}/ready")).status_code == 200


async def test_an_answer_that_never_comes_is_not_waited_for(
    port: int, fake_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strangers, "PATIENCE_S", 0.2)
    hang = asyncio.Event()
    monkeypatch.setattr(fake_gateway, "readiness", hang.wait)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await ended(reader) == b""
    writer.close()
    hang.set()
