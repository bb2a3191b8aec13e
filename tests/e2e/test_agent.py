"""The agent on a device whose world changes: gateways restart, addresses and paths come and go."""

from __future__ import annotations

import json
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from e2e_support.world import World
from zgate_lab.deployment import BIN
from zgate_lab.traffic import ping
from zgate_lab.waiting import wait_until

# Short, so that a dead path is noticed within the test's patience.
IMPATIENT: dict[str, Any] = {"idle_timeout_s": 5, "keepalive_s": 1}
FULL: dict[str, Any] = {"mode": "full"}
TUN = "zgate-agent0"
#: What every gateway advertises: the services' pools, and where it answers for their names.
SERVICES = {"10.101.0.0/16", "fd7a:7a67:6174:66::/64"}
NAME_SERVERS = {"10.100.0.1/32", "fd7a:7a67:6174:65::1/128"}
HALVES = {"0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"}


@pytest.fixture(scope="module")
def world(own_world: World) -> World:
    return own_world


@pytest.fixture
def alice(world: World) -> World:
    """The world, with alice connected and configured as ever, whatever the test before did."""
    configured = json.loads((world.zgate.directory / "alice.yaml").read_text())
    is_as_ever = configured == world.zgate.agent_config("alice")
    if not is_as_ever or not world.zgate.agents["alice"].is_running():
        restart_alice(world)
    return world


def restart_alice(world: World, **changes: Any) -> dict[str, Any]:
    world.zgate.agents["alice"].stop()
    return world.zgate.start_agent("alice", world.internet.device1, **changes)


def routes(world: World) -> list[dict[str, Any]]:
    """All routes of alice's device, both families; "default" written as a prefix."""
    found: list[dict[str, Any]] = []
    for family, anywhere in (("-4", "0.0.0.0/0"), ("-6", "::/0")):
        listing = world.internet.device1.namespace.run("ip", "-j", family, "route")
        for route in json.loads(listing.stdout):
            destination = anywhere if route["dst"] == "default" else route["dst"]
            if "/" not in destination:
                destination += "/32" if family == "-4" else "/128"
            found.append({**route, "dst": destination})
    return found


def routes_into_tun(world: World) -> set[str]:
    """Without the kernel's own routes to the TUN's addresses."""
    return {
        route["dst"]
        for route in routes(world)
        if route.get("dev") == TUN and route["protocol"] != "kernel"
    }


def other_routes(world: World) -> list[tuple[str, str, str]]:
    """Destination, interface (or "unreachable") and next hop of all that is not the TUN's."""
    return sorted(
        (route["dst"], route.get("dev") or route["type"], route.get("gateway", ""))
        for route in routes(world)
        if route.get("dev") != TUN
    )


def reaches_office(world: World) -> bool:
    return ping(world.alice, world.internet.office.ipv4, count=1, timeout_s=5.0).lost == 0


