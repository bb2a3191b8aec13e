"""Connectors and workers: packets cross from one to the other; a dead one takes its own along."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from e2e_support.service_world import ServiceWorld, connect, who_answers
from zgate_lab.backend_server import ECHO_PORT
from zgate_lab.waiting import wait_until

HOSPITALS = {"hospital1", "hospital2"}
#: A dead worker's offers are gone with it; the agent may have been on it, too, and comes back.
BACK_S = 10.0


@pytest.fixture
def world(service_world: ServiceWorld) -> Iterator[ServiceWorld]:
    service_world.start_both()
    return service_world


def workers(world: ServiceWorld) -> dict[int, dict[str, Any]]:
    return {one["worker"]: one for one in world.zgate.gateway_status()["workers"]}


def worker_of(world: ServiceWorld, client: str) -> int:
    return int(world.zgate.sessions()[client]["worker"])


def apart(world: ServiceWorld, *, is_apart: bool) -> None:
    """Alice and east on different workers, or on the same."""
    if is_apart and len(workers(world)) == 1:
        pytest.skip("there is one CPU, and so one worker only")
    for _ in range(40):
        if (worker_of(world, "alice") != worker_of(world, "east")) is is_apart:
            return
        world.zgate.reconnect("alice")  # from another port: the kernel's hash is another
    pytest.fail("40 sessions of alice, and all of them on the same worker")


@pytest.mark.parametrize("is_apart", [True, False], ids=["two workers", "one worker"])
def test_a_service_is_reached_over_workers(world: ServiceWorld, is_apart: bool) -> None:
    apart(world, is_apart=is_apart)
    world.connectors.stop("west")
    assert {who_answers(world.alice, world.vip("who", version)) for version in (4, 6)} == {
        "hospital1"
    }
    assert [one["misdirected_packets"] for one in workers(world).values()] == [0] * len(
        workers(world)
    )


def test_a_worker_that_dies_takes_its_connectors_along_and_no_others(world: ServiceWorld) -> None:
    apart(world, is_apart=True)
    index = worker_of(world, "east")
    west_lives = worker_of(world, "west") != index
    wests_session = world.connectors.seen("west")["session_id"]
    before = world.connectors.seen("east")["session_id"]
    os.kill(workers(world)[index]["pid"], signal.SIGKILL)
    wait_until(
        lambda: world.connectors.seen("east").get("session_id", before) != before,
        BACK_S,
        "east to come back",
    )
    if not west_lives:  # it was on the same worker
        world.connectors.wait_offering("west")
    began_s = time.monotonic()
    while time.monotonic() - began_s < 1.0:
        assert who_answers(world.alice, world.vip("who"), timeout_s=BACK_S) in HOSPITALS
    world.connectors.wait_offering("east")
    assert (world.connectors.seen("west")["session_id"] == wests_session) is west_lives
    assert world.zgate.audit("offer_withdrawn", client="east", offer="who")


def test_zgatectl_drain_waits_for_the_flows(world: ServiceWorld) -> None:
    world.connectors.stop("west")
    zgate = world.zgate
    with ThreadPoolExecutor(1) as pool:
        with connect(world.alice, world.vip("echo"), ECHO_PORT) as flow:
            flow.sendall(b"hello")
            assert flow.recv(5, socket.MSG_WAITALL) == b"hello"
            wait_until(lambda: world.connectors.seen("east")["open_flows"] == 1, 5.0, "the flow")
            told = pool.submit(zgate.run, "--socket", str(zgate.socket), "drain", "east")
            wait_until(lambda: world.connectors.seen("east").get("drain"), 5.0, "the drain")
            assert not told.done()
            flow.sendall(b"still")
            assert flow.recv(5, socket.MSG_WAITALL) == b"still"
        lines = told.result(timeout=15.0).splitlines()
    assert lines[0] == "east gets no new flows; it has 1"
    assert lines[-1] == "east has no flows any more."
    assert "new flows again" in zgate.run("--socket", str(zgate.socket), "drain", "east", "--undo")
    world.connectors.wait_offering("east")
