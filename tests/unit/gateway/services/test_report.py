"""Services and connectors as an administrator sees them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from zgate_gateway.administration import Administration
from zgate_gateway.api import schemas
from zgate_gateway.api.facade import UnknownConnector
from zgate_gateway.metrics.snapshot import OfferTraffic
from zgate_gateway.services.report import (
    connectors_in,
    drain_in,
    levels_of,
    services_in,
    services_up,
)
from zgate_protocol.service_capsule import Health, OfferedService, ServicePorts

from .conftest import FakePolicy, World

NET = "10.20.0.0/16"


async def test_services_and_who_offers_them(world: World) -> None:
    one, other = world.session("a"), world.session("b")
    world.directory.ensure_all(["lonely", "Räume"])
    world.offer(other, "pacs")
    world.offer(one, "pacs")
    world.state(one, "pacs", open_flows=3)
    pacs, raeume, lonely = sorted(
        services_in(world.connectors, "zgate.internal"), key=lambda one: -len(one.offers)
    )
    assert [one.name for one in services_in(world.connectors, "d")] == ["Räume", "lonely", "pacs"]
    assert (pacs.name, pacs.dns_name, pacs.state) == ("pacs", "pacs.zgate.internal", "up")
    assert pacs.addresses[1].startswith("fd7a:7a67:6174:66::")
    assert [(o.connector, o.state, o.health) for o in pacs.offers] == [
        ("a", "up", "up"),
        ("b", "keep", "unknown"),
    ]
    assert pacs.offers[0].ports == ["tcp/104"]
    assert (pacs.offers[0].open_flows, pacs.offers[0].total_flows) == (3, 4)
    assert (pacs.offers[0].bytes_up, pacs.offers[0].bytes_down) == (10, 20)
    assert "not said" in pacs.offers[1].reason
    assert (raeume.dns_name, lonely.dns_name) == (None, "lonely.zgate.internal")
    assert {raeume.state, lonely.state} == {schemas.OfferState.GONE}
    assert services_up(world.connectors) == 1
    assert levels_of(world.connectors).offers == {"up": 1, "keep": 1, "gone": 0}


async def test_ports_are_told_with_their_transport(world: World) -> None:
    session = world.session()
    ports = (ServicePorts(6, 80, 80), ServicePorts(17, 5000, 5010))
    world.connectors.offered(session, 1, [OfferedService("web", ports)])
    (connector,) = connectors_in(world.connectors)
    assert connector.services[0].ports == ["tcp/80", "udp/5000-5010"]


async def test_a_connector_with_all_it_wants(world: World) -> None:
    world.policy = FakePolicy(a=(["pacs"], [NET]), b=([], [NET]))
    session, standby = world.session("a"), world.session("b")
    world.offer(session, "pacs", "ris")
    world.lead(session, NET, "10.9.0.0/16")
    world.lead(standby, NET)
    world.state(session, "pacs", Health.DOWN, open_flows=2, reason="refused")
    found, replica = connectors_in(world.connectors)
    assert (found.name, found.connected, found.session_id) == ("a", True, session.session_id)
    assert (found.peer, found.since) == ("192.0.2.9:4711", session.established_at)
    assert (found.open_flows, found.bytes_up, found.bytes_down) == (2, 10, 20)
    (offer,) = found.services
    assert (offer.state, offer.health, offer.reason) == ("keep", "down", "refused")
    assert [(one.network, one.state, one.active) for one in found.routes] == [(NET, "up", True)]
    assert [(one.kind, one.name, one.code) for one in found.refused] == [
        ("service", "ris", "not_authorized"),
        ("route", "10.9.0.0/16", "not_authorized"),
    ]
    assert [(one.state, one.active) for one in replica.routes] == [("up", False)]


async def test_silence_and_drain_are_seen(world: World) -> None:
    session = world.session()
    world.offer(session, "pacs")
    world.lead(session, NET)
    world.connectors.drain("a", 60)
    world.connectors.drain("away", None)
    found, away = connectors_in(world.connectors)
    assert found.drain is not None and found.drain.deadline_at is not None
    assert not found.drain.is_over
    assert [one.state for one in found.routes] == ["keep"]
    assert (away.name, away.connected, away.services) == ("away", False, [])
    assert away.drain is not None and away.drain.deadline_at is None
    world.connectors.silent(session, True)
    (found, _) = connectors_in(world.connectors)
    assert found.silent
    assert [one.state for one in (*found.services, *found.routes)] == ["gone", "gone"]
    assert not found.routes[0].active
    answer = drain_in(world.connectors, "a")
    assert (answer.connected, answer.open_flows) == (True, 0)
    world.connectors.undrain("a")
    answer = drain_in(world.connectors, "a")
    assert (answer.connected, answer.drain) == (False, None)


async def test_metrics_have_the_same_numbers(world: World) -> None:
    session, other = world.session("a"), world.session("b")
    world.offer(session, "pacs", "*")
    world.lead(session, NET)
    world.lead(other, "10.30.0.0/16")
    world.state(session, "pacs", open_flows=3)
    world.connectors.drain("b", None)
    world.connectors.ended(other, "closed by the client")
    levels = levels_of(world.connectors)
    assert levels.services == {"up": 1, "keep": 0, "gone": 0}
    assert (levels.connectors, levels.silent, levels.drained) == (1, 0, 1)
    assert levels.networks == {"active": 1, "nobody": 1}
    assert levels.refused == {"invalid": 1}
    assert levels.flows == {("a", "pacs"): OfferTraffic(3, 4, 10, 20)}


# Through the API's facade.


@pytest.fixture
async def administration(world: World) -> Administration:
    desk = SimpleNamespace(connectors=world.connectors, domain="zgate.internal")
    gateway: Any = SimpleNamespace(services=desk)
    return Administration(gateway)


async def test_a_drain_and_its_end(world: World, administration: Administration) -> None:
    session = world.session()
    world.offer(session, "pacs")
    world.state(session, "pacs", open_flows=2)
    answer = await administration.drain("a", schemas.DrainRequest(deadline_s=60))
    assert (answer.connector, answer.connected, answer.open_flows) == ("a", True, 2)
    assert answer.drain is not None and answer.drain.deadline_at is not None
    (found,) = administration.connectors()
    assert found.drain == answer.drain
    assert [one.state for one in administration.services()] == ["keep"]
    answer = await administration.drain("a", schemas.DrainRequest(undo=True))
    assert answer.drain is None
    assert administration.connectors() == []


async def test_who_cannot_be_drained(world: World, administration: Administration) -> None:
    with pytest.raises(UnknownConnector, match="nobody offers nothing"):
        await administration.drain("nobody", schemas.DrainRequest())
    world.offer(world.session(), "pacs")
    with pytest.raises(UnknownConnector, match="a is not drained"):
        await administration.drain("a", schemas.DrainRequest(undo=True))
    world.connectors.drain("away", None)  # it may be told again, though it is not there
    answer = await administration.drain("away", schemas.DrainRequest(deadline_s=1))
    assert not answer.connected
    world.connectors.undrain("away")
