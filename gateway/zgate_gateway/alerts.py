"""Kernel tables that are full, or nearly so, as problems (`zgate_gateway.problems`).

A full table opens nothing: the kernel drops, and counts why. But somebody is refused, so it is
never silently ignored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from zgate_bpf.kernel_policy import MapUsage

from zgate_gateway.problems import MAP_PREFIX, Problems

logger = logging.getLogger(__name__)

#: An alert begins when so much of a table is in use, and ends when less than that is: between the
#: two nothing changes, so that a table at the brink does not fill the log.
BEGINS_AT = 0.90
ENDS_BELOW = 0.85
#: All of the flow table is read for it, in a thread.
INTERVAL_S = 10.0

_MORE_CLIENTS = "raise limits.max_clients"
_FEWER_OFFERS = "connectors offer too much: zgatectl connectors says who; narrow their rights"
_CURES = {
    "clients": _MORE_CLIENTS,
    "counters": _MORE_CLIENTS,
    "gates": _MORE_CLIENTS,
    "limiters": _MORE_CLIENTS,
    "events": "what the kernel tells comes faster than it is read; what finds no room is counted",
    "flows": "flows that were unused for longest make room for new ones; raise limits.max_flows",
    "fragments": "the oldest make room for new ones; somebody sends very many fragments",
    "endpoints": _FEWER_OFFERS,
    "services": _FEWER_OFFERS,
    "offers": _FEWER_OFFERS,
    "networks": _FEWER_OFFERS,
}
_POLICY_CURE = "the policy takes nearly all the room that there is: use fewer rules or networks"


class MapAlerts:
    """Watches how full the kernel's tables are.

    :ivar usage: what the last look found; empty before the first.
    """

    def __init__(self, usage: Callable[[], Mapping[str, MapUsage]], problems: Problems) -> None:
        self._look = usage
        self._problems = problems
        self.usage: Mapping[str, MapUsage] = {}

    async def watch(self, interval_s: float = INTERVAL_S) -> None:
        """Look now and then; forever."""
        while True:
            try:
                self.update(await asyncio.to_thread(self._look))
            except OSError as error:
                logger.error(
                    "how full the kernel's tables are is not known: %(error)s",
                    {"event": "map_use_unknown", "error": error.strerror},
                )
            await asyncio.sleep(interval_s)

    def update(self, usage: Mapping[str, MapUsage]) -> None:
        """Begin and end alerts by what is in use now; each beginning and end is logged once."""
        self.usage = usage
        for table, use in usage.items():
            self._update(table, use)

    def _update(self, table: str, use: MapUsage) -> None:
        name = MAP_PREFIX + table
        share = use.used / use.capacity if use.capacity else 1.0
        filled = f"kernel table {table}: {use.used} of {use.capacity} entries in use"
        if share >= BEGINS_AT or (name in self._problems and share >= ENDS_BELOW):
            self._problems.begin(name, f"{filled}; {_CURES.get(table, _POLICY_CURE)}")
        else:
            self._problems.end(name, filled)
