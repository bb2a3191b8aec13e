"""Services behind NATs, reached by name and by address: real servers, both address families."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from e2e_support.dns import AAAA, NOERROR, NXDOMAIN, A, ask_dns
from e2e_support.service_world import (
    DOMAIN,
    GATEWAY_IPV4,
    GATEWAY_IPV6,
    ServiceWorld,
    who_answers,
)
from zgate_lab.backend_server import ECHO_PORT
from zgate_lab.backends import (
    DATABASE_PASSWORD,
    DATABASE_USER,
    DNS_ADDRESS,
    DNS_NAME,
)
from zgate_lab.capture import Capture
from zgate_lab.connectors import with_resolv_conf
from zgate_lab.echo import UdpClient
from zgate_lab.namespace import run_in
from zgate_lab.traffic import ping
from zgate_lab.waiting import wait_until

VERSIONS = pytest.mark.parametrize("version", [4, 6])
HOSPITALS = {"hospital1", "hospital2"}


@pytest.fixture
def world(service_world: ServiceWorld) -> Iterator[ServiceWorld]:
    service_world.start_both()
    return service_world


# By name.


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_the_gateway_answers_a_services_name_with_its_virtual_ips(
    world: ServiceWorld, tcp: bool
) -> None:
    for server in (GATEWAY_IPV4, GATEWAY_IPV6):
        for kind, version in ((A, 4), (AAAA, 6)):
            answer = ask_dns(world.alice, server, f"who.{DOMAIN}", kind, tcp=tcp)
            assert (answer.code, answer.is_authoritative) == (NOERROR, True)
            assert answer.addresses == (world.vip("who", version),)


def test_who_may_not_reach_a_service_does_not_learn_that_it_exists(world: ServiceWorld) -> None:
    for name in ("web", "db", "nothing-like-that"):
        answer = ask_dns(world.bob, GATEWAY_IPV4, f"{name}.{DOMAIN}")
        assert (answer.code, answer.addresses) == (NXDOMAIN, ())
    assert ask_dns(world.bob, GATEWAY_IPV4, f"who.{DOMAIN}").code == NOERROR
    assert ask_dns(world.alice, GATEWAY_IPV4, f"web.{DOMAIN}").code == NOERROR


def test_the_responder_knows_its_own_domain_only(world: ServiceWorld) -> None:
    answer = ask_dns(world.alice, GATEWAY_IPV4, "www.example.org")
    assert answer.code != NOERROR and answer.addresses == ()


def test_a_browser_on_the_device_finds_it_by_name(world: ServiceWorld) -> None:
    """libc's own resolver, with the resolv.conf that the agent has written."""
    resolv_conf = world.zgate.resolv_conf("alice")
    assert str(GATEWAY_IPV4) in resolv_conf.read_text()
    command = with_resolv_conf(
        resolv_conf, ["curl", "-sS", "--max-time", "10", f"http://web.{DOMAIN}/who"]
    )
    assert run_in(world.alice, command).stdout.strip() in HOSPITALS


# Real servers.


@VERSIONS
def test_a_file_from_nginx(world: ServiceWorld, version: int) -> None:
    address = world.vip("web", version)
    host = f"[{address}]" if version == 6 else str(address)
    got = run_in(world.alice, ["curl", "-sS", "--globoff", f"http://{host}/who"]).stdout.strip()
    assert got in HOSPITALS


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
@VERSIONS
def test_a_question_to_a_dns_server(world: ServiceWorld, version: int, tcp: bool) -> None:
    answer = ask_dns(world.alice, world.vip("dns", version), DNS_NAME, tcp=tcp)
    assert answer.code == NOERROR
    assert answer.addresses == (IPv4Address(DNS_ADDRESS),)


@VERSIONS
def test_datagrams_are_echoed(world: ServiceWorld, version: int) -> None:
    with UdpClient(world.alice, world.vip("echo", version), ECHO_PORT) as client:
        for size in (0, 1, 63, 512, 1200, 1300):
            payload = bytes(number & 0xFF for number in range(size))
            assert client.ask(payload) == payload, f"{size} bytes"


@VERSIONS
def test_a_query_to_postgresql(world: ServiceWorld, version: int) -> None:
    """Schema, a transaction, an aggregate: a client as people run it."""
    sql = """
        begin;
        create temporary table study (id int primary key, patient text);
        insert into study select n, 'patient ' || n from generate_series(1, 10000) n;
        commit;
        select count(*), max(length(patient)), sum(id) from study;
        select inet_server_port();
    """
    command = ["psql", "-h", str(world.vip("db", version)), "-U", DATABASE_USER, "-d", "postgres"]
    done = run_in(
        world.alice,
        ["env", f"PGPASSWORD={DATABASE_PASSWORD}", *command, "-XqAt", "-v", "ON_ERROR_STOP=1"],
        stdin=sql,
    )
    assert done.stdout.split() == ["10000|13|50005000", "5432"]


@VERSIONS
def test_a_login_by_ssh(world: ServiceWorld, version: int) -> None:
    login = world.ssh.login(str(world.vip("ssh", version)))
    said = run_in(world.alice, [*login, "echo $SSH_CONNECTION; head -c 300000 /dev/zero | wc -c"])
    connection, size = said.stdout.splitlines()
    connector, backend = world.sites[0].connector, world.sites[0].backend
    client, _, server, port = connection.split()
    assert (client, server, port) == (str(connector.ipv4), str(backend.ipv4), "22")
    assert size.strip() == "300000"


@VERSIONS
def test_ping_is_answered_by_a_connector(world: ServiceWorld, version: int) -> None:
    with Capture(world.sites[0].backend.namespace, "eth0") as backend:
        result = ping(world.alice, world.vip("dns", version))
    assert (result.received, result.duplicates) == (3, 0)
    assert not [one for one in backend.packets if one.protocol in (1, 58) and is_echo(one.payload)]


