"""Connectors and clients on several workers: no packet goes astray."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from e2e_support.service_world import ServiceWorld, who_answers
from zgate_lab.backend_server import ECHO_PORT
from zgate_lab.echo import UdpClient
from zgate_lab.waiting import wait_until


@pytest.fixture
def world(service_world: ServiceWorld) -> Iterator[ServiceWorld]:
    service_world.stop_all()
    service_world.start_both()
    yield service_world
    service_world.stop_all()


def placement(world: ServiceWorld) -> tuple[bool, bool]:
    """Whether east and west are with the worker that alice is with."""
    found = world.zgate.sessions()
    return tuple(found[name]["worker"] == found["alice"]["worker"] for name in ("east", "west"))


def use(world: ServiceWorld) -> set[str]:
    """Flows of both families and protocols; which backends have answered."""
    answered = set()
    for version in (4, 6):
        answered |= {who_answers(world.alice, world.vip("who", version)) for _ in range(8)}
        with UdpClient(world.alice, world.vip("echo", version), ECHO_PORT) as client:
            assert client.ask(b"x" * 1000) == b"x" * 1000
    return answered


def misdirected(world: ServiceWorld) -> set[int]:
    return {one["misdirected_packets"] for one in world.zgate.gateway_status()["workers"]}


def test_wherever_connectors_and_clients_are_no_packet_goes_astray(world: ServiceWorld) -> None:
    zgate, connectors = world.zgate, world.connectors
    seen: set[tuple[bool, bool]] = set()
    for _ in range(40):
        # The kernel's hash of addresses and ports chooses; another port may be another worker.
        zgate.reconnect("alice")
        if placement(world) not in seen:
            seen.add(placement(world))
            assert use(world) == {"hospital1", "hospital2"}
        if len({east for east, _ in seen}) == len({west for _, west in seen}) == 2:
            break
    else:
        raise AssertionError(f"the kernel's hash gives all to one worker: {seen}")

    # One connector after the other dies without a word, and comes back, perhaps elsewhere.
    for name in ("east", "west"):
        process = connectors.processes[name]
        process.signal(signal.SIGKILL)
        wait_until(lambda gone=name: not is_used(world, gone), 5.0, f"the gateway to miss {name}")
        assert len(use(world)) == 1
        wait_until(lambda ended=process: not ended.is_running(), 5.0, f"{name} to be gone")
        world.start_both()
        assert use(world) == {"hospital1", "hospital2"}
    assert misdirected(world) == {0}


def is_used(world: ServiceWorld, name: str) -> bool:
    """Whether new flows go to a connector."""
    services = world.connectors.seen(name).get("services", ())
    return any(one["state"] == "up" for one in services)
