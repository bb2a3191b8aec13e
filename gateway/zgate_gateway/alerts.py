"""Alerts: kernel tables that are full, or nearly so. What somebody has to look at, while it lasts.

A full table opens nothing: the kernel drops, and counts why. But somebody is refused, so it is
never silently ignored: one line in the log when a table fills up and one when it is relieved,
``zgatectl status``, and the metric ``zgate_alert``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from zgate_bpf.kernel_policy import MapUsage

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


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing to look at.

    :ivar name: ``map_flows``, ...: fixed, for programs.
    :ivar text: for people: what it is, and what helps.
    """

    name: str
    text: str
    since: datetime


class MapAlerts:
    """Watches how full the kernel's tables are.

    :ivar active: the alerts that last, by name.
    :ivar usage: what the last look found; empty before the first.
    """

    def __init__(self, usage: Callable[[], Mapping[str, MapUsage]]) -> None:
        self._look = usage
        self.usage: Mapping[str, MapUsage] = {}
        self.active: dict[str, Alert] = {}

    async def watch(self, interval_s: float = INTERVAL_S) -> None:
        """Look now and then; forever."""
        while True:
            try:
                self.update(await asyncio.to_thread(self._look))
            except OSError as error:
                logger.error("how full the kernel's tables are is not known: %s", error.strerror)
            await asyncio.sleep(interval_s)

    def update(self, usage: Mapping[str, MapUsage]) -> None:
        """Begin and end alerts by what is in use now; each beginning and end is logged once."""
        self.usage = usage
        for table, use in usage.items():
            self._update(f"map_{table}", table, use)

    def _update(self, name: str, table: str, use: MapUsage) -> None:
        known = self.active.get(name)
        share = use.used / use.capacity if use.capacity else 1.0
        filled = f"kernel table {table}: {use.used} of {use.capacity} entries in use"
        if share >= BEGINS_AT or (known is not None and share >= ENDS_BELOW):
            text = f"{filled}; {_CURES.get(table, _POLICY_CURE)}"
            since = datetime.now(UTC) if known is None else known.since
            self.active[name] = Alert(name, text, since)
            if known is None:
                logger.warning("alert %s begins: %s", name, text)
        elif known is not None:
            del self.active[name]
            logger.warning("alert %s ends: %s", name, filled)
