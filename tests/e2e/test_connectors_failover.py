"""Two connectors of one service: health, drain, silence, death; and nobody who is left."""

from __future__ import annotations

import errno
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from e2e_support.service_world import (
    ServiceWorld,
    common_services,
    connect,
    own_services,
    who_answers,
)
from zgate_lab.backend_server import ECHO_PORT, GREETING_PORT, NAME_PORT
from zgate_lab.backends import start_backend_server
from zgate_lab.echo import UdpClient
from zgate_lab.waiting import wait_until

HOSPITAL = {"east": "hospital1", "west": "hospital2"}
#: What the issue promises: after so long, a connector that says nothing any more gets nothing.
SILENCE_S = 3.0
#: A close is told: the next flow goes elsewhere.
CLOSE_S = 0.3
FLOW_INTERVAL_S = 0.05
FLOW_TIMEOUT_S = 15.0
LATER_FLOWS = 40


@pytest.fixture
def world(service_world: ServiceWorld) -> Iterator[ServiceWorld]:
    service_world.start_both()
    return service_world


@dataclass(frozen=True)
class Flow:
    """One new TCP connection: when it began, how long it took, who answered or what went wrong."""

    began_s: float
    took_s: float
    who: str
    error: str


class NewFlows:
    """New connections all the time, each in a thread of its own, while the context lasts."""

    def __init__(self, world: ServiceWorld) -> None:
        self._namespace, self._address = world.alice, world.vip("who")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.flows: list[Flow] = []

    def __enter__(self) -> NewFlows:
        self._thread.start()
        wait_until(lambda: len(self.flows) > 10, 10.0, "the first flows")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with ThreadPoolExecutor(256) as pool:
            while not self._stop.wait(FLOW_INTERVAL_S):
                pool.submit(self._one)

    def _one(self) -> None:
        began_s, who, error = time.monotonic(), "", ""
        try:
            who = who_answers(self._namespace, self._address, FLOW_TIMEOUT_S)
        except OSError as problem:
            error = repr(problem)
        self.flows.append(Flow(began_s, time.monotonic() - began_s, who, error))

    def run_until(self, when_s: float) -> None:
        """Go on until flows that began after a moment have ended."""
        wait_until(
            lambda: sum(one.began_s > when_s for one in self.flows) > LATER_FLOWS,
            SILENCE_S + 20.0,
            "flows after that moment",
        )

    def began_after(self, when_s: float) -> list[Flow]:
        return [one for one in self.flows if one.began_s > when_s]


