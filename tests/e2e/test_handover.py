"""Sessions that are replaced by others under traffic, and nobody who uses them notices."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
from e2e_support.dns import NXDOMAIN, ask_dns
from e2e_support.world import POLICY, STREAM_PORT, World
from zgate_lab.deployment import CommandFailed, Deployment
from zgate_lab.process import Process
from zgate_lab.second_gateway import add_second_gateway
from zgate_lab.stream import TcpStream
from zgate_lab.traffic import PingResult, parse_ping
from zgate_lab.unix_http import get_json
from zgate_lab.waiting import SLOWNESS, wait_until

PING_INTERVAL_S = 0.05
#: Of a steady 20 a second: what may be under way when a session is replaced.
MAX_LOST = 3
BYTES_PER_S = 4e6
SOME_BYTES = 1 << 20


@contextmanager
def steady_ping(world: World, namespace: str) -> Iterator[Process]:
    """20 pings a second to the office, for as long as the block takes."""
    device = next(
        one for one in (world.internet.device1, world.internet.device2)
        if one.namespace.name == namespace
    )  # fmt: skip
    argv = ["ping", "-n", "-O", "-i", str(PING_INTERVAL_S), str(world.internet.office.ipv4)]
    process = device.namespace.spawn(f"ping-{device.namespace.role}", *argv)
    try:
        process.wait_for_output(r"icmp_seq=\d+ ttl", 5.0)
        yield process
    finally:
        if process.is_running():
            process.signal(2)
            process.wait(10.0)


@contextmanager
def two_streams(world: World) -> Iterator[tuple[TcpStream, TcpStream]]:
    """A download and an upload, which are whole at the end."""
    office = world.internet.office
    down, up = (
        TcpStream(
            world.alice,
            office,
            office.ipv4,
            STREAM_PORT + number,
            upload=bool(number),
            bytes_per_s=BYTES_PER_S,
        )
        for number in (0, 1)
    )
    with down, up:
        yield down, up
        for stream in (down, up):
            stream.finish()


def result_of(process: Process) -> PingResult:
    process.signal(2)
    process.wait(10.0)
    return parse_ping(process.output(), interval_s=PING_INTERVAL_S)


def renew(zgate: Deployment, name: str) -> str:
    """Replace the agent's certificate and key, and wait for its new session; the session's ID."""
    before = zgate.sessions()[name]
    zgate.issue(name, "client", "--replace")

    def renewed() -> str:
        now = zgate.sessions().get(name, before)
        is_another = now["certificate_serial"] != before["certificate_serial"]
        return str(now["session_id"]) if is_another else ""

    return wait_until(renewed, 10.0, f"a session of {name} with the new certificate")


@pytest.mark.parametrize("engine", ["native", "python"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_renewed_certificate_is_not_noticed(
    deployment: Deployment, engine: str, workers: int
) -> None:
    zgate, internet = deployment, deployment.internet
    world = World(internet, zgate, internet.start_web_server(internet.office))
    zgate.start_gateway(engine=engine, workers=workers)
    first = zgate.start_agent("alice", internet.device1, engine=engine)
    with two_streams(world) as streams, steady_ping(world, world.alice) as pings:
        for _ in range(3):
            renew(zgate, "alice")
            session = zgate.sessions()["alice"]
            assert session["addresses"] == first["addresses"]
            for stream in streams:
                stream.wait_for_more(SOME_BYTES, 10.0)
        result = result_of(pings)
    print(f"{engine}, {workers} workers: {result.lost} of {result.sent} pings lost")
    assert result.lost <= MAX_LOST, result.output
    assert re.search(r"DUP!", result.output) is None
    status = zgate.agent_status("alice")
    assert status["reconnects"] == 3
    assert status["renewal_problem"] == ""
    drops = zgate.gateway_status()["drops"]
    assert "NO_CLIENT" not in drops, drops
    downs = zgate.audit("session_down", client="alice")
    assert {one["cause"] for one in downs} <= {
        "replaced by a newer session of the same client",
        "renewed",
    }
    # What was counted for the client went on, and each session tells its own part.
    assert all(one["up_bytes"] > 0 and one["down_bytes"] > 0 for one in downs)
    assert sum(one["down_bytes"] for one in downs) <= zgate.counters("alice")["down_bytes"]


#: From a gateway that is ready until agents are back, beside what they wait for by themselves.
BACK_WITHIN_S = 2.0
#: So long agents try often after a goodbye (`zgate_host.backoff`); an overloaded machine's gateway
#: takes longer to start.
GOODBYE_HELPS_S = 15.0


@pytest.fixture
def service_manager(tmp_path: Path) -> Iterator[str]:
    """The address of somebody who is told what a service does, and listens."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)

        def listen() -> None:
            while sock.recv(4096) != b"enough":
                pass

        listener = threading.Thread(target=listen)
        listener.start()
        try:
            yield address
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
                last.sendto(b"enough", address)
            listener.join()


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_restart_is_survived_by_open_connections(
    deployment: Deployment, service_manager: str, how: str
) -> None:
    """Downloads, too, of which the client says nothing while it waits."""
    zgate, internet = deployment, deployment.internet
    world = World(internet, zgate, internet.start_web_server(internet.office))
    # By hand, everything would be put back as it was, and nothing held for the next start.
    zgate.environment["NOTIFY_SOCKET"] = service_manager
    gateway = zgate.start_gateway()
    before = {
        name: zgate.start_agent(name, device)["addresses"]
        for name, device in (("alice", internet.device1), ("bob", internet.device2))
    }
    with two_streams(world) as streams:
        for stream in streams:
            stream.wait_for_more(SOME_BYTES, 10.0)
        # Bob says nothing: who was there is known to the next gateway, too, a second later.
        paths = zgate.directory / "run" / "clients.json"
        wait_until(
            lambda: paths.exists() and len(json.loads(paths.read_bytes())) == len(before),
            5.0,
            "the paths of both clients",
        )
        ended_s = time.monotonic()
        gateway.stop() if how == "stopped" else gateway.kill()
        left = internet.gateway.namespace.run("nft", "list", "tables").stdout.split()
        assert ("zgate_hold" in left) == (how == "stopped")
        zgate.start_gateway()
        ready_s = time.monotonic()
        # Who was told nothing tries less and less often; after a goodbye nobody does, for a while.
        told = [zgate.agent_status(name).get("next_attempt_s") or 0.0 for name in before]
        is_patient = how == "killed" or ready_s - ended_s > GOODBYE_HELPS_S
        # An agent may not have noticed yet: it tries again after one or two seconds.
        waits_s = max(2.0, *told) if is_patient else 0.0
        for name, addresses in before.items():
            session = zgate.wait_connected(name, zgate.agents[name])
            assert session["addresses"] == addresses
        assert time.monotonic() - ready_s < waits_s + BACK_WITHIN_S * SLOWNESS
        for stream in streams:
            # The server tries again after a while that grew while nobody answered.
            stream.wait_for_more(SOME_BYTES, 60.0)
    drops = zgate.gateway_status()["drops"]
    # The flows are known a moment after their client is: a server that tries again just then is
    # not heard that once, and waits for so much longer that it is not twice.
    assert drops.get("UNSOLICITED", 0) <= len(streams), drops


