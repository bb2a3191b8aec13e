from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from zgate_identity.authority import CRL_LIFETIME, CertificateAuthority
from zgate_identity.files import IdentityFileError
from zgate_identity.gateway_identity import GatewayIdentity, ensure_gateway_identity
from zgate_identity.reload import ReloadingClientVerifier
from zgate_identity.server_verifier import ServerVerifier
from zgate_identity.tls_files import check_server_files, read_certificates

DAY = timedelta(days=1)
NAMES = ("gw.example", "192.0.2.1", "2001:db8::1")


def leaf(identity: GatewayIdentity) -> x509.Certificate:
    return read_certificates(identity.certificate_file)[0]


@pytest.fixture
def first(tmp_path: Path, forge: Any) -> GatewayIdentity:
    return ensure_gateway_identity(tmp_path, NAMES, forge.now)


def test_everything_is_made_and_works(first: GatewayIdentity, tmp_path: Path, forge: Any) -> None:
    assert first.authority_created
    assert first.certificate_issued
    assert first.key_file.stat().st_mode & 0o777 == 0o600
    assert check_server_files(first.certificate_file, first.key_file, forge.now)
    authorities = read_certificates(first.ca_file)
    for name in NAMES:
        der = leaf(first).public_bytes(Encoding.DER)
        ServerVerifier(authorities, name).verify(der, [], forge.now)
    alice = CertificateAuthority.load(tmp_path / "pki").issue("alice", now=forge.now)
    client = x509.load_pem_x509_certificate(alice.certificate_pem).public_bytes(Encoding.DER)
    verifier = ReloadingClientVerifier(first.ca_file, first.crl_file, forge.now)
    assert verifier.verify(client, [], forge.now).name == "alice"


def test_a_second_time_changes_nothing(first: GatewayIdentity, tmp_path: Path, forge: Any) -> None:
    before = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
    again = ensure_gateway_identity(tmp_path, NAMES[::-1], forge.now)
    assert not (again.authority_created or again.certificate_issued or again.crl_refreshed)
    assert {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()} == before


def test_renewed_with_less_than_30_days_left_and_not_before(
    first: GatewayIdentity, tmp_path: Path, forge: Any
) -> None:
    end = leaf(first).not_valid_after_utc
    assert not ensure_gateway_identity(tmp_path, NAMES, end - 30 * DAY).certificate_issued
    late = end - 30 * DAY + timedelta(seconds=1)
    renewed = ensure_gateway_identity(tmp_path, NAMES, late)
    assert renewed.certificate_issued
    assert not renewed.authority_created
    assert leaf(renewed).not_valid_after_utc > end
    assert check_server_files(renewed.certificate_file, renewed.key_file, late)


def _garbage(identity: GatewayIdentity, _: Any) -> None:
    identity.certificate_file.write_bytes(b"garbage")


def _no_key(identity: GatewayIdentity, _: Any) -> None:
    identity.key_file.unlink()


def _revoke(identity: GatewayIdentity, forge: Any) -> None:
    CertificateAuthority.load(identity.ca_file.parent).revoke("zgate-gateway", forge.now)


def _other_key(identity: GatewayIdentity, forge: Any) -> None:
    other = ensure_gateway_identity(identity.ca_file.parent / "other", NAMES, forge.now)
    identity.key_file.write_bytes(other.key_file.read_bytes())


def _other_ca(identity: GatewayIdentity, forge: Any) -> None:
    _other_key(identity, forge)
    other = identity.ca_file.parent / "other" / "pki"
    identity.certificate_file.write_bytes((other / "gateway.crt").read_bytes())


@pytest.mark.parametrize("harm", [_garbage, _no_key, _revoke, _other_key, _other_ca])
def test_a_harmed_certificate_is_replaced(
    first: GatewayIdentity, tmp_path: Path, forge: Any, harm: Callable[[Any, Any], None]
) -> None:
    harm(first, forge)
    healed = ensure_gateway_identity(tmp_path, NAMES, forge.now)
    assert healed.certificate_issued
    assert not healed.authority_created
    assert not ensure_gateway_identity(tmp_path, NAMES, forge.now).certificate_issued


def test_other_names_need_another_certificate(
    first: GatewayIdentity, tmp_path: Path, forge: Any
) -> None:
    assert ensure_gateway_identity(tmp_path, ["new.example"], forge.now).certificate_issued


def test_without_names_it_has_one(tmp_path: Path, forge: Any) -> None:
    identity = ensure_gateway_identity(tmp_path, (), forge.now)
    names = leaf(identity).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName("zgate-gateway")]
    assert not ensure_gateway_identity(tmp_path, (), forge.now).certificate_issued


@pytest.mark.parametrize("file", ["ca.crt", "ca.key", "crl.pem"])
def test_a_damaged_authority_is_never_replaced(
    first: GatewayIdentity, tmp_path: Path, forge: Any, file: str
) -> None:
    (tmp_path / "pki" / file).write_bytes(b"damaged")
    with pytest.raises(IdentityFileError, match=file):
        ensure_gateway_identity(tmp_path, NAMES, forge.now)
    assert (tmp_path / "pki" / file).read_bytes() == b"damaged"


def test_a_lost_authority_certificate_is_not_taken_for_a_fresh_start(
    first: GatewayIdentity, tmp_path: Path, forge: Any
) -> None:
    first.ca_file.unlink()
    with pytest.raises(IdentityFileError, match="not empty"):
        ensure_gateway_identity(tmp_path, NAMES, forge.now)


def test_the_revocation_list_is_renewed_in_time(
    first: GatewayIdentity, tmp_path: Path, forge: Any
) -> None:
    later = forge.now + CRL_LIFETIME * 0.6
    assert ensure_gateway_identity(tmp_path, NAMES, later).crl_refreshed
    after_a_long_sleep = forge.now + 3 * CRL_LIFETIME
    ensure_gateway_identity(tmp_path, NAMES, after_a_long_sleep)
    assert ReloadingClientVerifier(first.ca_file, first.crl_file, after_a_long_sleep)


def test_a_bad_name_is_told(tmp_path: Path, forge: Any) -> None:
    with pytest.raises(ValueError, match="no host name"):
        ensure_gateway_identity(tmp_path, ["not a host"], forge.now)
    assert list(tmp_path.iterdir()) == []
