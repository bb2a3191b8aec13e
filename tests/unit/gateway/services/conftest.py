"""A supervisor's services with a real store; kernel, steering, host and workers write down."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from zgate_bpf.errors import CapacityError
from zgate_bpf.services import OfferUse
from zgate_control.store import Store
from zgate_gateway.admission import PeerPath
from zgate_gateway.registry import SessionRecord
from zgate_gateway.services.connectors import Connectors
from zgate_gateway.services.directory import ServiceDirectory
from zgate_gateway.services.offers import Offers
from zgate_gateway.services.routes import Handover, RouteTable
from zgate_identity.revocation import PathStep
from zgate_identity.verifier import PeerIdentity
from zgate_protocol.service_capsule import (
    Health,
    OfferedService,
    OfferKind,
    OfferStatus,
    RegistrationAnswer,
    ServicePorts,
)

V4, V6 = IPv4Network("10.101.0.0/24"), IPv6Network("fd7a:7a67:6174:66::/64")
CLIENTS = IPv4Network("10.100.0.0/16")
TCP = (ServicePorts(6, 104, 104),)


class FakeTables:
    """The kernel's tables; what is asked of them is in `log`, in order."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.services: dict[int, tuple[Any, ...]] = {}
        self.offers: dict[int, dict[str, Any]] = {}
        self.networks: dict[Any, int | None] = {}
        self.fails: set[str] = set()
        self.error: Exception = OSError(12, "no memory")

    def _did(self, what: str, *about: object) -> None:
        self.log.append(" ".join(map(str, (what, *about))))
        if what in self.fails:
            raise self.error

    def set_service(self, service: int, addresses: Sequence[Any]) -> None:
        self._did("set_service", service)
        self.services[service] = tuple(addresses)

    def set_offer(self, offer: int, **entry: Any) -> None:
        self._did("set_offer", offer)
        others = [one for one in self.offers.values() if one["service"] == entry["service"]]
        if len(others) >= 2:
            raise CapacityError("offers of one service", 3, 2)
        self.offers[offer] = {"open_flows": 0, **entry}

    def use_offer(self, offer: int, use: OfferUse, open_flows: int) -> None:
        self._did("use_offer", offer, use.name)
        if offer not in self.offers:
            raise ValueError(f"offer {offer} is not set")
        self.offers[offer] |= {"use": use, "open_flows": open_flows}

    def remove_offer(self, offer: int) -> None:
        self._did("remove_offer", offer)
        self.offers.pop(offer, None)

    def set_network(self, network: Any, client_index: int | None) -> None:
        self._did("set_network", network, client_index)
        self.networks[network] = client_index

    def remove_network(self, network: Any) -> None:
        self._did("remove_network", network)
        self.networks.pop(network, None)


class FakeOwners:
    """Which worker has what."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.owners: dict[str, int] = {}
        self.fails = False

    def assign(self, address: Any, owner: int) -> None:
        self.log.append(f"assign {address} {owner}")
        if self.fails:
            raise OSError(12, "no memory")
        self.owners[str(address)] = owner

    def release(self, address: Any, owner: int) -> None:
        self.log.append(f"release {address} {owner}")
        if self.owners.get(str(address)) == owner:
            del self.owners[str(address)]

    assign_network, release_network = assign, release


class FakeHost:
    """The host's interfaces and routes."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.routes: set[str] = set()
        self.interfaces = [("eth0", ip_network("192.0.2.0/24"))]
        self.error: Exception | None = None

    def add_route(self, network: Any) -> None:
        self.log.append(f"add_route {network}")
        if self.error is not None:
            raise self.error
        self.routes.add(str(network))

    def remove_route(self, network: Any) -> None:
        self.log.append(f"remove_route {network}")
        if self.error is not None:
            raise self.error
        self.routes.discard(str(network))

    def host_networks(self) -> list[tuple[str, Any]]:
        return list(self.interfaces)


