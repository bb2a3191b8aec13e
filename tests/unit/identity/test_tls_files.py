"""Each failure is one line that names the file, what is wrong with it, and the cure."""

import base64
import contextlib
import tempfile
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st
from zgate_identity import tls_files
from zgate_identity.files import IdentityFileError, write_file
from zgate_identity.reload import ReloadingClientVerifier
from zgate_identity.tls_files import (
    AgentBundle,
    check_ca_file,
    check_client_files,
    check_server_files,
    read_certificates,
    read_crls,
    read_private_key,
    write_agent_bundle,
)

DAY = timedelta(days=1)
HOSTS = (x509.DNSName("gw.example"),)


def key_pem(key: Any, encryption: Any = None) -> bytes:
    encryption = encryption or NoEncryption()
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))


def pem(label: str, der: bytes) -> bytes:
    body = base64.encodebytes(der)
    return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (label.encode(), body, label.encode())


def damage(der: bytes, data: st.DataObject) -> bytes:
    """`der` with one byte changed; drawn as fractions, for its length is not always the same."""
    position = data.draw(st.floats(0, 1, exclude_max=True))
    changed = bytearray(der)
    changed[int(position * len(der))] ^= data.draw(st.integers(1, 255))
    return bytes(changed)


class Pair:
    def __init__(self, directory: Path, forge: Any) -> None:
        self.certificate = directory / "tls.crt"
        self.key = directory / "tls.key"
        self.forge = forge

    def put(self, *certificates: x509.Certificate, key: Any = None) -> "Pair":
        pem = b"".join(each.public_bytes(Encoding.PEM) for each in certificates)
        write_file(self.certificate, pem)
        write_file(self.key, key_pem(key or self.forge.leaf_key), 0o600)
        return self

    def problem(self, *, server: bool = False, now: Any = None) -> str:
        check = check_server_files if server else check_client_files
        with pytest.raises(IdentityFileError) as caught:
            check(self.certificate, self.key, now or self.forge.now)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(f"{caught.value.file}: {caught.value.problem}")
        return str(caught.value)


@pytest.fixture
def pair(tmp_path: Path, forge: Any) -> Pair:
    return Pair(tmp_path, forge)


class TestCheckedFiles:
    def test_client(self, pair: Pair, forge: Any, ca: Any) -> None:
        leaf = forge.leaf(ca)
        pair.put(leaf, ca.certificate)
        files = check_client_files(pair.certificate, pair.key, forge.now)
        assert files.leaf == leaf
        assert files.chain == (ca.certificate,)
        assert files.time_left == DAY
        assert files.private_key.public_key() == leaf.public_key()

    def test_server(self, pair: Pair, forge: Any, ca: Any) -> None:
        pair.put(forge.leaf(ca, usages=[forge.server_auth], hosts=HOSTS))
        assert check_server_files(pair.certificate, pair.key, forge.now).time_left == DAY

    def test_the_key_of_another_certificate(self, pair: Pair, forge: Any, ca: Any) -> None:
        pair.put(forge.leaf(ca), key=forge.key())
        assert "tls.key: this key does not belong to the certificate in" in pair.problem()

    def test_expired(self, pair: Pair, forge: Any, ca: Any) -> None:
        pair.put(forge.leaf(ca))
        text = pair.problem(now=forge.now + 2 * DAY)
        assert "expired at 2026-03-02 03:00:00 UTC; issue one with: zgatectl pki issue" in text

    def test_not_yet_valid(self, pair: Pair, forge: Any, ca: Any) -> None:
        pair.put(forge.leaf(ca))
        assert "valid from 2026-02-28" in pair.problem(now=forge.now - 2 * DAY)

    def test_a_client_certificate_on_a_gateway(self, pair: Pair, forge: Any, ca: Any) -> None:
        pair.put(forge.leaf(ca, hosts=HOSTS))
        assert "is not for a server" in pair.problem(server=True)

    def test_a_server_certificate_on_an_agent(self, pair: Pair, forge: Any, ca: Any) -> None:
        pair.put(forge.leaf(ca, usages=[forge.server_auth], hosts=HOSTS))
        assert "is not for a client" in pair.problem()

    def test_no_usage(self, pair: Pair, forge: Any, ca: Any) -> None:
        pair.put(forge.leaf(ca, usages=None))
        assert "is not for a client" in pair.problem()

    def test_a_server_without_hosts(self, pair: Pair, forge: Any, ca: Any) -> None:
        pair.put(forge.leaf(ca, usages=[forge.server_auth]))
        assert "names no host" in pair.problem(server=True)

    def test_a_weak_key(self, pair: Pair, forge: Any, ca: Any) -> None:
        weak = rsa.generate_private_key(65537, 1024)
        pair.put(forge.leaf(ca, key=weak), key=weak)
        assert "an RSA key of 1024 bits" in pair.problem()

    @pytest.mark.parametrize("which", ["certificate", "key"])
    def test_a_missing_file(self, pair: Pair, forge: Any, ca: Any, which: str) -> None:
        pair.put(forge.leaf(ca))
        missing: Path = getattr(pair, which)
        missing.unlink()
        assert pair.problem() == f"{missing}: does not exist; check the path"

    def test_the_two_files_exchanged(self, pair: Pair, forge: Any, ca: Any) -> None:
        pair.put(forge.leaf(ca))
        pair.certificate, pair.key = pair.key, pair.certificate
        assert "tls.key: holds no readable PEM certificate" in pair.problem()


