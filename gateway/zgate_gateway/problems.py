"""Problems: what somebody has to look at, while it lasts.

The gateway goes on with whatever it can, and says what is wrong: one line in the log when a problem
begins and one when it ends, ``zgatectl status``, and the metric ``zgate_alert``. Each text names
the cure; ``docs/runbooks`` has a page for each (``disk_full``: ``ZgateDiskFull``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

logger = logging.getLogger(__name__)

#: All names but those of kernel tables (``map_NAME``): label values of a metric are not made up
#: on the way, and each has its runbook.
NAMES = frozenset(
    {
        "api_socket_missing",
        "audit_not_written",
        "ca_expired",
        "ca_expires",
        "certificate_expired",
        "certificate_expires",
        "certificate_not_loaded",
        "clock_jumped",
        "crl_expired",
        "crl_expires",
        "disk_full",
        "dns_down",
        "edge_down",
        "identity_not_renewed",
        "metrics_port_taken",
        "policy_missing",
        "policy_refused",
        "state_not_writable",
        "store_unavailable",
        "trust_not_loaded",
        "worker_restarting",
    }
)
MAP_PREFIX = "map_"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to look at.

    :ivar name: one of ``NAMES``, or ``map_flows``, ...: fixed, for programs.
    :ivar text: for people: what it is, and what helps.
    :ivar since: by the wall clock.
    :ivar is_blocking: the gateway is not ready for new sessions while it lasts.
    """

    name: str
    text: str
    since: datetime
    is_blocking: bool = False


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Problems:
    """Those that last. For the event loop's thread only."""

    def __init__(self, clock: Callable[[], datetime] = _utc_now) -> None:
        self._clock = clock
        self._active: dict[str, Problem] = {}

    def begin(self, name: str, text: str, *, is_blocking: bool = False) -> None:
        """It is there. Again is no error: the text is the newest, and the log has it once."""
        if name not in NAMES and not name.startswith(MAP_PREFIX):
            raise ValueError(f"no such problem: {name}")
        known = self._active.get(name)
        if known is not None:
            self._active[name] = replace(known, text=text, is_blocking=is_blocking)
            return
        self._active[name] = Problem(name, text, self._clock(), is_blocking)
        logger.warning(
            "alert %(alert)s begins: %(what)s",
            {"event": "alert_begins", "alert": name, "what": text},
        )

    def end(self, name: str, text: str = "") -> None:
        """It is over; if it was never there, nothing happens. ``text``: how things are now."""
        if self._active.pop(name, None) is not None:
            logger.warning(
                "alert %(alert)s ends%(what)s",
                {"event": "alert_ends", "alert": name, "what": f": {text}" if text else ""},
            )

    def set(self, name: str, text: str | None, *, is_blocking: bool = False) -> None:
        """It is there if there is a text, and over otherwise."""
        if text is None:
            self.end(name)
        else:
            self.begin(name, text, is_blocking=is_blocking)

    def __contains__(self, name: str) -> bool:
        return name in self._active

    def active(self) -> list[Problem]:
        """Those that last, by name."""
        return [self._active[name] for name in sorted(self._active)]

    def blocking(self) -> list[str]:
        """Why the gateway is not ready for new sessions, in words."""
        return [f"{one.name}: {one.text}" for one in self.active() if one.is_blocking]
