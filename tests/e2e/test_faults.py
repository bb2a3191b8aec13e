"""What is around the gateway breaks: its sessions go on, it says what is wrong, and it recovers.

Each test breaks one thing for real while a TCP stream of alice's runs through the tunnel.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic.configuration import QuicConfiguration
from e2e_support.faults import FaultyWorld, Watched, open_faulty_world, session_ids
from zgate_identity.authority import CertificateAuthority
from zgate_identity.profile import Usage
from zgate_lab.deployment import SERVER_NAME, CommandFailed
from zgate_lab.namespace import call_in
from zgate_lab.waiting import SLOWNESS, wait_until

HOUR = timedelta(hours=1)
#: Nothing that is broken here is in a packet's way.
LONGEST_PAUSE_S = 2.0 * SLOWNESS


@pytest.fixture(scope="module")
def world(identities: Path) -> Iterator[FaultyWorld]:
    with open_faulty_world(identities) as made:
        yield made


@contextmanager
def sessions_go_on(world: FaultyWorld) -> Iterator[Watched]:
    """alice's session is the same one at the end, and her stream never stood still for long."""
    world.connect_all()
    world.wait_all_is_well()
    before = session_ids(world.zgate)["alice"]
    with Watched(world) as stream:
        yield stream
        stream.finish()
        print(f"the stream's longest pause: {stream.longest_pause_s:.2f} s")
        assert stream.longest_pause_s < LONGEST_PAUSE_S
    assert session_ids(world.zgate)["alice"] == before
    assert "Traceback" not in world.log()


@contextmanager
def newcomer(world: FaultyWorld, name: str) -> Iterator[None]:
    """A client that the gateway has never seen, on bob's device."""
    if not (world.zgate.directory / name).exists():
        world.zgate.issue(name, "client")
    world.zgate.spawn_agent(
        name, world.internet.device2, tun={"name": f"zg-{name}"}, routes=["10.66.0.0/24"]
    )
    try:
        yield
    finally:
        world.zgate.agents.pop(name).stop()


def test_a_full_disk(world: FaultyWorld) -> None:
    zgate = world.zgate
    with sessions_go_on(world):
        world.sql("PRAGMA wal_checkpoint(TRUNCATE)")  # what comes next needs new room
        with world.full_disk():
            assert "0.0 of 4 MiB are free" in world.wait_alert("disk_full")
            addresses = zgate.sessions()["bob"]["addresses"]
            assert zgate.reconnect("bob")["addresses"] == addresses
            wait_until(lambda: loses_records(world), 30.0, "records that do not fit")
            assert "No space left" in world.wait_alert("audit_not_written")
            assert "the disk is full" in world.wait_alert("store_unavailable")
            assert "store_unavailable" in " ".join(zgate.gateway_status()["not_ready_because"])
            with newcomer(world, "dora"):
                reason = zgate.wait_agent("dora", "backoff")["reason"]
                assert "the gateway cannot take clients" in reason
            # The policy is elsewhere: a hole in it can be closed all the same.
            revision = zgate.gateway_status()["policy"]["revision"]
            text = zgate.policy_file.read_text()
            zgate.policy_file.write_text(text.replace("name: e2e", "name: closed"))
            wait_until(
                lambda: zgate.gateway_status()["policy"]["revision"] == revision + 1,
                10.0,
                "the new revision",
            )
        world.wait_all_is_well()
        with newcomer(world, "dora"):
            zgate.wait_connected("dora", zgate.agents["dora"])
        assert world.audited("audit_lost")
        history = zgate.ask("policy", "history")["revisions"]
        assert (history[0]["revision"], history[0]["has_text"]) == (revision + 1, True)
    zgate.run("audit", "verify", str(zgate.audit_file))


def loses_records(world: FaultyWorld) -> bool:
    """What fits into the last block of a file is still written: come again until it does not."""
    world.zgate.reconnect("bob")
    return bool(world.zgate.gateway_status()["audit"]["lost"])


def test_a_read_only_state_directory(world: FaultyWorld) -> None:
    with sessions_go_on(world):
        with world.read_only_state():
            assert "Read-only file system" in world.wait_alert("state_not_writable")
            assert world.zgate.reconnect("bob")
        world.wait_all_is_well()


