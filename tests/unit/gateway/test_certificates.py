"""Certificates that change under a running gateway: real files, real certificates, no processes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from zgate_gateway.certificates import CertificateKeeper
from zgate_gateway.config import GatewayConfig, PkiConfig
from zgate_gateway.copies import MemoryFile, path_of
from zgate_gateway.problems import Problems
from zgate_gateway.steady_clock import SteadyClock
from zgate_gateway.worker import messages
from zgate_identity.authority import CertificateAuthority
from zgate_identity.files import IdentityFileError
from zgate_identity.profile import Usage
from zgate_identity.tls_files import check_server_files
from zgate_identity.verifier import PeerIdentity

DAY = timedelta(days=1)
S = 1_000_000_000


class World:
    """A keeper, its files, and who follows it."""

    def __init__(self, folder: Path, *, has_pki: bool = True) -> None:
        self.authority = CertificateAuthority.create(folder / "ca", now=datetime.now(UTC))
        self.certificate, self.key = folder / "gateway.crt", folder / "gateway.key"
        self.put(365 * DAY)
        pki = PkiConfig(
            ca=self.authority.ca_file,
            certificate=self.certificate,
            key=self.key,
            crl=self.authority.crl_file,
        )
        config = GatewayConfig(state_dir=folder / "state", pki=pki if has_pki else None)
        config.state_dir.mkdir()
        self.problems = Problems()
        self.keeper = CertificateKeeper(config, self.problems, datetime.now(UTC))
        self.told: list[messages.Message] = []
        self.closed: list[tuple[str, str]] = []
        self.sessions = SimpleNamespace(
            by_client={},
            close=lambda session, why: self.closed.append((session.identity.name, why)),
        )
        sessions: Any = self.sessions
        self.keeper.open(sessions=sessions, tell_workers=self.told.append, clock=SteadyClock())
        self.time_s = 0.0

    def issue(self, lifetime: timedelta) -> tuple[bytes, bytes]:
        issued = self.authority.issue(
            "gateway",
            usage=Usage.SERVER,
            dns_names=["gateway.test"],
            lifetime=lifetime,
            now=datetime.now(UTC),
        )
        return issued.certificate_pem, issued.key_pem

    def put(self, lifetime: timedelta) -> bytes:
        certificate, key = self.issue(lifetime)
        self.certificate.write_bytes(certificate)
        self.key.touch(0o600)
        self.key.write_bytes(key)
        return certificate

    def connect(self, name: str) -> PeerIdentity:
        issued = self.authority.issue(name, lifetime=DAY, now=datetime.now(UTC))
        leaf = x509.load_pem_x509_certificate(issued.certificate_pem)
        der = leaf.public_bytes(Encoding.DER)
        identity = self.keeper.verifier.verify(der, [], datetime.now(UTC))
        self.sessions.by_client[name] = SimpleNamespace(identity=identity)
        return identity

    def look(self, after_s: float = 0.25) -> list[str]:
        """One look, so much later; the problems that last then."""
        self.time_s += after_s
        self.keeper.check(self.time_s)
        return [one.name for one in self.problems.active()]

    def serves(self) -> bytes:
        """The certificate that a worker would read now, with a key that fits."""
        certificate, key, *_ = map(path_of, self.keeper.descriptors)
        check_server_files(certificate, key, datetime.now(UTC))
        return certificate.read_bytes()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.keeper.close()


def test_nothing_changes_without_a_change(world: World) -> None:
    assert world.look() == [] and world.told == []
    assert world.serves() == world.certificate.read_bytes()


def test_a_new_pair_is_served_at_the_next_look(world: World) -> None:
    fresh = world.put(90 * DAY)
    assert world.look() == []
    assert world.told == [messages.ReloadCertificate()]
    assert world.serves() == fresh
    left = world.keeper.expiries()["gateway"] - datetime.now(UTC)
    assert 89 * DAY < left <= 90 * DAY


@pytest.mark.parametrize("how", ["other", "half", "missing", "expired"])
def test_a_pair_that_does_not_do_changes_nothing_until_it_does(world: World, how: str) -> None:
    before = world.serves()
    certificate, key = world.issue(90 * DAY)
    match how:
        case "other":
            world.certificate.write_bytes(certificate)
        case "half":
            world.certificate.write_bytes(certificate[:300])
        case "missing":
            world.key.unlink()
        case "expired":
            world.put(timedelta(microseconds=1))
    assert world.look() == []  # two files do not change as one
    assert world.look(2.5) == ["certificate_not_loaded"]
    assert world.serves() == before and world.told == []
    world.key.touch(0o600)
    world.key.write_bytes(key)
    world.certificate.write_bytes(certificate)
    assert world.look() == [] and world.serves() == certificate


async def test_sighup_tells_at_once(world: World) -> None:
    world.certificate.write_bytes(b"nothing")
    world.keeper.reload()
    assert "certificate_not_loaded" in world.problems


def test_a_revoked_client_goes_at_the_next_look(world: World) -> None:
    world.connect("alice")
    world.connect("bob")
    world.authority.revoke("alice", now=datetime.now(UTC))
    assert world.look() == []
    assert world.closed == [("alice", "certificate revoked")]
    assert world.told == [messages.ReloadTrust()]


def test_after_a_jump_a_new_list_ends_nobody_but_the_revoked(world: World) -> None:
    """The wall clock is an hour ahead of the steady one: a list of now is of its future."""
    world.connect("alice")
    world.connect("bob")
    jumped = SteadyClock(wall_ns=lambda: time.time_ns() - 3600 * S)
    sessions: Any = world.sessions
    world.keeper.open(sessions=sessions, tell_workers=world.told.append, clock=jumped)
    world.authority.refresh_crl(datetime.now(UTC))
    assert world.look() == [] and world.closed == []
    world.authority.revoke("alice", now=datetime.now(UTC))
    assert world.look() == [] and world.closed == [("alice", "certificate revoked")]


def test_a_list_that_is_no_list_keeps_the_old_one(world: World) -> None:
    world.connect("alice")
    good = world.authority.crl_file.read_bytes()
    world.authority.crl_file.write_bytes(b"nothing")
    world.look()
    assert world.look(2.5) == ["trust_not_loaded"]
    assert "what was read before stays in use" in world.problems.active()[0].text
    assert world.closed == []
    world.authority.crl_file.write_bytes(good)
    assert world.look() == []


def test_workers_get_the_list_that_was_looked_at(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one takes its place just when it has been found good."""
    file = world.authority.crl_file
    *_, copy = map(path_of, world.keeper.descriptors)
    before = copy.read_bytes()
    reload = world.keeper.verifier.reload

    def too_slow(now: datetime) -> None:
        reload(now)
        file.write_bytes(b"half of")

    world.authority.refresh_crl(datetime.now(UTC))
    good = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(world.keeper.verifier, "reload", too_slow)
        world.look()
    assert copy.read_bytes() == before and world.told == []
    world.look()
    assert copy.read_bytes() == before
    file.write_bytes(good)
    assert world.look() == []
    assert copy.read_bytes() == good and world.told == [messages.ReloadTrust()]


