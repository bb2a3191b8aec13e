"""What workers say reaches the right session, and what agents are told."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from zgate_control.store import Store
from zgate_gateway.audit import AuditLog
from zgate_gateway.config import GatewayConfig
from zgate_gateway.registry import SessionRecord
from zgate_gateway.services.desk import ServiceDesk
from zgate_gateway.worker import messages
from zgate_protocol.service_capsule import Health, OfferedService, OfferStatus

from .conftest import TCP, FakePolicy, World


class FakeRegistry:
    """Sessions by their IDs."""

    def __init__(self) -> None:
        self.by_id: dict[str, SessionRecord] = {}
        self.closed: list[tuple[str, str]] = []
        self.on_ending: Any = None

    def close(self, session: SessionRecord, cause: str) -> None:
        self.closed.append((session.session_id, cause))
        del self.by_id[session.session_id]
        if not session.is_leaving:
            self.on_ending(session, cause)

    def replace(self, session: SessionRecord) -> None:
        """Another session has its place; it is closed a moment later."""
        session.is_leaving = True
        self.on_ending(session, "replaced")


class Desk:
    """A desk whose kernel, workers and sessions are those of `World`."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.registry = FakeRegistry()
        self.told: list[messages.Message] = []
        self.desk = ServiceDesk(GatewayConfig(), world.store)
        self.policy = FakePolicy(a=(["*"], ["10.20.0.0/16"]))
        kernel: Any = SimpleNamespace(
            programs=SimpleNamespace(services=world.tables),
            policy_set=self.policy,
            client_index={"a": 11}.__getitem__,
        )
        self.desk.open(
            kernel=kernel,
            steering=world.owners,  # type: ignore[arg-type]
            host=world.host,
            sessions=self.registry,  # type: ignore[arg-type]
            workers=SimpleNamespace(tell=self.told.append),  # type: ignore[arg-type]
            audit=AuditLog(folder / "audit.jsonl"),
            loop=asyncio.get_running_loop(),
        )

    def session(self, name: str = "a", worker: int = 0) -> SessionRecord:
        session = self.world.session(name, worker=worker)
        self.registry.by_id[session.session_id] = session
        return session


@pytest.fixture
async def desk(store: Store, tmp_path: Path) -> Desk:
    return Desk(World(store), tmp_path)


async def test_a_list_in_parts_is_one_list(desk: Desk) -> None:
    session = desk.session()
    services = [OfferedService(f"s{number}", TCP) for number in range(40)]
    parts = list(messages.in_parts(services))
    assert len(parts) == 2
    for part, is_last in parts:
        assert not desk.world.answers(session)
        desk.desk.message(
            session.worker, messages.OfferServices(session.session_id, 1, part, is_last)
        )
    assert len(desk.world.answers(session)) == 40


async def test_what_half_a_list_said_ends_with_its_session(desk: Desk) -> None:
    session = desk.session()
    service = OfferedService("pacs", TCP)
    half = messages.OfferServices(session.session_id, 1, (service,), False)
    desk.desk.message(session.worker, half)
    desk.registry.close(session, "kicked")
    assert desk.world.answers(session) == ()
    assert desk.desk.connectors.by_session == {}


async def test_a_session_that_was_replaced_offers_nothing_more(desk: Desk) -> None:
    """It is there for another moment, for its last packets: nobody would take an offer back."""
    session = desk.session()
    service = OfferedService("pacs", TCP)
    offer = messages.OfferServices(session.session_id, 1, (service,), True)
    route = messages.OfferRoutes(session.session_id, ("10.20.0.0/16",))
    desk.desk.message(session.worker, offer)
    desk.registry.replace(session)
    for message in (offer, route):
        desk.desk.message(session.worker, message)
    desk.registry.close(session, "replaced")
    assert desk.desk.connectors.by_session == {}
    assert desk.world.tables.offers == {} and desk.desk.networks() == ()


async def test_health_silence_and_networks_arrive(desk: Desk) -> None:
    session = desk.session()
    key = session.session_id
    said = [
        messages.OfferServices(key, 1, (OfferedService("pacs", TCP),), True),
        messages.OfferStates(key, (OfferStatus("pacs", Health.UP, 1, 1, 0, 0, ""),)),
        messages.OfferRoutes(key, ("10.20.0.0/16",)),
    ]
    for message in said:
        desk.desk.message(session.worker, message)
    connector = desk.desk.connectors.by_session[key]
    assert connector.offers["pacs"].use.name == "UP"
    assert desk.world.host.routes == {"10.20.0.0/16"}
    (routes,) = desk.told
    assert isinstance(routes, messages.Routes)
    assert routes.routes == desk.desk.agent_routes()
    assert "10.20.0.0/16" in routes.routes
    assert routes.networks == desk.desk.networks() == ("10.20.0.0/16",)
    desk.desk.message(session.worker, messages.ConnectorSilent(key, True))
    assert connector.offers["pacs"].use.name == "GONE"