class FakeWorker:
    """A worker that only notes what it is told."""

    def __init__(self, index: int, log: list[str]) -> None:
        self.index = index
        self.log = log
        self.answers: list[tuple[str, int, tuple[RegistrationAnswer, ...]]] = []
        self.grants: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
        self.drained: list[tuple[str, int]] = []
        self.agents: list[tuple[str, str, tuple[str, ...]]] = []

    def close_session(self, session_id: str, cause: str) -> None:
        self.log.append(f"close_session {session_id} {cause}")

    def answer_offers(self, session_id: str, revision: int, answers: Sequence[Any]) -> None:
        self.log.append(f"answer {session_id}")
        self.answers.append((session_id, revision, tuple(answers)))

    def grant(self, session_id: str, addresses: Sequence[Any], networks: Sequence[str]) -> None:
        self.log.append(f"grant {session_id}")
        self.grants.append((session_id, tuple(map(str, addresses)), tuple(networks)))

    def tell_agent(self, session_id: str, service: str, addresses: Sequence[Any]) -> None:
        self.agents.append((session_id, service, tuple(map(str, addresses))))

    def drain_session(self, session_id: str, deadline_ms: int) -> None:
        self.drained.append((session_id, deadline_ms))


class FakeRights:
    def __init__(self, services: Iterable[str], routes: Iterable[str]) -> None:
        self.services, self.routes = tuple(services), tuple(map(ip_network, routes))

    def may_offer(self, service: str) -> bool:
        return any(fnmatchcase(service, pattern) for pattern in self.services)

    def may_advertise(self, network: Any) -> bool:
        return any(
            network.version == route.version and network.subnet_of(route) for route in self.routes
        )


class FakePolicy:
    """Rights by name."""

    def __init__(self, **rights: tuple[Iterable[str], Iterable[str]]) -> None:
        self.connectors = {name: FakeRights(*given) for name, given in rights.items()}
        self.connector_groups: dict[str, FakeRights] = {}
        self.services: dict[str, tuple[Any, ...]] = {}
        self.reaching: set[str] = set()

    def may_reach(self, name: str, groups: Any, service: str, *, reaches: Any = None) -> bool:
        return service in self.services and name in self.reaching

    def connector_rights(self, name: str, groups: Iterable[str] = ()) -> FakeRights:
        return self.connectors.get(name, FakeRights((), ()))


class Told:
    """What the audit log would hear."""

    def __init__(self) -> None:
        self.words: list[tuple[Any, ...]] = []

    def answered(self, session: SessionRecord, answer: RegistrationAnswer) -> None:
        self.words.append((session.client, answer.name, answer.code.name))

    def withdrawn(self, session: SessionRecord, kind: OfferKind, name: str, cause: str) -> None:
        self.words.append((session.client, kind.name, name, cause))

    def health(self, session: SessionRecord, service: str, health: Health, reason: str) -> None:
        self.words.append((session.client, service, health.name, reason))

    def silent(self, session: SessionRecord, is_silent: bool) -> None:
        self.words.append((session.client, "silent" if is_silent else "heard"))

    def handed_over(self, handover: Handover) -> None:
        names = [one.client if one else None for one in (handover.before, handover.now)]
        self.words.append((str(handover.network), *names))

    def drained(self, connector: str, deadline_s: float | None, *, is_undone: bool) -> None:
        self.words.append((connector, "undrained" if is_undone else "drained", deadline_s))

    def ended(self, session: SessionRecord) -> None:
        self.words.append((session.client, "ended"))


