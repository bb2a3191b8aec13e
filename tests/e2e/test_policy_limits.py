"""Limits that bite, and tables that fill up: what the gateway makes of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from e2e_support.world import ECHO_PORT, POLICY, World
from zgate_lab.deployment import Deployment
from zgate_lab.echo import UdpClient, UdpEcho
from zgate_lab.internet import Host, Internet
from zgate_lab.traffic import send_udp
from zgate_lab.waiting import wait_until

ALICE = "  alice:\n"
FLOWS_PER_S = 20
BANDWIDTH_MBIT = 1
BURST_BYTES = 131_072
PORTS = range(ECHO_PORT + 10, ECHO_PORT + 60)


@pytest.fixture
def restored(world: World) -> Iterator[World]:
    """The world, with its own policy in force again afterwards."""
    yield world
    world.zgate.policy_file.write_text(POLICY)
    world.zgate.ask("policy", "reload")


def limit(world: World, limits: str) -> None:
    text = POLICY.replace(ALICE, f"{ALICE}    limits: {{{limits}}}\n", 1)
    world.zgate.policy_file.write_text(text)
    world.zgate.ask("policy", "reload")


def scan(namespace: str, host: Host, count: int) -> None:
    """So many flows: each packet comes from a port of its own."""
    for number in range(count):
        send_udp(namespace, host.ipv4, PORTS[number % len(PORTS)], [b"x"], count=1)


def dropped(world: World, reason: str) -> int:
    count: int = world.zgate.gateway_status()["drops"].get(reason, 0)
    return count


def denials(world: World, reason: str) -> list[dict[str, Any]]:
    told = world.zgate.ask("flows", "--denied", "--client", "alice")["denials"]
    return [one for one in told if one["reason"] == reason]


def test_a_client_that_scans_is_slowed_and_told_once_a_second(restored: World) -> None:
    office, zgate, reason = restored.internet.office, restored.zgate, "NEW_FLOW_LIMITED"
    limit(restored, f"new_flows_per_s: {FLOWS_PER_S}")
    with UdpEcho(office, ECHO_PORT), UdpClient(restored.alice, office.ipv4, ECHO_PORT) as known:
        assert known.ask(b"before") == b"before"
        drops, records = dropped(restored, reason), len(zgate.audit("flow_denied", reason=reason))
        flows = zgate.counters("alice")["up_packets"]
        began_s = time.monotonic()
        for _ in range(4):
            scan(restored.alice, office, 100)
            assert known.ask(b"open") == b"open"  # who has a flow does not notice
        took_s = time.monotonic() - began_s
        passed = zgate.counters("alice")["up_packets"] - flows
    assert passed <= FLOWS_PER_S * (took_s + 2) + 4
    told = wait_until(lambda: denials(restored, reason), 5, "a denial by name")
    records = len(zgate.audit("flow_denied", reason=reason)) - records
    assert 1 <= records <= took_s + 2
    newly = dropped(restored, reason) - drops
    assert newly > FLOWS_PER_S
    assert sum(1 + one["suppressed"] for one in told) <= dropped(restored, reason)
    assert zgate.ask("why", "alice", str(office.ipv4), "tcp/443")["limits"] == {
        "bandwidth_mbit": None,
        "new_flows_per_s": FLOWS_PER_S,
    }


def test_bandwidth_is_what_the_policy_says(restored: World) -> None:
    office, zgate, reason = restored.internet.office, restored.zgate, "RATE_LIMITED"
    limit(restored, f"bandwidth_mbit: {BANDWIDTH_MBIT}")
    before, drops = zgate.counters("alice")["up_bytes"], dropped(restored, reason)
    began_s = time.monotonic()
    send_udp(
        restored.alice, office.ipv4, ECHO_PORT, [bytes(1000)] * 3000,
        count=3000, duration_s=5, rate_per_s=1500,
    )  # fmt: skip
    wait_until(lambda: dropped(restored, reason) > drops + 1000, 5, "the limit to bite")
    took_s = time.monotonic() - began_s
    passed_bytes = zgate.counters("alice")["up_bytes"] - before
    assert BURST_BYTES / 2 < passed_bytes < BURST_BYTES + BANDWIDTH_MBIT * 125_000 * (took_s + 1)
    (told, *_) = wait_until(lambda: denials(restored, reason), 5, "a denial by name")
    assert told["client"] == "alice"
    limits = {one["name"]: one["limits"] for one in zgate.ask("clients")["clients"]}
    assert limits["alice"] == {"bandwidth_mbit": BANDWIDTH_MBIT, "new_flows_per_s": None}
    assert limits["bob"] == {"bandwidth_mbit": None, "new_flows_per_s": None}


def alerts(zgate: Deployment) -> set[str]:
    return {alert["name"] for alert in zgate.gateway_status()["alerts"]}


def test_tables_that_fill_up_are_told_and_refuse(
    deployment: Deployment, internet: Internet
) -> None:
    # Each processor keeps up to 128 free entries of the flow table for itself: in a smaller table
    # they would be so many that it need not look full.
    flows = 2048 * (os.cpu_count() or 1)
    small: dict[str, Any] = {"max_clients": 1, "max_flows": flows}
    gateway = deployment.start_gateway(limits=small, sessions={"max": 1})
    assert alerts(deployment) == set()
    deployment.start_agent("alice", internet.device1)
    for _ in range(8):  # what the agent's TUN does not hold while it waits for a core is lost
        scan(internet.device1.namespace.name, internet.office, (flows + 500) // 8)
        time.sleep(0.1)
    full = {"map_clients", "map_assignments", "map_flows"}
    wait_until(lambda: alerts(deployment) >= full, 30, "the alerts")
    begun = [line for line in gateway.output().splitlines() if "alert map_flows begins" in line]
    assert len(begun) == 1 and '"level": "warning"' in begun[0]
    # One more client than fits is refused, and that is counted.
    deployment.spawn_agent("bob", internet.device2)
    wait_until(
        lambda: deployment.gateway_status()["sessions_refused"], 15, "a refusal of the second"
    )
    assert deployment.agents["bob"].stop() == 0
    assert deployment.agents["alice"].stop() == 0
    wait_until(lambda: "map_clients" not in alerts(deployment), 30, "the relief")
    assert "alert map_clients ends" in gateway.output()
