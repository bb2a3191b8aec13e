"""Files change under a running gateway: all of a change is taken, or none, and it says why."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from zgate_identity.files import IdentityFileError, write_file
from zgate_identity.refusal import CertificateRefused, RefusalReason
from zgate_identity.reload import ReloadingClientVerifier

DAY = timedelta(days=1)


class Files:
    def __init__(self, directory: Path, forge: Any, ca: Any) -> None:
        self.ca_file = directory / "ca.crt"
        self.crl_file = directory / "crl.pem"
        self.forge = forge
        self.ca = ca
        write_file(self.ca_file, ca.pem)
        self.put_crl()

    def put_crl(self, *args: Any, **kwargs: Any) -> None:
        crl = self.forge.crl(self.ca, *args, **kwargs)
        write_file(self.crl_file, crl.public_bytes(Encoding.PEM))

    def verifier(self) -> ReloadingClientVerifier:
        return ReloadingClientVerifier(self.ca_file, self.crl_file, self.forge.now)


@pytest.fixture
def files(tmp_path: Path, forge: Any, ca: Any) -> Files:
    return Files(tmp_path, forge, ca)


def test_a_revocation_takes_effect_with_the_file(files: Files) -> None:
    now, leaf = files.forge.now, files.forge.client(files.ca)
    verifier = files.verifier()
    identity = verifier.verify(leaf, [], now)
    verifier.reload(now)
    verifier.recheck(identity, now)
    files.put_crl([identity.serial], number=2)
    verifier.reload(now)
    for attempt in (
        lambda: verifier.verify(leaf, [], now),
        lambda: verifier.recheck(identity, now),
    ):
        with pytest.raises(CertificateRefused) as caught:
            attempt()
        assert caught.value.reason is RefusalReason.REVOKED


def test_a_new_authority_takes_effect_with_the_file(files: Files) -> None:
    now, second = files.forge.now, files.forge.authority("Second CA")
    verifier = ReloadingClientVerifier(files.ca_file, None, now)
    write_file(files.ca_file, files.ca.pem + second.pem)
    verifier.reload(now)
    assert verifier.verify(files.forge.client(second), [], now)


BAD_LISTS = {
    "empty": b"",
    "garbage": b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
    "no-pem": os.urandom(64),
    "missing": None,
}


@pytest.mark.parametrize("content", BAD_LISTS.values(), ids=BAD_LISTS)
def test_an_unreadable_list_keeps_the_old_one(files: Files, content: bytes | None) -> None:
    now = files.forge.now
    verifier = files.verifier()
    before = verifier.current
    if content is None:
        files.crl_file.unlink()
    else:
        write_file(files.crl_file, content)
    with pytest.raises(IdentityFileError, match=r"crl\.pem: ") as caught:
        verifier.reload(now)
    assert "\n" not in str(caught.value)
    assert verifier.current is before
    files.put_crl(number=2)
    verifier.reload(now)
    assert verifier.current is not before


def test_a_forged_list_keeps_the_old_one(files: Files) -> None:
    verifier = files.verifier()
    before = verifier.current
    files.put_crl([1], number=2, signer=files.forge.key())
    with pytest.raises(IdentityFileError, match="signature"):
        verifier.reload(files.forge.now)
    assert verifier.current is before


def test_a_stale_list_keeps_the_old_one(files: Files) -> None:
    verifier = files.verifier()
    before = verifier.current
    files.put_crl(number=2, next_update=files.forge.now - timedelta(hours=1))
    with pytest.raises(IdentityFileError, match=r"expired at .*; write a new one with"):
        verifier.reload(files.forge.now)
    assert verifier.current is before


def test_an_older_list_is_not_put_back(files: Files) -> None:
    files.put_crl([7], number=2)
    verifier = files.verifier()
    before = verifier.current
    files.put_crl(number=1)
    with pytest.raises(IdentityFileError, match="older than the revocation list in use"):
        verifier.reload(files.forge.now)
    assert verifier.current is before


@pytest.mark.parametrize(
    "content", [b"", b"no certificate", None], ids=["empty", "text", "missing"]
)
def test_an_unreadable_ca_file_keeps_the_old_one(files: Files, content: bytes | None) -> None:
    verifier = files.verifier()
    before = verifier.current
    if content is None:
        files.ca_file.unlink()
    else:
        write_file(files.ca_file, content)
    with pytest.raises(IdentityFileError, match=r"ca\.crt: "):
        verifier.reload(files.forge.now)
    assert verifier.current is before


def test_a_ca_file_with_a_clients_certificate_is_refused(files: Files) -> None:
    leaf = files.forge.leaf(files.ca).public_bytes(Encoding.PEM)
    write_file(files.ca_file, files.ca.pem + leaf)
    with pytest.raises(IdentityFileError, match="not that of a certificate authority"):
        files.verifier()


def test_a_ca_file_of_another_authority_than_the_list(files: Files) -> None:
    write_file(files.ca_file, files.forge.authority("New CA").pem)
    with pytest.raises(IdentityFileError, match="not among the trusted authorities"):
        files.verifier()


def test_an_authority_that_its_own_list_revokes_leaves_nobody(files: Files) -> None:
    files.put_crl([files.ca.certificate.serial_number])
    with pytest.raises(IdentityFileError, match="every authority is revoked"):
        files.verifier()


@pytest.mark.parametrize("defect", ["unreadable", "forged", "stale"])
def test_the_start_is_refused_with_a_bad_list(files: Files, defect: str) -> None:
    if defect == "unreadable":
        files.crl_file.write_bytes(b"?")
    elif defect == "forged":
        files.put_crl(signer=files.forge.key())
    else:
        files.put_crl(next_update=files.forge.now - timedelta(hours=1))
    with pytest.raises(IdentityFileError, match=r"crl\.pem: "):
        files.verifier()


def test_a_list_that_goes_stale_while_running_refuses(files: Files) -> None:
    verifier = files.verifier()
    leaf = files.forge.client(files.ca, not_after=files.forge.now + 9 * DAY)
    with pytest.raises(CertificateRefused) as caught:
        verifier.verify(leaf, [], files.forge.now + 2 * DAY)
    assert caught.value.reason is RefusalReason.CRL_STALE


def test_several_lists_in_one_file(files: Files, tmp_path: Path) -> None:
    forge, second = files.forge, files.forge.authority("Second CA")
    leaf = forge.leaf(second)
    write_file(files.ca_file, files.ca.pem + second.pem)
    lists = [forge.crl(files.ca), forge.crl(second, [leaf.serial_number])]
    write_file(files.crl_file, b"".join(each.public_bytes(Encoding.PEM) for each in lists))
    with pytest.raises(CertificateRefused) as caught:
        files.verifier().verify(leaf.public_bytes(Encoding.DER), [], forge.now)
    assert caught.value.reason is RefusalReason.REVOKED
