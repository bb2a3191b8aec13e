import os
import stat
import threading
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from zgate_identity import authority as module
from zgate_identity.authority import (
    CRL_LIFETIME,
    AuthorityError,
    AuthorityExistsError,
    CertificateAuthority,
    Credentials,
    UnknownCertificateError,
)
from zgate_identity.files import IdentityError, IdentityFileError
from zgate_identity.profile import Usage
from zgate_identity.refusal import CertificateRefused, RefusalReason
from zgate_identity.reload import ReloadingClientVerifier

DAY = timedelta(days=1)


@pytest.fixture
def own(tmp_path: Path, forge: Any) -> CertificateAuthority:
    return CertificateAuthority.create(tmp_path / "pki", forge.now)


def der(credentials: Credentials) -> bytes:
    return x509.load_pem_x509_certificate(credentials.certificate_pem).public_bytes(Encoding.DER)


def everything(directory: Path) -> dict[str, bytes]:
    return {str(each): each.read_bytes() for each in directory.rglob("*") if each.is_file()}


class TestCreate:
    def test_modes(self, own: CertificateAuthority) -> None:
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in own.directory.iterdir()}
        assert modes == {"ca.crt": 0o644, "ca.key": 0o600, "crl.pem": 0o644, "certs": 0o700}
        assert stat.S_IMODE(own.directory.stat().st_mode) == 0o700

    def test_a_folder_that_is_made_for_it_is_private_too(self, tmp_path: Path, forge: Any) -> None:
        """It is the gateway's state directory."""
        CertificateAuthority.create(tmp_path / "state" / "pki", forge.now)
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700

    def test_a_second_time_changes_nothing(self, own: CertificateAuthority, forge: Any) -> None:
        before = everything(own.directory)
        with pytest.raises(AuthorityExistsError, match="nothing was changed"):
            CertificateAuthority.create(own.directory, forge.now)
        again, created = CertificateAuthority.open(own.directory, forge.now)
        assert not created
        assert again.certificate == own.certificate
        assert everything(own.directory) == before

    def test_in_a_directory_with_something_else(self, tmp_path: Path, forge: Any) -> None:
        (tmp_path / "pki").mkdir()
        (tmp_path / "pki" / "thesis.tex").write_text("years of work")
        with pytest.raises(IdentityFileError, match="not empty"):
            CertificateAuthority.create(tmp_path / "pki", forge.now)
        assert [each.name for each in tmp_path.rglob("*")] == ["pki", "thesis.tex"]

    def test_in_an_empty_directory(self, tmp_path: Path, forge: Any) -> None:
        assert CertificateAuthority.open(tmp_path, forge.now)[1]

    def test_a_failure_leaves_nothing(
        self, tmp_path: Path, forge: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(module, "write_file", broken)
        with pytest.raises(IdentityFileError, match="No space left"):
            CertificateAuthority.create(tmp_path / "pki", forge.now)
        assert list(tmp_path.iterdir()) == []

    def test_two_at_once_make_one(self, tmp_path: Path, forge: Any) -> None:
        made: list[tuple[CertificateAuthority, bool]] = []
        barrier = threading.Barrier(4)

        def make() -> None:
            barrier.wait()
            made.append(CertificateAuthority.open(tmp_path / "pki", forge.now))

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(created for _, created in made) == [False, False, False, True]
        assert len({each.certificate for each, _ in made}) == 1

    def test_two_authorities_have_two_names(self, tmp_path: Path, forge: Any) -> None:
        names = {
            CertificateAuthority.create(tmp_path / each, forge.now).certificate.subject
            for each in "ab"
        }
        assert len(names) == 2

    def test_a_bad_name(self, tmp_path: Path, forge: Any) -> None:
        with pytest.raises(AuthorityError, match="control"):
            CertificateAuthority.create(tmp_path / "pki", forge.now, name="a\nb")


class TestLoad:
    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(IdentityFileError, match="zgatectl pki init"):
            CertificateAuthority.load(tmp_path)

    def test_the_key_of_another(
        self, own: CertificateAuthority, tmp_path: Path, forge: Any
    ) -> None:
        other = CertificateAuthority.create(tmp_path / "other", forge.now)
        (own.directory / "ca.key").write_bytes((other.directory / "ca.key").read_bytes())
        with pytest.raises(IdentityFileError, match=r"ca\.key: does not belong to"):
            CertificateAuthority.load(own.directory)

    def test_a_lost_key(self, own: CertificateAuthority) -> None:
        (own.directory / "ca.key").unlink()
        with pytest.raises(IdentityFileError, match=r"ca\.key: does not exist"):
            CertificateAuthority.load(own.directory)

    def test_a_key_that_everybody_can_read(self, own: CertificateAuthority) -> None:
        (own.directory / "ca.key").chmod(0o644)
        with pytest.raises(IdentityFileError, match="chmod 600"):
            CertificateAuthority.load(own.directory)


class TestIssue:
    def test_a_client_is_accepted_by_the_gateway(
        self, own: CertificateAuthority, forge: Any
    ) -> None:
        credentials = own.issue("alice", groups=["staff", "staff", "admins"], now=forge.now)
        verifier = ReloadingClientVerifier(own.ca_file, own.crl_file, forge.now)
        identity = verifier.verify(der(credentials), [], forge.now)
        assert (identity.name, identity.groups) == ("alice", ("staff", "admins"))
        assert credentials.issued.serial == identity.serial
        assert credentials.issued.fingerprint == identity.fingerprint
        assert credentials.ca_pem == own.ca_file.read_bytes()

    def test_services_are_in_the_certificate(self, own: CertificateAuthority, forge: Any) -> None:
        made = own.issue(
            "c", offers=["pacs", "*", "pacs"], reaches=["wiki"], now=forge.now, groups=["g"]
        )
        verifier = ReloadingClientVerifier(own.ca_file, own.crl_file, forge.now)
        identity = verifier.verify(der(made), [], forge.now)
        assert (identity.offers, identity.reaches) == (("pacs", "*"), ("wiki",))
        (kept,) = own.list()
        assert (kept.offers, kept.reaches) == (("pacs", "*"), ("wiki",))
        plain = own.issue("plain", now=forge.now)
        assert (plain.issued.offers, plain.issued.reaches) == ((), None)

    @pytest.mark.parametrize(
        ("asked", "text"),
        [
            ({"offers": ["a.b"]}, "no service that a certificate can name"),
            ({"reaches": [""]}, "no service that a certificate can name"),
            ({"offers": ["pacs"], "usage": Usage.SERVER, "dns_names": ["h"]}, "are a client's"),
            ({"reaches": ["pacs"], "usage": Usage.SERVER, "dns_names": ["h"]}, "are a client's"),
        ],
    )
    def test_services_that_are_not_issued(
        self, own: CertificateAuthority, forge: Any, asked: dict[str, Any], text: str
    ) -> None:
        with pytest.raises(AuthorityError, match=text):
            own.issue("c", now=forge.now, **asked)
        assert own.list() == ()

    def test_a_server_is_not_a_client(self, own: CertificateAuthority, forge: Any) -> None:
        credentials = own.issue("gw", usage=Usage.SERVER, dns_names=["gw.example"], now=forge.now)
        verifier = ReloadingClientVerifier(own.ca_file, own.crl_file, forge.now)
        with pytest.raises(CertificateRefused) as caught:
            verifier.verify(der(credentials), [], forge.now)
        assert caught.value.reason is RefusalReason.WRONG_USAGE

    def test_no_key_is_kept(self, own: CertificateAuthority, forge: Any) -> None:
        own.issue("alice", now=forge.now)
        keys = [name for name, data in everything(own.directory).items() if b"PRIVATE" in data]
        assert keys == [str(own.directory / "ca.key")]

    @pytest.mark.parametrize(
        ("request_", "text"),
        [
            ({"name": ""}, "the name is empty"),
            ({"name": "a\nb"}, "the name holds control"),
            ({"groups": ["ok", "x" * 65]}, "a group has 65 characters"),
            ({"dns_names": ["gw.example"]}, "a client's certificate names no host"),
            ({"ips": [ip_address("::1")]}, "a client's certificate names no host"),
            ({"usage": Usage.SERVER}, "needs a DNS name or an IP address"),
            ({"usage": Usage.SERVER, "dns_names": ["*.example"]}, "no wildcard"),
            ({"lifetime": timedelta(0)}, "lifetime"),
            ({"lifetime": timedelta(days=4000)}, "lifetime of 4000 days is not between 1 and"),
        ],
    )
    def test_what_is_not_issued(
        self, own: CertificateAuthority, forge: Any, request_: dict[str, Any], text: str
    ) -> None:
        request_ = {"name": "alice", "now": forge.now, **request_}
        with pytest.raises(AuthorityError, match=text):
            own.issue(request_.pop("name"), **request_)
        assert own.list() == ()


class TestRevoke:
    def test_by_name_takes_back_every_certificate_of_it(
        self, own: CertificateAuthority, forge: Any
    ) -> None:
        serials = {own.issue("alice", now=forge.now).issued.serial for _ in range(2)}
        own.issue("bob", now=forge.now)
        revoked = own.revoke("alice", forge.now)
        assert {each.serial for each in revoked} == serials == set(own.crl.serials)
        assert {each.revoked_at for each in revoked} == {forge.now}

    @pytest.mark.parametrize("style", ["{:040x}", "{:X}", "{:x}"])
    def test_by_serial_takes_back_that_one(
        self, own: CertificateAuthority, forge: Any, style: str
    ) -> None:
        one, two = (own.issue("alice", now=forge.now).issued for _ in range(2))
        assert [each.serial for each in own.revoke(style.format(one.serial), forge.now)] == [
            one.serial
        ]
        assert own.crl.serials == {one.serial}
        assert two.serial not in own.crl.serials

    def test_twice_is_once(self, own: CertificateAuthority, forge: Any) -> None:
        own.issue("alice", now=forge.now)
        own.revoke("alice", forge.now)
        before = own.crl
        assert own.revoke("alice", forge.now + DAY) == ()
        assert own.crl == before

    def test_an_expired_one_needs_no_revocation(
        self, own: CertificateAuthority, forge: Any
    ) -> None:
        own.issue("alice", now=forge.now, lifetime=DAY)
        assert own.revoke("alice", forge.now + 2 * DAY) == ()

    def test_unknown(self, own: CertificateAuthority, forge: Any) -> None:
        for nobody in ("nobody", "", "00", "ff"):
            with pytest.raises(UnknownCertificateError, match="was issued here"):
                own.revoke(nobody, forge.now)

    def test_the_number_of_the_list_grows(self, own: CertificateAuthority, forge: Any) -> None:
        numbers = [own.crl.number]
        for name in ("a", "b"):
            own.issue(name, now=forge.now)
            own.revoke(name, forge.now)
            numbers.append(own.crl.number)
        assert numbers == [1, 2, 3]

    def test_two_at_once_lose_nothing(self, own: CertificateAuthority, forge: Any) -> None:
        names = [f"client-{number}" for number in range(6)]
        serials = {own.issue(name, now=forge.now).issued.serial for name in names}
        threads = [threading.Thread(target=own.revoke, args=(name, forge.now)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert own.crl.serials == serials

    def test_a_damaged_list_is_not_replaced(self, own: CertificateAuthority, forge: Any) -> None:
        own.issue("alice", now=forge.now)
        own.crl_file.write_bytes(b"damaged")
        with pytest.raises(IdentityFileError, match=r"crl\.pem"):
            own.revoke("alice", forge.now)
        assert own.crl_file.read_bytes() == b"damaged"

    def test_a_list_of_another_authority_is_not_extended(
        self, own: CertificateAuthority, tmp_path: Path, forge: Any
    ) -> None:
        other = CertificateAuthority.create(tmp_path / "other", forge.now)
        own.issue("alice", now=forge.now)
        own.crl_file.write_bytes(other.crl_file.read_bytes())
        with pytest.raises(IdentityFileError, match="restore it from a backup"):
            own.revoke("alice", forge.now)


class TestList:
    def test_by_name_with_everything_that_was_asked_for(
        self, own: CertificateAuthority, forge: Any
    ) -> None:
        own.issue(
            "gw",
            usage=Usage.SERVER,
            dns_names=["GW.example"],
            ips=[ip_address("2001:db8::1")],
            now=forge.now,
        )
        own.issue("alice", groups=["staff"], now=forge.now)
        alice, gateway = own.list()
        assert (alice.name, alice.groups, alice.usage) == ("alice", ("staff",), Usage.CLIENT)
        assert (gateway.usage, gateway.dns_names) == (Usage.SERVER, ("gw.example",))
        assert gateway.ips == (ip_address("2001:db8::1"),)
        assert len(alice.serial_text) == 40

    def test_status(self, own: CertificateAuthority, forge: Any) -> None:
        own.issue("alice", now=forge.now, lifetime=DAY)
        alice = own.list()[0]
        assert alice.status(forge.now) == "valid"
        assert alice.status(forge.now - DAY) == "not yet valid"
        assert alice.status(forge.now + 2 * DAY) == "expired"
        own.revoke("alice", forge.now)
        assert own.list()[0].status(forge.now + 2 * DAY) == "revoked"

    def test_a_damaged_record_is_told(self, own: CertificateAuthority) -> None:
        (own.directory / "certs" / "1.crt").write_bytes(b"?")
        with pytest.raises(IdentityError, match=r"1\.crt: holds no readable PEM certificate"):
            own.list()


class TestRefreshCrl:
    def test_keeps_the_entries(self, own: CertificateAuthority, forge: Any) -> None:
        own.issue("alice", now=forge.now)
        own.revoke("alice", forge.now)
        before = own.crl
        assert own.refresh_crl(forge.now + DAY)
        assert own.crl.serials == before.serials
        assert own.crl.next_update == forge.now + DAY + CRL_LIFETIME
        assert own.list()[0].revoked_at == forge.now

    def test_only_when_half_of_its_time_is_gone(
        self, own: CertificateAuthority, forge: Any
    ) -> None:
        assert not own.refresh_crl(forge.now + CRL_LIFETIME / 2 - DAY, if_needed=True)
        assert own.refresh_crl(forge.now + CRL_LIFETIME / 2, if_needed=True)
        assert own.refresh_crl(forge.now + 5 * CRL_LIFETIME, if_needed=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_an_authority_belongs_to_whom_the_state_belongs(tmp_path: Path, forge: Any) -> None:
    """Root makes it in the state of a gateway that runs as a user of its own."""
    nobody = 65_534
    os.chown(tmp_path, nobody, nobody)
    CertificateAuthority.create(tmp_path / "pki", forge.now)
    made = [tmp_path / "pki", *(tmp_path / "pki").rglob("*")]
    assert len(made) > 4
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(nobody, nobody)}
