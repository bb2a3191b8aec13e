"""Flows as they are seen, and the audit log as it is proved, on a real gateway."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2e_support.world import ECHO_PORT, World
from zgate_lab.deployment import BIN, Deployment
from zgate_lab.echo import UdpClient, UdpEcho
from zgate_lab.traffic import send_udp
from zgate_lab.waiting import wait_until

UDP = 17


@contextmanager
def following(zgate: Deployment, log: Path, *arguments: str) -> Iterator[None]:
    """`zgatectl flows --follow --json`, its lines in a file, while the body runs."""
    command = [BIN / "zgatectl", "--socket", zgate.socket, "flows", "--follow", "--json"]
    with log.open("wb") as output:
        process = subprocess.Popen([*command, *arguments], stdout=output)
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def news_in(log: Path, **fields: Any) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_bytes().split(b"\n")[:-1]]
    return [one for one in lines if all(one.get(name) == fields[name] for name in fields)]


def test_an_open_flow_is_shown_with_its_rule(world: World) -> None:
    office = world.internet.office
    with UdpEcho(office, ECHO_PORT), UdpClient(world.alice, office.ipv4, ECHO_PORT) as client:
        assert client.ask(b"hello") == b"hello"
        port = client.socket.getsockname()[1]
    flows = world.zgate.ask("flows", "--client", "alice")["flows"]
    (flow,) = [one for one in flows if one["client_port"] == port]
    assert (flow["protocol"], flow["remote_port"], flow["stage"]) == (UDP, ECHO_PORT, "answered")
    assert (flow["client"], flow["rule_id"]) == ("alice", "allow-office-udp")
    assert (flow["remote_address"], flow["idle_s"] < 60) == (str(office.ipv4), True)
    assert world.zgate.ask("flows", "--client", "bob")["flows"] == []


def test_denials_are_shown_as_they_happen_and_afterwards(world: World, tmp_path: Path) -> None:
    office, log = world.internet.office, tmp_path / "news"
    port = 5900

    def denied() -> list[dict[str, Any]]:
        # Following begins at some moment: until then each attempt has a port of its own.
        nonlocal port
        port += 1
        send_udp(world.bob, office.ipv4, port, [b"x"], count=1)
        return news_in(log, kind="denied", client="bob", rule_id="deny-office")

    with following(world.zgate, log, "--client", "bob"):
        first, *_ = wait_until(denied, 10, "a denial")
    assert (first["reason"], first["protocol"]) == ("POLICY_RULE", UDP)
    assert first["destination"] == str(office.ipv4)
    assert news_in(log, client="alice") == []
    last = world.zgate.ask("flows", "--denied", "--client", "bob")["denials"]
    assert first["destination_port"] in [one["destination_port"] for one in last]


def verify(zgate: Deployment, *arguments: str) -> Any:
    files = sorted(str(path) for path in zgate.directory.glob("audit.jsonl*"))
    return json.loads(zgate.run("audit", "verify", *files, *arguments, "--json"))


def test_the_audit_log_is_proved_over_restarts_rotation_and_a_kill(deployment: Deployment) -> None:
    state = deployment.directory / "state"
    trust = ["--public-key", str(state / "audit.pub")]
    gateway = deployment.start_gateway()
    assert verify(deployment, *trust)["intact"]
    deployment.audit_file.rename(deployment.directory / "audit.jsonl.1")
    gateway.signal(signal.SIGHUP)
    wait_until(deployment.audit_file.exists, 5, "the next audit file")
    assert gateway.stop() == 0
    deployment.start_gateway().kill()
    deployment.start_gateway(audit={"path": str(deployment.audit_file), "max_bytes": 65536})
    assert verify(deployment, *trust)["intact"]
    assert deployment.gateway is not None and deployment.gateway.stop() == 0
    report = verify(deployment, *trust, "--head", str(state / "audit.head"), "--sealed")
    assert (report["first_seq"], report["last_seq"]) == (1, report["records"])
    assert report["signed_heads"] == 3 and report["signed_seq"] == report["last_seq"]
    assert [Path(file).name for file in report["files"]] == ["audit.jsonl.1", "audit.jsonl"]
