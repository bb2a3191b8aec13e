"""All connectors: sessions that offer services, lead to networks, or both.

    offers     UP    healthy, heard, not drained: takes new flows
               KEEP  not healthy, or drained: keeps the flows that it has
               GONE  silent, or drained and past its deadline: its flows choose another
    networks   one of several connectors is active (`zgate_gateway.services.routes`)

A connector's newest lists replace its earlier ones, and the answer names every entry of them. It
comes again, unasked, when something else becomes of an entry: the policy may change its mind. At a
session's end its offers are gone before anything else is done about it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network

from zgate_protocol.icmp import TokenBucket
from zgate_protocol.service_capsule import (
    OfferedService,
    OfferStatus,
    RegistrationAnswer,
    RegistrationCode,
)

from zgate_gateway.admission import IpAddress
from zgate_gateway.registry import SessionRecord
from zgate_gateway.services.authorization import (
    IpNetwork,
    Policy,
    Rights,
    objection_to_network,
)
from zgate_gateway.services.connector import Connector, ConnectorListener, Drain
from zgate_gateway.services.directory import ServiceDirectory
from zgate_gateway.services.offers import Offers
from zgate_gateway.services.registration import FAILURES, FULL, Registration
from zgate_gateway.services.routes import Handover, RouteTable

logger = logging.getLogger(__name__)

#: Lists of one connector that are looked at at once; then the newest of each interval.
_LISTS_BURST = 10
_LISTS_PER_S = 2.0
_LATER_S = 0.5
#: How long until what failed is tried again.
_RETRY_S = 5.0


class Connectors:
    """See the module's text.

    `policy` returns the policy in force; `client_index` the kernel's number of a client that is
    there; `close` ends a session; `agent_of` returns the virtual IPs of the agent that registered
    last for a service.

    :ivar by_session: the connectors, by session ID.
    :ivar drains: those that are drained, by name, connected or not.
    :ivar refused: entries of lists that were refused, by code.
    """

    def __init__(
        self,
        *,
        directory: ServiceDirectory,
        offers: Offers,
        routes: RouteTable,
        policy: Callable[[], Policy],
        client_index: Callable[[str], int],
        listener: ConnectorListener,
        close: Callable[[SessionRecord, str], None],
        agent_of: Callable[[str], tuple[IpAddress, ...]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.by_session: dict[str, Connector] = {}
        self.drains: dict[str, Drain] = {}
        self.refused: Counter[str] = Counter()
        self.directory = directory
        self.routes = routes
        self._offers = offers
        self._policy = policy
        self._rights_seen: tuple[Mapping[str, Rights], ...] | None = None
        self._client_index = client_index
        self._listener = listener
        self._close = close
        self._agent_of = agent_of
        self._loop = loop
        self._deadlines: dict[str, asyncio.TimerHandle] = {}
        self._registration = Registration(
            directory=directory,
            offers=offers,
            routes=routes,
            drains=self.drains,
            listener=listener,
            on_failure=self._failed,
            on_handover=self._handed_over,
        )

    # What a connector says. The session is there, and its worker says it.

    def offered(
        self, session: SessionRecord, revision: int, services: Sequence[OfferedService]
    ) -> None:
        """A new list of services, in the place of the earlier one."""
        connector = self._connector(session)
        connector.revision, connector.wanted = revision, tuple(services)
        self._look_at(connector)

    def routes_offered(self, session: SessionRecord, networks: Iterable[str]) -> None:
        """A new list of networks, in the place of the earlier one. Raises ValueError."""
        wanted = tuple(dict.fromkeys(ip_network(network) for network in networks))
        if not wanted and session.session_id not in self.by_session:
            return  # a client that leads nowhere is no connector
        connector = self._connector(session)
        connector.wanted_networks, connector.has_listed_networks = wanted, True
        self._look_at(connector)

    def states(self, session: SessionRecord, statuses: Iterable[OfferStatus]) -> None:
        """How its services do."""
        connector = self.by_session.get(session.session_id)
        if connector is None:
            return
        for status in statuses:
            offer = connector.offers.get(status.name)
            if offer is None:
                continue  # refused, or on its way out
            if offer.health is not status.health:
                offer.changed_at = datetime.now(UTC)
                self._listener.health(session, offer.name, status.health, status.reason)
            offer.status = status
            self._registration.use(connector, offer)

    def silent(self, session: SessionRecord, is_silent: bool) -> None:
        """Nothing comes from it any more, though its session is there; or it comes again."""
        connector = self.by_session.get(session.session_id)
        if connector is None or connector.is_silent is is_silent:
            return
        connector.is_silent = is_silent
        self._registration.apply_state(connector)
        self._listener.silent(session, is_silent)

    def ended(self, session: SessionRecord, cause: str) -> None:
        """The session is over: nothing goes to it any more when this returns."""
        connector = self.by_session.pop(session.session_id, None)
        if connector is None:
            return
        if connector.later is not None:
            connector.later.cancel()
        self._registration.end(connector, cause)
        self._listener.ended(session)

    # What others want.

    def named(self, name: str) -> Connector | None:
        """The connector of that name."""
        return next((one for one in self.by_session.values() if one.name == name), None)

    def know_services(self) -> None:
        """There may be names that the kernel does not know."""
        try:
            self._offers.know_services()
        except (*FULL, *FAILURES) as error:
            # They have no offer yet, or it could not have been made.
            logger.error(
                "services that the kernel does not know: %(error)s",
                {"event": "services_not_in_kernel", "error": error},
            )

    def upkeep(self) -> None:
        """Look at all rights again when there are others; to be called now and then."""
        policy = self._policy()
        rights = policy.connectors, policy.connector_groups
        if rights == self._rights_seen:
            return
        self._rights_seen = rights
        self.routes.forget_vanished(
            lambda route: (
                objection_to_network(route.last_holder.identity, policy, route.network) is not None
            )
        )
        for connector in list(self.by_session.values()):
            try:
                self._settle(connector)
            except Exception:
                # Nobody else's rights wait for it.
                logger.exception(
                    "what %(client)s offers raised; its session ends",
                    {"event": "offer_fault", "client": connector.name},
                )
                self._close(connector.session, "internal error")

    # Drain.

    def drain(self, name: str, deadline_s: float | None) -> Drain:
        """Give a connector no new flows; after the deadline, none at all."""
        self._end_drain(name)
        now = datetime.now(UTC)
        deadline_at = None if deadline_s is None else now + timedelta(seconds=deadline_s)
        self.drains[name] = drain = Drain(now, deadline_at)
        if deadline_s is not None:
            self._deadlines[name] = self._loop.call_later(deadline_s, self._drain_over, name)
        connector = self.named(name)
        if connector is not None:
            self._registration.apply_state(connector)
            self._tell_drain(connector, drain)
        self._listener.drained(name, deadline_s, is_undone=False)
        return drain

    def undrain(self, name: str) -> bool:
        """Give it new flows again; False: it was not drained.

        A connector that has been told to drain takes no new flow in that session: it ends, and the
        next one, a second later, begins anew.
        """
        if not self._end_drain(name):
            return False
        self._listener.drained(name, None, is_undone=True)
        connector = self.named(name)
        if connector is not None:
            self._close(connector.session, "it is drained no more, and is to connect again")
        return True

    def _end_drain(self, name: str) -> bool:
        timer = self._deadlines.pop(name, None)
        if timer is not None:
            timer.cancel()
        return self.drains.pop(name, None) is not None

    def _drain_over(self, name: str) -> None:
        del self._deadlines[name]
        drain = self.drains[name]
        self.drains[name] = Drain(drain.since, drain.deadline_at, is_over=True)
        connector = self.named(name)
        if connector is not None:
            self._registration.apply_state(connector)

    def _tell_drain(self, connector: Connector, drain: Drain) -> None:
        deadline_ms = 0
        if drain.deadline_at is not None:
            left_s = (drain.deadline_at - datetime.now(UTC)).total_seconds()
            deadline_ms = max(1, round(left_s * 1000))
        session = connector.session
        session.worker.drain_session(session.session_id, deadline_ms)

    # From lists to answers.

    def _connector(self, session: SessionRecord) -> Connector:
        known = self.by_session.get(session.session_id)
        if known is None:
            lists = TokenBucket(rate_per_s=_LISTS_PER_S, burst=_LISTS_BURST)
            known = Connector(session, self._client_index(session.client), lists)
            self.by_session[session.session_id] = known
        return known

    def _look_at(self, connector: Connector) -> None:
        """Now, unless it says too much: then the newest lists, a little later."""
        connector.told = None
        if connector.lists.allow(self._loop.time()):
            self._settle(connector)
        else:
            self._look_again(connector, _LATER_S)

    def _look_again(self, connector: Connector, delay_s: float) -> None:
        """In a while, if not sooner anyway."""
        if connector.later is not None:
            if connector.later.when() <= self._loop.time() + delay_s:
                return
            connector.later.cancel()
        connector.later = self._loop.call_later(delay_s, self._settle, connector)

    def _settle(self, connector: Connector) -> None:
        if connector.later is not None:
            connector.later.cancel()
            connector.later = None
        before = {_gist(answer) for answer in connector.answers}
        is_first = not connector.answers
        connector.answers = self._registration.settle(connector, self._policy())
        for answer in connector.answers:
            if _gist(answer) not in before:
                self._listener.answered(connector.session, answer)
                if not answer.is_accepted:
                    self.refused[answer.code.name.lower()] += 1
        self._tell(connector)
        drain = self.drains.get(connector.name)
        if is_first and drain is not None:
            self._tell_drain(connector, drain)
        if any(answer.code is RegistrationCode.INTERNAL for answer in connector.answers):
            self._look_again(connector, _RETRY_S)

    def _tell(self, connector: Connector) -> None:
        """What it holds first, then the answers that it can act upon."""
        self._grant(connector)
        news = connector.revision, connector.answers
        if news != connector.told:
            connector.told = news
            session = connector.session
            session.worker.answer_offers(session.session_id, *news)
            connector.agents = {
                name: told for name, told in connector.agents.items() if name in connector.offers
            }
        for service in connector.offers:
            self._tell_agent(connector, service)

    def agent_changed(self, service: str) -> None:
        """Another agent registered last for a service: whoever offers it is told."""
        for connector in self.by_session.values():
            if service in connector.offers:
                self._tell_agent(connector, service)

    def _tell_agent(self, connector: Connector, service: str) -> None:
        addresses = self._agent_of(service)
        if addresses != connector.agents.get(service, ()):
            connector.agents[service] = addresses
            session = connector.session
            session.worker.tell_agent(session.session_id, service, addresses)

    def _grant(self, connector: Connector) -> None:
        held = tuple(address for offer in connector.offers.values() for address in offer.addresses)
        led = tuple(
            str(network)
            for network, holder in connector.networks.items()
            if self.routes.routes[network].active is holder
        )
        if (held, led) != connector.granted:
            connector.granted = held, led
            session = connector.session
            session.worker.grant(session.session_id, held, led)

    def _failed(self, wanted: str | IpNetwork) -> None:
        """The kernel refused: all who want that service or network are looked at again."""
        for connector in self.by_session.values():
            names = {service.name for service in connector.wanted}
            if wanted in names or wanted in connector.wanted_networks:
                self._grant(connector)  # what it has lost, it has lost now
                self._look_again(connector, _RETRY_S)

    def _handed_over(self, handover: Handover) -> None:
        """All who hold the network are told, the new one first; and who is active, soon."""
        self._listener.handed_over(handover)
        network = handover.network
        told = [one for one in self.by_session.values() if network in one.networks]
        told.sort(key=lambda one: one.networks[network] is not handover.now)
        for connector in told:
            self._grant(connector)
            self._look_again(connector, 0.0)


def _gist(answer: RegistrationAnswer) -> tuple[object, ...]:
    """What makes an answer news."""
    return answer.kind, answer.name, answer.code
