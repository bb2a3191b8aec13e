"""The files of a TLS identity: read, checked together, and written for a client.

A certificate that does not fit its key, has expired, or is for the other side shows itself in
the middle of a handshake, as an alert that says little. These checks run before any socket is
opened, and each failure is one line: which file, what is wrong, what to do.
"""

import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from zgate_identity.chain import extension, key_problem
from zgate_identity.files import PRIVATE_MODE, IdentityFileError, read_file, write_file
from zgate_identity.names import file_stem
from zgate_identity.verifier import check_authorities

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
ParsedT = TypeVar("ParsedT")

_PEM_CRL_END = b"-----END X509 CRL-----"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A certificate file and a key file that were checked and fit together.

    Attributes:
        leaf: the certificate.
        chain: the other certificates of the file, to be sent with it.
        private_key: its key.
        time_left: until it expires; positive.
    """

    leaf: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    private_key: PrivateKey
    time_left: timedelta


def check_server_files(certificate_file: Path, key_file: Path, now: datetime) -> TlsFiles:
    """Whether a gateway can serve with these files.

    Raises:
        IdentityFileError: a file is unreadable, they do not match, the certificate is not valid
            at `now`, lacks serverAuth, or names no host.
    """
    files = _check(certificate_file, key_file, now, ExtendedKeyUsageOID.SERVER_AUTH, "server")
    if extension(files.leaf, x509.SubjectAlternativeName) is None:
        raise IdentityFileError(
            certificate_file,
            "the certificate names no host (subjectAltName), so that no agent will accept it",
            "issue one with --dns or --ip",
        )
    return files


def check_client_files(certificate_file: Path, key_file: Path, now: datetime) -> TlsFiles:
    """Whether an agent can prove its identity with these files.

    Raises:
        IdentityFileError: as `check_server_files`, with clientAuth, and no host needed.
    """
    return _check(certificate_file, key_file, now, ExtendedKeyUsageOID.CLIENT_AUTH, "client")


def check_ca_file(ca_file: Path, now: datetime) -> tuple[x509.Certificate, ...]:
    """The authorities in `ca_file`, of which at least one is valid at `now`.

    Raises:
        IdentityFileError: it is unreadable, holds something else, or all have expired.
    """
    authorities = read_certificates(ca_file)
    try:
        check_authorities(authorities)
    except ValueError as error:
        raise IdentityFileError(ca_file, str(error), "name the CA's own certificate") from error
    if not any(ca.not_valid_before_utc <= now <= ca.not_valid_after_utc for ca in authorities):
        raise IdentityFileError(
            ca_file, f"no authority in it is valid at {now:%F %T} UTC", "compare dates and clock"
        )
    return authorities


def read_certificates(file: Path) -> tuple[x509.Certificate, ...]:
    """All certificates of a PEM file, at least one.

    Raises:
        IdentityFileError: it is unreadable or holds none.
    """
    return _parse(file, _load_certificates, "PEM certificate")


def _load_certificates(data: bytes) -> tuple[x509.Certificate, ...]:
    """Parse all of each one now: otherwise a damaged field shows where it is first used."""
    certificates = tuple(x509.load_pem_x509_certificates(data))
    for certificate in certificates:
        _ = (certificate.subject, certificate.issuer, certificate.extensions)
        certificate.public_key()
    return certificates


def read_crls(file: Path) -> tuple[x509.CertificateRevocationList, ...]:
    """All revocation lists of a PEM file, at least one.

    Raises:
        IdentityFileError: it is unreadable or holds none.
    """
    return _parse(file, _split_crls, "PEM revocation list")


def _split_crls(data: bytes) -> tuple[x509.CertificateRevocationList, ...]:
    *lists, rest = data.split(_PEM_CRL_END)
    if not lists or b"-----BEGIN" in rest:
        raise ValueError("no complete X509 CRL block")
    crls = tuple(x509.load_pem_x509_crl(part + _PEM_CRL_END) for part in lists)
    for crl in crls:
        _ = (crl.issuer, crl.extensions, list(crl))
    return crls


def _parse(file: Path, parser: Callable[[bytes], ParsedT], what: str) -> ParsedT:
    data = read_file(file)
    try:
        return parser(data)
    except Exception as error:
        # The library documents ValueError; a property test found others (InvalidVersion).
        raise IdentityFileError(file, f"holds no readable {what}") from error


def read_private_key(file: Path) -> PrivateKey:
    """The key of a PEM file that only its owner, and perhaps a group, can read.

    Raises:
        IdentityFileError: it is unreadable, encrypted, of another kind, or open to everybody.
    """
    data = read_file(file)
    if file.stat().st_mode & stat.S_IRWXO:
        raise IdentityFileError(file, "this key is open to every user", f"chmod 600 {file}")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except TypeError:
        raise IdentityFileError(
            file, "the key is encrypted", "write it without a passphrase, mode 0600"
        ) from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise IdentityFileError(file, "holds no readable PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise IdentityFileError(file, "the key is neither EC nor RSA", "issue a new certificate")
    return key


def _check(
    certificate_file: Path,
    key_file: Path,
    now: datetime,
    usage: x509.ObjectIdentifier,
    usage_name: str,
) -> TlsFiles:
    leaf, *chain = read_certificates(certificate_file)
    key = read_private_key(key_file)
    if leaf.public_key() != key.public_key():
        raise IdentityFileError(
            key_file,
            f"this key does not belong to the certificate in {certificate_file}",
            "name the two files that were issued together",
        )
    problem = _leaf_problem(leaf, now, usage, usage_name)
    if problem:
        raise IdentityFileError(
            certificate_file, problem, f"issue one with: zgatectl pki issue --usage {usage_name}"
        )
    return TlsFiles(leaf, tuple(chain), key, leaf.not_valid_after_utc - now)


def _leaf_problem(
    leaf: x509.Certificate, now: datetime, usage: x509.ObjectIdentifier, usage_name: str
) -> str | None:
    if now > leaf.not_valid_after_utc:
        return f"the certificate expired at {leaf.not_valid_after_utc:%F %T} UTC"
    if now < leaf.not_valid_before_utc:
        return (
            f"the certificate is valid from {leaf.not_valid_before_utc:%F %T} UTC on, "
            f"and the clock says {now:%F %T}"
        )
    usages = extension(leaf, x509.ExtendedKeyUsage)
    if usages is None or usage not in usages:
        return f"the certificate is not for a {usage_name} (extended key usage {usage_name}Auth)"
    weak = key_problem(leaf)
    return f"the certificate has {weak}" if weak else None


@dataclass(frozen=True, slots=True)
class AgentBundle:
    """The three files that an agent needs to prove who it is and to know its gateway."""

    ca_file: Path
    certificate_file: Path
    key_file: Path

    @classmethod
    def paths(cls, directory: Path, name: str) -> "AgentBundle":
        """Where the files of client `name` go: NAME.crt, NAME.key and ca.crt."""
        stem = file_stem(name)
        return cls(directory / "ca.crt", directory / f"{stem}.crt", directory / f"{stem}.key")

    def require_free(self) -> None:
        """Refuse to overwrite somebody's key; ask before a certificate is issued for it.

        Raises:
            IdentityFileError: the certificate or the key is there already.
        """
        for file in (self.key_file, self.certificate_file):
            if file.exists():
                raise IdentityFileError(
                    file, "exists already", "choose another directory, or allow it to be replaced"
                )


def write_agent_bundle(
    directory: Path,
    name: str,
    *,
    ca_pem: bytes,
    certificate_pem: bytes,
    key_pem: bytes,
    replace: bool = False,
) -> AgentBundle:
    """Write what client `name` needs into `directory`, which is made, for its owner only.

    The key is written first and with mode 0600; each file appears whole or not at all.

    Raises:
        IdentityFileError: a file exists and `replace` is not set, `directory` holds the
            certificate of another CA, or it cannot be written.
    """
    bundle = AgentBundle.paths(directory, name)
    if not replace:
        bundle.require_free()
        _require_same_ca(bundle.ca_file, ca_pem)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise IdentityFileError(directory, f"cannot be made ({error.strerror})") from error
    write_file(bundle.key_file, key_pem, PRIVATE_MODE)
    write_file(bundle.certificate_file, certificate_pem)
    write_file(bundle.ca_file, ca_pem)
    return bundle


def _require_same_ca(ca_file: Path, ca_pem: bytes) -> None:
    if ca_file.exists() and read_file(ca_file) != ca_pem:
        raise IdentityFileError(
            ca_file, "is the certificate of another CA", "choose another directory"
        )
