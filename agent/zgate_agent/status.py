"""What an agent says of itself, over HTTP on a Unix socket: `GET /v1/status`.

The socket only tells, so every user may ask; `curl --unix-socket` works too. A socket, and not a
file, because a file outlives a killed process and would go on saying "connected".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from datetime import datetime
from http import HTTPStatus
from pathlib import Path

import h11
import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from zgate_agent.config import Mode
from zgate_agent.machine import State

logger = logging.getLogger(__name__)

STATUS_PATH = "/v1/status"
_MAX_REQUEST_BYTES = 16 * 1024
_MAX_CLIENTS = 16
_REQUEST_TIMEOUT_S = 5.0
_READ_BYTES = 4096


class FailedAddress(BaseModel):
    """An address of the gateway that gave no session in the last attempt, and why."""

    model_config = ConfigDict(frozen=True)

    address: str
    error: str


class AgentStatus(BaseModel):
    """The whole status. Fields are only ever added."""

    model_config = ConfigDict(frozen=True)

    state: State
    reason: str
    """Why there is no session; empty while there is one."""
    since: datetime
    """When the agent got into this state."""
    gateway: str
    """As configured."""
    server_name: str
    gateway_address: str | None
    """Address and port of the session, or of the last one."""
    local_address: str | None
    addresses: list[str]
    """Virtual IPs that are programmed."""
    routes: list[str]
    """Networks that go into the tunnel."""
    pinned: list[str]
    """Addresses of the gateway that are kept out of the tunnel by a host route."""
    mode: Mode
    tun: str
    engine: str = ""
    """The packet engine that runs: native or python."""
    mtu_bytes: int | None
    reconnects: int
    """Sessions after the first."""
    rebinds: int
    """Moves of a session to another local address."""
    next_attempt_s: float | None
    """In backoff: seconds until the next attempt."""
    failed_addresses: list[FailedAddress]
    notes: list[str]
    """What is not as configured, and why."""
    counters: dict[str, float]
    """Of the present session, or of the last one."""
    drops: dict[str, int]
    """Packets dropped by the agent, by reason; of the same session."""
    pid: int

    @property
    def is_connected(self) -> bool:
        """Whether there is a session."""
        return self.state is State.CONNECTED


class StatusUnavailable(Exception):
    """No agent answers; the text names cause and cure."""


def fetch_status(socket_file: Path, timeout_s: float = 5.0) -> AgentStatus:
    """Ask the agent behind a socket.

    Raises:
        StatusUnavailable: no agent answers there, or something else does.
    """
    transport = httpx.HTTPTransport(uds=str(socket_file))
    try:
        with httpx.Client(transport=transport, timeout=timeout_s) as client:
            answer = client.get(f"http://agent{STATUS_PATH}")
            answer.raise_for_status()
            return AgentStatus.model_validate_json(answer.content)
    except httpx.ConnectError as error:
        raise StatusUnavailable(
            f"no agent answers on {socket_file} ({_cause(error)}): start it with `zgate-agent run`,"
            " or name its runtime_dir"
        ) from error
    except (httpx.HTTPError, ValidationError) as error:
        raise StatusUnavailable(f"what answers on {socket_file} is no agent: {error}") from error


def _cause(error: httpx.ConnectError) -> str:
    return str(error).removeprefix("[Errno ").partition("] ")[2] or str(error)


class StatusServer:
    """Answers on the socket until it is closed."""

    def __init__(self, socket_file: Path, current: Callable[[], AgentStatus]) -> None:
        self._socket_file = socket_file
        self._current = current
        self._server: asyncio.Server | None = None
        self._clients = 0

    async def start(self) -> None:
        """Listen. A socket that a killed agent left is replaced. OSError if it cannot."""
        with contextlib.suppress(FileNotFoundError):
            self._socket_file.unlink()
        self._server = await asyncio.start_unix_server(self._serve, self._socket_file)
        os.chmod(self._socket_file, 0o666)  # noqa: PTH101, S103 - it only tells

    def close(self) -> None:
        """Stop listening and remove the socket. Safe to call twice."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._socket_file.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients <= _MAX_CLIENTS:
                async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                    await self._answer(reader, writer)
        except (TimeoutError, OSError, h11.RemoteProtocolError) as error:
            logger.debug("a status request failed: %s", error)
        finally:
            self._clients -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_REQUEST_BYTES)
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await reader.read(_READ_BYTES))
        if not isinstance(event, h11.Request):
            return
        status, body = self._content(event)
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        for part in (
            h11.Response(status_code=status, headers=headers, reason=status.phrase.encode()),
            h11.Data(data=b"" if event.method == b"HEAD" else body),
            h11.EndOfMessage(),
        ):
            writer.write(connection.send(part) or b"")
        await writer.drain()

    def _content(self, request: h11.Request) -> tuple[HTTPStatus, bytes]:
        if request.target != STATUS_PATH.encode():
            return HTTPStatus.NOT_FOUND, b'{"detail": "there is only /v1/status"}'
        if request.method not in (b"GET", b"HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, b'{"detail": "only GET"}'
        return HTTPStatus.OK, self._current().model_dump_json().encode()
