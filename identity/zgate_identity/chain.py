"""What client and server verification share: parsing, key strength, and naming a failure.

`cryptography.x509.verification` decides whether a chain holds. What it does not look at was
tried out and is done here: the strength of the keys in the chain, and the leaf's key usage.
It tells a failure in a sentence; `diagnose` finds the reason for it.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy

from zgate_identity.refusal import CertificateRefused, RefusalReason

MAX_CERTIFICATE_BYTES = 16 * 1024
MAX_CERTIFICATES_SENT = 6
"""Beside the leaf. Bounds the work that a stranger can cause; the path's own limit is lower."""
MIN_RSA_BITS = 2048
MAX_RSA_BITS = 8192
ACCEPTED_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)

ExtensionT = TypeVar("ExtensionT", bound=x509.ExtensionType)


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a leaf is needed for: the extended key usage, and its name in messages.

    `names_hosts`: its subjectAltName is required, and compared with the host that was dialled.
    """

    usage: x509.ObjectIdentifier
    usage_name: str
    names_hosts: bool

    def leaf_policy(self) -> ExtensionPolicy:
        """The library's profile, but the usage must be there, and a client needs no host name."""
        policy = ExtensionPolicy.webpki_defaults_ee().require_present(
            x509.ExtendedKeyUsage, Criticality.AGNOSTIC, self._require_usage
        )
        if self.names_hosts:
            return policy
        return policy.may_be_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)

    def _require_usage(
        self, _policy: Policy, _certificate: x509.Certificate, usages: x509.ExtendedKeyUsage
    ) -> None:
        if self.usage not in usages:
            raise ValueError(f"the extended key usage lacks {self.usage_name}")


def authority_policy() -> ExtensionPolicy:
    """The library's profile for authorities, but keyUsage may be absent.

    RFC 5280 section 6.1.4 (n) asks for keyCertSign only where keyUsage is there, and
    ``openssl req -x509`` leaves it out.
    """
    return ExtensionPolicy.webpki_defaults_ca().may_be_present(
        x509.KeyUsage, Criticality.AGNOSTIC, _require_cert_sign
    )


def _require_cert_sign(
    _policy: Policy, _certificate: x509.Certificate, usage: x509.KeyUsage | None
) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("the key usage of an authority lacks keyCertSign")


@contextmanager
def only_refusals() -> Iterator[None]:
    """Turn whatever a peer's certificates cause into a refusal, and keep the log clean.

    The fields of a certificate are parsed when they are first read, so that any line that
    touches a hostile one can fail, in more ways than the library documents; and the library
    warns about odd fields, which would let a stranger write to the log.

    Raises:
        CertificateRefused: as it was raised inside, or MALFORMED for any other exception.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except CertificateRefused:
        raise
    except Exception as error:
        raise CertificateRefused(
            RefusalReason.MALFORMED, f"not a well-formed certificate: {error}"[:256]
        ) from error


def parse_chain(
    leaf_der: bytes | None, others_der: Sequence[bytes]
) -> tuple[x509.Certificate, list[x509.Certificate]]:
    """The leaf and the other certificates that a peer sent.

    Raises:
        CertificateRefused: NO_CERTIFICATE, MALFORMED or CHAIN_TOO_LONG.
    """
    if not leaf_der:
        raise CertificateRefused(
            RefusalReason.NO_CERTIFICATE, "the peer sent no certificate; it needs one of our CA"
        )
    if len(others_der) > MAX_CERTIFICATES_SENT:
        raise CertificateRefused(
            RefusalReason.CHAIN_TOO_LONG,
            f"the peer sent {len(others_der)} certificates beside its own; "
            f"at most {MAX_CERTIFICATES_SENT} are read",
        )
    return _parse(leaf_der), [_parse(der) for der in others_der]


def _parse(der: bytes) -> x509.Certificate:
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise CertificateRefused(
            RefusalReason.MALFORMED,
            f"a certificate of {len(der)} bytes; at most {MAX_CERTIFICATE_BYTES} are read",
        )
    return x509.load_der_x509_certificate(der)


def key_problem(certificate: x509.Certificate) -> str | None:
    """Why the key of `certificate` is not accepted; None if it is."""
    try:
        key = certificate.public_key()
    except UnsupportedAlgorithm:
        return "a key of an unknown kind"
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < MIN_RSA_BITS or key.key_size > MAX_RSA_BITS:
            return f"an RSA key of {key.key_size} bits, not {MIN_RSA_BITS} to {MAX_RSA_BITS}"
        return None
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, ACCEPTED_CURVES):
            return f"an EC key on {key.curve.name}, not P-256, P-384 or P-521"
        return None
    return f"a key of another kind ({type(key).__name__}) than EC or RSA"


def require_strong_keys(chain: Sequence[x509.Certificate]) -> None:
    """Refuse a chain with a weak key; the library looks at issuers that were sent only.

    Raises:
        CertificateRefused: WEAK_KEY.
    """
    for certificate in chain:
        problem = key_problem(certificate)
        if problem:
            raise CertificateRefused(
                RefusalReason.WEAK_KEY, f"{describe(certificate)} has {problem}"
            )


def require_digital_signature(leaf: x509.Certificate) -> None:
    """TLS 1.3 signs with the leaf's key: its keyUsage, if there, must allow that.

    Raises:
        CertificateRefused: WRONG_USAGE (RFC 8446 section 4.4.2.2).
    """
    usage = extension(leaf, x509.KeyUsage)
    if usage is not None and not usage.digital_signature:
        raise CertificateRefused(
            RefusalReason.WRONG_USAGE, f"the key usage of {describe(leaf)} lacks digitalSignature"
        )


def extension(certificate: x509.Certificate, kind: type[ExtensionT]) -> ExtensionT | None:
    """The extension of that kind, or None.

    Raises:
        ValueError: the certificate's extensions cannot be parsed.
    """
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def dns_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names of the subjectAltName, as they are written.

    Raises:
        ValueError: the certificate's extensions cannot be parsed.
    """
    names = extension(certificate, x509.SubjectAlternativeName)
    return tuple(names.get_values_for_type(x509.DNSName)) if names is not None else ()


