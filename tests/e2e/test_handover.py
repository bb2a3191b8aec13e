"""Sessions that are replaced by others under traffic, and nobody who uses them notices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from e2e_support.world import STREAM_PORT, World
from zgate_lab.deployment import Deployment
from zgate_lab.process import Process
from zgate_lab.stream import TcpStream
from zgate_lab.traffic import PingResult, parse_ping
from zgate_lab.waiting import wait_until

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
    process = device.namespace.spawn("ping", *argv)
    try:
        process.wait_for_output(r"icmp_seq=\d+ ttl", 5.0)
        yield process
    finally:
        if process.is_running():
            process.signal(2)
            process.wait(10.0)


def result_of(process: Process) -> PingResult:
    process.signal(2)
    process.wait(10.0)
    return parse_ping(process.output())


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
    seen_workers = {first["worker"]}
    office = internet.office
    streams = [
        TcpStream(
            world.alice,
            office,
            office.ipv4,
            STREAM_PORT + n,
            upload=bool(n),
            bytes_per_s=BYTES_PER_S,
        )
        for n in (0, 1)
    ]
    with streams[0] as down, streams[1] as up, steady_ping(world, world.alice) as pings:
        for _ in range(3):
            renew(zgate, "alice")
            session = zgate.sessions()["alice"]
            seen_workers.add(session["worker"])
            assert session["addresses"] == first["addresses"]
            for stream in (down, up):
                stream.wait_for_more(SOME_BYTES, 10.0)
        result = result_of(pings)
        for stream in (down, up):
            stream.finish()
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
