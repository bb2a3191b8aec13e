"""zgatectl against a gateway that runs: answers, exit codes, and who may ask."""

from __future__ import annotations

import grp
import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_support.world import World
from zgate_gateway.api import schemas
from zgate_lab.deployment import BIN, CommandFailed, Deployment
from zgate_lab.waiting import wait_until

NOBODY = 65534
SOCKET_GROUP = "daemon"
FAILED, BAD_INPUT, NOT_REACHABLE = 1, 2, 4


@pytest.fixture(scope="module")
def world(own_world: World) -> World:
    return own_world


def zgatectl(world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [BIN / "zgatectl", "--socket", world.zgate.socket, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


# Answers.


def test_status_tells_what_is_true(world: World) -> None:
    status = schemas.Status.model_validate(world.zgate.ask("status"))
    assert (status.state, status.not_ready_because) == (schemas.GatewayState.READY, [])
    assert status.pid == world.gateway.pid
    assert (status.sessions, status.sessions_total) == (2, 2)
    assert (status.tun_name, status.tun_mtu_bytes) == ("zgate0", 1420)
    assert {pool.family: pool.connected for pool in status.pools} == {4: 2, 6: 2}
    assert (status.policy.revision, status.policy.clients, status.policy.groups) == (1, 2, 1)
    assert status.policy.source == str(world.zgate.policy_file)
    assert status.kernel_maps["clients"].used == 4
    assert status.kernel_events.lost == 0
    assert status.audit is not None
    assert (status.audit.path, status.audit.lost) == (str(world.zgate.audit_file), 0)


def test_sessions_tells_who_is_there(world: World) -> None:
    answer = schemas.SessionList.model_validate(world.zgate.ask("sessions"))
    alice, bob = answer.sessions
    assert (alice.client, bob.client) == ("alice", "bob")
    assert alice.peer.rpartition(":")[0] == str(world.internet.device1.ipv4)
    assert alice.addresses == world.zgate.agent_status("alice")["addresses"]
    assert (alice.scope_target, alice.scope_protocol) == ("*", None)
    assert alice.mtu_bytes == 1420
    assert alice.rtt_ms is not None
    assert 0 < alice.rtt_ms < 1000
    assert len(alice.certificate_serial) == 40
    assert alice.session_id != bob.session_id


def test_clients_tells_of_those_too_who_are_not_there(world: World) -> None:
    answer = schemas.ClientList.model_validate(world.zgate.ask("clients"))
    by_name = {one.name: one for one in answer.clients}
    assert set(by_name) == {"alice", "bob"}
    assert (by_name["alice"].connected, by_name["alice"].rules) == (True, 3)
    assert len(by_name["alice"].addresses) == 2
    assert by_name["alice"].counters is not None
    world.zgate.agents["bob"].stop()
    wait_until(lambda: "bob" not in world.zgate.sessions(), 10.0, "bob to be gone")
    try:
        [bob] = [one for one in world.zgate.ask("clients")["clients"] if one["name"] == "bob"]
        assert (bob["connected"], bob["counters"], bob["in_policy"]) == (False, None, True)
        assert bob["addresses"] == [str(one) for one in by_name["bob"].addresses]
    finally:
        world.zgate.start_agent("bob", world.internet.device2)


def test_policy_show_has_every_rule_with_its_line(world: World) -> None:
    view = schemas.PolicyView.model_validate(world.zgate.ask("policy", "show"))
    ids = {name: [rule.rule_id for rule in rules] for name, rules in view.clients.items()}
    assert ids == {
        "alice": ["allow-office-web", "allow-office-udp", "allow-office-ping"],
        "bob": ["deny-office"],
    }
    assert [rule.rule_id for rule in view.groups["staff"]] == ["staff-ping"]
    lines = world.zgate.policy_file.read_text().splitlines()
    for rule in (one for rules in view.clients.values() for one in rules):
        assert rule.line is not None
        assert rule.rule_id in lines[rule.line - 1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status"], ["ready", "zgate0", "2 of 10000", "revision 1"]),
        (["sessions"], ["alice", "bob", "10.100.0.2", "fd7a:7a67:6174:65::2"]),
        (["clients"], ["alice", "bob", "connected"]),
        (["policy", "show"], ["client alice", "deny-office", "group staff"]),
        (["why", "bob", "10.20.0.5", "tcp/443"], ["policy says", "kernel says", "deny-office"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_people_see(world: World, arguments: list[str], words: list[str]) -> None:
    ended = zgatectl(world, *arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    for word in words:
        assert word in ended.stdout


# Kick.


def test_kick_closes_the_session_and_the_client_may_come_back(world: World) -> None:
    before = world.zgate.sessions()["bob"]
    answer = schemas.Kick.model_validate(world.zgate.ask("kick", "bob", "--reason", "a test"))
    assert (answer.client, answer.sessions_closed) == ("bob", 1)
    assert [one.split("/")[0] for one in before["addresses"]] == answer.addresses
    down = world.zgate.wait_audit("session_down", session=before["session_id"])
    assert down["cause"] == "kicked: a test"
    assert world.zgate.audit("client_kicked", client="bob", reason="a test")
    agent = world.zgate.agents["bob"]
    agent.wait_for_output("kicked: a test", 5.0)
    agent.wait_for(lambda: "bob" in world.zgate.sessions(), 15.0, "bob to be back")
    after = world.zgate.wait_connected("bob", agent)
    assert after["addresses"] == before["addresses"]
    assert after["session_id"] != before["session_id"]


# Errors.


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["kick", "nobody"], FAILED, "nobody has no session"),
        (["why", "nobody", "10.20.0.5"], FAILED, "no client is called nobody"),
        (["why", "alice", "10.0.0.0/8"], BAD_INPUT, "is no IP address"),
        (["why", "alice", "10.20.0.5", "tcp"], BAD_INPUT, "needs a port"),
        (["policy", "check", "/nowhere/policy.yaml"], BAD_INPUT, "/nowhere/policy.yaml"),
        (["kick", "alice", "--reason", "x" * 201], BAD_INPUT, "200 characters"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_exit_codes(world: World, arguments: list[str], code: int, words: str) -> None:
    ended = zgatectl(world, *arguments)
    assert ended.returncode == code
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "alice" in world.zgate.sessions()


@pytest.mark.parametrize("command", ["status", "sessions", "clients"])
def test_exit_code_4_without_a_gateway(world: World, tmp_path: Path, command: str) -> None:
    nowhere = tmp_path / "no.sock"
    with pytest.raises(CommandFailed) as failed:
        world.zgate.run("--socket", str(nowhere), command)
    assert failed.value.status == NOT_REACHABLE
    assert f"there is no socket {nowhere}" in failed.value.output


# Who may ask.


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that anybody may enter, so that only the socket's own mode is in the way."""
    folder = Path(tempfile.mkdtemp(prefix="zgate-e2e-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def connect_as(socket_path: Path, user: int, group: int) -> int:
    """The error number (0: none) of a connection by an account without privileges."""
    script = (
        "import os,socket,sys\n"
        f"os.setgroups([]); os.setgid({group}); os.setuid({user})\n"
        "print(socket.socket(socket.AF_UNIX).connect_ex(sys.argv[1]))\n"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-c", script, socket_path],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return int(done.stdout)


def test_only_root_and_the_group_open_the_socket(
    deployment: Deployment, public_folder: Path
) -> None:
    deployment.socket = public_folder / "gateway.sock"
    deployment.start_gateway(socket_group=SOCKET_GROUP)
    found = deployment.socket.stat()
    group = grp.getgrnam(SOCKET_GROUP).gr_gid
    assert stat.S_IMODE(found.st_mode) == 0o660
    assert (found.st_uid, found.st_gid) == (0, group)
    assert connect_as(deployment.socket, NOBODY, NOBODY) == 13, os.strerror(13)
    assert connect_as(deployment.socket, NOBODY, group) == 0
    probe: Any = json.loads(deployment.run("--socket", str(deployment.socket), "status", "--json"))
    assert probe["state"] == "ready"


def test_without_the_group_only_root_does(deployment: Deployment, public_folder: Path) -> None:
    deployment.socket = public_folder / "gateway.sock"
    gateway = deployment.start_gateway(socket_group="no-such-group")
    assert stat.S_IMODE(deployment.socket.stat().st_mode) == 0o600
    assert connect_as(deployment.socket, NOBODY, NOBODY) == 13
    # A killed gateway leaves its socket, and nobody listens.
    gateway.kill()
    assert deployment.socket.exists()
    with pytest.raises(CommandFailed) as failed:
        deployment.ask("status")
    assert failed.value.status == NOT_REACHABLE
    assert "nobody listens" in failed.value.output