class World:
    """All of it; `policy` lets connectors `a` and `b` offer and lead to what tests need."""

    def __init__(self, store: Store) -> None:
        self.log: list[str] = []
        self.store = store
        self.tables, self.owners = FakeTables(self.log), FakeOwners(self.log)
        self.host, self.told = FakeHost(self.log), Told()
        self.workers = FakeWorker(0, self.log), FakeWorker(1, self.log)
        self.network_changes = 0
        self.agents: dict[str, tuple[Any, ...]] = {}
        routes = ["10.20.0.0/16", "10.30.0.0/16", "10.100.0.0/15", "192.0.2.0/24", "fd20::/32"]
        self.policy = FakePolicy(a=(["*"], routes), b=(["*"], routes))
        self.directory = ServiceDirectory(store, V4, V6)
        self.routes = RouteTable(
            self.tables,
            self.owners,
            self.host,
            own_pools=(CLIENTS, V4, V6),
            on_networks=self._networks_changed,
        )
        self.connectors = Connectors(
            directory=self.directory,
            offers=Offers(self.tables, self.directory, self.owners),
            routes=self.routes,
            policy=lambda: self.policy,
            client_index={"a": 11, "b": 12, "c": 13}.__getitem__,
            listener=self.told,
            close=self._close,
            agent_of=lambda service: self.agents.get(service, ()),
            loop=asyncio.get_running_loop(),
        )
        self._ids = itertools.count(1)

    def _networks_changed(self) -> None:
        self.network_changes += 1

    def _close(self, session: SessionRecord, cause: str) -> None:
        """As the registry does: nothing is left of the session when its client is told."""
        self.connectors.ended(session, cause)
        session.worker.close_session(session.session_id, cause)

    def session(
        self, name: str = "a", *, worker: int = 0, offers: tuple[str, ...] = ()
    ) -> SessionRecord:
        now = datetime.now(UTC)
        identity = PeerIdentity(
            name=name,
            groups=(),
            serial=7,
            not_after=now + timedelta(days=1),
            fingerprint="00" * 32,
            path=(PathStep(7, b"issuer"),),
            offers=offers,
        )
        return SessionRecord(
            session_id=f"s{next(self._ids)}",
            identity=identity,
            worker=self.workers[worker],
            path=PeerPath("192.0.2.9", 4711, b"12345678"),
            addresses=(ip_address("10.100.0.2"),),
            target="*",
            ip_protocol=None,
            established_at=now,
            established_s=asyncio.get_running_loop().time(),
        )

    def offer(self, session: SessionRecord, *names: str, revision: int = 1) -> dict[str, str]:
        """What becomes of a list of services: the codes by name."""
        self.connectors.offered(session, revision, [OfferedService(name, TCP) for name in names])
        return self.codes(session)

    def lead(self, session: SessionRecord, *networks: str) -> dict[str, str]:
        """What becomes of a list of networks: the codes by name."""
        self.connectors.routes_offered(session, networks)
        return self.codes(session)

    def codes(self, session: SessionRecord) -> dict[str, str]:
        return {answer.name: answer.code.name for answer in self.answers(session)}

    def answers(self, session: SessionRecord) -> tuple[RegistrationAnswer, ...]:
        """What the session was told last."""
        worker = self.workers[session.worker.index]
        return next(
            (told for to, _, told in reversed(worker.answers) if to == session.session_id), ()
        )

    def granted(self, session: SessionRecord) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Addresses and networks that its worker was told last."""
        worker = self.workers[session.worker.index]
        found = (held for held in reversed(worker.grants) if held[0] == session.session_id)
        _, addresses, networks = next(found, ("", (), ()))
        return addresses, networks

    def state(
        self,
        session: SessionRecord,
        name: str,
        health: Health = Health.UP,
        *,
        open_flows: int = 0,
        reason: str = "",
    ) -> None:
        """The connector says how a service does."""
        status = OfferStatus(name, health, open_flows, open_flows + 1, 10, 20, reason)
        self.connectors.states(session, [status])

    def uses(self, session: SessionRecord) -> dict[str, str]:
        """What the kernel may do with each of its offers."""
        connector = self.connectors.by_session.get(session.session_id)
        offers = connector.offers.values() if connector else ()
        return {one.name: self.tables.offers[one.number]["use"].name for one in offers}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "zgate.db") as opened:
        yield opened


@pytest.fixture
async def world(store: Store) -> World:
    return World(store)
