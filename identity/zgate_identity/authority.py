"""Our own certificate authority: a directory, and what can be done with it.

    ca.crt       the authority's certificate; agents need it to know their gateway
    ca.key       its key, mode 0600
    crl.pem      the revocation list; the gateway reads it
    certs/       every certificate that was issued, SERIAL.crt; no keys

The certificates and the signed revocation list *are* the records: there is no index beside them
that could say something else. A new authority is built in a directory beside and appears by one
rename; whatever changes the directory later holds its lock.
"""

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from zgate_identity import profile
from zgate_identity.chain import extension
from zgate_identity.files import (
    PRIVATE_MODE,
    IdentityError,
    IdentityFileError,
    give_to_owner_of,
    locked_directory,
    sync_directory,
    write_file,
)
from zgate_identity.names import IpAddress, check_dns_name, name_problem
from zgate_identity.profile import Issuer, Usage
from zgate_identity.revocation import CrlError, RevocationList, load_revocation_list
from zgate_identity.service_names import (
    agent_name,
    connector_name,
    offered_services,
    reached_services,
)
from zgate_identity.tls_files import read_certificates, read_crls, read_private_key

CA_LIFETIME = timedelta(days=3650)
LEAF_LIFETIME = timedelta(days=365)
CRL_LIFETIME = timedelta(days=90)
"""Long, because the gateway's own authority renews its list by itself, at half of it."""


class AuthorityError(IdentityError):
    """What was asked of the authority cannot be done; ``str()`` is one line."""


class AuthorityExistsError(AuthorityError):
    """There is an authority in the directory already; nothing was changed."""


class UnknownCertificateError(AuthorityError):
    """No certificate of that name or serial number was issued here."""


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate that the authority issued. Times are aware, UTC; fingerprint is SHA-256."""

    name: str
    groups: tuple[str, ...]
    usage: Usage
    serial: int
    not_before: datetime
    not_after: datetime
    fingerprint: str
    dns_names: tuple[str, ...]
    ips: tuple[IpAddress, ...]
    revoked_at: datetime | None = None

    @property
    def offers(self) -> tuple[str, ...]:
        """The services that its holder may offer."""
        return offered_services(self.dns_names) if self.usage is Usage.CLIENT else ()

    @property
    def reaches(self) -> tuple[str, ...] | None:
        """The services that its holder is narrowed to; None: it is not."""
        return reached_services(self.dns_names) if self.usage is Usage.CLIENT else None

    @property
    def serial_text(self) -> str:
        """The serial number as it is written everywhere: 40 hexadecimal digits."""
        return f"{self.serial:040x}"

    def status(self, now: datetime) -> str:
        """One of "revoked", "expired", "not yet valid", "valid"."""
        if self.revoked_at is not None:
            return "revoked"
        if now > self.not_after:
            return "expired"
        return "not yet valid" if now < self.not_before else "valid"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A new certificate with its key, which is kept nowhere else."""

    issued: IssuedCertificate
    certificate_pem: bytes
    key_pem: bytes
    ca_pem: bytes


