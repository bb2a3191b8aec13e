"""Looks after the store while the gateway runs: sees that it is lost, says so, and mends it.

What a store has to hold is in memory: leases, services, who is connected, the policy. See
`zgate_control.store.kept` for what is done about which loss.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime

from zgate_control.store import KeptStore, Memory

from zgate_gateway.problems import Problems

logger = logging.getLogger(__name__)

_INTERVAL_S = 1.0
#: All of the file is read so often.
_LOOKS_PER_READING = 10
NAME = "store_unavailable"
_MEANWHILE = "clients that are known come and go; one that never was here has to wait"


class StoreKeeper:
    """See the module's text.

    ``memory`` is called in the event loop; ``mended`` there, with what the store then holds.
    """

    def __init__(
        self,
        store: KeptStore,
        problems: Problems,
        *,
        memory: Callable[[], Memory],
        mended: Callable[[Memory], None],
    ) -> None:
        self._store = store
        self._problems = problems
        self._memory = memory
        self._mended = mended
        self._looks = 0

    async def keep(self, interval_s: float = _INTERVAL_S) -> None:
        """Look now and then; forever."""
        while True:
            await asyncio.sleep(interval_s)
            await self.look()

    async def look(self) -> None:
        """Look once, and mend what is to be mended."""
        store = self._store
        self._looks += 1
        thoroughly = self._looks % _LOOKS_PER_READING == 0
        await asyncio.to_thread(store.look, thoroughly=thoroughly)
        if store.lost is None:
            self._problems.end(NAME)
            return
        self._tell()
        memory = self._memory()
        await asyncio.to_thread(store.mend, memory, datetime.now(UTC))
        if store.lost is None:
            self._mended(memory)
            self._problems.end(NAME, "what was known has been written")
        else:
            self._tell()

    def _tell(self) -> None:
        self._problems.begin(NAME, f"{self._store.lost} ({_MEANWHILE})", is_blocking=True)