def test_what_changes_during_the_start_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, fresh = MemoryFile.write, []

    def with_a_change(copy: MemoryFile, data: bytes) -> None:
        write(copy, data)
        if not fresh and b"PRIVATE KEY" in data:
            key = tmp_path / "gateway.key"
            issued = CertificateAuthority.load(tmp_path / "ca").issue(
                "gateway", usage=Usage.SERVER, dns_names=["gateway.test"], now=datetime.now(UTC)
            )
            (tmp_path / "gateway.crt").write_bytes(issued.certificate_pem)
            key.write_bytes(issued.key_pem)
            fresh.append(issued.certificate_pem)

    monkeypatch.setattr(MemoryFile, "write", with_a_change)
    world = World(tmp_path)
    assert world.look() == [] and world.serves() == fresh[0]
    world.keeper.close()


def test_dates_are_told(world: World) -> None:
    subject = world.authority.certificate.subject.rfc4514_string()
    assert set(world.keeper.expiries()) == {"gateway", f"ca:{subject}", "crl"}
    world.put(timedelta(seconds=300))
    assert world.look(10) == []
    world.put(timedelta(seconds=60))
    assert world.look(10) == ["certificate_expires"]


@pytest.mark.parametrize("is_older_first", [True, False])
def test_of_two_authorities_with_one_name_the_first_to_end_is_told(
    world: World, tmp_path: Path, is_older_first: bool
) -> None:
    older = CertificateAuthority.create(tmp_path / "older", now=datetime.now(UTC) - 30 * DAY)
    both = [older.ca_file.read_bytes(), world.authority.ca_file.read_bytes()]
    world.authority.ca_file.write_bytes(b"".join(both if is_older_first else both[::-1]))
    with world.authority.crl_file.open("ab") as lists:
        lists.write(older.crl_file.read_bytes())
    assert world.look() == []
    subject = older.certificate.subject.rfc4514_string()
    ends = world.keeper.expiries()[f"ca:{subject}"]
    assert ends == older.certificate.not_valid_after_utc
    assert ends < world.authority.certificate.not_valid_after_utc


async def test_an_own_authority_renews_and_is_never_made_anew(tmp_path: Path) -> None:
    world = World(tmp_path, has_pki=False)
    pki = tmp_path / "state" / "pki"
    first = world.serves()
    (pki / "gateway.crt").unlink()
    world.keeper.reload()
    assert world.look() == [] and world.serves() != first
    kept = tmp_path / "kept"
    shutil.move(pki, kept)
    world.keeper.reload()
    found = {one.name: one.text for one in world.problems.active()}
    assert "authority is gone" in found["identity_not_renewed"]
    assert not pki.exists() and world.serves()
    shutil.move(kept, pki)
    world.keeper.reload()
    assert world.problems.active() == []
    world.keeper.close()


def test_a_start_without_what_is_needed_says_so(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.certificate.unlink()
    config = GatewayConfig.model_construct(
        state_dir=tmp_path,
        pki=PkiConfig.model_construct(
            ca=world.authority.ca_file, certificate=world.certificate, key=world.key, crl=None
        ),
    )
    with pytest.raises(IdentityFileError, match="does not exist"):
        CertificateKeeper(config, Problems(), datetime.now(UTC))
