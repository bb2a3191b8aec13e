"""zgatectl doctor before real rules of other people: nftables in a namespace of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_interface
from typing import Any

import pytest
from zgate_lab.deployment import BIN
from zgate_lab.lab import Lab, Namespace, Port

pytestmark = pytest.mark.privileged

DOCKER = """
table ip filter {
  chain DOCKER-USER { }
  chain DOCKER { }
  chain FORWARD {
    type filter hook forward priority filter; policy drop;
    jump DOCKER-USER
    oifname "docker0" ct state established,related accept
    iifname "docker0" oifname != "docker0" accept
  }
}
"""
#: As firewalld and ufw do it: everything in is dropped but what is named.
HOST_FIREWALL = """
table inet firewall {
  set trusted { type ipv4_addr; }
  chain input {
    type filter hook input priority 10; policy drop;
    ct state established,related accept
    iifname "lo" accept
    tcp dport { 22, 8000-8100 } accept
    %s
  }
}
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    with Lab() as lab:
        made, router = lab.add_namespace("host"), lab.add_namespace("router")
        net = ip_interface("192.0.2.1/24"), ip_interface("192.0.2.2/24")
        lab.connect(Port(made, "eth0", (net[0],)), Port(router, "eth0", (net[1],)))
        made.ip("route add default via 192.0.2.2")
        yield made


def doctor(host: Namespace, rules: str) -> dict[str, dict[str, Any]]:
    host.run("nft", "-f", "-", stdin="flush ruleset\n" + "\n".join(rules.splitlines()) + "\n")
    command = [BIN / "zgatectl", "--socket", "/nowhere", "doctor", "--json"]
    done = host.run(*command, check=False)
    assert done.returncode == 1, done.stderr  # no gateway
    found = json.loads(done.stdout)["findings"]
    return {one["name"]: one for one in found}


def broken(text: str) -> str:
    """nft 1.0.6 wants its braces on lines of their own."""
    return text.replace("{ }", "{\n}")


def test_no_rules(host: Namespace) -> None:
    found = doctor(host, "")
    assert found["nftables"]["verdict"] == "ok"
    assert found["uplink"]["text"] == "eth0"


def test_docker_drops_what_it_does_not_know(host: Namespace) -> None:
    found = doctor(host, broken(DOCKER))["nftables_ip_filter_forward"]
    assert found["verdict"] == "fail"
    assert "clients' packets to the site (IPv4)" in found["text"]
    assert "answers to clients (IPv4)" in found["text"]
    assert "its policy is drop" in found["text"]
    assert "iptables -I DOCKER-USER -i zgate0 -j ACCEPT" in found["fix"]


def test_the_cure_for_docker_cures_it(host: Namespace) -> None:
    cured = broken(DOCKER).replace(
        "chain DOCKER-USER {\n}",
        'chain DOCKER-USER {\n iifname "zgate0" accept\n oifname "zgate0" accept\n }',
    )
    assert doctor(host, cured)["nftables"]["verdict"] == "ok"


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        ("", "fail"),
        ("udp dport 443 accept", "ok"),
        ("udp dport { 53, 440-450 } accept", "ok"),
        ("ip saddr @trusted udp dport 443 accept", "warn"),
        ("udp dport 443 limit rate 10/second accept", "warn"),
        ('iifname "eth0" meta l4proto udp accept', "ok"),
        ('iifname "eth1" udp dport 443 accept', "fail"),
        ("tcp dport 443 accept", "fail"),
        ("udp dport 443 ct state new counter accept", "ok"),
    ],
)
def test_a_firewall_before_the_udp_port(host: Namespace, rule: str, verdict: str) -> None:
    found = doctor(host, broken(HOST_FIREWALL % rule))
    name = "nftables" if verdict == "ok" else "nftables_inet_firewall_input"
    assert found[name]["verdict"] == verdict, found[name]
    if verdict == "fail":
        assert "the gateway's UDP port (IPv4)" in found[name]["text"]
        assert "nft insert rule inet firewall input udp dport 443 accept" in found[name]["fix"]


def test_a_rule_for_the_clients_network(host: Namespace) -> None:
    rules = """
table inet other {
  chain forward {
    type filter hook forward priority filter; policy accept;
    ip saddr 10.0.0.0/8 ip daddr != 10.0.0.0/8 reject
    ip6 saddr fd00::/8 drop
  }
}
"""
    found = doctor(host, rules)["nftables_inet_other_forward"]
    assert "clients' packets to the site (IPv6)" in found["text"]
    assert found["verdict"] == "fail"
