"""Letting go of the clients before the gateway is stopped.

    begin      not ready; no new session; each client is told to go elsewhere: DRAIN, GOAWAY
    meanwhile  who has another gateway goes there, new session first; the others stay, and work
    deadline   the sessions that are left are closed. The gateway stays as it is, until it is
               stopped, or the drain is undone

Connectors are left alone, and not counted: they hold sessions with every gateway anyhow, and as
long as clients are here these want to reach what is behind them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

from zgate_protocol import goodbye

from zgate_gateway.api import schemas
from zgate_gateway.registry import Registry, SessionRecord
from zgate_gateway.worker import messages

logger = logging.getLogger(__name__)


class Workers(Protocol):
    """All workers: `zgate_gateway.worker.crew.Crew`."""

    def tell(self, message: messages.Message) -> None:
        """Say the same to all."""


class DrainListener(Protocol):
    """Who is told: the audit log."""

    def gateway_drained(self, *, deadline_s: float, sessions: int) -> None:
        """An administrator drains the gateway."""

    def gateway_undrained(self) -> None:
        """And does not any more."""


@dataclass(frozen=True, slots=True)
class DrainState:
    """A drain that goes on.

    Attributes:
        is_over: the deadline has passed, and every session that was left is closed.
        closed_sessions: those that were.
    """

    since: datetime
    deadline_s: float
    is_over: bool = False
    closed_sessions: int = 0

    @property
    def deadline_at(self) -> datetime:
        """When the sessions that are left are closed."""
        return self.since + timedelta(seconds=self.deadline_s)


class GatewayDrain:
    """See the module's text. `on_state` is told what the gateway's state is now.

    `is_connector` says of a session's ID whether it is a connector's.
    """

    def __init__(
        self,
        sessions: Registry,
        workers: Workers,
        listener: DrainListener,
        on_state: Callable[[str], None],
        is_connector: Callable[[str], bool],
    ) -> None:
        self.state: DrainState | None = None
        self._sessions = sessions
        self._workers = workers
        self._listener = listener
        self._on_state = on_state
        self._is_connector = is_connector
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def sessions_left(self) -> int:
        """Sessions that have not gone yet."""
        return len(self._left())

    def _left(self) -> list[SessionRecord]:
        everybody = self._sessions.by_client.values()
        return [one for one in everybody if not self._is_connector(one.session_id)]

    def begin(self, deadline_s: float) -> None:
        """Drain; again, with another deadline, which is counted from now."""
        self._cancel()
        sessions = self._sessions
        self.state = DrainState(datetime.now(UTC), deadline_s)
        sessions.accepting, sessions.refuses_because = False, "the gateway is draining"
        self._on_state("draining")
        self._workers.tell(messages.DrainAll(round(deadline_s * 1000)))
        self._listener.gateway_drained(deadline_s=deadline_s, sessions=self.sessions_left)
        logger.info(
            "draining: %(sessions)d sessions, %(deadline_s)g s",
            {"event": "drain_begins", "sessions": self.sessions_left, "deadline_s": deadline_s},
        )
        self._deadline = sessions.loop.call_later(deadline_s, self._over)

    def undo(self) -> bool:
        """Take sessions again; False: it was not drained."""
        if self.state is None:
            return False
        self._cancel()
        self.state = None
        self._sessions.accepting = True
        self._on_state("ready")
        self._listener.gateway_undrained()
        logger.info("drained no more", {"event": "drain_undone"})
        return True

    def _over(self) -> None:
        assert self.state is not None
        self._deadline = None
        left = self._left()
        self.state = replace(self.state, is_over=True, closed_sessions=len(left))
        logger.info(
            "drained: %(sessions)d sessions were left, and are closed",
            {"event": "drained", "sessions": len(left)},
        )
        for session in left:
            self._sessions.close(session, goodbye.DRAINED)

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def close(self) -> None:
        """The gateway stops: no deadline comes any more."""
        self._cancel()


def gateway_drain_in(drain: GatewayDrain) -> schemas.GatewayDrainState | None:
    """How the drain goes, in the API's words; None: there is none."""
    state = drain.state
    if state is None:
        return None
    return schemas.GatewayDrainState(
        since=state.since,
        deadline_s=state.deadline_s,
        deadline_at=state.deadline_at,
        sessions_left=drain.sessions_left,
        is_over=state.is_over,
        closed_sessions=state.closed_sessions,
    )
