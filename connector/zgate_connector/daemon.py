"""The running connector: one session with each gateway, all of them ended together."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from zgate_datapath.engine import engine_name

from zgate_connector.config import ConnectorConfig
from zgate_connector.session import GatewaySession
from zgate_connector.status import ConnectorStatus

logger = logging.getLogger(__name__)


class Connector:
    """Runs sessions until it is told to stop. Make it in a running event loop."""

    def __init__(
        self,
        config: ConnectorConfig,
        sessions: Sequence[GatewaySession],
        notes: Callable[[], list[str]],
    ) -> None:
        self._config = config
        self._sessions = sessions
        self._notes = notes
        self._told: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def run(self) -> str:
        """Hold the sessions until told to stop; returns why it ended. Nothing is left, then."""
        tasks = [asyncio.create_task(one.run()) for one in self._sessions]
        try:
            # A session that ends by itself is a bug: the others do not go on as if it were none.
            waits: list[asyncio.Future[Any]] = [self._told, *tasks]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error
        return self._told.result()

    def stop(self, reason: str) -> None:
        """End as soon as possible, from whatever is going on."""
        if not self._told.done():
            logger.info("stopping: %(reason)s", {"event": "stopping", "reason": reason})
            self._told.set_result(reason)

    def reconnect(self) -> None:
        """Dial now where we wait for the next attempt."""
        for session in self._sessions:
            session.reconnect()

    def identity_changed(self, problem: str) -> None:
        """Certificate, key or CA are others, or cannot be used: see `GatewaySession`."""
        for session in self._sessions:
            session.identity_changed(problem)

    def network_changed(self) -> None:
        """The host's network may have changed: look."""
        for session in self._sessions:
            session.network_changed()

    def health_changed(self) -> None:
        """A backend's health has changed: tell every gateway now."""
        for session in self._sessions:
            session.health_changed()

    def status(self) -> ConnectorStatus:
        """What is true now."""
        return ConnectorStatus(
            gateways=[one.status() for one in self._sessions],
            networks=[str(one) for one in self._config.own_networks],
            engine=engine_name(self._config.engine),
            notes=self._notes(),
            pid=os.getpid(),
        )
