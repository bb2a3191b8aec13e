"""Our certificates, as other people's software sees them."""

import shutil
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from zgate_identity import profile
from zgate_identity.profile import Issuer, Usage

YEAR = timedelta(days=365)


@pytest.fixture
def issuer(forge: Any) -> Issuer:
    key = profile.new_key()
    return Issuer(profile.build_authority("Ours", key, forge.now, YEAR), key)


def build(issuer: Issuer, forge: Any, usage: Usage, *hosts: x509.GeneralName) -> x509.Certificate:
    return profile.build_leaf(
        issuer,
        profile.subject("alice", ["staff"]),
        profile.new_key().public_key(),
        usage=usage,
        hosts=hosts,
        now=forge.now,
        not_after=forge.now + YEAR / 2,
    )


def test_keys_are_p_256_and_come_back_from_pem() -> None:
    key = profile.new_key()
    again = load_pem_private_key(profile.key_pem(key), None)
    assert isinstance(key.curve, ec.SECP256R1)
    assert again.public_key() == key.public_key()


def test_an_authority_signs_leaves_only(issuer: Issuer) -> None:
    extensions = issuer.certificate.extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert (constraints.critical, constraints.value) == (True, x509.BasicConstraints(True, 0))
    assert (usage.value.key_cert_sign, usage.value.crl_sign) == (True, True)
    assert not usage.value.digital_signature


@pytest.mark.parametrize("usage", Usage)
def test_a_leaf_has_one_purpose(issuer: Issuer, forge: Any, usage: Usage) -> None:
    extensions = build(issuer, forge, usage).extensions
    purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [usage.oid]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_validity_begins_a_little_before_now(issuer: Issuer, forge: Any) -> None:
    leaf = build(issuer, forge, Usage.CLIENT)
    assert leaf.not_valid_before_utc == forge.now - profile.BACKDATE
    assert leaf.not_valid_after_utc == forge.now + YEAR / 2


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the openssl command")
@pytest.mark.parametrize(("usage", "purpose"), [("client", "sslclient"), ("server", "sslserver")])
def test_openssl_agrees(
    issuer: Issuer, forge: Any, tmp_path: Path, usage: str, purpose: str
) -> None:
    leaf = build(issuer, forge, Usage(usage), x509.DNSName("gw.example"))
    crl = profile.build_crl(issuer, (), 1, forge.now, YEAR)
    revoked = profile.revoked_entry(leaf.serial_number, forge.now)
    crl_with_it = profile.build_crl(issuer, (revoked,), 2, forge.now, YEAR)
    (tmp_path / "ca").write_bytes(profile.certificate_pem(issuer.certificate))
    (tmp_path / "leaf").write_bytes(profile.certificate_pem(leaf))
    (tmp_path / "crl").write_bytes(crl.public_bytes(Encoding.PEM))
    (tmp_path / "crl2").write_bytes(crl_with_it.public_bytes(Encoding.PEM))

    def verify(crl_name: str, for_purpose: str) -> str:
        command = ["openssl", "verify", "-x509_strict", "-crl_check", "-purpose", for_purpose]
        command += ["-attime", str(int(forge.now.timestamp())), "-CAfile", "ca"]
        command += ["-CRLfile", crl_name, "leaf"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    other_purpose = {"sslclient": "sslserver", "sslserver": "sslclient"}[purpose]
    assert "leaf: OK" in verify("crl", purpose)
    assert "certificate revoked" in verify("crl2", purpose)
    assert "OK" not in verify("crl", other_purpose)
