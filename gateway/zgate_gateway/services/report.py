"""Services and connectors in the administration API's words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from zgate_bpf.services import OfferUse
from zgate_protocol.service_capsule import Health, ServicePorts, is_dns_label

from zgate_gateway.api import schemas
from zgate_gateway.metrics.snapshot import OfferTraffic, ServiceLevels
from zgate_gateway.services.connector import Connector, Drain
from zgate_gateway.services.connectors import Connectors
from zgate_gateway.services.offers import Offer
from zgate_gateway.services.routes import Holder

_STATES = {
    OfferUse.UP: schemas.OfferState.UP,
    OfferUse.KEEP: schemas.OfferState.KEEP,
    OfferUse.GONE: schemas.OfferState.GONE,
}
_HEALTH = {
    Health.UP: schemas.OfferHealth.UP,
    Health.DOWN: schemas.OfferHealth.DOWN,
    None: schemas.OfferHealth.UNKNOWN,
}
_TRANSPORTS = {6: "tcp", 17: "udp"}
_BEST_FIRST = (schemas.OfferState.UP, schemas.OfferState.KEEP)


def services_in(connectors: Connectors, domain: str) -> list[schemas.Service]:
    """All services, by name; their offers by connector."""
    offers: dict[str, list[schemas.ServiceOffer]] = {}
    for connector in sorted(connectors.by_session.values(), key=lambda one: one.name):
        for offer in connector.offers.values():
            offers.setdefault(offer.name, []).append(_offer_in(connector, offer))
    return [
        schemas.Service(
            name=name,
            addresses=[str(address) for address in addresses],
            dns_name=f"{name}.{domain}" if is_dns_label(name) else None,
            state=_best(one.state for one in offers.get(name, ())),
            offers=offers.get(name, []),
        )
        for name, addresses in sorted(connectors.directory.snapshot().items())
    ]


def connectors_in(connectors: Connectors) -> list[schemas.Connector]:
    """All connectors, by name; also those that are drained and not there."""
    found = {one.name: _connector_in(connectors, one) for one in connectors.by_session.values()}
    for name, drain in connectors.drains.items():
        if name not in found:
            found[name] = schemas.Connector(name=name, connected=False, drain=_drain_in(drain))
    return [found[name] for name in sorted(found)]


def drain_in(connectors: Connectors, name: str) -> schemas.Drain:
    """How a connector's drain goes."""
    connector = connectors.named(name)
    drain = connectors.drains.get(name)
    return schemas.Drain(
        connector=name,
        connected=connector is not None,
        drain=_drain_in(drain) if drain is not None else None,
        open_flows=connector.open_flows if connector is not None else 0,
    )


def services_up(connectors: Connectors) -> int:
    """How many services take new flows."""
    return len(
        {
            offer.name
            for connector in connectors.by_session.values()
            for offer in connector.offers.values()
            if offer.use is OfferUse.UP
        }
    )


def levels_of(connectors: Connectors) -> ServiceLevels:
    """The numbers behind the metrics."""
    offers = [
        (connector, offer)
        for connector in connectors.by_session.values()
        for offer in connector.offers.values()
    ]
    states = Counter(_STATES[offer.use] for _, offer in offers)
    best = _best_by_name(offers)
    known = connectors.directory.snapshot()
    services = Counter(best.get(name, schemas.OfferState.GONE) for name in known)
    routes = connectors.routes.routes.values()
    active = sum(route.active is not None for route in routes)
    return ServiceLevels(
        services={state.value: services[state] for state in schemas.OfferState},
        connectors=len(connectors.by_session),
        silent=sum(one.is_silent for one in connectors.by_session.values()),
        drained=len(connectors.drains),
        offers={state.value: states[state] for state in schemas.OfferState},
        networks={"active": active, "nobody": len(routes) - active},
        refused=dict(connectors.refused),
        flows={
            (connector.name, offer.name): OfferTraffic.of(offer.status)
            for connector, offer in offers
            if offer.status is not None
        },
    )


def _best_by_name(
    offers: Iterable[tuple[Connector, Offer]],
) -> dict[str, schemas.OfferState]:
    states: dict[str, list[schemas.OfferState]] = {}
    for _, offer in offers:
        states.setdefault(offer.name, []).append(_STATES[offer.use])
    return {name: _best(of_it) for name, of_it in states.items()}


def _best(states: Iterable[schemas.OfferState]) -> schemas.OfferState:
    present = set(states)
    return next((one for one in _BEST_FIRST if one in present), schemas.OfferState.GONE)


def _offer_in(connector: Connector, offer: Offer) -> schemas.ServiceOffer:
    status = offer.status
    return schemas.ServiceOffer(
        name=offer.name,
        connector=connector.name,
        state=_STATES[offer.use],
        health=_HEALTH[offer.health],
        reason=offer.reason,
        offered_at=offer.offered_at,
        changed_at=offer.changed_at,
        ports=[_ports_in(ports) for ports in offer.ports],
        addresses=[str(address) for address in offer.addresses],
        open_flows=offer.open_flows,
        total_flows=status.total_flows if status is not None else 0,
        bytes_up=status.bytes_up if status is not None else 0,
        bytes_down=status.bytes_down if status is not None else 0,
    )


def _ports_in(ports: ServicePorts) -> str:
    last = f"-{ports.last}" if ports.last != ports.first else ""
    return f"{_TRANSPORTS.get(ports.protocol, ports.protocol)}/{ports.first}{last}"


def _connector_in(connectors: Connectors, connector: Connector) -> schemas.Connector:
    drain = connectors.drains.get(connector.name)
    session = connector.session
    services = [_offer_in(connector, offer) for offer in connector.offers.values()]
    return schemas.Connector(
        name=connector.name,
        connected=True,
        session_id=session.session_id,
        peer=session.peer,
        since=session.established_at,
        silent=connector.is_silent,
        drain=_drain_in(drain) if drain is not None else None,
        services=sorted(services, key=lambda one: one.name),
        routes=[
            schemas.RouteOffer(
                network=str(network),
                connector=connector.name,
                state=_route_state(holder),
                active=connectors.routes.routes[network].active is holder,
                changed_at=connectors.routes.routes[network].changed_at,
            )
            for network, holder in connector.networks.items()
        ],
        refused=[
            schemas.RefusedOffer(
                kind=answer.kind.name.lower(),
                name=answer.name,
                code=answer.code.name.lower(),
                text=answer.text,
            )
            for answer in connector.answers
            if not answer.is_accepted
        ],
        open_flows=connector.open_flows,
        bytes_up=sum(one.bytes_up for one in services),
        bytes_down=sum(one.bytes_down for one in services),
    )


def _route_state(holder: Holder) -> schemas.OfferState:
    if holder.is_usable:
        return schemas.OfferState.UP
    return schemas.OfferState.KEEP if holder.is_last_resort else schemas.OfferState.GONE


def _drain_in(drain: Drain) -> schemas.DrainState:
    return schemas.DrainState(
        since=drain.since, deadline_at=drain.deadline_at, is_over=drain.is_over
    )
