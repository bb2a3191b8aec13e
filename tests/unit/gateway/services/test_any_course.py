"""Whatever connectors say in whatever order, and whatever fails: the kernel has what is granted."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from zgate_bpf.services import OfferUse
from zgate_control.store import Store
from zgate_gateway.net.errors import NetError
from zgate_gateway.registry import SessionRecord
from zgate_gateway.services import connectors as connectors_module
from zgate_protocol.service_capsule import Health, OfferedService, OfferStatus

from .conftest import TCP, FakePolicy, World

CLIENTS = ("a", "b", "c")
NAMES = ("pacs", "ris", "echo-1", "*", "")
NETWORKS = ("10.20.0.0/16", "10.20.7.0/24", "10.30.0.0/16", "10.100.0.0/24", "fd20::/48")
#: Mostly so much that replicas meet.
RIGHTS = [*[(["*"], ["10.0.0.0/8", "fd20::/32"])] * 3, (["pacs"], ["10.20.0.0/16"]), ([], [])]
#: Those that leave nothing behind that could not be put right later.
FAILURES = ("set_service", "set_offer", "use_offer", "set_network", "assign", "add_route")

client = st.sampled_from(CLIENTS)


class AnyCourse(RuleBasedStateMachine):
    """Three clients, one session each at most."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = Store(Path(self.folder.name) / "zgate.db")
        self.loop = asyncio.new_event_loop()
        self.patched = {name: getattr(connectors_module, name) for name in ("_RETRY_S", "_LATER_S")}
        for name in self.patched:
            setattr(connectors_module, name, 0.0)
        self.world: World = self.run(self._make)
        self.sessions: dict[str, SessionRecord] = {}
        self.has_failed = False

    async def _make(self) -> World:
        return World(self.store)

    def run(self, work: Callable[[], Awaitable[Any]]) -> Any:
        return self.loop.run_until_complete(work())

    def do(self, work: Callable[..., Any], *arguments: Any) -> None:
        """In the loop, and all that follows from it; but for what fails again and again."""

        async def done() -> None:
            work(*arguments)
            for _ in range(3):
                await asyncio.sleep(0)

        self.run(done)

    def teardown(self) -> None:
        for name, value in self.patched.items():
            setattr(connectors_module, name, value)
        self.run(self._cancel)
        self.loop.close()
        self.store.close()
        self.folder.cleanup()

    async def _cancel(self) -> None:
        for connector in self.world.connectors.by_session.values():
            if connector.later is not None:
                connector.later.cancel()

    # What may happen.

    @rule(name=client, worker=st.integers(0, 1))
    def connect(self, name: str, worker: int) -> None:
        async def make() -> SessionRecord:
            return self.world.session(name, worker=worker)

        if name in self.sessions:
            self.leave(name)
        self.sessions[name] = self.run(make)
        self.lead(name, [NETWORKS[0]])

    @rule(name=client)
    def leave(self, name: str) -> None:
        session = self.sessions.pop(name, None)
        if session is not None:
            self.do(self.world.connectors.ended, session, "left")

    @rule(name=client, names=st.lists(st.sampled_from(NAMES), max_size=4))
    def offer(self, name: str, names: list[str]) -> None:
        if name in self.sessions:
            services = [OfferedService(one, TCP) for one in names]
            self.do(self.world.connectors.offered, self.sessions[name], 1, services)

    @rule(name=client, networks=st.lists(st.sampled_from(NETWORKS), max_size=4))
    def lead(self, name: str, networks: list[str]) -> None:
        if name in self.sessions:
            self.do(self.world.connectors.routes_offered, self.sessions[name], networks)

    @rule(name=client, service=st.sampled_from(NAMES), health=st.sampled_from(Health))
    def state(self, name: str, service: str, health: Health) -> None:
        if name in self.sessions:
            status = OfferStatus(service, health, 1, 1, 0, 0, "")
            self.do(self.world.connectors.states, self.sessions[name], [status])

    @rule(name=client, is_silent=st.booleans())
    def silence(self, name: str, is_silent: bool) -> None:
        if name in self.sessions:
            self.do(self.world.connectors.silent, self.sessions[name], is_silent)

    @rule(name=client, deadline_s=st.sampled_from([None, 0.0, 1000.0]))
    def drain(self, name: str, deadline_s: float | None) -> None:
        self.do(self.world.connectors.drain, name, deadline_s)

    @rule(name=client)
    def undrain(self, name: str) -> None:
        there = set(self.world.connectors.by_session)
        self.do(self.world.connectors.undrain, name)
        for gone in there - set(self.world.connectors.by_session):
            self.sessions = {n: s for n, s in self.sessions.items() if s.session_id != gone}

    @rule(rights=st.dictionaries(client, st.sampled_from(RIGHTS), min_size=2))
    def another_policy(self, rights: dict[str, Any]) -> None:
        self.world.policy = FakePolicy(**rights)
        self.do(self.world.connectors.upkeep)

    @rule(step=st.sampled_from(FAILURES))
    def fail(self, step: str) -> None:
        """From now on, until it is mended."""
        self.world.tables.fails.add(step)
        self.has_failed = True
        self.world.owners.fails = "assign" in self.world.tables.fails
        if step == "add_route":
            self.world.host.error = NetError("no buffer space")

    @rule()
    def mend(self) -> None:
        self.world.tables.fails.clear()
        self.world.owners.fails, self.world.host.error = False, None
        self.do(lambda: None)

    # What must be true.

    @invariant()
    def the_kernel_has_the_offers_and_nothing_else(self) -> None:
        world = self.world
        expected = {}
        owners = {}
        for connector in world.connectors.by_session.values():
            drain = world.connectors.drains.get(connector.name)
            for offer in connector.offers.values():
                is_gone = connector.is_silent or (drain is not None and drain.is_over)
                is_up = drain is None and offer.health is Health.UP
                use = OfferUse.GONE if is_gone else OfferUse.UP if is_up else OfferUse.KEEP
                expected[offer.number] = (use, connector.client_index, offer.addresses)
                index = connector.session.worker.index
                owners.update({str(address): index for address in offer.addresses})
        found = {
            number: (entry["use"], entry["client_index"], entry["addresses"])
            for number, entry in world.tables.offers.items()
        }
        assert found == expected
        assert {key: one for key, one in world.owners.owners.items() if "/" not in key} == owners
        assert len({one for _, _, addresses in expected.values() for one in addresses}) == len(
            owners
        )

    @invariant()
    def networks_lead_to_who_is_active(self) -> None:
        world = self.world
        active = {
            network: route.active
            for network, route in world.routes.routes.items()
            if route.active is not None
        }
        led = {net: one for net, one in world.tables.networks.items() if one is not None}
        assert led == {net: one.client_index for net, one in active.items()}
        # Where the kernel did not take even that, nobody is told, and nobody gets anything.
        known = set(world.tables.networks)
        assert known <= set(world.routes.routes)
        assert self.has_failed or known == set(world.routes.routes)
        assert {key: one for key, one in world.owners.owners.items() if "/" in key} == {
            str(network): one.worker_index for network, one in active.items()
        }
        assert world.host.routes == {str(network) for network in world.routes.networks()}
        for network, holder in active.items():
            assert holder in world.routes.routes[network].holders
            assert holder.is_usable or holder.is_last_resort

    @invariant()
    def everybody_was_told_what_he_has(self) -> None:
        world = self.world
        for connector in world.connectors.by_session.values():
            session = connector.session
            addresses = {str(one) for offer in connector.offers.values() for one in offer.addresses}
            led = {
                str(network)
                for network, holder in connector.networks.items()
                if world.routes.routes[network].active is holder
            }
            assert tuple(map(set, world.granted(session))) == (addresses, led)
            accepted = {one.name for one in world.answers(session) if one.is_accepted}
            assert accepted == {*connector.offers, *map(str, connector.networks)}

    @invariant()
    def nobody_has_what_he_may_not(self) -> None:
        for connector in self.world.connectors.by_session.values():
            rights = self.world.policy.connector_rights(connector.name)
            assert all(rights.may_offer(name) for name in connector.offers)
            assert all(rights.may_advertise(network) for network in connector.networks)


TestAnyCourse = AnyCourse.TestCase
TestAnyCourse.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