def is_echo(icmp: bytes) -> bool:
    return icmp[0] in (8, 128)


def test_nothing_of_the_device_or_the_services_pool_is_seen_in_the_private_network(
    world: ServiceWorld,
) -> None:
    site = world.sites[0]
    with Capture(site.backend.namespace, "eth0") as backend:
        assert ask_dns(world.alice, world.vip("dns"), DNS_NAME).code == NOERROR
    spoke = {str(one.source) for one in backend.packets if one.protocol == 17}
    assert spoke == {str(site.connector.ipv4), str(site.backend.ipv4)}


# Policy.


def denied(world: ServiceWorld, client: str, name: str, **more: object) -> dict[str, object]:
    return world.zgate.wait_audit(
        "flow_denied", client=client, destination=str(world.vip(name)), protocol=6, **more
    )


def test_a_rule_denies_a_service(world: ServiceWorld) -> None:
    with pytest.raises(TimeoutError):
        who_answers_at(world, world.bob, "web")
    assert denied(world, "bob", "web")["rule"] == "bob-not-web"
    with pytest.raises(TimeoutError):
        who_answers_at(world, world.bob, "db")
    record = denied(world, "bob", "db")
    assert (record["reason"], record.get("rule")) == ("POLICY_DEFAULT", None)


def who_answers_at(world: ServiceWorld, namespace: str, name: str) -> str:
    return who_answers(namespace, world.vip(name), timeout_s=0.5)


def test_a_rule_allows_a_service_and_its_port(world: ServiceWorld) -> None:
    assert who_answers(world.bob, world.vip("who")) in HOSPITALS
    record = world.zgate.wait_audit(
        "flow_allowed", client="bob", destination=str(world.vip("who")), protocol=6
    )
    assert record["rule"] == "bob-who"
    why = world.zgate.ask("why", "bob", "who", "tcp/8080")
    assert why["agree"] and why["kernel"]["action"] == "allow"
    why = world.zgate.ask("why", "bob", "web", "tcp/80")
    assert why["agree"] and why["kernel"]["rule_id"] == "bob-not-web"


def test_a_certificate_for_one_service_reaches_no_other(world: ServiceWorld) -> None:
    """dana may do everything by her rules, and one thing by her certificate."""
    device = world.internet.device2
    world.zgate.agents["bob"].stop()
    agent = world.zgate.spawn_agent("dana", device)
    try:
        world.zgate.wait_connected("dana", agent)
        assert who_answers(world.bob, world.vip("who")) in HOSPITALS
        with pytest.raises(TimeoutError):
            who_answers(world.bob, world.vip("web"), timeout_s=0.5)
        assert ask_dns(world.bob, GATEWAY_IPV4, f"web.{DOMAIN}").code == NXDOMAIN
        assert ask_dns(world.bob, GATEWAY_IPV4, f"who.{DOMAIN}").code == NOERROR
    finally:
        agent.stop()
        del world.zgate.agents["dana"]
        world.zgate.start_agent("bob", device)


def test_an_offer_address_is_no_destination(world: ServiceWorld) -> None:
    """Whoever guesses what a connector holds reaches nothing by it."""
    before = world.zgate.counters("alice")["dropped_packets"]
    assert ping(world.alice, IPv4Address("10.101.255.254"), count=2, timeout_s=0.3).received == 0
    wait_until(
        lambda: world.zgate.counters("alice")["dropped_packets"] >= before + 2, 5.0, "two drops"
    )


# What an operator sees.


def test_zgatectl_services(world: ServiceWorld) -> None:
    shown = {one["name"]: one for one in world.zgate.ask("services")["services"]}
    assert set(shown) >= {"web", "who", "echo", "dns", "db", "ssh", "raw"}
    assert shown["who"]["addresses"] == [str(world.vip("who", 4)), str(world.vip("who", 6))]
    text = world.zgate.run("--socket", str(world.zgate.socket), "services")
    for name, one in shown.items():
        assert name in text and one["addresses"][0] in text


def test_zgatectl_connectors(world: ServiceWorld) -> None:
    shown = {one["name"]: one for one in world.zgate.ask("connectors")["connectors"]}
    assert {"east", "west"} <= set(shown)
    west = shown["west"]
    assert {one["name"] for one in west["services"]} == {"web", "who", "echo", "echo-named"}
    assert all(one["state"] == "up" and one["health"] == "up" for one in west["services"])
    text = world.zgate.run("--socket", str(world.zgate.socket), "connectors")
    assert "east" in text and "west" in text


def test_everybody_learns_the_address_that_he_is_seen_at(world: ServiceWorld) -> None:
    agent = world.zgate.agent_status("alice")
    assert agent["observed_address"].startswith(f"{world.internet.device1.ipv4}:")
    for name, site in zip(("east", "west"), world.sites, strict=True):
        (gateway,) = world.connectors.status(name)["gateways"]
        assert gateway["observed_address"].startswith(f"{site.outside.ipv4}:")
    # On the command line, too.
    config = world.zgate.directory / "alice.yaml"
    out = world.zgate.run_agent("status", "--config", str(config))
    assert agent["observed_address"] in out


def test_the_address_of_a_service_outlives_everything(world: ServiceWorld, tmp_path: Path) -> None:
    """Stop the connectors: the service keeps its address, for whoever comes back."""
    before = json.dumps(world.connectors.service("who")["addresses"])
    world.stop_all()
    assert json.dumps(world.connectors.service("who")["addresses"]) == before
    world.start_both()
    assert json.dumps(world.connectors.service("who")["addresses"]) == before
