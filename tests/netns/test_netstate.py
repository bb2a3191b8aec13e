"""All of the gateway's network state together: opened, verified, closed, and left by a SIGKILL."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network

import pytest
from zgate_gateway.net.errors import NetError
from zgate_gateway.net.links import RouteTaken
from zgate_gateway.net.netstate import GatewayNetwork, NetworkSettings
from zgate_lab.internet import Internet
from zgate_lab.lab import Namespace
from zgate_lab.tiny_bpf import TinyProgram
from zgate_lab.traffic import ping
from zgate_lab.wan import open_tun

Load = Callable[[TinyProgram], int]


def state_of(host: Namespace) -> str:
    """Everything that the gateway sets, as the tools print it, but for the TUN itself."""
    commands = [
        ["nft", "list", "ruleset"],
        ["ip", "-4", "route", "show", "table", "all"],
        ["ip", "-6", "route", "show", "table", "all"],
        ["sysctl", "-a", "-r", r"^net\.ipv[46]\.(conf\.(all|default|uplink|inside)|ip_forward)"],
    ]
    outputs = [host.run(*command).stdout for command in commands]
    return "\n".join(
        line for output in outputs for line in output.splitlines() if not _changes_by_itself(line)
    )


def _changes_by_itself(line: str) -> bool:
    return "expires" in line or "stable_secret" in line or "zgate0" in line


def test_closing_leaves_the_host_as_it_was(
    internet: Internet, tun: int, settings: NetworkSettings, load: Load
) -> None:
    host = internet.gateway.namespace
    before = state_of(host)
    network = GatewayNetwork(settings)
    with host.entered():
        network.open(load(TinyProgram.PASS), load(TinyProgram.PASS))
        network.verify()
        assert network.counters()
        assert state_of(host) != before
        network.close()
    assert state_of(host) == before
    with host.entered():
        network.close()
    assert network.counters() == {}


def test_a_network_that_the_host_leads_elsewhere_changes_nothing(
    internet: Internet, tun: int, settings: NetworkSettings, load: Load
) -> None:
    host = internet.gateway.namespace
    host.ip("route add 10.21.0.0/16 via 10.9.0.99")
    before = state_of(host)
    network = GatewayNetwork(settings)
    with host.entered():
        network.open(load(TinyProgram.PASS), load(TinyProgram.PASS))
        network.add_route(ip_network("10.20.0.0/16"))
        opened = state_of(host)
        assert "10.20.0.0/16" in opened
        with pytest.raises(RouteTaken):
            network.add_route(ip_network("10.21.0.0/16"))
        assert state_of(host) == opened
        network.verify()
        network.close()
    assert state_of(host) == before


async def test_it_opens_and_closes_in_a_running_event_loop(
    internet: Internet, tun: int, settings: NetworkSettings, load: Load
) -> None:
    host = internet.gateway.namespace
    before = state_of(host)
    network = GatewayNetwork(settings)
    with host.entered():
        network.open(load(TinyProgram.PASS), load(TinyProgram.PASS))
        network.verify()
        network.close()
    assert state_of(host) == before


def test_it_closes_after_the_tun_is_gone(
    internet: Internet, settings: NetworkSettings, load: Load
) -> None:
    host = internet.gateway.namespace
    before = state_of(host)
    tun = open_tun(host.name, "zgate0")
    network = GatewayNetwork(settings)
    with host.entered():
        network.open(load(TinyProgram.PASS), load(TinyProgram.PASS))
        os.close(tun)
        network.close()
    assert state_of(host) == before


def test_a_step_that_fails_takes_the_others_back(
    internet: Internet, tun: int, settings: NetworkSettings, load: Load
) -> None:
    host = internet.gateway.namespace
    before = state_of(host)
    settings.state_file.mkdir()  # the sysctls cannot be remembered: after programs, addresses, nft
    network = GatewayNetwork(settings)
    with host.entered(), pytest.raises(NetError, match="cannot remember the host's sysctls"):
        network.open(load(TinyProgram.PASS), load(TinyProgram.PASS))
    settings.state_file.rmdir()
    assert state_of(host) == before
    assert ",UP" not in host.run("ip", "link", "show", "zgate0").stdout


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("tc qdisc del dev zgate0 clsact", "is not what decides at ingress"),
        ("tc filter del dev zgate0 egress", "is not what decides at egress"),
        ("ip link set zgate0 down", "the link is down"),
        ("sysctl -q net.ipv4.ip_forward=0", "ip_forward was set to 0"),
        ("nft flush ruleset", "inet zgate"),
    ],
)
def test_verify_notices_what_others_change(
    internet: Internet,
    tun: int,
    settings: NetworkSettings,
    load: Load,
    command: str,
    problem: str,
) -> None:
    host = internet.gateway.namespace
    network = GatewayNetwork(settings)
    with host.entered():
        network.open(load(TinyProgram.PASS), load(TinyProgram.PASS))
        host.run(*command.split())
        with pytest.raises(NetError, match=problem):
            network.verify()
        network.close()


KILLED = """
import os, signal, sys
from ipaddress import ip_network
from pathlib import Path
from zgate_gateway.net.netstate import GatewayNetwork, NetworkSettings
from zgate_lab.tiny_bpf import TinyProgram
from zgate_lab.wan import open_tun
network = GatewayNetwork(NetworkSettings(
    "zgate0", 1400, ip_network("10.100.0.0/16"), ip_network("fd7a::/64"), Path(sys.argv[2])))
