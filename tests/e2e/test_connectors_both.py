"""One connector, one session: services and networks beside each other."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_support.service_world import ServiceWorld, common_services, who_answers
from zgate_lab.backend_server import ECHO_PORT
from zgate_lab.echo import UdpClient
from zgate_lab.private_site import LAN_IPV4, LAN_IPV6
from zgate_lab.traffic import ping
from zgate_lab.waiting import wait_until


@pytest.fixture(scope="module")
def world(service_world: ServiceWorld) -> Iterator[ServiceWorld]:
    service_world.stop_all()
    site = service_world.sites[1]
    networks = [{"network": str(one)} for one in (LAN_IPV4, LAN_IPV6)]
    service_world.connectors.start(
        "west", site.connector, services=common_services(site), networks=networks
    )
    yield service_world
    service_world.stop_all()


def chambers(world: ServiceWorld) -> list[int]:
    """The process IDs of those that live in a chamber."""
    tasks = Path(f"/proc/{world.connectors.processes['west'].pid}/task").glob("*/children")
    return [int(word) for task in tasks for word in task.read_text().split()]


def answers(world: ServiceWorld, address: object) -> bool:
    try:
        return who_answers(world.alice, address, timeout_s=0.5) == "hospital2"  # type: ignore[arg-type]
    except OSError:
        return False


@pytest.mark.parametrize("version", [4, 6])
def test_both_are_reached(world: ServiceWorld, version: int) -> None:
    backend = world.sites[1].backend
    address = backend.ipv4 if version == 4 else backend.ipv6
    wait_until(lambda: answers(world, address), 10.0, "the way to the network")
    vip = world.vip("who", version)
    assert who_answers(world.alice, vip) == "hospital2"
    assert ping(world.alice, vip, count=3).lost == 0
    assert ping(world.alice, address, count=3).lost == 0
    for target in (world.vip("echo", version), address):
        with UdpClient(world.alice, target, ECHO_PORT) as client:
            assert client.ask(b"hello") == b"hello"


def test_a_killed_chamber_comes_back(world: ServiceWorld) -> None:
    (before,) = chambers(world)
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: set(chambers(world)) - {before}, 20.0, "another chamber")
    wait_until(lambda: answers(world, world.vip("who")), 20.0, "the service to be back")
    wait_until(lambda: answers(world, world.sites[1].backend.ipv4), 20.0, "the network, too")


def test_a_session_moves_with_the_hosts_address(world: ServiceWorld) -> None:
    """As when a lease ends: the old address goes, and nobody waits for an idle timeout."""
    namespace, old = world.sites[1].connector.namespace, world.sites[1].connector.ipv4
    before = world.zgate.sessions()["west"]["session_id"]
    (way,) = namespace.run("ip", "-4", "route", "show", "default").stdout.splitlines()
    new = old + 100
    namespace.sysctl("net.ipv4.conf.eth0.promote_secondaries", 1)
    namespace.ip(f"addr add {new}/24 dev eth0", f"route replace {way.strip()} src {new}")
    process = world.connectors.processes["west"]
    try:
        process.wait_for(lambda: "the session moves" in process.output(), 10.0, "the move")
        namespace.ip(f"addr del {old}/24 dev eth0")
        wait_until(lambda: answers(world, world.vip("who")), 10.0, "the service")
        assert world.zgate.sessions()["west"]["session_id"] == before
    finally:
        if f" {old}/" in namespace.run("ip", "addr").stdout:
            namespace.ip(f"addr del {old}/24 dev eth0")
        namespace.ip(f"addr add {old}/24 dev eth0", f"route replace {way.strip()}")
        namespace.ip(f"addr del {new}/24 dev eth0")
    wait_until(lambda: answers(world, world.vip("who")), 10.0, "the service")


def test_the_host_is_as_it_was_afterwards(world: ServiceWorld) -> None:
    namespace = world.sites[1].connector.namespace
    assert world.connectors.stop("west") == 0
    links = namespace.run("ip", "-o", "link").stdout.splitlines()
    assert [line.split(":")[1].split("@")[0].strip() for line in links] == ["lo", "eth0"]
    assert not namespace.run("nft", "list", "ruleset").stdout.strip()
    assert "zgate" not in namespace.run("ip", "route", "show", "table", "all").stdout
