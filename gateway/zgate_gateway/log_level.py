"""How much the gateway logs, changed while it runs: supervisor and workers alike.

The configuration's level is the one that stays. An administrator's lasts until its time is over,
until SIGHUP, or until the gateway ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from zgate_config.logs import set_level
from zgate_config.reread import read_again

from zgate_gateway.api import schemas
from zgate_gateway.config import GatewayConfig

logger = logging.getLogger(__name__)


class RunningLevel:
    """See the module's text. `tell` has the workers follow.

    Attributes:
        level: now; `configured`: that of the configuration.
        until: when the configured one comes back by itself; None: it does not, or is in force.
    """

    def __init__(self, configured: str, tell: Callable[[str], None]) -> None:
        self.level = self.configured = configured
        self.until: datetime | None = None
        self._tell = tell
        self._end: asyncio.TimerHandle | None = None

    def set(self, level: str, for_s: float | None = None) -> None:
        """Log so much from now on; with `for_s`, so long."""
        self._cancel()
        if for_s is not None and level != self.configured:
            self.until = datetime.now(UTC) + timedelta(seconds=for_s)
            self._end = asyncio.get_running_loop().call_later(for_s, self._back)
        self._apply(level)

    def read_again(self, running: GatewayConfig, load: Callable[[], GatewayConfig]) -> None:
        """SIGHUP: what the configuration says is in force again; other changes are only told."""
        read_again(running, load, self._follow)

    def _follow(self, found: GatewayConfig) -> None:
        self.configured = str(found.log.level)
        self._back()

    def close(self) -> None:
        """The gateway ends."""
        self._cancel()

    def _back(self) -> None:
        self._cancel()
        self._apply(self.configured)

    def _cancel(self) -> None:
        if self._end is not None:
            self._end.cancel()
        self._end = self.until = None

    def _apply(self, level: str) -> None:
        if level == self.level:
            return
        self.level = level
        # Before or after: whichever of the two levels lets it be said.
        is_told = logger.isEnabledFor(logging.INFO)
        if is_told:
            self._say()
        set_level(level)
        if not is_told:
            self._say()
        self._tell(level)

    def _say(self) -> None:
        until = f"{self.until:%F %T}Z" if self.until else "further notice"
        logger.info(
            "log level: %(log_level)s, until %(until)s",
            {"event": "log_level_changed", "log_level": self.level, "until": until},
        )


def log_level_in(running: RunningLevel) -> schemas.LogLevelState:
    """How much is logged, in the API's words."""
    return schemas.LogLevelState(
        level=schemas.LogLevel(running.level),
        configured=schemas.LogLevel(running.configured),
        until=running.until,
    )
