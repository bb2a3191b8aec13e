"""Which set-ups of a worker are followed, and when one is over.

Of so many connections, chosen at random when the first packet comes, each step is noted; the
others cost one random number. A worker without tracing has none of this.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Protocol

from zgate_datapath.connection import Connection
from zgate_datapath.udp import format_address

from zgate_gateway.tracing.setup import SetupTrace

#: How long a first packet is waited for: a device may have nothing to say.
_PACKET_WAIT_S = 10.0
#: A set-up that takes longer has gone wrong in a way that nobody told.
_LONGEST_S = 60.0
#: More at once are not followed: each is some memory.
_MOST = 4096


class Sink(Protocol):
    """Where set-ups go that are over: `zgate_gateway.tracing.exporter.SpanSink`."""

    def take(self, trace: SetupTrace) -> None:
        """Nothing is waited for."""

    def counters(self) -> dict[str, int]:
        """Spans sent, and spans lost."""

    async def close(self) -> None:
        """Send what is left, if that is quick."""


class SetupWatch:
    """The set-ups of one worker that are followed."""

    def __init__(
        self, sink: Sink, sample_ratio: float, *, chance: Callable[[], float] = random.random
    ) -> None:
        self._sink = sink
        self._sample_ratio = sample_ratio
        self._chance = chance
        self._open: dict[Connection, SetupTrace] = {}

    def begin(self, connection: Connection) -> SetupTrace | None:
        """A connection's first packet is here; None: this one is not followed."""
        if self._chance() >= self._sample_ratio or len(self._open) >= _MOST:
            return None

        def over(trace: SetupTrace) -> None:
            self._open.pop(connection, None)
            if not trace.peer:
                trace.peer = format_address(connection.peer_address)
            self._sink.take(trace)

        trace = self._open[connection] = SetupTrace("", over)
        return trace

    def of(self, connection: Connection) -> SetupTrace | None:
        """The trace of a connection that is being set up, and followed."""
        return self._open.get(connection)

    def look(self) -> None:
        """Find the first packets that the native engine has carried, and what takes too long."""
        now_s = time.monotonic()
        for connection, trace in list(self._open.items()):
            marks = trace.marks
            at_s = connection.engine.first_packet_s
            if trace.result is not None and at_s > 0:
                trace.first_packet(at_s)
            elif trace.result is not None and now_s - max(marks.values()) > _PACKET_WAIT_S:
                trace.end()
            elif connection.is_terminated or now_s - min(marks.values()) > _LONGEST_S:
                trace.ended("the connection ended")

    def counters(self) -> dict[str, int]:
        """What the worker reports."""
        return self._sink.counters()

    async def close(self) -> None:
        """The worker ends."""
        for trace in list(self._open.values()):
            trace.ended("the gateway stops")
        await asyncio.shield(self._sink.close())
