"""What a daemon says of itself, over HTTP on a Unix socket: `GET /v1/status`.

The socket only tells, so every user may ask; `curl --unix-socket` works too. A socket, and not a
file, because a file outlives a killed process and would go on saying "connected".
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from zgate_host.small_http import REQUEST_TIMEOUT_S, SmallHttp

STATUS_PATH = "/v1/status"

StatusT = TypeVar("StatusT", bound=BaseModel)


class FailedAddress(BaseModel):
    """An address of the gateway that gave no session in the last attempt, and why."""

    model_config = ConfigDict(frozen=True)

    address: str
    error: str


class StatusUnavailable(Exception):
    """Nobody answers; the text names cause and cure."""


def fetch_status(socket_file: Path, model: type[StatusT], role: str, start: str) -> StatusT:
    """Ask the daemon behind a socket.

    Args:
        socket_file: where it answers.
        model: what it says.
        role: `agent` or `connector`, for messages.
        start: the command that starts it, for messages.

    Raises:
        StatusUnavailable: nobody answers there, or something else does.
    """
    transport = httpx.HTTPTransport(uds=str(socket_file))
    try:
        with httpx.Client(transport=transport, timeout=REQUEST_TIMEOUT_S) as client:
            answer = client.get(f"http://{role}{STATUS_PATH}")
            answer.raise_for_status()
            return model.model_validate_json(answer.content)
    except httpx.ConnectError as error:
        raise StatusUnavailable(
            f"no {role} answers on {socket_file} ({_cause(error)}): start it with `{start}`,"
            " or name its runtime_dir"
        ) from error
    except (httpx.HTTPError, ValidationError) as error:
        raise StatusUnavailable(f"what answers on {socket_file} is no {role}: {error}") from error


def _cause(error: httpx.ConnectError) -> str:
    return str(error).removeprefix("[Errno ").partition("] ")[2] or str(error)


class StatusServer:
    """Answers on the socket until it is closed."""

    def __init__(self, socket_file: Path, current: Callable[[], BaseModel]) -> None:
        self._socket_file = socket_file
        self._current = current
        self._server: asyncio.Server | None = None
        self._pages = SmallHttp({STATUS_PATH: self._page})

    async def start(self) -> None:
        """Listen. A socket that a killed process left is replaced. OSError if it cannot."""
        with contextlib.suppress(FileNotFoundError):
            self._socket_file.unlink()
        self._server = await asyncio.start_unix_server(self._pages.serve, self._socket_file)
        os.chmod(self._socket_file, 0o666)  # noqa: PTH101, S103 - it only tells

    def close(self) -> None:
        """Stop listening and remove the socket. Safe to call twice."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._socket_file.unlink(missing_ok=True)

    def _page(self) -> tuple[str, bytes]:
        return "application/json", self._current().model_dump_json().encode()