def describe(certificate: x509.Certificate) -> str:
    """The certificate in words, for a log line; short whatever its subject holds."""
    subject = certificate.subject.rfc4514_string()
    return f"the certificate of {subject[:128]!r} (serial {certificate.serial_number:040x})"


def is_self_issued(certificate: x509.Certificate) -> bool:
    """Whether issuer and subject are one name (RFC 5280 section 6.1)."""
    return certificate.issuer == certificate.subject


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether basic constraints and key usage let it sign certificates."""
    constraints = extension(certificate, x509.BasicConstraints)
    usage = extension(certificate, x509.KeyUsage)
    return constraints is not None and constraints.ca and (usage is None or usage.key_cert_sign)


def signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether `issuer` has the name and the key that `certificate` claims."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def diagnose(
    leaf: x509.Certificate,
    others: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    *,
    expectation: Expectation,
    now: datetime,
    library_text: str,
) -> CertificateRefused:
    """The reason for a refusal that the library has already decided on.

    It follows the issuers' names and signatures as far as they go, then looks at what the
    library looks at. It never turns a refusal into anything else.
    """
    path = list(_walk(leaf, others, anchors))
    refusal = (
        _trust_failure(path[-1], others, anchors)
        or _authority_failure(path[1:], now)
        or _leaf_failure(leaf, expectation, now)
    )
    if refusal is None and ("depth" in library_text or "path length" in library_text):
        refusal = CertificateRefused(
            RefusalReason.CHAIN_TOO_LONG,
            f"{describe(leaf)}: {len(path) - 1} authorities above it, more than are allowed",
        )
    return refusal or CertificateRefused(
        RefusalReason.CHAIN_INVALID, f"{describe(leaf)}: {library_text}"
    )


def _walk(
    leaf: x509.Certificate,
    others: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
) -> Iterator[x509.Certificate]:
    """The leaf, its issuer, and so on, until an anchor or a gap; no certificate twice."""
    seen: list[x509.Certificate] = []
    current: x509.Certificate | None = leaf
    while current is not None and current not in seen:
        yield current
        if current in anchors:
            return
        seen.append(current)
        below = current
        current = next((c for c in (*anchors, *others) if signed_by(below, c)), None)


def _trust_failure(
    top: x509.Certificate,
    others: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
) -> CertificateRefused | None:
    """Why the path ends below our authorities, if it does."""
    if top in anchors:
        return None
    issuer = repr(top.issuer.rfc4514_string()[:128])
    if any(top.issuer == authority.subject for authority in anchors):
        return CertificateRefused(
            RefusalReason.BAD_SIGNATURE,
            f"{describe(top)} names {issuer} as issuer, but the key of that CA did not sign it",
        )
    if is_self_issued(top):
        return CertificateRefused(
            RefusalReason.SELF_SIGNED, f"{describe(top)} is signed by itself, not by our CA"
        )
    if any(top.issuer == other.subject for other in others):
        return CertificateRefused(
            RefusalReason.BAD_SIGNATURE, f"{describe(top)} is not signed by the {issuer} it sent"
        )
    return CertificateRefused(
        RefusalReason.UNKNOWN_ISSUER, f"{describe(top)} is issued by {issuer}, which is not trusted"
    )


def _authority_failure(
    authorities: Sequence[x509.Certificate], now: datetime
) -> CertificateRefused | None:
    for authority in authorities:
        if not is_authority(authority):
            return CertificateRefused(
                RefusalReason.ISSUER_NOT_CA, f"{describe(authority)} may not sign certificates"
            )
        weak = key_problem(authority)
        if weak:
            return CertificateRefused(
                RefusalReason.WEAK_KEY, f"{describe(authority)}, an authority, has {weak}"
            )
        if not authority.not_valid_before_utc <= now <= authority.not_valid_after_utc:
            return CertificateRefused(
                RefusalReason.ISSUER_NOT_CURRENT,
                f"{describe(authority)}, an authority, is valid from "
                f"{authority.not_valid_before_utc:%F} to {authority.not_valid_after_utc:%F} only",
            )
    return None


def _leaf_failure(
    leaf: x509.Certificate, expectation: Expectation, now: datetime
) -> CertificateRefused | None:
    if now > leaf.not_valid_after_utc:
        return CertificateRefused(
            RefusalReason.EXPIRED,
            f"{describe(leaf)} expired at {leaf.not_valid_after_utc:%F %T} UTC; issue a new one",
        )
    if now < leaf.not_valid_before_utc:
        return CertificateRefused(
            RefusalReason.NOT_YET_VALID,
            f"{describe(leaf)} is valid from {leaf.not_valid_before_utc:%F %T} UTC on; "
            "compare the clocks",
        )
    usages = extension(leaf, x509.ExtendedKeyUsage)
    if usages is None or expectation.usage not in usages:
        return CertificateRefused(
            RefusalReason.WRONG_USAGE,
            f"{describe(leaf)} lacks the extended key usage {expectation.usage_name}",
        )
    return None