def test_the_store_is_deleted(world: FaultyWorld) -> None:
    state = world.inside(world.state)
    with sessions_go_on(world):
        history = world.zgate.ask("policy", "history")
        for file in state.glob("zgate.db*"):
            file.unlink()
        wait_until((state / "zgate.db").exists, 10.0, "the store")
        assert "alert store_unavailable begins" in world.log()
        assert "its file was deleted" in world.log()
        world.wait_all_is_well()
        assert world.zgate.ask("policy", "history") == history  # what only the file knew, too
        with newcomer(world, "erik"):
            world.zgate.wait_connected("erik", world.zgate.agents["erik"])
        assert {"alice", "bob", "erik"} <= set(world.sql("SELECT client FROM leases"))


def test_the_store_is_damaged(world: FaultyWorld) -> None:
    state = world.inside(world.state)
    with sessions_go_on(world):
        with (state / "zgate.db").open("r+b") as file:
            size = file.seek(0, 2)
            file.seek(0)
            file.write(b"\xff" * size)
        (state / "zgate.db-wal").open("r+b").truncate(0)
        with newcomer(world, "fred"):
            world.zgate.wait_connected("fred", world.zgate.agents["fred"])
        wait_until(lambda: list(state.glob("zgate.db.put-aside-*")), 45.0, "the damaged file")
        world.wait_all_is_well()
        assert world.sql("PRAGMA quick_check") == ["ok"]
        assert {"alice", "bob"} <= set(world.sql("SELECT client FROM leases"))
        assert world.zgate.ask("policy", "history")["revisions"][0]["in_force"]
    for file in state.glob("zgate.db.put-aside-*"):
        file.unlink()


def test_somebody_locks_the_store_for_long(world: FaultyWorld) -> None:
    with sessions_go_on(world):
        with world.locked_store():
            assert world.zgate.reconnect("bob")
            assert "write lock" in world.wait_alert("store_unavailable")
            took_s = []
            for _ in range(10):  # nobody waits for the lock in the loop that answers
                began_s = time.monotonic()
                assert world.zgate.gateway_status()
                took_s.append(time.monotonic() - began_s)
            assert sorted(took_s)[-3] < 0.5 * SLOWNESS, took_s
        world.wait_all_is_well()


@pytest.mark.parametrize("ahead", [HOUR, -HOUR], ids=["ahead", "back"])
def test_the_clock_jumps(world: FaultyWorld, ahead: timedelta) -> None:
    """By an hour, and back. olivia's certificate is over by the wrong clock: her session stays."""
    zgate = world.zgate
    zgate.agents["bob"].stop()
    with sessions_go_on(world), short_lived(world, "olivia", timedelta(minutes=30)):
        session = session_ids(zgate)["olivia"]
        uptime_s = zgate.gateway_status()["uptime_s"]
        with world.clock.being_set(ahead):
            word = "ahead" if ahead > timedelta(0) else "back"
            assert re.search(rf"(3599|3600|3601) s {word}", world.wait_alert("clock_jumped"))
            assert abs(world.audited("clock_jumped")[-1]["seconds"] - ahead.total_seconds()) < 5
            time.sleep(1.0)  # four looks at every session
            assert session_ids(zgate)["olivia"] == session
            assert 0 < zgate.gateway_status()["uptime_s"] - uptime_s < 60 * SLOWNESS
        wait_until(lambda: "clock_jumped" not in world.alerts(), 10.0, "the clock's return")
        world.wait_all_is_well()
        assert session_ids(zgate)["olivia"] == session
        last = datetime.fromisoformat(world.audited("clock_jumped")[-1]["ts"])
        assert abs(datetime.now(UTC) - last) < HOUR / 2


@contextmanager
def short_lived(world: FaultyWorld, name: str, lifetime: timedelta) -> Iterator[None]:
    """A client on bob's device whose certificate is over soon."""
    zgate = world.zgate
    issued = CertificateAuthority.load(zgate.pki).issue(
        name, lifetime=lifetime, now=datetime.now(UTC)
    )
    folder = zgate.directory / name
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.crt").write_bytes(issued.certificate_pem)
    (folder / f"{name}.key").write_bytes(issued.key_pem)
    (folder / f"{name}.key").chmod(0o600)
    changes = {"tun": {"name": f"zg-{name}"}, "routes": ["10.66.0.0/24"]}
    zgate.start_agent(name, world.internet.device2, **changes)
    try:
        yield
    finally:
        zgate.agents.pop(name).stop()


