"""Which agent of the ztna-v1 dialect has registered last for a service.

Its connectors' workers are told, for a packet that a connector sends to nobody's address goes there
(`zgate_gateway.dialects.translation`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from zgate_protocol.icmp import TokenBucket

from zgate_gateway.admission import MAX_SESSION_SERVICES, IpAddress
from zgate_gateway.registry import SessionRecord

#: Changes that are told at once; then so many each second, and of each service the newest only:
#: whoever registers in turns with another must not fill the channels to the workers.
_TOLD_BURST = 100
_TOLD_PER_S = 50.0
_LATER_S = 0.1


class Agents:
    """The registrations of all agent sessions that are there.

    `announce` is called with a service of which `addresses_of` says something else than before.
    """

    def __init__(self, announce: Callable[[str], None], loop: asyncio.AbstractEventLoop) -> None:
        self._announce = announce
        self._loop = loop
        # By service: the sessions by their IDs, in the order of their newest registrations.
        self._sessions: dict[str, dict[str, SessionRecord]] = {}
        self._services: dict[str, set[str]] = {}
        self._changed: dict[str, None] = {}
        self._bucket = TokenBucket(rate_per_s=_TOLD_PER_S, burst=_TOLD_BURST)
        self._later: asyncio.TimerHandle | None = None

    def addresses_of(self, service: str) -> tuple[IpAddress, ...]:
        """The virtual IPs of the agent that registered last; none: there is no agent."""
        last = self._last(service)
        return last.addresses if last is not None else ()

    def register(self, session: SessionRecord, service: str) -> bool:
        """A session has registered, perhaps again; False: it has too many services."""
        services = self._services.setdefault(session.session_id, set())
        if service not in services and len(services) >= MAX_SESSION_SERVICES:
            return False
        services.add(service)
        before = self._last(service)
        sessions = self._sessions.setdefault(service, {})
        sessions.pop(session.session_id, None)
        sessions[session.session_id] = session
        if before is not session:
            self._tell(service)
        return True

    def ended(self, session: SessionRecord) -> None:
        """The session is over: whoever registered before it is the last one now."""
        for service in self._services.pop(session.session_id, ()):
            was_last = self._last(service) is session
            sessions = self._sessions[service]
            del sessions[session.session_id]
            if not sessions:
                del self._sessions[service]
            if was_last:
                self._tell(service)

    def _last(self, service: str) -> SessionRecord | None:
        return next(reversed(self._sessions.get(service, {}).values()), None)

    def _tell(self, service: str) -> None:
        self._changed[service] = None
        if self._later is None:
            self._tell_some()

    def _tell_some(self) -> None:
        self._later = None
        while self._changed and self._bucket.allow(self._loop.time()):
            service = next(iter(self._changed))
            del self._changed[service]
            self._announce(service)
        if self._changed:
            self._later = self._loop.call_later(_LATER_S, self._tell_some)
