"""Subnet connectors: a private network routed through one; masquerade or not; replicas."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address

import pytest
from e2e_support.service_world import ServiceWorld, connect, who_answers
from zgate_lab.backend_server import ECHO_PORT, NAME_PORT
from zgate_lab.capture import Capture
from zgate_lab.echo import UdpClient
from zgate_lab.private_site import LAN_IPV4, LAN_IPV6
from zgate_lab.stream import TcpStream
from zgate_lab.traffic import ping
from zgate_lab.waiting import wait_until

BOTH = [str(LAN_IPV4), str(LAN_IPV6)]
TRANSFER_BYTES = 32 << 20
STREAM_PORT = 9100


@pytest.fixture(scope="module")
def world(service_world: ServiceWorld) -> Iterator[ServiceWorld]:
    service_world.stop_all()
    yield service_world
    service_world.stop_all()


def networks(*prefixes: str, masquerade: bool = True) -> list[dict[str, object]]:
    return [{"network": one, "masquerade": masquerade} for one in prefixes]


def wait_routed(world: ServiceWorld, *prefixes: str) -> None:
    """Agents are told of a network when somebody leads there; then their hosts have to be."""
    for name in ("alice", "bob"):
        wait_until(
            lambda name=name: set(prefixes) <= set(world.zgate.agent_status(name)["routes"]),  # type: ignore[misc]
            5.0,
            f"{name}'s device to route {', '.join(prefixes)}",
        )


@contextmanager
def running(
    world: ServiceWorld, name: str, number: int, *prefixes: str, **more: bool
) -> Iterator[None]:
    """A subnet connector in one of the two private networks, whose offers are in use."""
    world.connectors.start(
        name, world.sites[number - 1].connector, networks=networks(*prefixes, **more)
    )
    wait_routed(world, *prefixes)
    # The connector sets up its host when it hears that it may lead there.
    backend = world.sites[number - 1].backend
    for prefix in prefixes:
        address = backend.ipv6 if ":" in prefix else backend.ipv4
        wait_until(
            lambda address=address: ping(world.alice, address, count=1, timeout_s=0.3).received,  # type: ignore[misc]
            5.0,
            f"{address} to answer",
            interval_s=0.3,  # who pings while nobody leads there is told at once, and asks again
        )
    try:
        yield
    finally:
        if name in world.connectors.processes:
            world.connectors.stop(name)


@pytest.mark.parametrize("version", [4, 6])
def test_a_private_network_is_reached_and_sees_the_connector_only(
    world: ServiceWorld, version: int
) -> None:
    site = world.sites[1]
    address = site.backend.ipv4 if version == 4 else site.backend.ipv6
    own = site.connector.ipv4 if version == 4 else site.connector.ipv6
    with running(world, "west", 2, *BOTH):
        assert ping(world.alice, address, count=5).lost == 0
        with Capture(site.backend.namespace, "eth0") as backend:
            assert who_answers(world.alice, address) == "hospital2"
            with UdpClient(world.alice, address, ECHO_PORT) as client:
                assert client.ask(b"hello") == b"hello"
        spoke = {str(one.source) for one in backend.packets if one.protocol in (6, 17)}
        assert spoke == {str(address), str(own)}


def test_without_masquerade_the_network_sees_virtual_ips(world: ServiceWorld) -> None:
    site = world.sites[1]
    back = f"10.100.0.0/16 via {site.connector.ipv4}"
    site.backend.namespace.ip(f"route add {back}")
    try:
        with running(world, "west", 2, str(LAN_IPV4), masquerade=False):
            virtual = world.zgate.sessions()["alice"]["addresses"][0].partition("/")[0]
            with Capture(site.backend.namespace, "eth0") as backend:
                assert who_answers(world.alice, site.backend.ipv4) == "hospital2"
            assert virtual in {str(one.source) for one in backend.packets}
            # Nobody in there begins anything with a client.
            assert (
                ping(
                    site.backend.namespace.name, IPv4Address(virtual), count=2, timeout_s=0.3
                ).received
                == 0
            )
    finally:
        site.backend.namespace.ip(f"route del {back}")


@pytest.mark.parametrize("upload", [True, False], ids=["up", "down"])
def test_bulk_through_it_arrives_as_it_was_sent(world: ServiceWorld, upload: bool) -> None:
    site = world.sites[1]
    with (
        running(world, "west", 2, str(LAN_IPV4)),
        TcpStream(
            world.alice, site.backend, site.backend.ipv4, STREAM_PORT, upload=upload
        ) as stream,
    ):
        stream.wait_for_more(TRANSFER_BYTES, 60.0)
        stream.finish()


def test_policy_decides_about_it_as_about_every_network(world: ServiceWorld) -> None:
    site = world.sites[1]
    with running(world, "west", 2, str(LAN_IPV4)):
        with pytest.raises(TimeoutError):
            connect(world.bob, site.backend.ipv4, NAME_PORT, timeout_s=0.5)
        record = world.zgate.wait_audit(
            "flow_denied", client="bob", destination=str(site.backend.ipv4), protocol=6
        )
        assert record["reason"] == "POLICY_DEFAULT"


def test_a_route_overlaps_no_other_connectors(world: ServiceWorld) -> None:
    """South may offer half of west's network by the policy, and not beside west."""
    with running(world, "west", 2, str(LAN_IPV4)):
        world.connectors.spawn("south", world.sites[0].connector, networks=networks("10.40.0.0/25"))
        try:
            answer = refusal(world, "south", "10.40.0.0/25")
            assert answer["code"] == "overlap"
            assert who_answers(world.alice, world.sites[1].backend.ipv4) == "hospital2"
        finally:
            world.connectors.stop("south")