class CertificateAuthority:
    """The authority in one directory. Open it with `create`, `load` or `open`."""

    def __init__(self, directory: Path, issuer: Issuer) -> None:
        self.directory = directory
        self._issuer = issuer

    @classmethod
    def create(
        cls,
        directory: Path,
        now: datetime,
        *,
        name: str | None = None,
        lifetime: timedelta = CA_LIFETIME,
    ) -> "CertificateAuthority":
        """Make a new authority in `directory`, which does not exist yet or is empty.

        Raises:
            AuthorityExistsError: there is one already; it is left as it is.
            IdentityFileError: the directory holds something else, or cannot be written.
            AuthorityError: `name` is no valid name.
        """
        key = profile.new_key()
        name = name or f"zgate CA {_key_id(key)}"
        _require_name(name, "the name of the authority")
        issuer = Issuer(profile.build_authority(name, key, now, lifetime), key)
        crl = profile.build_crl(issuer, (), 1, now, CRL_LIFETIME)
        try:
            _publish(directory, issuer, crl)
        except OSError as error:
            if (directory / "ca.crt").exists():
                raise AuthorityExistsError(
                    f"{directory}: there is an authority already; nothing was changed"
                ) from None
            raise IdentityFileError(
                directory,
                f"no authority can be made here ({error.strerror})",
                "name a directory that is empty or does not exist, in one that is writable",
            ) from error
        return cls(directory, issuer)

    @classmethod
    def load(cls, directory: Path) -> "CertificateAuthority":
        """The authority in `directory`.

        Raises:
            IdentityFileError: there is none, or its certificate and key do not fit.
        """
        ca_file, key_file = directory / "ca.crt", directory / "ca.key"
        if not ca_file.exists():
            raise IdentityFileError(
                directory, "there is no authority", "make one with: zgatectl pki init"
            )
        certificate = read_certificates(ca_file)[0]
        key = read_private_key(key_file)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise IdentityFileError(key_file, "is no EC key", "restore it from a backup")
        if key.public_key() != certificate.public_key():
            raise IdentityFileError(
                key_file, f"does not belong to {ca_file}", "restore both from a backup"
            )
        return cls(directory, Issuer(certificate, key))

    @classmethod
    def open(cls, directory: Path, now: datetime) -> tuple["CertificateAuthority", bool]:
        """The authority in `directory`, and whether it was made just now.

        Raises:
            IdentityFileError: as `create` and `load`.
        """
        if (directory / "ca.crt").exists():
            return cls.load(directory), False
        try:
            return cls.create(directory, now), True
        except AuthorityExistsError:  # another process was faster
            return cls.load(directory), False

    @property
    def certificate(self) -> x509.Certificate:
        """The authority's certificate."""
        return self._issuer.certificate

    @property
    def ca_file(self) -> Path:
        """The file with the authority's certificate."""
        return self.directory / "ca.crt"

    @property
    def crl_file(self) -> Path:
        """The file with the revocation list."""
        return self.directory / "crl.pem"

    @property
    def ca_pem(self) -> bytes:
        """The authority's certificate as PEM."""
        return profile.certificate_pem(self.certificate)

    @property
    def crl(self) -> RevocationList:
        """The revocation list as it is on disk now.

        Raises:
            IdentityFileError: it is unreadable, or not from this authority.
        """
        return self._check_crl(self._read_crl())

    def issue(
        self,
        name: str,
        *,
        groups: Sequence[str] = (),
        usage: Usage = Usage.CLIENT,
        dns_names: Sequence[str] = (),
        ips: Sequence[IPv4Address | IPv6Address] = (),
        offers: Sequence[str] = (),
        reaches: Sequence[str] = (),
        lifetime: timedelta = LEAF_LIFETIME,
        now: datetime,
    ) -> Credentials:
        """A new key and a certificate for it.

        Earlier certificates of the same name stay valid: that is how one is renewed. A client
        gets no host names, for nobody may stand in for a gateway with a client's certificate; but
        it may get the services that it ``offers``, and those that it is narrowed to
        (``reaches``; none: it is not), each a name or ``*`` for all.

        Raises:
            AuthorityError: a bad name, group, host or service; a lifetime beyond the authority's
                own.
            IdentityFileError: the directory cannot be written.
        """
        hosts = _check_request(name, groups, usage, dns_names, ips)
        hosts += _service_names(usage, offers, reaches)
        not_after = now + lifetime
        if lifetime <= timedelta(0) or not_after > self.certificate.not_valid_after_utc:
            raise AuthorityError(
                f"the lifetime of {lifetime.days} days is not between 1 and what is left of the "
                f"authority's own, {(self.certificate.not_valid_after_utc - now).days} days"
            )
        key = profile.new_key()
        certificate = profile.build_leaf(
            self._issuer,
            profile.subject(name, tuple(dict.fromkeys(groups))),
            key.public_key(),
            usage=usage,
            hosts=hosts,
            now=now,
            not_after=not_after,
        )
        pem = profile.certificate_pem(certificate)
        with locked_directory(self.directory):
            write_file(self.directory / "certs" / f"{certificate.serial_number:040x}.crt", pem)
        return Credentials(_record(certificate, {}), pem, profile.key_pem(key), self.ca_pem)

    def revoke(self, name_or_serial: str, now: datetime) -> tuple[IssuedCertificate, ...]:
        """Revoke every certificate of that name, or the one with that serial number (hex).

        The new list is in `crl_file` when this returns.

        Returns:
            Those that this call revoked; none if all were revoked or expired before.

        Raises:
            UnknownCertificateError: nothing of that name or serial number was issued.
            IdentityFileError: the list cannot be read or written.
        """
        with locked_directory(self.directory):
            matches = self._find(name_or_serial)
            revoked = [each for each in matches if each.status(now) in {"valid", "not yet valid"}]
            if revoked:
                entries = [profile.revoked_entry(each.serial, now) for each in revoked]
                self._write_crl(self._read_crl(), entries, now)
        serials = {each.serial for each in revoked}
        return tuple(each for each in self.list() if each.serial in serials)

    def list(self) -> tuple[IssuedCertificate, ...]:
        """All certificates that were issued, by name, then by age.

        Raises:
            IdentityFileError: a certificate or the revocation list is unreadable.
        """
        crl = self._read_crl()
        self._check_crl(crl)
        revoked = {entry.serial_number: entry.revocation_date_utc for entry in crl}
        files = (self.directory / "certs").glob("*.crt")
        records = [_record(read_certificates(file)[0], revoked) for file in files]
        return tuple(sorted(records, key=lambda each: (each.name, each.not_before, each.serial)))

    def refresh_crl(self, now: datetime, *, if_needed: bool = False) -> bool:
        """Sign the revocation list anew, with the same entries.

        Args:
            now: aware.
            if_needed: only if less than half of its lifetime is left.

        Returns:
            Whether a new list was written.

        Raises:
            IdentityFileError: it cannot be read or written.
        """
        with locked_directory(self.directory):
            crl = self._read_crl()
            if if_needed and self._check_crl(crl).next_update - now > CRL_LIFETIME / 2:
                return False
            self._write_crl(crl, (), now)
        return True

    def _find(self, name_or_serial: str) -> tuple[IssuedCertificate, ...]:
        everything = self.list()
        wanted = name_or_serial.lower().replace(":", "").lstrip("0")
        found = tuple(each for each in everything if each.name == name_or_serial) or tuple(
            each for each in everything if f"{each.serial:x}" == wanted
        )
        if not found:
            raise UnknownCertificateError(
                f"no certificate with the name or serial number {name_or_serial!r} was issued here"
            )
        return found

    def _read_crl(self) -> x509.CertificateRevocationList:
        return read_crls(self.crl_file)[0]

    def _check_crl(self, crl: x509.CertificateRevocationList) -> RevocationList:
        try:
            return load_revocation_list(crl, [self.certificate])
        except CrlError as error:
            raise IdentityFileError(
                self.crl_file, str(error), "restore it from a backup"
            ) from error

    def _write_crl(
        self,
        old: x509.CertificateRevocationList,
        more: Iterable[x509.RevokedCertificate],
        now: datetime,
    ) -> None:
        number = self._check_crl(old).number or 0
        crl = profile.build_crl(self._issuer, (*old, *more), number + 1, now, CRL_LIFETIME)
        write_file(self.crl_file, crl.public_bytes(serialization.Encoding.PEM))