def test_a_goodbye_is_heeded_at_once(deployment: Deployment) -> None:
    """Who was told that the gateway stops asks again and again, and not slower each time."""
    zgate, internet = deployment, deployment.internet
    gateway = zgate.start_gateway()
    agent = zgate.start_agent("alice", internet.device1)
    assert agent["addresses"]
    gateway.stop()
    zgate.wait_agent("alice", "backoff")
    for _ in range(5):
        status = zgate.wait_agent("alice", "backoff")
        assert status["next_attempt_s"] <= 0.7
        assert status["addresses"] and status["routes"], "nothing leaves beside the tunnel"
        attempt = zgate.agents["alice"].output().count("connecting to")
        zgate.agents["alice"].wait_for(
            lambda attempt=attempt: zgate.agents["alice"].output().count("connecting to") > attempt,
            5.0,
        )


def test_a_client_that_is_displaced_by_another_begins_no_fight(deployment: Deployment) -> None:
    """The same certificate on two devices: the newer one has the session, the older one waits."""
    zgate, internet = deployment, deployment.internet
    zgate.start_gateway()
    first = zgate.spawn_agent("alice", internet.device1)
    zgate.wait_connected("alice", first)
    runtime = {"runtime_dir": str(zgate.directory / "second-run")}
    second = zgate.spawn_agent("alice", internet.device2, **runtime)
    wait_until(lambda: len(zgate.audit("session_up", client="alice")) == 2, 10.0, "the second")
    status = wait_until(
        lambda: get_json(zgate.directory / "alice-run" / "agent.sock", "/v1/status"),
        5.0,
        "the first agent's status",
    )

    def is_waiting() -> bool:
        nonlocal status
        status = get_json(zgate.directory / "alice-run" / "agent.sock", "/v1/status") or {}
        return bool(status.get("state") == "backoff")

    wait_until(is_waiting, 5.0, "the first agent to wait")
    assert status["reason"] == "replaced by a newer session of the same client"
    assert 50 < status["next_attempt_s"] <= 75
    assert second.is_running()
    assert len(zgate.audit("session_up", client="alice")) == 2