def status_command(world: World, *more: str) -> subprocess.CompletedProcess[str]:
    """`zgate-agent status`, the real command line."""
    runtime_dir = world.zgate.directory / "alice-run"
    command = [BIN / "zgate-agent", "status", "--runtime-dir", runtime_dir, *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


# Routes.


def test_split_tunnel_routes_what_the_gateway_advertises(alice: World) -> None:
    assert routes_into_tun(alice) == {
        "10.20.0.0/24",
        "10.66.0.0/24",
        "fd00:20::/64",
        "fd00:66::/64",
        *SERVICES,
        *NAME_SERVERS,
    }


def test_split_tunnel_is_narrowed_by_the_agents_own_list(alice: World) -> None:
    restart_alice(alice, routes=["10.20.0.4/30", "fd00:20::/96", "192.0.2.0/24"])
    assert routes_into_tun(alice) == {"10.20.0.4/30", "fd00:20::/96", *NAME_SERVERS}
    assert reaches_office(alice)


def test_full_tunnel_leaves_the_default_route_alone(alice: World) -> None:
    alice.zgate.agents["alice"].stop()
    before = other_routes(alice)
    alice.zgate.start_agent("alice", alice.internet.device1, **FULL)
    assert routes_into_tun(alice) == HALVES
    gateway = str(alice.internet.gateway.ipv4)
    pinned = [one for one in other_routes(alice) if one not in before]
    # The second holds while the first is gone with its interface: nothing goes round in circles.
    assert [one[:2] for one in pinned] == [
        (f"{gateway}/32", "eth0"),
        (f"{gateway}/32", "unreachable"),
    ]
    assert [one for one in other_routes(alice) if one not in pinned] == before
    assert alice.zgate.agent_status("alice")["pinned"] == [gateway]
    assert reaches_office(alice)
    # What the gateway does not advertise goes nowhere, and not beside the tunnel.
    assert ping(alice.alice, alice.internet.device2.ipv4, count=1, timeout_s=0.3).received == 0


# Ends.


@pytest.mark.parametrize("mode", ["split", "full"])
def test_sigterm_leaves_nothing(alice: World, mode: str) -> None:
    alice.zgate.agents["alice"].stop()
    before = other_routes(alice)
    alice.zgate.start_agent("alice", alice.internet.device1, mode=mode)
    assert alice.zgate.agents["alice"].stop() == 0
    assert other_routes(alice) == before
    assert routes_into_tun(alice) == set()
    assert TUN not in alice.internet.device1.namespace.run("ip", "-o", "link").stdout
    down = alice.zgate.wait_audit("session_down", client="alice", cause="SIGTERM")
    assert down
    wait_until(lambda: "alice" not in alice.zgate.sessions(), 10.0, "the gateway to know")
    ended = status_command(alice)
    assert ended.returncode == 1
    assert "not running" in ended.stderr


def test_after_sigkill_the_next_start_cleans_up(alice: World) -> None:
    alice.zgate.agents["alice"].stop()
    before = other_routes(alice)
    alice.zgate.start_agent("alice", alice.internet.device1, **FULL)
    assert other_routes(alice) != before
    alice.zgate.agents["alice"].kill()
    pinned = str(alice.internet.gateway.ipv4)
    assert f"{pinned}/32" in {dst for dst, _, _ in other_routes(alice)}
    # Split this time: no pin is wanted, so one that stands is the dead agent's.
    alice.zgate.start_agent("alice", alice.internet.device1)
    assert other_routes(alice) == before
    assert reaches_office(alice)


# Status.


def test_status_says_connected(alice: World) -> None:
    for_people, for_programs = status_command(alice), status_command(alice, "--json")
    assert (for_people.returncode, for_programs.returncode) == (0, 0)
    assert "connected" in for_people.stdout
    status = json.loads(for_programs.stdout)
    assert status["state"] == "connected"
    assert status["addresses"] == alice.zgate.sessions()["alice"]["addresses"]
    assert status["pid"] == alice.zgate.agents["alice"].pid


def test_status_says_why_not(alice: World) -> None:
    alice.zgate.agents["alice"].stop()
    alice.zgate.spawn_agent(
        "alice", alice.internet.device1, gateway="203.0.113.99:443", connect_timeout_s=0.5
    )
    alice.zgate.wait_agent("alice", "backoff")
    answer = status_command(alice)
    assert answer.returncode == 1
    assert "203.0.113.99" in answer.stdout
    assert "no answer" in answer.stdout or "unreachable" in answer.stdout.lower()


# The world changes.


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_after_a_gateway_restart_the_agent_is_back(alice: World, how: signal.Signals) -> None:
    before = restart_alice(alice, **IMPATIENT)
    if how is signal.SIGTERM:
        assert alice.gateway.stop() == 0
        alice.zgate.wait_agent("alice", "backoff", 10.0)
    else:
        alice.gateway.kill()
    alice.zgate.start_gateway()
    agent = alice.zgate.agents["alice"]
    agent.wait_for(lambda: "alice" in alice.zgate.sessions(), 20.0, "a session")
    after = alice.zgate.wait_connected("alice", agent)
    assert after["addresses"] == before["addresses"]
    assert alice.zgate.agent_status("alice")["reconnects"] == 1
    assert reaches_office(alice)


def test_the_session_survives_another_address(alice: World) -> None:
    """QUIC migration: the device changes networks, the ping goes on in the same session."""
    before = alice.zgate.sessions()["alice"]
    device = alice.internet.device1
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            ping, alice.alice, alice.internet.office.ipv4, count=200, interval_s=0.02
        )
        alice.internet.move_device(device, 77)
        wait_until(
            lambda: alice.zgate.sessions()["alice"]["peer"].startswith("198.18.1.77:"),
            10.0,
            "the gateway to follow",
        )
        result = running.result()
    after = alice.zgate.sessions()["alice"]
    assert after["session_id"] == before["session_id"]
    assert after["addresses"] == before["addresses"]
    status = alice.zgate.agent_status("alice")
    assert (status["reconnects"], status["local_address"]) == (0, "198.18.1.77")
    assert result.received >= 100, result.output
    assert ping(alice.alice, alice.internet.office.ipv4).lost == 0


def test_the_session_survives_an_abrupt_change(alice: World) -> None:
    """The old address is gone, and every route with it, before the new one comes."""
    before = alice.zgate.sessions()["alice"]
    moved = alice.internet.move_device(alice.internet.device1, 78, abruptly=True)
    wait_until(
        lambda: alice.zgate.sessions()["alice"]["peer"].startswith(f"{moved.ipv4}:"),
        10.0,
        "the gateway to follow",
    )
    assert ping(alice.alice, alice.internet.office.ipv4, count=5).received >= 4
    assert alice.zgate.sessions()["alice"]["session_id"] == before["session_id"]


def test_a_path_cut_and_mended(alice: World) -> None:
    before = restart_alice(alice, **IMPATIENT)
    alice.internet.set_path_up(False)
    try:
        cut = alice.zgate.wait_agent("alice", "backoff", 15.0)
        assert cut["reason"]
        # Nothing leaves beside the tunnel meanwhile.
        assert routes_into_tun(alice) >= {"10.20.0.0/24"}
    finally:
        alice.internet.set_path_up(True)
    after = alice.zgate.wait_connected("alice", alice.zgate.agents["alice"])
    assert after["addresses"] == before["addresses"]
    assert after["session_id"] != before["session_id"]
    assert reaches_office(alice)
