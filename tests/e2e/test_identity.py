"""Identity is proved, or there is no session, and it can be taken away: with real processes."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aioquic.asyncio.client import connect
from aioquic.quic.configuration import QuicConfiguration
from e2e_support.world import World
from zgate_identity.authority import CertificateAuthority
from zgate_identity.profile import Usage
from zgate_lab.deployment import BIN, SERVER_NAME, Deployment
from zgate_lab.internet import Internet
from zgate_lab.namespace import call_in, run_in
from zgate_lab.waiting import SLOWNESS, wait_until

REVOCATION_LIMIT_S = 1.0


@pytest.fixture(scope="module")
def world(own_world: World) -> World:
    return own_world


def foreign_authority(directory: Path) -> CertificateAuthority:
    return CertificateAuthority.create(directory / "foreign", now=datetime.now(UTC))


def write_credentials(
    authority: CertificateAuthority, directory: Path, name: str, lifetime: timedelta
) -> dict[str, str]:
    """A client certificate; the keys of an agent's configuration that name it."""
    issued = authority.issue(name, lifetime=lifetime, now=datetime.now(UTC))
    certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
    certificate.write_bytes(issued.certificate_pem)
    key.write_bytes(issued.key_pem)
    key.chmod(0o600)
    return {"certificate": str(certificate), "key": str(key)}


def run_agent(world: World, tmp_path: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """An agent that ends by itself: its configuration is no good."""
    config = tmp_path / "agent.json"
    config.write_text(json.dumps({**world.zgate.agent_config("alice"), **changes}))
    argv = [BIN / "zgate-agent", "run", "--config", config]
    return run_in(world.bob, argv, check=False)


# Refused by the gateway.


def refused_agent(world: World, name: str, **changes: object) -> str:
    """Start an agent on bob's device that the gateway refuses; the reason that it gives."""
    settings = {"tun": {"name": "zgate-refused"}, **changes}
    world.zgate.spawn_agent(name, world.internet.device2, **settings)
    try:
        reason = str(world.zgate.wait_agent(name, "backoff")["reason"])
    finally:
        assert world.zgate.agents.pop(name).stop() == 0
    assert name not in world.zgate.sessions()
    return reason


def test_a_certificate_of_another_authority_is_refused(world: World, tmp_path: Path) -> None:
    authority = foreign_authority(tmp_path)
    files = write_credentials(authority, tmp_path, "mallory", timedelta(days=1))
    reason = refused_agent(world, "mallory", **files)
    assert "our certificate" in reason
    assert "unknown_ca" in reason
    assert world.zgate.wait_audit("session_refused", reason="unknown_issuer")


def test_a_revoked_certificate_is_refused(world: World) -> None:
    world.zgate.issue("trent", "client")
    world.zgate.revoke("trent")
    reason = refused_agent(world, "trent")
    assert "certificate_revoked" in reason
    assert world.zgate.wait_audit("session_refused", reason="revoked")


#: Of a certificate that ends under way: an agent starts within it, on a busy machine, too.
LIFE_S = 10.0 * SLOWNESS


def test_a_certificate_expires_under_way(world: World, tmp_path: Path) -> None:
    """The session ends when the certificate does, and the agent says why it cannot come back."""
    authority = CertificateAuthority.load(world.zgate.pki)
    files = write_credentials(authority, tmp_path, "olivia", timedelta(seconds=LIFE_S))
    zgate = world.zgate
    settings = {"tun": {"name": "zgate-olivia"}, "routes": ["10.66.0.0/24"], **files}
    zgate.start_agent("olivia", world.internet.device2, **settings)
    assert (
        zgate.wait_audit("session_down", LIFE_S + 5.0, client="olivia")["cause"]
        == "certificate expired"
    )
    reason = wait_until(
        lambda: str(zgate.agent_status("olivia")["reason"]), 5.0, "the agent's reason"
    )
    assert "certificate expired" in reason
    zgate.agents.pop("olivia").stop()


def test_no_certificate_at_all_is_refused(world: World) -> None:
    """An agent does not start without one; whoever else dials is refused in the handshake."""
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=["h3"], server_name=SERVER_NAME, verify_mode=ssl.CERT_NONE
    )

    async def dial() -> None:
        host = str(world.internet.gateway.ipv4)
        async with connect(host, 443, configuration=configuration) as client:
            await client.ping()

    before = world.zgate.gateway_status()["sessions_refused"].get("no_certificate", 0)
    with pytest.raises((ConnectionError, TimeoutError)):
        call_in(world.bob, lambda: asyncio.run(asyncio.wait_for(dial(), 10.0)))

    def is_counted() -> bool:
        refused = world.zgate.gateway_status()["sessions_refused"]
        return bool(refused.get("no_certificate") == before + 1)

    wait_until(is_counted, 5.0, "the refusal to be counted")