@pytest.fixture
def pair(deployment: Deployment) -> Iterator[tuple[Deployment, Deployment]]:
    """Two gateways of the same authority."""
    first, internet = deployment, deployment.internet
    second = Deployment(internet, POLICY, add_second_gateway(internet))
    second.pki = first.pki
    second.issue_own()
    for one in (first, second):
        one.start_gateway()
    yield first, second
    second.stop()


def gateways_of(*deployments: Deployment) -> list[str]:
    return [f"{one.host.ipv4}:443" for one in deployments]


def wait_at(agent: Deployment, gateway: Deployment) -> None:
    """Wait until alice has a session there, and packets pass."""
    wait_until(lambda: "alice" in gateway.sessions(), 20.0, f"alice at {gateway.name}")
    wait_until(
        lambda: (
            agent.is_connected("alice")
            and agent.agent_status("alice")["gateway"] == gateways_of(gateway)[0]
        ),
        10.0,
        "the agent to say so",
    )
    device = agent.internet.device1.namespace.name
    asked = ask_dns(device, ip_address("10.100.0.1"), "nobody.zgate.internal")
    assert asked.code == NXDOMAIN


def test_a_drained_gateway_is_left_and_a_killed_one_too(
    pair: tuple[Deployment, Deployment],
) -> None:
    first, second = pair
    config = first.agent_config("alice")
    del config["gateway"]
    first.spawn_agent_with(
        "alice", first.internet.device1, {**config, "gateways": gateways_of(*pair)}
    )
    wait_at(first, first)

    answer = first.ask("drain", "--deadline", "20")
    assert (answer["drain"]["sessions_left"], answer["drain"]["is_over"]) == (0, False)
    wait_at(first, second)
    status = first.gateway_status()
    assert (status["state"], status["sessions"]) == ("draining", 0)
    assert status["drain"]["deadline_s"] == 20
    assert not get_json(first.socket, "/ready"), "it is not ready for a load balancer"
    [down] = first.audit("session_down", client="alice")
    assert down["cause"] == "renewed", "the agent left by itself, when it was elsewhere already"
    assert first.audit("gateway_drained", sessions=1)

    # The first one takes nobody; when the second ends too, the agent waits for either.
    second_gateway = second.gateway
    assert second_gateway is not None
    second_gateway.stop()
    first.wait_agent("alice", "backoff")
    wait_until(
        lambda: "the gateway is draining" in first.agent_status("alice")["reason"],
        10.0,
        "the refusal in the agent's status",
    )
    assert first.ask("drain", "--undo")["drain"] is None
    wait_at(first, first)


def test_who_knows_one_gateway_only_stays_until_the_deadline(deployment: Deployment) -> None:
    zgate, internet = deployment, deployment.internet
    zgate.start_gateway()
    zgate.start_agent("alice", internet.device1)
    with pytest.raises(CommandFailed, match="1 session had to be closed"):
        zgate.run("--socket", str(zgate.socket), "drain", "--deadline", "1.5")
    told = zgate.wait_agent("alice", "backoff")
    assert "drain" in told["reason"]
    with pytest.raises(CommandFailed, match="status 1"):
        zgate.run_agent("status", "--runtime-dir", str(zgate.directory / "alice-run"))
    zgate.run("--socket", str(zgate.socket), "drain", "--undo")
    zgate.wait_connected("alice", zgate.agents["alice"])


def test_the_next_gateway_is_tried_when_the_first_is_dead(
    pair: tuple[Deployment, Deployment],
) -> None:
    first, second = pair
    config = first.agent_config("alice")
    del config["gateway"]
    impatient = {"gateways": gateways_of(*pair), "connect_timeout_s": 2.0}
    first.spawn_agent_with("alice", first.internet.device1, {**config, **impatient})
    wait_at(first, first)
    assert first.gateway is not None
    first.gateway.stop()
    wait_at(first, second)
    # It stays there, though the first is back: what is open would not survive going back.
    first.start_gateway()
    first.agents["alice"].signal(signal.SIGHUP)
    wait_at(first, first)
