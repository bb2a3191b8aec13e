"""Who is beside a worker: the audit log, and a supervisor in the same process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from zgate_gateway.admission import Admission, Answer, Applicant, Reached, Refusal
from zgate_gateway.registry import Registry, SessionRecord
from zgate_gateway.sessions import SessionTable
from zgate_protocol.service_capsule import OfferStatus, Register


class Record:
    """The audit log's side (`SessionListener`), in the order of what happened."""

    def __init__(self) -> None:
        self.up: list[str] = []
        self.down: list[tuple[str, str]] = []
        self.refused: list[tuple[str, str, str]] = []
        self.fails: Exception | None = None

    def session_up(self, session: SessionRecord) -> None:
        self.up.append(session.client)

    def session_down(self, session: SessionRecord, cause: str) -> None:
        if self.fails is not None:
            raise self.fails
        self.down.append((session.client, cause))

    def session_refused(self, client: str, peer: str, reason: str, text: str) -> None:
        self.refused.append((client, reason, text))


class Near:
    """Supervisor and worker in one process: `Registrar` and `WorkerLink` without messages.

    `delays`: answers wait in `held` until `release` is called, as they do between processes.
    What sessions offer is kept in `offered`, and who fell silent in `silences`, in order.
    `reachable` are the services that everybody may reach, by name.
    """

    def __init__(self, registry: Registry, index: int = 0) -> None:
        self.registry = registry
        self.index = index
        self.table: SessionTable | None = None
        self.delays = False
        self.held: list[Callable[[], None]] = []
        self.offered: list[tuple[str, Any]] = []
        self.silences: list[tuple[str, bool]] = []
        self.reachable: dict[str, tuple[IPv4Address | IPv6Address, ...]] = {}

    def release(self) -> None:
        held, self.held = self.held, []
        for each in held:
            each()

    def _later(self, action: Callable[[], None]) -> None:
        if self.delays:
            self.held.append(action)
        else:
            action()

    def apply(self, applicant: Applicant, answer: Answer) -> None:
        try:
            session = self.registry.admit(applicant, self)
        except Refusal as refusal:
            refused = refusal
            self._later(lambda: answer(refused))
        else:
            admission = Admission(session.session_id, session.addresses)
            self._later(lambda: answer(admission))

    def established(self, session_id: str) -> None:
        self.registry.established(session_id, self)

    def ended(self, session_id: str, cause: str) -> None:
        self.registry.ended(session_id, self, cause)

    def refused(self, client: str, peer: str, refusal: Refusal) -> None:
        self.registry.count_refused(client, peer, refusal)

    def offer_services(self, session_id: str, register: Register) -> None:
        self.offered.append((session_id, register))

    def offer_states(self, session_id: str, statuses: Sequence[OfferStatus]) -> None:
        self.offered.append((session_id, tuple(statuses)))

    def offer_routes(self, session_id: str, networks: tuple[str, ...]) -> None:
        self.offered.append((session_id, networks))

    def reach_service(self, session_id: str, service: str, answer: Reached) -> None:
        addresses = self.reachable.get(service, ())
        self._later(lambda: answer(addresses))

    def connector_silent(self, session_id: str, is_silent: bool) -> None:
        self.silences.append((session_id, is_silent))

    def close_session(self, session_id: str, cause: str) -> None:
        assert self.table is not None
        table = self.table
        self._later(lambda: table.closed(session_id, cause))
