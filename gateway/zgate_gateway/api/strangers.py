"""HTTP for a TCP port that asks nobody who they are: bounded in number and in time.

Whoever opens connections and says nothing, or reads no answer, must not take the descriptors of the
process that keeps the gateway together. Requests are bounded in size by h11 and the application.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

MAX_CONNECTIONS = 32
#: Longer than Prometheus waits for an answer.
PATIENCE_S = 15.0


class StrangersProtocol(H11Protocol):
    """uvicorn's, for strangers.

    A connection lives for ``PATIENCE_S``; one that is just being answered, for twice that.
    """

    _timer: asyncio.TimerHandle | None = None
    _answered: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._timer = self.loop.call_later(PATIENCE_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        answered = self.cycle if self.cycle and not self.cycle.response_complete else None
        if answered is None or answered is self._answered:
            self.transport.abort()
            return
        self._answered = answered
        self._timer = self.loop.call_later(PATIENCE_S, self._look)
