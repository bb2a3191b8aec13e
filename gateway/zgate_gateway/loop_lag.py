"""How late an event loop is: how long whatever waits for it has to wait.

The worst of the last one to two windows, whoever asks and however often: a value that asking would
reset belongs to whoever asked first.
"""

from __future__ import annotations

import asyncio

WINDOW_S = 15.0
_INTERVAL_S = 0.1


class LoopLag:
    """The longest that the loop was late. ``now`` is the loop's time, in seconds."""

    def __init__(self) -> None:
        self._window = 0
        self._worst = self._worst_before = 0.0

    def note(self, lag_s: float, now: float) -> None:
        """Something was done so much later than it was due."""
        self._turn(now)
        self._worst = max(self._worst, lag_s)

    def worst_s(self, now: float) -> float:
        """The worst of this window and the one before."""
        self._turn(now)
        return max(self._worst, self._worst_before)

    def _turn(self, now: float) -> None:
        window = int(now // WINDOW_S)
        if window != self._window:
            self._worst_before = self._worst if window == self._window + 1 else 0.0
            self._worst = 0.0
            self._window = window

    async def watch(self, interval_s: float = _INTERVAL_S) -> None:
        """Look ten times a second how late the loop is; forever."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + interval_s
            await asyncio.sleep(interval_s)
            now = loop.time()
            self.note(max(0.0, now - due), now)