def _publish(directory: Path, issuer: Issuer, crl: x509.CertificateRevocationList) -> None:
    """Build the directory beside its place, then rename it; an empty one there is replaced.

    Raises:
        OSError: the place is taken by something else, or cannot be written.
    """
    # The state directory, where the gateway has not made it yet.
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        (staging / "certs").mkdir(mode=0o700)
        for folder in (staging, staging / "certs"):
            give_to_owner_of(directory.parent, folder)
        write_file(staging / "ca.key", profile.key_pem(issuer.key), PRIVATE_MODE)
        write_file(staging / "crl.pem", crl.public_bytes(serialization.Encoding.PEM))
        write_file(staging / "ca.crt", profile.certificate_pem(issuer.certificate))
        staging.rename(directory)
        sync_directory(directory.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _key_id(key: ec.EllipticCurvePrivateKey) -> str:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()[:8]


def _require_name(value: str, what: str) -> None:
    problem = name_problem(value)
    if problem:
        raise AuthorityError(f"{what} {problem}")


def _check_request(
    name: str,
    groups: Sequence[str],
    usage: Usage,
    dns_names: Sequence[str],
    ips: Sequence[IpAddress],
) -> tuple[x509.GeneralName, ...]:
    """The subjectAltName of a certificate that may be issued."""
    _require_name(name, "the name")
    for group in groups:
        _require_name(group, "a group")
    if usage is Usage.CLIENT and (dns_names or ips):
        raise AuthorityError("a client's certificate names no host; leave out DNS names and IPs")
    if usage is Usage.SERVER and not (dns_names or ips):
        raise AuthorityError("a server's certificate needs a DNS name or an IP address")
    try:
        dns = [x509.DNSName(check_dns_name(each)) for each in dns_names]
    except ValueError as error:
        raise AuthorityError(str(error)) from None
    return tuple(dict.fromkeys([*dns, *map(x509.IPAddress, ips)]))


def _service_names(
    usage: Usage, offers: Sequence[str], reaches: Sequence[str]
) -> tuple[x509.GeneralName, ...]:
    """What the subjectAltName says about services (`zgate_identity.service_names`)."""
    if usage is not Usage.CLIENT and (offers or reaches):
        raise AuthorityError("services are a client's: a server neither offers nor reaches any")
    try:
        names = [*map(connector_name, offers), *map(agent_name, reaches)]
    except ValueError as error:
        raise AuthorityError(str(error)) from None
    return tuple(map(x509.DNSName, dict.fromkeys(names)))


def _record(certificate: x509.Certificate, revoked: dict[int, datetime]) -> IssuedCertificate:
    names = extension(certificate, x509.SubjectAlternativeName)
    usages = extension(certificate, x509.ExtendedKeyUsage)
    is_client = usages is not None and Usage.CLIENT.oid in usages
    addresses = names.get_values_for_type(x509.IPAddress) if names else []
    return IssuedCertificate(
        name=_texts(certificate.subject, NameOID.COMMON_NAME)[0],
        groups=_texts(certificate.subject, NameOID.ORGANIZATIONAL_UNIT_NAME),
        usage=Usage.CLIENT if is_client else Usage.SERVER,
        serial=certificate.serial_number,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        dns_names=tuple(names.get_values_for_type(x509.DNSName)) if names else (),
        ips=tuple(ip for ip in addresses if isinstance(ip, IPv4Address | IPv6Address)),
        revoked_at=revoked.get(certificate.serial_number),
    )


def _texts(name: x509.Name, oid: x509.ObjectIdentifier) -> tuple[str, ...]:
    return tuple(str(attribute.value) for attribute in name.get_attributes_for_oid(oid))
