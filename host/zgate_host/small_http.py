"""A few pages over HTTP, for daemons that tell what they do: GET and HEAD, then the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus

import h11

logger = logging.getLogger(__name__)

_MAX_REQUEST_BYTES = 16 * 1024
_MAX_CLIENTS = 16
REQUEST_TIMEOUT_S = 5.0
_READ_BYTES = 4096
_JSON = "application/json"

Page = Callable[[], tuple[str, bytes]]
"""Content type and body, made when they are asked for."""


class SmallHttp:
    """The pages by their paths. Whoever asks is a stranger: bounded in number, size and time."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = pages
        self._clients = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection; for `asyncio.start_server` and its like."""
        self._clients += 1
        try:
            if self._clients <= _MAX_CLIENTS:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    await self._answer(reader, writer)
        except (TimeoutError, OSError, h11.RemoteProtocolError) as error:
            logger.debug(
                "a request failed: %(error)s", {"event": "http_request_failed", "error": error}
            )
            writer.transport.abort()  # who does not read the answer does not keep it
        finally:
            self._clients -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_REQUEST_BYTES)
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await reader.read(_READ_BYTES))
        if not isinstance(event, h11.Request):
            return
        status, content_type, body = self._content(event)
        headers = [
            ("Content-Type", content_type),
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

    def _content(self, request: h11.Request) -> tuple[HTTPStatus, str, bytes]:
        page = self._pages.get(request.target.decode("latin-1"))
        if page is None:
            there = " and ".join(self._pages)
            return HTTPStatus.NOT_FOUND, _JSON, f'{{"detail": "there is only {there}"}}'.encode()
        if request.method not in (b"GET", b"HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, _JSON, b'{"detail": "only GET"}'
        return HTTPStatus.OK, *page()
