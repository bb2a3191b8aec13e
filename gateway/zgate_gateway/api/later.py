"""An application that is made when it is first asked, or a while after the start.

Loading the API's libraries takes longer than anything else that a start of the gateway loads, and
no packet and no session needs them. The socket listens from the start on; the first request waits
for what is missing.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class Later:
    """An ASGI application, of which ``make`` gives the real one; it runs in a thread, once."""

    def __init__(self, make: Callable[[], ASGIApp]) -> None:
        self._make = make
        self._made: ASGIApp | None = None
        self._lock = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        app = self._made or await self.made()
        await app(scope, receive, send)

    async def made(self) -> ASGIApp:
        """The application; the loop goes on meanwhile."""
        return await asyncio.to_thread(self._make_once)

    def _make_once(self) -> ASGIApp:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made
