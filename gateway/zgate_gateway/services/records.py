"""What happens to connectors, told to the audit log (`ConnectorListener`).

    offer_accepted, offer_refused   an entry of a connector's lists was answered; `kind` is service
                                    or route
    offer_withdrawn                 what was accepted is over, and why
    offer_health                    a service's backend answers, or does not any more
    connector_silent, _heard        a connector is not heard any more, or is again
    connector_drained, _undrained   by an administrator
    route_handed_over               another connector leads to a network; null: none

What a connector can cause by itself is limited for each: the log says how many were left out.
"""

from __future__ import annotations

import asyncio
from typing import Any

from zgate_protocol.icmp import TokenBucket
from zgate_protocol.service_capsule import Health, OfferKind, RegistrationAnswer

from zgate_gateway.audit import AuditEvent, AuditLog
from zgate_gateway.registry import SessionRecord
from zgate_gateway.services.routes import Handover

_RECORDS_PER_S = 5
#: Two full lists of services.
_RECORDS_BURST = 512


class _Limit:
    def __init__(self) -> None:
        self.bucket = TokenBucket(rate_per_s=_RECORDS_PER_S, burst=_RECORDS_BURST)
        self.left_out = 0


class ConnectorRecords:
    """Writes audit records of connectors."""

    def __init__(self, audit: AuditLog, loop: asyncio.AbstractEventLoop) -> None:
        self._audit = audit
        self._loop = loop
        self._limits: dict[str, _Limit] = {}

    def answered(self, session: SessionRecord, answer: RegistrationAnswer) -> None:
        """See `ConnectorListener.answered`."""
        entry = {"kind": answer.kind.name.lower(), "offer": answer.name}
        if answer.is_accepted:
            addresses = [str(address) for address in answer.service_addresses]
            self._write(session, AuditEvent.OFFER_ACCEPTED, **entry, addresses=addresses)
        else:
            code = answer.code.name.lower()
            self._write(session, AuditEvent.OFFER_REFUSED, **entry, code=code, text=answer.text)

    def withdrawn(self, session: SessionRecord, kind: OfferKind, name: str, cause: str) -> None:
        """See `ConnectorListener.withdrawn`."""
        self._write(
            session, AuditEvent.OFFER_WITHDRAWN, kind=kind.name.lower(), offer=name, cause=cause
        )

    def health(self, session: SessionRecord, service: str, health: Health, reason: str) -> None:
        """See `ConnectorListener.health`."""
        self._write(
            session,
            AuditEvent.OFFER_HEALTH,
            offer=service,
            health=health.name.lower(),
            reason=reason,
        )

    def silent(self, session: SessionRecord, is_silent: bool) -> None:
        """See `ConnectorListener.silent`."""
        event = AuditEvent.CONNECTOR_SILENT if is_silent else AuditEvent.CONNECTOR_HEARD
        self._write(session, event)

    def handed_over(self, handover: Handover) -> None:
        """See `ConnectorListener.handed_over`."""
        self._audit.write(
            AuditEvent.ROUTE_HANDED_OVER,
            network=str(handover.network),
            client=handover.now.client if handover.now else None,
            before=handover.before.client if handover.before else None,
        )

    def drained(self, connector: str, deadline_s: float | None, *, is_undone: bool) -> None:
        """See `ConnectorListener.drained`."""
        if is_undone:
            self._audit.write(AuditEvent.CONNECTOR_UNDRAINED, client=connector)
        else:
            self._audit.write(AuditEvent.CONNECTOR_DRAINED, client=connector, deadline_s=deadline_s)

    def ended(self, session: SessionRecord) -> None:
        """See `ConnectorListener.ended`."""
        limit = self._limits.pop(session.session_id, None)
        if limit is not None and limit.left_out:
            self._audit.rate_limited(client=session.client, suppressed=limit.left_out)

    def _write(self, session: SessionRecord, event: AuditEvent, **fields: Any) -> None:
        limit = self._limits.setdefault(session.session_id, _Limit())
        if not limit.bucket.allow(self._loop.time()):
            limit.left_out += 1
            return
        if limit.left_out:
            self._audit.rate_limited(client=session.client, suppressed=limit.left_out)
            limit.left_out = 0
        self._audit.write(event, client=session.client, session=session.session_id, **fields)