async def test_a_worker_speaks_for_its_own_sessions_only(desk: Desk) -> None:
    session = desk.session(worker=0)
    other = desk.world.workers[1]
    offer = messages.OfferServices(session.session_id, 1, (OfferedService("pacs", TCP),), True)
    desk.desk.message(other, offer)
    desk.desk.message(other, messages.OfferRoutes("s99", ("10.20.0.0/16",)))
    assert desk.desk.connectors.by_session == {}


@pytest.mark.parametrize("name", ["a", "unknown to the kernel"])
async def test_what_raises_costs_that_session_only(desk: Desk, name: str) -> None:
    bad, good = desk.session(name), desk.session("a")
    networks = ("10.20.0.1/16",) if name == "a" else ("10.20.0.0/16",)
    desk.desk.message(bad.worker, messages.OfferRoutes(bad.session_id, networks))
    assert desk.registry.closed == [(bad.session_id, "internal error")]
    desk.desk.message(good.worker, messages.OfferRoutes(good.session_id, ("10.20.0.0/16",)))
    assert desk.world.codes(good) == {"10.20.0.0/16": "ACCEPTED"}


# Agents that register.


def offered(desk: Desk, session: SessionRecord, *names: str, revision: int = 1) -> None:
    services = tuple(OfferedService(name, TCP) for name in names)
    message = messages.OfferServices(session.session_id, revision, services, True)
    desk.desk.message(session.worker, message)


def reaching(desk: Desk, address: str, worker: int = 0) -> SessionRecord:
    """An agent that may reach `pacs`, with that virtual IP."""
    desk.policy.services = {"pacs": (ip_address("10.101.0.1"),)}
    desk.policy.reaching |= {address}
    session = desk.session(address, worker=worker)
    session.addresses = (ip_address(address),)
    return session


def reach(desk: Desk, session: SessionRecord, service: str = "pacs") -> tuple[str, ...]:
    found = desk.desk.reach(session.worker, session.session_id, service)
    return tuple(map(str, found))


async def test_a_connector_knows_who_registered_last(desk: Desk) -> None:
    """On another worker than it; and who registered before, when that one has gone."""
    first, last = reaching(desk, "10.100.0.7"), reaching(desk, "10.100.0.8")
    connector, told = desk.session(worker=1), desk.world.workers[1].agents
    key = connector.session_id
    assert reach(desk, first) == ("10.101.0.1",)
    offered(desk, connector, "pacs")
    assert told == [(key, "pacs", ("10.100.0.7",))]
    reach(desk, last)
    reach(desk, last)
    assert told[1:] == [(key, "pacs", ("10.100.0.8",))]
    reach(desk, first)
    reach(desk, last)
    desk.registry.close(first, "kicked")
    assert told[2:] == [(key, "pacs", ("10.100.0.7",)), (key, "pacs", ("10.100.0.8",))]
    reach(desk, (again := reaching(desk, "10.100.0.7")))
    desk.registry.close(again, "kicked")
    desk.registry.close(last, "kicked")
    assert told[4:] == [
        (key, "pacs", ("10.100.0.7",)), (key, "pacs", ("10.100.0.8",)), (key, "pacs", ()),
    ]  # fmt: skip
    assert desk.world.workers[0].agents == []
    assert desk.desk.agents._sessions == desk.desk.agents._services == {}


async def test_a_session_that_was_replaced_registers_for_nothing_more(desk: Desk) -> None:
    agent = reaching(desk, "10.100.0.7")
    desk.registry.replace(agent)
    assert reach(desk, agent) == ()
    desk.registry.close(agent, "replaced")
    assert desk.desk.agents._sessions == desk.desk.agents._services == {}


async def test_what_is_offered_anew_is_told_anew(desk: Desk) -> None:
    reach(desk, reaching(desk, "10.100.0.7"))
    connector, told = desk.session(worker=1), desk.world.workers[1].agents
    for revision, names in enumerate([("pacs",), ("web",), ("pacs", "web")], 1):
        offered(desk, connector, *names, revision=revision)
    assert told == [(connector.session_id, "pacs", ("10.100.0.7",))] * 2


async def test_who_may_not_reach_a_service_has_not_registered(desk: Desk) -> None:
    agent = reaching(desk, "10.100.0.7")
    desk.policy.reaching.clear()
    assert reach(desk, agent) == ()
    assert desk.desk.agents.addresses_of("pacs") == ()
    desk.policy.reaching.add("10.100.0.7")
    assert desk.desk.reach(desk.world.workers[1], agent.session_id, "pacs") == ()
    assert desk.desk.agents.addresses_of("pacs") == ()


async def test_agents_are_told_of_services_and_of_the_gateway(desk: Desk) -> None:
    assert desk.desk.agent_routes() == (
        "0.0.0.0/0", "::/0", "10.100.0.1/32", "fd7a:7a67:6174:65::1/128",
        "10.101.0.0/16", "fd7a:7a67:6174:66::/64",
    )  # fmt: skip


async def test_names_of_a_policy_reach_the_kernel(desk: Desk) -> None:
    desk.desk.directory.ensure_all(["pacs", "echo"])
    assert desk.world.tables.services == {}
    desk.desk.upkeep()
    assert len(desk.world.tables.services) == 2