def test_the_policy_directory_is_deleted(world: FaultyWorld) -> None:
    zgate = world.zgate
    folder, kept = zgate.policy_file.parent, zgate.directory / "policy-kept"
    shutil.copytree(folder, kept)
    with sessions_go_on(world):
        revision = zgate.gateway_status()["policy"]["revision"]
        shutil.rmtree(folder)
        assert f"revision {revision} stays in force" in world.wait_alert("policy_missing", 15.0)
        with pytest.raises(CommandFailed, match="No such file"):
            zgate.run("--socket", str(zgate.socket), "policy", "reload")
        shutil.move(kept, folder)
        world.wait_all_is_well()
        assert zgate.gateway_status()["policy"]["revision"] == revision


def test_the_runtime_directory_is_deleted(world: FaultyWorld) -> None:
    run = world.zgate.socket.parent
    with sessions_go_on(world):
        had_sysctls = (run / "sysctls.json").read_text()
        shutil.rmtree(run)
        wait_until(world.zgate.gateway_status, 15.0, "an answer on the API socket")
        wait_until((run / "sysctls.json").exists, 10.0, "the note of the host's sysctls")
        assert (run / "sysctls.json").read_text() == had_sysctls
        world.wait_all_is_well()


def test_a_pair_that_does_not_fit_and_then_one_that_does(world: FaultyWorld) -> None:
    zgate = world.zgate
    own = zgate.directory / "gateway"
    kept = {file: file.read_bytes() for file in own.iterdir()}
    names = {"dns_names": [SERVER_NAME], "ips": [zgate.host.ipv4]}
    with sessions_go_on(world):
        issued = CertificateAuthority.load(zgate.pki).issue(
            "gateway",
            usage=Usage.SERVER,
            lifetime=timedelta(days=90),
            now=datetime.now(UTC),
            **names,  # type: ignore[arg-type]
        )
        before = serial_of_gateway(world)
        (own / "gateway.crt").write_bytes(issued.certificate_pem)
        assert "does not belong" in world.wait_alert("certificate_not_loaded")
        kill_the_other_worker(world)  # it comes back with the pair that was good
        assert serial_of_gateway(world) == before
        world.connect_all()
        (own / "gateway.key").write_bytes(issued.key_pem)
        world.wait_all_is_well()
        assert issued.issued.serial != before
        wait_until(lambda: serial_of_gateway(world) == issued.issued.serial, 5.0, "the new one")
        assert zgate.reconnect("bob")
    for file, data in kept.items():
        file.write_bytes(data)
    world.wait_all_is_well()


def serial_of_gateway(world: FaultyWorld) -> int:
    """Of the certificate that a newcomer is shown, who has none and is refused for it."""
    host = str(world.internet.gateway.ipv4)
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=["h3"], server_name=SERVER_NAME, verify_mode=ssl.CERT_NONE
    )
    seen: list[QuicConnectionProtocol] = []

    class Peek(QuicConnectionProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)  # type: ignore[arg-type]
            seen.append(self)

    async def dial() -> None:
        with contextlib.suppress(ConnectionError):
            async with connect(host, 443, configuration=configuration, create_protocol=Peek) as one:
                await one.ping()

    call_in(world.bob, lambda: asyncio.run(asyncio.wait_for(dial(), 10.0)))
    certificate = seen[0]._quic.tls._peer_certificate
    assert certificate is not None
    return certificate.serial_number


def kill_the_other_worker(world: FaultyWorld) -> None:
    """Not alice's; and wait until there is a new one."""
    index = 1 - world.zgate.sessions()["alice"]["worker"]
    worker = world.zgate.gateway_status()["workers"][index]
    descriptor = os.pidfd_open(worker["pid"])
    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    os.close(descriptor)

    def is_another() -> bool:
        pid = world.zgate.gateway_status()["workers"][index]["pid"]
        return pid not in (None, worker["pid"])

    wait_until(is_another, 10.0, "another worker")
    world.wait_alert("certificate_not_loaded")
    wait_until(lambda: "worker_restarting" not in world.alerts(), 10.0, "a worker that is ready")


def test_it_ends_in_order_when_nothing_can_be_written(world: FaultyWorld) -> None:
    """The last test: the world is gone after it."""
    world.zgate.reconnect("bob")
    world.fill_disk()
    world.wait_alert("disk_full")
    gateway = world.gateway
    assert gateway.stop() == 0
    assert "Traceback" not in gateway.output()
