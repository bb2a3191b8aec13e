"""Several workers: packets reach their owner, and the death of one is none of the others'."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from e2e_support.world import World, prepare
from zgate_lab.deployment import BIN, Deployment
from zgate_lab.internet import Internet
from zgate_lab.traffic import ping
from zgate_lab.waiting import wait_until

WORKERS = 2
BOTH_MAY = """\
version: "1.0"
metadata: {name: both}
default_action: deny
clients:
  alice: {rules: [{id: office, type: ip_cidr, action: allow, destinations: [10.20.0.0/24]}]}
  bob: {rules: [{id: office, type: ip_cidr, action: allow, destinations: [10.20.0.0/24]}]}
"""
# A dead worker's kernel entries are gone, and its successor is there: what is promised.
FAIL_CLOSED_S = 1.0
RESTART_S = 1.0
NOTICE_S = 6.0


@pytest.fixture(scope="module")
def world(own_world: World) -> Iterator[World]:
    zgate = own_world.zgate
    assert zgate.gateway is not None
    zgate.gateway.stop()
    zgate.policy_file.write_text(BOTH_MAY)
    zgate.start_gateway(workers=WORKERS)
    yield own_world


@pytest.fixture
def apart(world: World) -> World:
    """Alice and Bob on different workers."""
    world.connect_all()
    zgate = world.zgate
    for _ in range(40):
        sessions = zgate.sessions()
        if sessions["alice"]["worker"] != sessions["bob"]["worker"]:
            return world
        zgate.reconnect("bob")
    raise AssertionError("the kernel's hash gives all clients to one worker")


def workers(zgate: Deployment) -> dict[int, dict[str, Any]]:
    return {one["worker"]: one for one in zgate.gateway_status()["workers"]}


def assert_none_misdirected(zgate: Deployment) -> None:
    assert [one["misdirected_packets"] for one in workers(zgate).values()] == [0] * WORKERS


def test_each_worker_has_its_sessions_and_its_packets(apart: World) -> None:
    zgate = apart.zgate
    found = workers(zgate)
    assert sorted(found) == [0, 1]
    # Who has dialled again leaves the session of before when the new one carries, not at once.
    wait_until(
        lambda: [one["sessions"] for one in workers(zgate).values()] == [1, 1],
        5.0,
        "one session on each worker",
    )
    assert len({one["pid"] for one in found.values()} | {zgate.gateway_status()["pid"]}) == 3
    assert zgate.gateway_status()["sessions"] == 2
    for device in (apart.alice, apart.bob):
        assert ping(device, apart.internet.office.ipv4, count=20).lost == 0
    assert_none_misdirected(zgate)


def test_workers_carry_no_compiler_no_database_and_no_models(apart: World) -> None:
    for one in workers(apart.zgate).values():
        maps = Path(f"/proc/{one['pid']}/maps").read_text()
        assert "libbcc" not in maps
        assert "sqlite" not in maps
        assert "pydantic" not in maps


def test_a_dead_worker_takes_nobody_with_it(apart: World) -> None:
    zgate = apart.zgate
    sessions = zgate.sessions()
    before, victim = sessions["alice"], workers(zgate)[sessions["alice"]["worker"]]
    other = next(one for one in workers(zgate).values() if one["pid"] != victim["pid"])
    entries = zgate.gateway_status()["kernel_maps"]["clients"]["used"]

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            ping, apart.bob, apart.internet.office.ipv4, count=150, interval_s=0.02
        )
        os.kill(victim["pid"], signal.SIGKILL)
        wait_until(
            lambda: (
                zgate.gateway_status()["kernel_maps"]["clients"]["used"] == entries - 2
                or zgate.sessions().get("alice", before)["session_id"] != before["session_id"]
            ),
            FAIL_CLOSED_S,
            "the dead worker's entries to go",
        )
        fresh = wait_until(
            lambda: workers(zgate)[victim["worker"]]["pid"] not in (None, victim["pid"]),
            RESTART_S,
            "another process",
        )
        assert fresh
        # By a stateless reset: idle timeouts are of 30 seconds, keepalives of 10.
        zgate.agents["alice"].wait_for_output("stateless reset", NOTICE_S)
        after = zgate.wait_connected("alice", zgate.agents["alice"])
        assert running.result().lost == 0
    assert after["addresses"] == before["addresses"]
    assert ping(apart.alice, apart.internet.office.ipv4).lost == 0
    found = workers(zgate)
    assert found[victim["worker"]]["restarts"] >= 1
    assert found[other["worker"]] == {**other, "sessions": found[other["worker"]]["sessions"]}
    # The last one of that number: numbers begin anew with a gateway.
    downs = zgate.audit("session_down", client="alice", session=before["session_id"])
    assert downs[-1]["cause"] == "its worker process has ended"
    assert_none_misdirected(zgate)


def test_packets_follow_a_client_that_moves(apart: World) -> None:
    """Another address and port is another hash, and another socket but for the connection ID."""
    zgate = apart.zgate
    before = zgate.sessions()["alice"]
    for host in (81, 82, 83, 84):
        moved = apart.internet.move_device(apart.internet.device1, host)
        wait_until(
            lambda address=f"{moved.ipv4}:": zgate.sessions()["alice"]["peer"].startswith(address),  # type: ignore[misc]
            10.0,
            "the gateway to follow",
        )
        assert ping(apart.alice, apart.internet.office.ipv4, count=5).received >= 4
    after = zgate.sessions()["alice"]
    assert (after["session_id"], after["worker"]) == (before["session_id"], before["worker"])
    assert_none_misdirected(zgate)


def test_a_session_that_moves_to_another_worker_keeps_its_addresses(apart: World) -> None:
    zgate = apart.zgate
    before = zgate.sessions()["bob"]
    for _ in range(40):
        after = zgate.reconnect("bob")
        assert after["addresses"] == before["addresses"]
        assert ping(apart.bob, apart.internet.office.ipv4).lost == 0
        if after["worker"] != before["worker"]:
            break
    else:
        raise AssertionError("it never moved")
    assert_none_misdirected(zgate)


def test_workers_end_with_their_supervisor(apart: World) -> None:
    zgate = apart.zgate
    pids = [one["pid"] for one in workers(zgate).values()]
    printed = {name: len(zgate.agents[name].output()) for name in ("alice", "bob")}
    gateway = apart.gateway
    gateway.signal(signal.SIGKILL)
    gateway.wait(5.0)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 10.0, "their end")
    assert "zgate0" not in apart.internet.gateway.namespace.run("ip", "-o", "link").stdout
    # The next gateway is there at once, and tells the agents of the last one.
    zgate.start_gateway(workers=WORKERS)
    for name, device in (("alice", apart.alice), ("bob", apart.bob)):
        agent = zgate.agents[name]
        ping(device, apart.internet.office.ipv4, count=1, timeout_s=0.2)
        # By a stateless reset, or sooner: by path MTU probes that were under way.
        agent.wait_for(
            lambda agent=agent, name=name: "not connected" in agent.output()[printed[name] :],  # type: ignore[misc]
            NOTICE_S,
            "the end of its connection",
        )
    apart.connect_all()
    assert ping(apart.alice, apart.internet.office.ipv4).lost == 0


def test_a_second_gateway_does_not_join_the_device(apart: World) -> None:
    """It could be shared now: that is for workers of one gateway."""
    zgate = apart.zgate
    second = zgate.directory / "second.yaml"
    own = {
        "state_dir": str(zgate.directory / "second-state"),
        "runtime_dir": str(zgate.directory / "second-run"),
        "socket_path": str(zgate.directory / "second.sock"),
        "audit": {"path": str(zgate.directory / "second-audit.jsonl")},
    }
    second.write_text(json.dumps({**zgate.gateway_config(), **own}))
    process = apart.internet.gateway.namespace.spawn(
        "second", BIN / "zgate-gateway", "--config", second
    )
    assert process.wait(30.0) == 1
    assert "an interface zgate0 exists" in process.output()
    # Its own workers went with it, and said nothing.
    assert "Traceback" not in process.output()
    assert ping(apart.alice, apart.internet.office.ipv4).lost == 0


def test_one_worker_is_a_worker_too(internet: Internet, identities: Path) -> None:
    deployment = prepare(internet, identities)
    deployment.start_gateway(workers=1)
    deployment.start_agent("alice", internet.device1)
    (only,) = deployment.gateway_status()["workers"]
    assert (only["worker"], only["sessions"]) == (0, 1)
    assert deployment.stop()["gateway"] == 0