class TestPrivateKey:
    def put(self, tmp_path: Path, data: bytes, mode: int = 0o600) -> Path:
        file = tmp_path / "key"
        write_file(file, data, mode)
        return file

    def test_open_to_everybody(self, tmp_path: Path, forge: Any) -> None:
        file = self.put(tmp_path, key_pem(forge.leaf_key), 0o644)
        with pytest.raises(IdentityFileError, match=f"open to every user; chmod 600 {file}"):
            read_private_key(file)

    def test_open_to_a_group(self, tmp_path: Path, forge: Any) -> None:
        assert read_private_key(self.put(tmp_path, key_pem(forge.leaf_key), 0o640))

    def test_encrypted(self, tmp_path: Path, forge: Any) -> None:
        file = self.put(tmp_path, key_pem(forge.leaf_key, BestAvailableEncryption(b"secret")))
        with pytest.raises(IdentityFileError, match="is encrypted"):
            read_private_key(file)

    def test_another_kind(self, tmp_path: Path) -> None:
        file = self.put(tmp_path, key_pem(ed25519.Ed25519PrivateKey.generate()))
        with pytest.raises(IdentityFileError, match="neither EC nor RSA"):
            read_private_key(file)

    def test_truncated_at_every_byte(self, tmp_path: Path, forge: Any) -> None:
        pem = key_pem(forge.leaf_key).rstrip()
        file = self.put(tmp_path, b"")
        for length in range(len(pem)):
            file.write_bytes(pem[:length])
            with pytest.raises(IdentityFileError, match="holds no readable PEM private key"):
                read_private_key(file)


