"""From what a connector wants to what it has, and why not.

It is worked out from its lists, its rights and what there is room for, as often as one of them
changes; what stands already is left as it is. One entry that fails costs no other one anything.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from zgate_bpf.errors import CapacityError
from zgate_bpf.services import OfferUse
from zgate_control.store import StoreError
from zgate_protocol.service_capsule import (
    Health,
    OfferedService,
    OfferKind,
    RegistrationAnswer,
    RegistrationCode,
)

from zgate_gateway.net.errors import NetError
from zgate_gateway.net.links import RouteTaken
from zgate_gateway.services.authorization import (
    IpNetwork,
    Objection,
    Policy,
    objection_to_network,
    objection_to_service,
)
from zgate_gateway.services.connector import Connector, ConnectorListener, Drain
from zgate_gateway.services.directory import (
    NoServiceAddress,
    ServiceDirectory,
    TooManyServices,
)
from zgate_gateway.services.offers import Offer, Offers, TooManyOffers
from zgate_gateway.services.routes import Handover, Holder, RouteTable

logger = logging.getLogger(__name__)

FULL = (CapacityError, TooManyServices, TooManyOffers)
FAILURES = (StoreError, NetError, OSError, RuntimeError, ValueError)
#: Each costs the event loop some milliseconds: the host's interfaces are read, a route is made.
_MAX_NETWORKS = 64
_NOT_NOW = Objection(RegistrationCode.INTERNAL, "the gateway could not do it; its log says why")
_TWICE = Objection(RegistrationCode.INVALID, "the list names this service twice")


class Registration:
    """Makes, uses and ends offers and routes of connectors.

    `on_failure` is called with a service or network that was lost because the kernel refused;
    `on_handover` when somebody else leads to a network.
    """

    def __init__(
        self,
        *,
        directory: ServiceDirectory,
        offers: Offers,
        routes: RouteTable,
        drains: Mapping[str, Drain],
        listener: ConnectorListener,
        on_failure: Callable[[str | IpNetwork], None],
        on_handover: Callable[[Handover], None],
    ) -> None:
        self._directory = directory
        self._offers = offers
        self._routes = routes
        self._drains = drains
        self._listener = listener
        self._on_failure = on_failure
        self._on_handover = on_handover

    def settle(self, connector: Connector, policy: Policy) -> tuple[RegistrationAnswer, ...]:
        """Have what is wanted and may be, and nothing else; an answer for each entry."""
        return (
            *self._settle_services(connector, policy),
            *self._settle_networks(connector, policy),
        )

    def apply_state(self, connector: Connector) -> None:
        """The connector as a whole is another than before: silent, drained, or not any more."""
        for offer in list(connector.offers.values()):
            self.use(connector, offer)
        for network, holder in list(connector.networks.items()):
            self._show_state(connector, holder)
            self._change(network, self._routes.settle, network)

    def end(self, connector: Connector, cause: str) -> None:
        """The session is over: nothing goes to it any more when this returns."""
        for offer in connector.offers.values():
            self._offers.end(offer)
        for network, holder in connector.networks.items():
            self._remove_holder(network, holder, is_vanished=True)
        for name in connector.offers:
            self._listener.withdrawn(connector.session, OfferKind.SERVICE, name, cause)
        for network in connector.networks:
            self._listener.withdrawn(connector.session, OfferKind.ROUTE, str(network), cause)

    # Services.

    def use(self, connector: Connector, offer: Offer) -> None:
        """Tell the kernel what may be done with the offer now."""
        try:
            self._offers.use(offer, self._use_of(connector, offer))
        except FAILURES as error:
            logger.error(
                "the offer of %(offer)s by %(client)s ends: %(error)s",
                {
                    "event": "offer_failed",
                    "offer": offer.name,
                    "client": connector.name,
                    "error": error,
                },
            )
            self._end_offer(connector, offer.name, _NOT_NOW.text)
            self._on_failure(offer.name)

    def _use_of(self, connector: Connector, offer: Offer) -> OfferUse:
        drain = self._drains.get(connector.name)
        if connector.is_silent or (drain is not None and drain.is_over):
            return OfferUse.GONE
        if drain is not None or offer.health is not Health.UP:
            return OfferUse.KEEP
        return OfferUse.UP

    def _settle_services(self, connector: Connector, policy: Policy) -> list[RegistrationAnswer]:
        wanted = {service.name: service for service in connector.wanted}
        counts = Counter(service.name for service in connector.wanted)
        identity = connector.session.identity
        objections = {
            name: _TWICE if counts[name] > 1 else objection_to_service(identity, policy, name)
            for name in wanted
        }
        for name in [one for one in connector.offers if objections.get(one, _NOT_NOW) is not None]:
            objection = objections.get(name)
            self._end_offer(connector, name, objection.text if objection else "withdrawn")
        return [
            self._settle_service(connector, service, objections[name])
            for name, service in wanted.items()
        ]

    def _settle_service(
        self, connector: Connector, service: OfferedService, objection: Objection | None
    ) -> RegistrationAnswer:
        name = service.name
        if objection is None and name not in connector.offers:
            objection = self._make_offer(connector, service)
        if objection is not None:
            return RegistrationAnswer(OfferKind.SERVICE, name, objection.code, objection.text)
        offer = connector.offers[name]
        offer.ports = service.ports
        return RegistrationAnswer(
            OfferKind.SERVICE,
            name,
            RegistrationCode.ACCEPTED,
            "",
            self._directory.addresses_of(name) or (),
            offer.addresses,
        )

    def _make_offer(self, connector: Connector, service: OfferedService) -> Objection | None:
        try:
            offer = self._offers.make(
                service,
                client_index=connector.client_index,
                worker_index=connector.session.worker.index,
                now=datetime.now(UTC),
            )
        except NoServiceAddress as error:
            return Objection(RegistrationCode.NO_ADDRESS, str(error))
        except FULL as error:
            return Objection(RegistrationCode.LIMIT, str(error))
        except FAILURES as error:
            logger.error(
                "%(client)s cannot offer %(offer)s: %(error)s",
                {
                    "event": "offer_not_taken",
                    "client": connector.name,
                    "offer": service.name,
                    "error": error,
                },
            )
            return _NOT_NOW
        connector.offers[service.name] = offer
        self.use(connector, offer)
        return None if service.name in connector.offers else _NOT_NOW

    def _end_offer(self, connector: Connector, name: str, cause: str) -> None:
        self._offers.end(connector.offers.pop(name))
        self._listener.withdrawn(connector.session, OfferKind.SERVICE, name, cause)

    # Networks.

    def _settle_networks(self, connector: Connector, policy: Policy) -> list[RegistrationAnswer]:
        identity = connector.session.identity
        objections = {
            network: objection_to_network(identity, policy, network)
            for network in connector.wanted_networks
        }
        for network in [
            one for one in connector.networks if objections.get(one, _NOT_NOW) is not None
        ]:
            objection = objections.get(network)
            self._remove_holder(network, connector.networks.pop(network), is_vanished=False)
            self._listener.withdrawn(
                connector.session,
                OfferKind.ROUTE,
                str(network),
                objection.text if objection else "withdrawn",
            )
        if connector.has_listed_networks:
            # What it led to in an earlier session, and now does not want to.
            self._routes.forget_vanished(
                lambda route: (
                    route.last_holder.client == connector.name and route.network not in objections
                )
            )
        return [
            self._settle_network(connector, network, objection)
            for network, objection in objections.items()
        ]

    def _settle_network(
        self, connector: Connector, network: IpNetwork, objection: Objection | None
    ) -> RegistrationAnswer:
        if objection is None and network not in connector.networks:
            objection = self._add_network(connector, network)
        elif objection is None:
            self._change(network, self._routes.settle, network)  # if it failed before
        if objection is None:
            active = self._routes.routes[network].active
            text = f"active: {active.client}" if active is not None else "not active"
            objection = Objection(RegistrationCode.ACCEPTED, text)
        return RegistrationAnswer(OfferKind.ROUTE, str(network), objection.code, objection.text)

    def _add_network(self, connector: Connector, network: IpNetwork) -> Objection | None:
        if len(connector.networks) >= _MAX_NETWORKS:
            text = f"a connector leads to {_MAX_NETWORKS} networks at most"
            return Objection(RegistrationCode.LIMIT, text)
        session = connector.session
        holder = Holder(session.identity, connector.client_index, session.worker.index)
        self._show_state(connector, holder)
        try:
            objection = self._routes.objection(network, connector.name)
            if objection is not None:
                return objection
            handover = self._routes.add(network, holder)
        except CapacityError as error:
            return Objection(RegistrationCode.LIMIT, str(error))
        except RouteTaken as error:
            return Objection(RegistrationCode.OVERLAP, str(error))
        except FAILURES as error:
            logger.error(
                "%(client)s cannot lead to %(network)s: %(error)s",
                {
                    "event": "network_not_taken",
                    "client": connector.name,
                    "network": network,
                    "error": error,
                },
            )
            self._on_failure(network)  # whoever was active may be so no more
            return _NOT_NOW
        connector.networks[network] = holder
        if handover is not None:
            self._on_handover(handover)
        return None

    def _show_state(self, connector: Connector, holder: Holder) -> None:
        drain = self._drains.get(connector.name)
        holder.is_usable = not connector.is_silent and drain is None
        is_ending = drain is not None and not drain.is_over
        holder.is_last_resort = not connector.is_silent and is_ending

    def _remove_holder(self, network: IpNetwork, holder: Holder, *, is_vanished: bool) -> None:
        def remove(network: IpNetwork) -> Handover | None:
            return self._routes.remove(network, holder, is_vanished=is_vanished)

        self._change(network, remove, network)

    def _change(
        self,
        network: IpNetwork,
        change: Callable[[IpNetwork], Handover | None],
        argument: IpNetwork,
    ) -> None:
        try:
            handover = change(argument)
        except FAILURES as error:
            logger.error(
                "nobody leads to %(network)s: %(error)s",
                {"event": "network_lost", "network": network, "error": error},
            )
            self._on_failure(network)
            return
        if handover is not None:
            self._on_handover(handover)