def check_failover(flows: NewFlows, died_s: float, within_s: float, survivor: str) -> None:
    """After `within_s` not one new flow fails, few are slow, and all reach the survivor."""
    later = flows.began_after(died_s + within_s)
    assert len(later) > LATER_FLOWS
    assert [one for one in later if one.error] == []
    assert {one.who for one in later} == {survivor}
    # One in use that answers nothing would make every second one slow; a machine that pauses, few.
    took_s = sorted(one.took_s for one in later)
    assert took_s[len(took_s) * 3 // 4] < 1.0


def test_new_flows_are_shared_by_both(world: ServiceWorld) -> None:
    with NewFlows(world) as flows:
        flows.run_until(time.monotonic())
    assert [one for one in flows.flows if one.error] == []
    assert {one.who for one in flows.flows} == set(HOSPITAL.values())


def test_a_connector_that_hangs_is_left_within_three_seconds(world: ServiceWorld) -> None:
    process = world.connectors.processes["east"]
    with NewFlows(world) as flows:
        died_s = time.monotonic()
        process.signal(signal.SIGSTOP)
        try:
            flows.run_until(died_s + SILENCE_S)
        finally:
            process.signal(signal.SIGCONT)
    check_failover(flows, died_s, SILENCE_S, HOSPITAL["west"])
    # And when it speaks again, it is used again.
    world.connectors.wait_offering("east")


def test_a_path_that_goes_dead_is_left_within_three_seconds(world: ServiceWorld) -> None:
    with NewFlows(world) as flows:
        died_s = time.monotonic()
        world.sites[1].cut()
        try:
            flows.run_until(died_s + SILENCE_S)
        finally:
            world.sites[1].mend()
    check_failover(flows, died_s, SILENCE_S, HOSPITAL["east"])
    world.connectors.wait_offering("west")


def test_a_connector_that_is_killed_is_left_within_three_seconds(world: ServiceWorld) -> None:
    """Nobody closes its connection for it."""
    with NewFlows(world) as flows:
        died_s = time.monotonic()
        world.connectors.processes["east"].kill()
        flows.run_until(died_s + SILENCE_S)
    check_failover(flows, died_s, SILENCE_S, HOSPITAL["west"])


def test_a_connector_that_ends_is_left_at_once(world: ServiceWorld) -> None:
    with NewFlows(world) as flows:
        process = world.connectors.processes["west"]
        process.signal(signal.SIGTERM)
        assert process.wait(5.0) == 0
        died_s = time.monotonic()
        flows.run_until(died_s + CLOSE_S)
    check_failover(flows, died_s, CLOSE_S, HOSPITAL["east"])


def test_connections_of_a_dead_connector_end_with_a_reset(world: ServiceWorld) -> None:
    """Their next packet reaches the other one, whose kernel knows no such connection."""
    with connection_of(world, "east") as client:
        world.connectors.processes["east"].kill()
        died_s = time.monotonic()
        with pytest.raises(ConnectionResetError):
            while time.monotonic() < died_s + 10.0:
                client.sendall(b"x")
                client.recv(1)


@contextmanager
def connection_of(world: ServiceWorld, connector: str) -> Iterator[socket.socket]:
    """An open connection through this one of the two connectors."""
    made: list[socket.socket] = []
    try:
        for _ in range(20):
            client = connect(world.alice, world.vip("echo-named"), GREETING_PORT)
            made.append(client)
            greeting = client.recv(len("hospitalN\n"), socket.MSG_WAITALL).decode().strip()
            if greeting == HOSPITAL[connector]:
                break
        else:
            raise AssertionError(f"twenty connections, and none through {connector}")
        yield client
    finally:
        for one in made:
            one.close()


def test_a_backend_that_is_down_sends_new_flows_to_the_other(world: ServiceWorld) -> None:
    world.servers[0].kill()
    try:
        wait_until(
            lambda: health(world, "east", "who")["health"] == "down", 5.0, "east's who to be down"
        )
        shown = health(world, "east", "who")
        assert "refused" in shown["reason"].lower()
        assert shown["state"] == "keep"
        assert health(world, "east", "web")["health"] == "up", "nginx is another one's backend"
        assert {who_answers(world.alice, world.vip("who")) for _ in range(6)} == {"hospital2"}
    finally:
        world.servers[0] = start_backend_server(world.sites[0].backend, "hospital1")
    world.connectors.wait_offering("east")
    seen = wait_until(
        lambda: {who_answers(world.alice, world.vip("who")) for _ in range(6)} - {"hospital2"},
        5.0,
        "east to be used again",
    )
    assert seen == {"hospital1"}


def health(world: ServiceWorld, connector: str, name: str) -> dict[str, str]:
    offers = world.connectors.seen(connector)["services"]
    return next(one for one in offers if one["name"] == name)


def test_a_drained_connector_keeps_what_it_has_and_gets_no_more(world: ServiceWorld) -> None:
    zgate = world.zgate
    with connection_of(world, "east") as old:
        answer = zgate.ask("drain", "east")
        assert answer["connector"] == "east"
        assert health(world, "east", "who")["state"] == "keep"
        assert {who_answers(world.alice, world.vip("who")) for _ in range(8)} == {"hospital2"}
        for _ in range(3):
            old.sendall(b"still")
            assert old.recv(5, socket.MSG_WAITALL) == b"still"
    assert "drained" in zgate.run("--socket", str(zgate.socket), "connectors")
    assert zgate.audit("connector_drained", client="east")
    # It is by name: who comes back is drained still, until that is undone.
    world.connectors.stop("east")
    assert zgate.ask("connectors")["connectors"][0]["drain"]
    site = world.sites[0]
    services = common_services(site) + own_services(site)
    world.connectors.spawn("east", site.connector, services=services)
    wait_until(lambda: world.connectors.seen("east").get("services"), 15.0, "east to offer again")
    assert health(world, "east", "who")["state"] == "keep"
    assert zgate.ask("drain", "east", "--undo")["drain"] is None
    world.connectors.wait_offering("east")
    assert zgate.audit("connector_undrained", client="east")


def test_when_all_are_gone_clients_are_told(world: ServiceWorld) -> None:
    """ICMP administratively prohibited, which the kernel tells the application at once."""
    addresses = {version: world.vip("who", version) for version in (4, 6)}
    echo = world.vip("echo")
    world.stop_all()
    for version, expected in ((4, errno.EHOSTUNREACH), (6, errno.EACCES)):
        began_s = time.monotonic()
        with pytest.raises(OSError) as refused:
            connect(world.alice, addresses[version], NAME_PORT, timeout_s=5.0)
        assert refused.value.errno == expected
        assert time.monotonic() - began_s < 1.0
    with UdpClient(world.alice, echo, ECHO_PORT) as client, pytest.raises(OSError) as told:
        client.ask(b"anybody?", timeout_s=2.0)
        client.ask(b"anybody?", timeout_s=2.0)
    assert told.value.errno == errno.EHOSTUNREACH
    for address in (*addresses.values(), echo):
        world.zgate.wait_audit(
            "flow_denied", client="alice", reason="NO_BACKEND", destination=str(address)
        )
    # And when one comes back, new flows reach it.
    world.start_both()
    assert who_answers(world.alice, addresses[4]) in HOSPITAL.values()