def test_a_route_overlaps_no_pool(world: ServiceWorld) -> None:
    """Even where the policy's author was careless: 10.96.0.0/11 holds every virtual IP."""
    world.connectors.spawn("south", world.sites[0].connector, networks=networks("10.96.0.0/11"))
    try:
        assert refusal(world, "south", "10.96.0.0/11")["code"] == "overlap"
    finally:
        world.connectors.stop("south")


def test_a_route_that_the_policy_does_not_know_is_refused(world: ServiceWorld) -> None:
    world.connectors.spawn("west", world.sites[0].connector, networks=networks("10.41.0.0/24"))
    try:
        assert refusal(world, "west", "10.41.0.0/24")["code"] == "not_authorized"
        record = world.zgate.wait_audit("offer_refused", client="west", offer="10.41.0.0/24")
        assert record["code"] == "not_authorized"
    finally:
        world.connectors.stop("west")


def refusal(world: ServiceWorld, connector: str, network: str) -> dict[str, str]:
    """What the connector was told, as its own status shows it."""

    def told() -> dict[str, str]:
        for gateway in world.connectors.status(connector).get("gateways", ()):
            for answer in gateway["answers"]:
                if answer["name"] == network and answer["code"] != "accepted":
                    return dict(answer)
        return {}

    return world.connectors.processes[connector].wait_for(told, 15.0, "the refusal")


def test_a_replica_takes_over(world: ServiceWorld) -> None:
    """South and west offer the same network; one of them dies."""
    address = world.sites[0].backend.ipv4
    with running(world, "south", 1, str(LAN_IPV4)), running(world, "west", 2, str(LAN_IPV4)):
        first = who_answers(world.alice, address)
        name = {"hospital1": "south", "hospital2": "west"}[first]
        world.connectors.processes[name].kill()
        died_s = time.monotonic()
        wait_until(lambda: answers_other(world, address, first), 10.0, "the replica to answer")
        assert time.monotonic() - died_s < 8.0
        del world.connectors.processes[name]


def answers_other(world: ServiceWorld, address: IPv4Address, first: str) -> bool:
    try:
        return who_answers(world.alice, address, timeout_s=0.5) != first
    except OSError:
        return False


def test_the_connectors_host_is_as_it_was(world: ServiceWorld) -> None:
    namespace = world.sites[1].connector.namespace

    def state() -> list[str]:
        return [
            namespace.run("nft", "list", "tables").stdout,
            namespace.run("ip", "-o", "link").stdout,
            namespace.run("ip", "route", "show", "table", "all").stdout,
            namespace.sysctl("net.ipv4.ip_forward"),
            namespace.sysctl("net.ipv6.conf.all.forwarding"),
        ]

    before = state()
    with running(world, "west", 2, *BOTH):
        assert state() != before
    assert state() == before


def test_all_gone_is_told(world: ServiceWorld) -> None:
    """A network that nobody offers any more is unreachable, not silent."""
    address = world.sites[1].backend.ipv4
    with running(world, "west", 2, str(LAN_IPV4)):
        assert who_answers(world.alice, address) == "hospital2"
    wait_until(
        lambda: refused_with(world, address) == errno.EHOSTUNREACH, 5.0, "an answer about it"
    )


def refused_with(world: ServiceWorld, address: IPv4Address | IPv6Address) -> int | None:
    """The error of a connection that ends at once, before a SYN would come again; else None."""
    try:
        connect(world.alice, address, NAME_PORT, timeout_s=0.8).close()
    except OSError as error:
        return error.errno
    return None


def test_the_last_connector_killed_is_told(world: ServiceWorld) -> None:
    """It says no goodbye: once it is found silent, and not when its session ends."""
    backend = world.sites[1].backend
    expected = ((backend.ipv4, errno.EHOSTUNREACH), (backend.ipv6, errno.EACCES))
    with running(world, "west", 2, *BOTH):
        for address, _ in expected:
            assert who_answers(world.alice, address) == "hospital2"
        world.connectors.processes["west"].kill()
        died_s = time.monotonic()
        del world.connectors.processes["west"]
        for address, code in expected:
            wait_until(
                lambda address=address, code=code: refused_with(world, address) == code,  # type: ignore[misc]
                10.0,
                f"an answer about {address}",
            )
        assert time.monotonic() - died_s < 10.0
        # It is said again and again, not once.
        for address, code in expected:
            wait_until(
                lambda address=address, code=code: refused_with(world, address) == code,  # type: ignore[misc]
                5.0,
                f"an answer about {address} again",
            )
    # And whoever comes back is reached.
    with running(world, "west", 2, *BOTH):
        for address, _ in expected:
            assert who_answers(world.alice, address) == "hospital2"