network.prepare()
tun = open_tun(sys.argv[1], "zgate0")
network.open(TinyProgram.PASS.load(), TinyProgram.PASS.load())
print("open", flush=True)
signal.pause()
"""


def test_after_a_sigkill_nothing_passes_and_the_next_start_cleans_up(
    internet: Internet, settings: NetworkSettings
) -> None:
    host = internet.gateway.namespace
    before = state_of(host)
    # Somebody beyond the gateway who would use the host as a router.
    internet.site.ip("route add default via 10.9.0.1")
    gateway = host.spawn("gateway", sys.executable, "-c", KILLED, host.name, settings.state_file)
    gateway.wait_for_output("open", 20.0)
    gateway.signal(signal.SIGKILL)
    gateway.wait(10.0)

    assert state_of(host) != before
    assert "zgate0" not in host.run("ip", "link").stdout
    device = internet.device1
    internet.transit.ip("route add 10.20.0.0/24 via 203.0.113.10")
    internet.isp.ip("route add 10.20.0.0/24 via 198.18.255.2")
    answered = ping(device.namespace.name, internet.office.ipv4, timeout_s=0.2).received
    assert answered == 0

    network = GatewayNetwork(settings)
    with host.entered():
        found = network.prepare()
        assert len(found) == 2
        # The table goes on translating until another one takes its place; or until the start fails.
        assert network.prepare() == found[1:]
        network.close()
        assert network.prepare() == []
    assert state_of(host) == before


def test_an_interface_of_the_tuns_name_is_not_touched(
    internet: Internet, tun: int, settings: NetworkSettings
) -> None:
    with (
        internet.gateway.namespace.entered(),
        pytest.raises(NetError, match="an interface zgate0 exists: another zgate-gateway runs"),
    ):
        GatewayNetwork(settings).prepare()


def test_an_uplink_that_is_not_there_is_named_with_those_that_are(
    internet: Internet, settings: NetworkSettings
) -> None:
    network = GatewayNetwork(replace(settings, uplink="eth7"))
    with (
        internet.gateway.namespace.entered(),
        pytest.raises(NetError, match=r"no interface eth7 \(there are: inside, lo, uplink\)"),
    ):
        network.prepare()


def test_path_mtu_discovery_works_through_the_gateway(
    internet: Internet,
    tun: int,
    client: Namespace,
    settings: NetworkSettings,
    load: Load,
) -> None:
    """The office's answers do not fit the TUN: the gateway's kernel says so and how large."""
    network = GatewayNetwork(replace(settings, mtu_bytes=1300))
    office = internet.office
    with internet.gateway.namespace.entered():
        network.open(load(TinyProgram.PASS), load(TinyProgram.PASS))
    # The first answers are lost, and lost with a message; then they come in fragments.
    result = ping(client.name, office.ipv6, count=4, payload_bytes=1400, interval_s=0.2)
    assert 0 < result.received < 4
    inside = str(internet.gateway_inside.ipv6)
    assert "mtu 1300" in office.namespace.run("ip", "-6", "route", "get", inside).stdout
    with internet.gateway.namespace.entered():
        network.close()
