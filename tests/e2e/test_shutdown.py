"""How a gateway ends, in good order or not, and what it leaves to the next one."""

from __future__ import annotations

import json
import socket
import struct

import pytest
from e2e_support.world import World
from zgate_lab.capture import Capture
from zgate_lab.deployment import Deployment
from zgate_lab.internet import Host
from zgate_lab.traffic import ping
from zgate_lab.waiting import wait_until

GATEWAY_TUN = "zgate0"
#: By itself, from silence, an agent would know after half a minute.
TOLD_WITHIN_S = 5.0
OTHER_TABLE = """\
table inet others {
    chain input {
        type filter hook input priority 0; policy accept;
        tcp dport 4444 drop comment "not zgate's"
    }
}
"""


@pytest.fixture(scope="module")
def world(own_world: World) -> World:
    return own_world


@pytest.fixture
def alice(world: World) -> World:
    """The world with the gateway up and alice connected, whatever the test before did."""
    if not world.gateway.is_running():
        world.zgate.start_gateway()
        # Agents of a killed gateway notice by its silence, which takes its time.
        world.zgate.reconnect("alice")
    return world


def kernel_state(host: Host) -> dict[str, object]:
    """What a gateway touches: tables of nftables, sysctls, links, addresses, routes."""
    namespace = host.namespace
    routes = [
        line
        for family in ("-4", "-6")
        for line in namespace.run("ip", family, "route", "show", "table", "all").stdout.splitlines()
    ]
    links = json.loads(namespace.run("ip", "-j", "address").stdout)
    return {
        "tables": namespace.run("nft", "list", "tables").stdout.split("\n"),
        "routes": sorted(line for line in routes if "cache" not in line),
        "addresses": {
            link["ifname"]: sorted(one["local"] for one in link["addr_info"]) for link in links
        },
        "sysctls": namespace.run(
            "sysctl",
            "-a",
            "--pattern",
            r"net\.ipv[46]\.(ip_forward|conf\..*\.(forwarding|accept_))",
        ).stdout.splitlines(),
    }


def test_sigterm_ends_in_order_and_leaves_nothing(deployment: Deployment) -> None:
    internet = deployment.internet
    namespace = internet.gateway.namespace
    namespace.run("nft", "-f", "-", stdin=OTHER_TABLE)
    others = namespace.run("nft", "list", "ruleset").stdout
    before = kernel_state(internet.gateway)
    gateway = deployment.start_gateway()
    deployment.start_agent("alice", internet.device1)
    deployment.start_agent("bob", internet.device2)
    during = kernel_state(internet.gateway)
    assert during["tables"] != before["tables"]
    assert during["sysctls"] != before["sysctls"]
    assert others in namespace.run("nft", "list", "ruleset").stdout

    gateway.signal(15)
    for agent in deployment.agents.values():
        # From its log: a moment later its reason is that nobody answers at the port.
        agent.wait_for_output("not connected: the gateway is shutting down", TOLD_WITHIN_S)
    assert gateway.wait(15.0) == 0

    assert kernel_state(internet.gateway) == before
    assert namespace.run("nft", "list", "ruleset").stdout == others
    assert not deployment.socket.exists()
    for name in ("alice", "bob"):
        [down] = deployment.audit("session_down", client=name)
        assert down["cause"] == "the gateway is shutting down"
    assert deployment.audit("gateway_stopped", cause="SIGTERM")


def send_as(world: World, source: str) -> None:
    """One ICMP echo request to the office with somebody else's source, from the uplink's side."""
    office = str(world.internet.office.ipv4)
    with world.internet.transit.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with sender:
        icmp = struct.pack("!BBHHH", 8, 0, 0xF7FF - 0x1234, 0x1234, 0)
        header = struct.pack(
            "!BBHHHBBH4s4s",
            *(0x45, 0, 20 + len(icmp), 0, 0, 64, socket.IPPROTO_ICMP, 0),
            *(socket.inet_aton(source), socket.inet_aton(office)),
        )
        sender.sendto(header + icmp, (office, 0))


def test_after_sigkill_no_packet_passes(alice: World) -> None:
    """Neither from the tunnel, nor from whoever claims to be in it."""
    internet = alice.internet
    assert ping(alice.alice, internet.office.ipv4, count=1).lost == 0
    virtual = str(alice.zgate.sessions()["alice"]["addresses"][0].split("/")[0])
    internet.transit.ip(f"route replace 10.20.0.0/24 via {internet.gateway.ipv4}")
    alice.gateway.kill()
    links = internet.gateway.namespace
    # It goes with the last worker, which ends a moment after its supervisor.
    wait_until(lambda: GATEWAY_TUN not in links.run("ip", "-o", "link").stdout, 5.0, "its end")
    with Capture(internet.site, "office") as office, Capture(internet.transit, "gateway") as uplink:
        result = ping(alice.alice, internet.office.ipv4, count=5, timeout_s=0.3)
        assert result.received == 0
        send_as(alice, virtual)
        send_as(alice, "198.18.1.2")
        # What was sent has been on the wire before the gateway, so its absence behind means a drop.
        for source in (virtual, "198.18.1.2"):
            uplink.wait_for(
                lambda one, source=source: one.protocol == 1 and str(one.source) == source,  # type: ignore[misc]
                f"the packet from {source}",
            )
        # And one that may pass, after them: the site's own.
        assert ping(internet.site.name, internet.office.ipv4, count=1).lost == 0
    assert {str(one.source) for one in office.packets if one.protocol == 1} <= {
        "10.20.0.1",
        str(internet.office.ipv4),
    }


def test_the_next_start_cleans_up_and_works(alice: World) -> None:
    gateway = alice.internet.gateway
    alice.gateway.stop()
    before = kernel_state(gateway)
    alice.zgate.start_gateway()
    alice.gateway.kill()
    left = kernel_state(gateway)
    assert (left["tables"], left["sysctls"]) != (before["tables"], before["sysctls"])
    restarted = alice.zgate.start_gateway()
    assert "leftovers" in restarted.output()
    alice.zgate.reconnect("alice")
    assert ping(alice.alice, alice.internet.office.ipv4).lost == 0
    assert alice.gateway.stop() == 0
    assert kernel_state(gateway) == before


def test_a_second_gateway_on_the_host_does_not_start(alice: World) -> None:
    """And does the first no harm."""
    first = alice.gateway
    second = alice.zgate.spawn_gateway(
        socket_path=str(alice.zgate.directory / "other.sock"),
        state_dir=str(alice.zgate.directory / "other-state"),
        runtime_dir=str(alice.zgate.directory / "other-run"),
        audit={"path": str(alice.zgate.directory / "other-audit.jsonl")},
    )
    alice.zgate.gateway = first
    assert second.wait(30.0) == 1
    assert f"an interface {GATEWAY_TUN} exists" in second.output()
    assert "Traceback" not in second.output()
    assert ping(alice.alice, alice.internet.office.ipv4, count=1).lost == 0


def test_a_second_gateway_with_the_same_files_does_not_start(alice: World) -> None:
    first = alice.gateway
    second = alice.zgate.spawn_gateway()
    alice.zgate.gateway = first
    assert second.wait(30.0) != 0
    assert "Traceback" not in second.output()
    wait_until(alice.zgate.gateway_status, 2.0, "the first to answer")
    assert alice.zgate.gateway_status()["pid"] == first.pid
    assert ping(alice.alice, alice.internet.office.ipv4, count=1).lost == 0