class TestPemFiles:
    def test_truncated_certificates(self, tmp_path: Path, ca: Any) -> None:
        file = tmp_path / "ca.crt"
        pem = ca.pem.rstrip()
        for length in range(len(pem)):
            file.write_bytes(pem[:length])
            with pytest.raises(IdentityFileError, match="holds no readable PEM certificate"):
                read_certificates(file)

    def test_truncated_lists(self, tmp_path: Path, forge: Any, ca: Any) -> None:
        file = tmp_path / "crl.pem"
        pem = forge.crl(ca, [1, 2]).public_bytes(Encoding.PEM).rstrip()
        for length in range(len(pem)):
            file.write_bytes(pem[:length])
            with pytest.raises(IdentityFileError, match="holds no readable PEM revocation list"):
                read_crls(file)

    def test_a_second_list_that_is_cut_off_is_not_left_out(
        self, tmp_path: Path, forge: Any, ca: Any
    ) -> None:
        file = tmp_path / "crl.pem"
        pem = forge.crl(ca).public_bytes(Encoding.PEM)
        file.write_bytes(pem + pem)
        assert len(read_crls(file)) == 2
        file.write_bytes(pem + pem[:-10])
        with pytest.raises(IdentityFileError, match="holds no readable PEM revocation list"):
            read_crls(file)

    @given(st.binary(max_size=300))
    def test_garbage_is_one_kind_of_error(self, garbage: bytes) -> None:
        for parser in (tls_files._load_certificates, tls_files._split_crls):
            with pytest.raises(IdentityFileError), pytest.MonkeyPatch.context() as patch:
                patch.setattr(tls_files, "read_file", lambda _file: garbage)
                tls_files._parse(Path("file"), parser, "thing")

    @given(data=st.data())
    def test_a_damaged_certificate_is_one_kind_of_error(
        self, forge: Any, ca: Any, data: st.DataObject
    ) -> None:
        damaged = damage(forge.leaf(ca).public_bytes(Encoding.DER), data)
        with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings(action="ignore"):
            file, key = Path(directory, "tls.crt"), Path(directory, "tls.key")
            file.write_bytes(pem("CERTIFICATE", damaged))
            write_file(key, key_pem(forge.leaf_key), 0o600)
            for check in (check_ca_file, lambda file, now: check_client_files(file, key, now)):
                with contextlib.suppress(IdentityFileError):
                    check(file, forge.now)

    @given(data=st.data())
    def test_a_damaged_list_is_one_kind_of_error(
        self, forge: Any, ca: Any, data: st.DataObject
    ) -> None:
        damaged = damage(forge.crl(ca, [1, 2]).public_bytes(Encoding.DER), data)
        with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings(action="ignore"):
            ca_file, file = Path(directory, "ca.crt"), Path(directory, "crl.pem")
            ca_file.write_bytes(ca.pem)
            file.write_bytes(pem("X509 CRL", damaged))
            with contextlib.suppress(IdentityFileError):
                loaded = ReloadingClientVerifier(ca_file, file, forge.now).current.revocation
                assert [crl.serials for crl in loaded.lists.values()] == [{1, 2}]

    def test_an_expired_authority(self, tmp_path: Path, forge: Any, ca: Any) -> None:
        old = forge.authority("Old", not_after=forge.now - DAY)
        file = tmp_path / "ca.crt"
        file.write_bytes(old.pem)
        with pytest.raises(IdentityFileError, match="no authority in it is valid at 2026-03-01"):
            check_ca_file(file, forge.now)
        file.write_bytes(old.pem + ca.pem)
        assert len(check_ca_file(file, forge.now)) == 2


class TestAgentBundle:
    def write(self, directory: Path, name: str = "alice", **changes: Any) -> AgentBundle:
        content = {"ca_pem": b"CA", "certificate_pem": b"CRT", "key_pem": b"KEY"}
        return write_agent_bundle(directory, name, **{**content, **changes})

    def test_three_files(self, tmp_path: Path) -> None:
        bundle = self.write(tmp_path / "new" / "directory")
        modes = [
            each.stat().st_mode & 0o777
            for each in (bundle.ca_file, bundle.certificate_file, bundle.key_file)
        ]
        assert modes == [0o644, 0o644, 0o600]
        assert bundle.key_file.read_bytes() == b"KEY"
        assert bundle.key_file.parent.stat().st_mode & 0o777 == 0o700

    def test_a_key_is_not_overwritten_unless_asked(self, tmp_path: Path) -> None:
        bundle = self.write(tmp_path)
        with pytest.raises(IdentityFileError, match=r"alice\.key: exists already"):
            self.write(tmp_path, key_pem=b"NEW")
        assert bundle.key_file.read_bytes() == b"KEY"
        self.write(tmp_path, key_pem=b"NEW", replace=True)
        assert bundle.key_file.read_bytes() == b"NEW"

    def test_two_clients_share_a_directory_but_not_two_authorities(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        self.write(tmp_path, "bob")
        with pytest.raises(IdentityFileError, match=r"ca\.crt: is the certificate of another CA"):
            self.write(tmp_path, "carol", ca_pem=b"OTHER")
        assert not (tmp_path / "carol.key").exists()

    def test_a_name_cannot_leave_the_directory(self, tmp_path: Path) -> None:
        bundle = self.write(tmp_path, "../../etc/passwd")
        assert bundle.key_file.parent == tmp_path

    def test_a_directory_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(IdentityFileError, match="cannot be made"):
            self.write(tmp_path / "file" / "below")
