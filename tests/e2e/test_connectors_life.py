"""A connector's life: as an ordinary user, without a gateway, with two, and its end."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_support.service_world import (
    POLICY,
    ServiceWorld,
    common_services,
    connect,
    who_answers,
)
from zgate_lab.backend_server import ECHO_PORT
from zgate_lab.backends import ORDINARY_USER
from zgate_lab.connectors import Connectors
from zgate_lab.deployment import Deployment
from zgate_lab.second_gateway import add_second_gateway
from zgate_lab.waiting import wait_until

STOP_S = 0.5
ATTEMPTS = 5
#: Much longer than a connector needs to notice another certificate.
FLOW_HOLDS_S = 3.0


@pytest.fixture
def world(service_world: ServiceWorld) -> Iterator[ServiceWorld]:
    service_world.stop_all()
    yield service_world
    service_world.stop_all()


def capabilities(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line[:6]: int(line.split()[1], 16) for line in lines if line.startswith("Cap")}


def test_an_ordinary_user_without_a_capability_runs_one(world: ServiceWorld) -> None:
    site = world.sites[1]
    process = world.connectors.spawn_unprivileged(
        "west", site.connector, services=common_services(site)
    )
    world.connectors.wait_offering("west")
    assert Path(f"/proc/{process.pid}").owner() == ORDINARY_USER
    assert set(capabilities(process.pid).values()) == {0}
    assert who_answers(world.alice, world.vip("who")) == "hospital2"
    # The host has no TUN, no address and no rule for it.
    links = site.connector.namespace.run("ip", "-o", "link").stdout.splitlines()
    assert [line.split(":")[1].split("@")[0].strip() for line in links] == ["lo", "eth0"]
    assert not site.connector.namespace.run("nft", "list", "ruleset").stdout.strip()
    assert world.connectors.stop("west") == 0


def test_it_dials_again_and_registers_by_itself(world: ServiceWorld) -> None:
    """The gateway goes and comes; so do the connector's offers, with the same addresses."""
    site = world.sites[1]
    world.connectors.start("west", site.connector, services=common_services(site))
    before = world.vip("who")
    assert world.zgate.gateway is not None
    world.zgate.gateway.stop()
    wait_until(lambda: state(world) == "backoff", 10.0, "the connector to wait")
    world.zgate.start_gateway()
    world.connectors.wait_offering("west", 60.0)
    for name in ("alice", "bob"):
        world.zgate.wait_connected(name, world.zgate.agents[name])
    world.virtual_ips.clear()
    assert world.vip("who") == before
    assert who_answers(world.alice, before) == "hospital2"


def test_another_certificate_is_taken_when_nothing_is_open(world: ServiceWorld) -> None:
    site, zgate = world.sites[1], world.zgate
    world.connectors.start("west", site.connector, services=common_services(site))
    before = zgate.sessions()["west"]

    def is_renewed() -> bool:
        now = zgate.sessions().get("west", before)
        return bool(now["certificate_serial"] != before["certificate_serial"])

    with connect(world.alice, world.vip("echo"), ECHO_PORT) as open_flow:
        open_flow.sendall(b"before")
        assert open_flow.recv(100) == b"before"
        began_s = time.monotonic()
        zgate.issue("west", "client", "--replace")
        while time.monotonic() - began_s < FLOW_HOLDS_S:
            assert not is_renewed(), "a flow is open"
            time.sleep(0.1)
        open_flow.sendall(b"still")
        assert open_flow.recv(100) == b"still"
    wait_until(is_renewed, 10.0, "the session with another certificate")
    world.connectors.wait_offering("west")
    assert who_answers(world.alice, world.vip("who")) == "hospital2"
    assert zgate.sessions()["west"]["addresses"] == before["addresses"]


def state(world: ServiceWorld) -> str:
    (gateway,) = world.connectors.status("west").get("gateways") or [{"state": ""}]
    return str(gateway["state"])


@pytest.mark.parametrize("when", ["connected", "backoff", "dialling"])
def test_sigterm_ends_it_within_half_a_second(world: ServiceWorld, when: str) -> None:
    site = world.sites[1]
    config = {} if when != "backoff" else {"gateways": ["127.0.0.1:9"]}
    took_s: list[float] = []
    expected = "connecting" if when == "dialling" else when
    if when == "dialling":
        site.cut()
    try:
        # Again, if the machine has other work: it is about what is waited for.
        while not took_s or (min(took_s) >= STOP_S and len(took_s) < ATTEMPTS):
            process = world.connectors.spawn(
                "west", site.connector, services=common_services(site), **config
            )
            process.wait_for(lambda: state(world) == expected, 15.0, f"it to be {expected}")
            began_s = time.monotonic()
            process.signal(signal.SIGTERM)
            assert process.wait(5.0) == 0
            took_s.append(time.monotonic() - began_s)
            assert "Traceback" not in process.output()
    finally:
        site.mend()
    assert min(took_s) < STOP_S, took_s


def test_a_connector_with_two_gateways_has_a_session_with_each(world: ServiceWorld) -> None:
    """And a device of either reaches the same backend."""
    first, internet, site = world.zgate, world.internet, world.sites[1]
    second = Deployment(internet, POLICY, add_second_gateway(internet))
    for name in ("pki", "bob"):
        shutil.copytree(first.directory / name, second.directory / name)
    second.issue_own()
    second.start_gateway()
    first.agents["bob"].stop()
    try:
        world.connectors.spawn(
            "west",
            site.connector,
            services=common_services(site),
            gateways=[f"{one.host.ipv4}:443" for one in (first, second)],
        )
        world.connectors.wait_offering("west")
        theirs = Connectors(second)
        wait_until(lambda: theirs.offering("west"), 15.0, "its offers at the second")
        second.start_agent("bob", internet.device2)
        assert who_answers(world.alice, world.vip("who")) == "hospital2"
        assert who_answers(world.bob, world.vip("who")) == "hospital2"
        states = [one["state"] for one in world.connectors.status("west")["gateways"]]
        assert states == ["connected", "connected"]
        # One gateway's end is no other's.
        assert second.gateway is not None
        second.gateway.kill()
        assert who_answers(world.alice, world.vip("who")) == "hospital2"
    finally:
        second.stop()
        first.start_agent("bob", internet.device2)


def test_the_older_configuration_is_read(world: ServiceWorld) -> None:
    """`intermediate_server`, and services with a backend that names the port."""
    site, gateway = world.sites[1], world.internet.gateway
    config = world.connectors.config(
        "west",
        intermediate_server={"host": str(gateway.ipv4), "port": 443},
        services=[
            {"id": "who", "backend": f"{site.backend.ipv4}:8080", "protocol": "tcp"},
            {"id": "echo", "backend": f"{site.backend.ipv4}:7", "protocol": "udp"},
        ],
    )
    del config["gateways"]
    world.connectors.spawn_with("west", site.connector, config)
    world.connectors.wait_offering("west")
    assert who_answers(world.alice, world.vip("who")) == "hospital2"
