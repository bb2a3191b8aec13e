"""What happened, told to the audit log: sessions, refusals, and the kernel's flow events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from zgate_bpf.kernel_policy import EventKind
from zgate_control.store import ClientRecord, Store, StoreError, StoreLost
from zgate_protocol.drop_reason import DropReason

from zgate_gateway.audit import AuditLog
from zgate_gateway.flows import FlowFeed, flow_of
from zgate_gateway.kernel import FlowEvent, Kernel
from zgate_gateway.registry import SessionRecord

logger = logging.getLogger(__name__)

_MAX_NOTED = 65_536


def _said(record: ClientRecord) -> tuple[object, ...]:
    """What the certificate said."""
    return record.groups, record.certificate_serial, record.certificate_not_after


class Journal:
    """Writes audit records (`zgate_gateway.registry.SessionListener`).

    :ivar feed: whoever follows flows hears of them here.
    """

    def __init__(
        self, audit: AuditLog, store: Store, kernel: Kernel, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.feed = FlowFeed()
        self._audit = audit
        self._store = store
        self._kernel = kernel
        self._loop = loop
        self._noted: dict[str, ClientRecord] = {}  # whose certificates the store knows
        self._unwritten: dict[str, ClientRecord] = {}  # who came again since we wrote
        self.events_received = 0

    def session_up(self, session: SessionRecord) -> None:
        """Who came, from where, and what it holds."""
        self._audit.session_up(
            client=session.client,
            groups=session.identity.groups,
            session=session.session_id,
            peer=session.peer,
            addresses=session.addresses,
            certificate_serial=f"{session.identity.serial:040x}",
        )
        identity = session.identity
        record = ClientRecord(
            identity.name,
            tuple(identity.groups),
            f"{identity.serial:040x}",
            identity.not_after,
            created_at=session.established_at,
            last_seen_at=session.established_at,
        )
        known = self._noted.get(identity.name)
        if known is None or _said(known) != _said(record):
            self._note([record])
        else:
            self._unwritten[identity.name] = record

    def write_seen(self) -> None:
        """Note in the store who came again. Every minute or so, before it is read, at the end."""
        if self._unwritten:
            self._note(list(self._unwritten.values()))

    def _note(self, records: Sequence[ClientRecord]) -> None:
        """Whatever the store says, the sessions are up: `zgatectl clients` is poorer for it."""
        try:
            self._store.note_clients(records)
        except StoreError as error:
            # Told already if it is lost; whoever is connected is noted when the store is mended.
            if not isinstance(error, StoreLost):
                logger.error(
                    "clients not noted: %(error)s", {"event": "clients_not_noted", "error": error}
                )
            return
        for record in records:
            self._noted[record.name] = record
            self._unwritten.pop(record.name, None)
        while len(self._noted) > _MAX_NOTED:
            del self._noted[next(iter(self._noted))]

    def session_down(self, session: SessionRecord, cause: str) -> None:
        """Who left, why, and what the kernel had counted; called before it forgets."""
        counted = session.bytes_until or self._kernel.client_bytes(session.client)
        up_bytes, down_bytes = (
            max(0, until - before)
            for until, before in zip(counted, session.bytes_before, strict=True)
        )
        self._audit.session_down(
            client=session.client,
            session=session.session_id,
            peer=session.peer,
            addresses=session.addresses,
            cause=cause,
            duration_s=self._loop.time() - session.established_s,
            up_bytes=up_bytes,
            down_bytes=down_bytes,
        )

    def session_refused(self, client: str, peer: str, reason: str, text: str) -> None:
        """A verified client that was not let in."""
        self._audit.session_refused(client=client, peer=peer, reason=reason, text=text)

    def flow(self, named: FlowEvent) -> None:
        """A new flow, a denial, or how many of them the kernel left out."""
        self.events_received += 1
        event = named.event
        if event.kind is EventKind.FLOW_ALLOWED:
            self._audit.flow_allowed(
                client=named.client or "-",
                flow=flow_of(event),
                rule=named.rule_id,
                revision=named.revision,
            )
        else:
            self._audit.flow_denied(
                client=named.client,
                flow=flow_of(event),
                reason=DropReason(event.reason).name,
                rule=named.rule_id,
                revision=named.revision,
            )
        if event.suppressed:
            self._audit.rate_limited(client=named.client, suppressed=event.suppressed)
        self.feed.publish(named)
