"""Services as the daemon has them: its parts, what workers say of them, what agents are told."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import ip_network
from typing import Protocol

from zgate_bpf.steering_tables import AddressOwners
from zgate_control.store import Store
from zgate_protocol.service_capsule import OfferedService

from zgate_gateway.admission import IpAddress, WorkerLink
from zgate_gateway.audit import AuditLog
from zgate_gateway.config import GatewayConfig
from zgate_gateway.kernel import Kernel
from zgate_gateway.registry import Registry, SessionRecord
from zgate_gateway.services.agents import Agents
from zgate_gateway.services.connectors import Connectors
from zgate_gateway.services.directory import ServiceDirectory
from zgate_gateway.services.offers import Offers
from zgate_gateway.services.records import ConnectorRecords
from zgate_gateway.services.routes import HostRoutes, RouteTable
from zgate_gateway.worker import messages

logger = logging.getLogger(__name__)

#: What workers say of offers.
OfferMessage = (
    messages.OfferServices | messages.OfferStates | messages.OfferRoutes | messages.ConnectorSilent
)


class Workers(Protocol):
    """All workers: `zgate_gateway.worker.crew.Crew`."""

    def tell(self, message: messages.Message) -> None:
        """Say the same to all."""


class ServiceDesk:
    """See the module's text. `directory` is there from the start, the rest after `open`."""

    def __init__(self, config: GatewayConfig, store: Store) -> None:
        """Read the names. Raises StoreError."""
        self.directory = ServiceDirectory(store, config.services.ipv4, config.services.ipv6)
        self.domain = config.services.domain
        self._config = config
        self._parts: messages.Parts[OfferedService] = messages.Parts()

    def open(
        self,
        *,
        kernel: Kernel,
        steering: AddressOwners,
        host: HostRoutes,
        sessions: Registry,
        workers: Workers,
        audit: AuditLog,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Offers can be made from now on."""
        self._sessions, self._workers, self._kernel = sessions, workers, kernel
        self.agents = Agents(self._agent_changed, loop)
        tables = kernel.programs.services
        pool = self._config.pool
        self.routes = RouteTable(
            tables,
            steering,
            host,
            own_pools=(pool.ipv4, pool.ipv6, *self.directory.pools),
            on_networks=self._networks_changed,
        )
        self.connectors = Connectors(
            directory=self.directory,
            offers=Offers(tables, self.directory, steering),
            routes=self.routes,
            policy=lambda: kernel.policy_set,
            client_index=kernel.client_index,
            listener=ConnectorRecords(audit, loop),
            close=sessions.close,
            agent_of=self.agents.addresses_of,
            loop=loop,
        )
        sessions.on_ending = self._session_ending
        self.connectors.know_services()

    def message(self, worker: WorkerLink, message: OfferMessage) -> None:
        """A worker passes on what a connector says. What goes wrong costs that session only."""
        session = self._session(worker, message.session_id)
        if session is None:
            return
        try:
            self._said(session, message)
        except Exception:
            logger.exception(
                "what %(client)s offers raised; its session ends",
                {"event": "offer_fault", "client": session.client},
            )
            self._sessions.close(session, "internal error")

    def _session(self, worker: WorkerLink, session_id: str) -> SessionRecord | None:
        """A session of this worker; not one on its way out: nobody would take back what it gets."""
        session = self._sessions.by_id.get(session_id)
        if session is None or session.worker is not worker or session.is_leaving:
            return None
        return session

    def _said(self, session: SessionRecord, message: OfferMessage) -> None:
        match message:
            case messages.OfferServices(session_id, revision, part, is_last):
                services = self._parts.add(session_id, part, is_last)
                if services is not None:
                    self.connectors.offered(session, revision, services)
            case messages.OfferStates(_, statuses):
                self.connectors.states(session, statuses)
            case messages.OfferRoutes(_, routes):
                self.connectors.routes_offered(session, routes)
            case messages.ConnectorSilent(_, is_silent):
                self.connectors.silent(session, is_silent)

    def reach(self, worker: WorkerLink, session_id: str, service: str) -> tuple[IpAddress, ...]:
        """An agent registers: the service's virtual IPs, if it may send it anything now; else none.

        What there is not looks as what the client may not reach.
        """
        session = self._session(worker, session_id)
        if session is None:
            return ()
        policy, identity = self._kernel.policy_set, session.identity
        may = policy.may_reach(identity.name, identity.groups, service, reaches=identity.reaches)
        addresses = tuple(policy.services.get(service, ())) if may else ()
        return addresses if addresses and self.agents.register(session, service) else ()

    def upkeep(self) -> None:
        """What the policy says of connectors may be another; to be called now and then."""
        self.connectors.know_services()
        self.connectors.upkeep()

    def agent_routes(self) -> tuple[str, ...]:
        """What agents are told to send here: as configured, services, and what is led to."""
        pool = self._config.pool
        names = [ip_network(pool.ipv4[1]), ip_network(pool.ipv6[1])]
        every = (
            *self._config.routes,
            *names,
            *self.directory.pools,
            *self.routes.networks(),
        )
        return tuple(dict.fromkeys(str(network) for network in every))

    def networks(self) -> tuple[str, ...]:
        """What lies behind connectors, also where none of them is there now."""
        return tuple(map(str, self.routes.networks()))

    def _networks_changed(self) -> None:
        self._workers.tell(messages.Routes(self.agent_routes(), self.networks()))

    def _session_ending(self, session: SessionRecord, cause: str) -> None:
        self._parts.forget(session.session_id)
        try:
            self.connectors.ended(session, cause)
        finally:
            self.agents.ended(session)

    def _agent_changed(self, service: str) -> None:
        self.connectors.agent_changed(service)
