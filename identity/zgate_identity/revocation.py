"""Certificate revocation lists: which serial numbers an authority has taken back.

A list is believed only if the authority that it names signed it (RFC 5280 section 6.3.3), if
it is complete (no delta, no partition), and between its thisUpdate and nextUpdate. That check
is done once, at loading; looking up a serial number is a set lookup.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from zgate_identity.chain import describe, extension, signed_by
from zgate_identity.refusal import CertificateRefused, RefusalReason

CLOCK_SKEW = timedelta(minutes=5)
"""How far ahead the clock of the machine that signs lists may be."""
CURE = "write a new one with: zgatectl pki crl"

_ACCEPTED_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)

AuthorityKey = bytes


class CrlError(ValueError):
    """A revocation list that cannot be used at all; ``str()`` says why in one line."""


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A revocation list whose signature held.

    Attributes:
        issuer_key: the authority that signed it, see `authority_key`.
        number: the CRL number (RFC 5280 section 5.2.3), None if the list has none.
        serials: the revoked serial numbers.
        this_update, next_update: the time in which it holds, aware, UTC.
    """

    issuer_key: AuthorityKey
    number: int | None
    serials: frozenset[int]
    this_update: datetime
    next_update: datetime

    def require_current(self, now: datetime) -> None:
        """Fail closed on a list that does not hold at `now`.

        Raises:
            CertificateRefused: CRL_STALE or CRL_NOT_YET_VALID.
        """
        if now > self.next_update:
            raise CertificateRefused(
                RefusalReason.CRL_STALE,
                f"the revocation list expired at {self.next_update:%F %T} UTC; {CURE}",
            )
        if self.this_update > now + CLOCK_SKEW:
            raise CertificateRefused(
                RefusalReason.CRL_NOT_YET_VALID,
                f"the revocation list was made at {self.this_update:%F %T} UTC, "
                "which is in the future; compare the clocks",
            )

    def is_older_than(self, other: "RevocationList") -> bool:
        """Whether `other`, of the same authority, was issued after this one."""
        if self.number is not None and other.number is not None:
            return self.number < other.number
        return self.this_update < other.this_update


def authority_key(authority: x509.Certificate) -> AuthorityKey:
    """What makes an authority itself: its name and its key, whatever the certificate.

    A renewed certificate of the same authority has the same value; a stranger of the same
    name has not.
    """
    key = authority.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return authority.subject.public_bytes() + key


@dataclass(frozen=True, slots=True)
class PathStep:
    """One certificate of a verified path: its serial number, and who issued it."""

    serial: int
    issuer: AuthorityKey


def path_of(chain: Sequence[x509.Certificate]) -> tuple[PathStep, ...]:
    """The steps of a verified chain, the leaf's first; the last issuer is a trusted authority."""
    return tuple(
        PathStep(certificate.serial_number, authority_key(issuer))
        for certificate, issuer in pairwise(chain)
    )


def load_revocation_list(
    crl: x509.CertificateRevocationList, authorities: Iterable[x509.Certificate]
) -> RevocationList:
    """Check `crl` against the authority that it names.

    Raises:
        CrlError: an unknown issuer, a forged signature, a delta or partial list, no nextUpdate.
    """
    issuer = _issuer_of(crl, authorities)
    if crl.next_update_utc is None:
        raise CrlError("the revocation list has no nextUpdate (RFC 5280 section 5.1.2.5)")
    return RevocationList(
        issuer_key=authority_key(issuer),
        number=_read_extensions(crl),
        serials=frozenset(entry.serial_number for entry in crl),
        this_update=crl.last_update_utc,
        next_update=crl.next_update_utc,
    )


