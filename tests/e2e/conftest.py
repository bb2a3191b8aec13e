"""A gateway and two agents as their real command lines, in the lab's small internet."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from e2e_support.service_world import ServiceWorld, open_service_world
from e2e_support.world import World, prepare
from zgate_lab.deployment import Deployment
from zgate_lab.internet import Internet

LOG_TAIL_CHARACTERS = 4000

_live: list[Deployment] = []


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the certificates are, once somebody has made them."""
    return tmp_path_factory.mktemp("identities") / "made"


@pytest.fixture
def internet() -> Iterator[Internet]:
    """The small internet alone, for tests that change it or start their own gateway."""
    with Internet.open() as made:
        yield made


@pytest.fixture
def deployment(internet: Internet, identities: Path) -> Iterator[Deployment]:
    """Certificates and policy made, nothing started."""
    made = prepare(internet, identities)
    _live.append(made)
    yield made
    _live.remove(made)


@contextmanager
def open_world(identities: Path) -> Iterator[World]:
    """Gateway, alice on device1, bob on device2, an office that serves HTTPS."""
    with Internet.open() as internet:
        zgate = prepare(internet, identities)
        _live.append(zgate)
        office = internet.start_web_server(internet.office)
        zgate.start_gateway()
        made = World(internet, zgate, office)
        made.connect_all()
        yield made
        _live.remove(zgate)


@pytest.fixture(scope="session")
def shared_world(identities: Path) -> Iterator[World]:
    """The world of all modules that leave it as they found it."""
    with open_world(identities) as made:
        yield made


@pytest.fixture
def world(shared_world: World) -> World:
    """The shared world, with alice and bob connected."""
    shared_world.connect_all()
    return shared_world


@pytest.fixture(scope="module")
def own_world(identities: Path) -> Iterator[World]:
    """One for this module alone, which may do to it what it likes."""
    with open_world(identities) as made:
        yield made


@pytest.fixture(scope="session")
def service_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceWorld]:
    """Two private networks, for all modules about services and connectors."""
    with open_service_world(tmp_path_factory.mktemp("service-identities") / "made") as made:
        _live.append(made.zgate)
        yield made
        _live.remove(made.zgate)


def deployments_of(item: pytest.Item) -> list[Deployment]:
    """What a test has used, by itself or as a part of its world."""
    arguments = getattr(item, "funcargs", {}).values()
    used = [getattr(one, "zgate", one) for one in arguments]
    return list({id(one): one for one in used if isinstance(one, Deployment)}.values())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failed test shows what gateway and agents wrote: their folder goes with the lab."""
    report = yield
    if report.failed and item.path.is_relative_to(Path(__file__).parent):
        # Where a fixture has failed, it is the newest one's.
        for deployment in deployments_of(item) or _live[-1:]:
            for log in sorted(deployment.directory.glob("*.log")):
                text = log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]
                report.sections.append((log.name, text))
    return report
