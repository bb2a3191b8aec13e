"""A stranger who asks, and what he may hold. What is answered: ``test_status_socket.py``."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from zgate_host import small_http
from zgate_host.small_http import SmallHttp


async def test_who_does_not_read_the_answer_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_http, "REQUEST_TIMEOUT_S", 0.1)
    pages = SmallHttp({"/": lambda: ("text/plain", bytes(32 << 20))})
    served: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await pages.serve(reader, writer)
        served.append(writer)

    path = tmp_path / "socket"
    async with await asyncio.start_unix_server(serve, path):
        _, asking = await asyncio.open_unix_connection(path, limit=1)
        asking.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(10):
            while not served:
                await asyncio.sleep(0.01)
            await served[0].wait_closed()
        asking.close()