def _issuer_of(
    crl: x509.CertificateRevocationList, authorities: Iterable[x509.Certificate]
) -> x509.Certificate:
    named = [authority for authority in authorities if authority.subject == crl.issuer]
    if not named:
        raise CrlError(
            f"the revocation list is from {crl.issuer.rfc4514_string()!r}, "
            "which is not among the trusted authorities"
        )
    if not isinstance(crl.signature_hash_algorithm, _ACCEPTED_HASHES):
        raise CrlError("the revocation list is not signed with SHA-256, SHA-384 or SHA-512")
    for authority in named:
        if _is_signed_by(crl, authority):
            return authority
    raise CrlError(
        f"the signature of the revocation list is not from the key of {describe(named[0])}"
    )


def _is_signed_by(crl: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    usage = extension(authority, x509.KeyUsage)
    if usage is not None and not usage.crl_sign:
        return False
    key = authority.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        return False
    try:
        return crl.is_signature_valid(key)
    except (ValueError, UnsupportedAlgorithm):
        return False


def _read_extensions(crl: x509.CertificateRevocationList) -> int | None:
    """The CRL number; a critical extension beside it means another kind of list."""
    number = None
    for item in crl.extensions:
        if isinstance(item.value, x509.CRLNumber):
            number = item.value.crl_number
        elif item.critical:
            raise CrlError(
                f"the revocation list has the critical extension {item.oid.dotted_string}: "
                "delta, partial and indirect lists are not supported"
            )
    return number


@dataclass(frozen=True, slots=True)
class Revocation:
    """All revocation lists in use; none at all means that revocation is not checked."""

    lists: dict[AuthorityKey, RevocationList]

    @classmethod
    def load(
        cls,
        crls: Iterable[x509.CertificateRevocationList],
        authorities: Sequence[x509.Certificate],
    ) -> "Revocation":
        """Check every list; of two of one authority the newer one counts.

        Raises:
            CrlError: see `load_revocation_list`.
        """
        lists: dict[AuthorityKey, RevocationList] = {}
        for crl in crls:
            loaded = load_revocation_list(crl, authorities)
            known = lists.get(loaded.issuer_key)
            if known is None or known.is_older_than(loaded):
                lists[loaded.issuer_key] = loaded
        return cls(lists)

    def not_revoked(self, authorities: Sequence[x509.Certificate]) -> tuple[x509.Certificate, ...]:
        """The authorities that no list of another one of them takes back.

        Path validation ends at the first trusted authority, so that an intermediate which is
        trusted itself would never be looked up there.
        """
        return tuple(
            authority
            for authority in authorities
            if not any(self._revokes(issuer, authority) for issuer in authorities)
        )

    def _revokes(self, issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
        crl = self.lists.get(authority_key(issuer))
        return (
            crl is not None
            and certificate.serial_number in crl.serials
            and signed_by(certificate, issuer)
        )

    def require_not_revoked(self, path: Sequence[PathStep], now: datetime) -> None:
        """Refuse a path with a revoked certificate in it.

        Raises:
            CertificateRefused: REVOKED, REVOCATION_UNKNOWN, CRL_STALE or CRL_NOT_YET_VALID.
        """
        if not self.lists:
            return
        for step in path:
            what = f"the certificate with serial {step.serial:040x}"
            crl = self.lists.get(step.issuer)
            if crl is None:
                raise CertificateRefused(
                    RefusalReason.REVOCATION_UNKNOWN,
                    f"there is no revocation list from the issuer of {what}; "
                    "add the issuer to the CA file and its list to the CRL file",
                )
            crl.require_current(now)
            if step.serial in crl.serials:
                raise CertificateRefused(RefusalReason.REVOKED, f"{what} is revoked")

    def require_current(self, now: datetime) -> None:
        """Refuse if any list does not hold at `now`.

        Raises:
            CertificateRefused: CRL_STALE or CRL_NOT_YET_VALID.
        """
        for crl in self.lists.values():
            crl.require_current(now)

    def goes_back_behind(self, other: "Revocation") -> bool:
        """Whether a list here is older than the one of the same authority in `other`.

        Somebody who puts an old list back gives revoked clients their access back.
        """
        return any(
            issuer in other.lists and crl.is_older_than(other.lists[issuer])
            for issuer, crl in self.lists.items()
        )
