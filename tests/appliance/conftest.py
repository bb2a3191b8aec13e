"""Machines for the tests of the appliance, in the lab's small internet.

These tests are not part of `make test`: `make test-appliance` runs them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from bed import Files, Machine, base, clone, machine, make_key, with_dependencies
from zgate_lab.internet import Host, Internet

Boot = Callable[..., Machine]
LOG_TAIL_CHARACTERS = 6000


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what the machines' journals say: they go with the machines."""
    report = yield
    if report.failed and item.path.is_relative_to(Path(__file__).parent):
        for one in machine.up.values():
            with suppress(Exception):
                report.sections.append((f"journal of {one.name}", tail(one)))
    return report


def tail(one: Machine) -> str:
    """The end of what zgate's units say, and then of everything."""
    ours = one.journal("zgate-*")
    return ours[-LOG_TAIL_CHARACTERS:] + "\n---\n" + one.journal()[-LOG_TAIL_CHARACTERS // 2 :]


@pytest.fixture(scope="session")
def empty() -> Files:
    """The files of an empty machine."""
    return base()


@pytest.fixture(scope="session")
def ssh_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ssh private key that every machine takes."""
    return make_key(tmp_path_factory.mktemp("ssh"))


@pytest.fixture
def internet() -> Iterator[Internet]:
    """The small internet: its hosts are where machines can be."""
    with Internet.open() as made:
        yield made


@pytest.fixture
def boot(internet: Internet, empty: Files, ssh_key: Path) -> Iterator[Boot]:
    """Boot a machine on a host of the internet: `boot(internet.gateway)`.

    Without `files` it is an empty one; `binds` are folders of this host that it sees.
    """
    with ExitStack() as stack:

        def start(host: Host, files: Files | None = None, **more: object) -> Machine:
            machine = Machine(
                internet.lab, host.namespace, host.ipv4, files or empty, key=ssh_key, **more
            )
            return stack.enter_context(machine)

        yield start


@pytest.fixture
def boot_clone(boot: Boot) -> Boot:
    """As `boot`; the machine has zgate's dependencies, and this clone's programs and units."""

    def start(host: Host, **more: object) -> Machine:
        machine = boot(host, with_dependencies(), binds=clone.BINDS, **more)
        clone.link_programs(machine)
        clone.install_units(machine)
        return machine

    return start