@pytest.mark.parametrize("missing", ["certificate", "key", "ca"])
def test_an_agent_without_its_files_does_not_start(
    world: World, tmp_path: Path, missing: str
) -> None:
    nowhere = str(tmp_path / "nothing.pem")
    ended = run_agent(world, tmp_path, **{missing: nowhere})
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert nowhere in ended.stderr


def test_an_agent_with_an_expired_certificate_does_not_start(world: World, tmp_path: Path) -> None:
    authority = CertificateAuthority.load(world.zgate.pki)
    files = write_credentials(authority, tmp_path, "eve", timedelta(milliseconds=1))
    ended = run_agent(world, tmp_path, **files)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "expired" in ended.stderr


# Taken away.


def test_revocation_acts_within_a_second(world: World) -> None:
    zgate = world.zgate
    clients_before = zgate.gateway_status()["kernel_maps"]["clients"]["used"]
    session = zgate.sessions()["bob"]
    try:
        zgate.revoke("bob")
        began_s = time.monotonic()
        wait_until(lambda: "bob" not in zgate.sessions(), 5.0, "the session to end")
        status = zgate.gateway_status()
        took_s = time.monotonic() - began_s
        assert took_s < REVOCATION_LIMIT_S
        assert status["kernel_maps"]["clients"]["used"] == clients_before - 2
        down = zgate.wait_audit("session_down", client="bob", session=session["session_id"])
        assert down["cause"] == "certificate revoked"
        told = zgate.wait_agent("bob", "backoff")["reason"]
        assert "revoked" in told
        # Nor does it come back: the next attempt is refused in the handshake.
        zgate.agents["bob"].wait_for_output("certificate_revoked", 10.0)
    finally:
        zgate.agents["bob"].stop()


# Two with one identity.


def test_the_newer_of_two_sessions_of_one_identity_stays(world: World) -> None:
    zgate = world.zgate
    old = zgate.sessions()["alice"]
    other = zgate.agent_config("alice") | {"runtime_dir": str(zgate.directory / "twin-run")}
    try:
        zgate.spawn_agent("twin", world.internet.device2, **other)
        zgate.wait_agent("twin", "connected")
        down = zgate.wait_audit("session_down", client="alice", session=old["session_id"])
        assert down["cause"] == "replaced by a newer session of the same client"
        new = zgate.wait_audit("session_up", client="alice", peer=zgate.sessions()["alice"]["peer"])
        assert new["session"] != old["session_id"]
        assert new["peer"].startswith(str(world.internet.device2.ipv4))
        assert [f"{a}/{128 if ':' in a else 32}" for a in new["addresses"]] == old["addresses"]
        zgate.agents["alice"].wait_for_output("replaced by a newer session of the same", 5.0)
    finally:
        zgate.agents.pop("twin").stop()


def test_the_older_stays_where_so_configured(internet: Internet, deployment: Deployment) -> None:
    deployment.start_gateway(sessions={"per_identity": "oldest"})
    first = deployment.start_agent("alice", internet.device1)
    other = deployment.agent_config("alice") | {"runtime_dir": str(deployment.directory / "t-run")}
    deployment.spawn_agent("t", internet.device2, **other)
    reason = deployment.wait_agent("t", "backoff")["reason"]
    assert "status 409" in reason
    assert "this client has a session already" in reason
    assert deployment.sessions()["alice"]["session_id"] == first["session_id"]


# Refused by the agent.


def test_a_gateway_of_another_authority_is_refused_always(
    internet: Internet, deployment: Deployment
) -> None:
    pki = deployment.gateway_config()["pki"]
    issued = foreign_authority(deployment.directory).issue(
        "gateway", usage=Usage.SERVER, dns_names=[SERVER_NAME], now=datetime.now(UTC)
    )
    for name, pem in (("certificate", issued.certificate_pem), ("key", issued.key_pem)):
        pki[name] = str(deployment.directory / f"foreign-{name}.pem")
        Path(pki[name]).write_bytes(pem)
        Path(pki[name]).chmod(0o600)
    deployment.start_gateway(pki=pki)
    agent = deployment.spawn_agent("alice", internet.device1)
    status = deployment.wait_agent("alice", "backoff")
    assert "the gateway's certificate" in status["reason"]
    assert (status["addresses"], status["routes"]) == ([], [])
    # Always: the next attempt ends the same way, and nothing has been let in.
    wait_until(lambda: agent.output().count("not connected") >= 2, 15.0, "a second attempt")
    assert deployment.agent_status("alice")["state"] != "connected"
    assert deployment.gateway_status()["sessions_total"] == 0


def test_a_gateway_of_another_name_is_refused(world: World) -> None:
    before = world.zgate.gateway_status()["sessions_total"]
    reason = refused_agent(world, "carol", server_name="gateway.elsewhere")
    assert "the gateway's certificate" in reason
    assert "gateway.elsewhere" in reason
    assert world.zgate.gateway_status()["sessions_total"] == before
