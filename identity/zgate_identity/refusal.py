"""Why a peer's certificate was refused: one enum, one exception.

The reason is for programs (metrics, audit, the TLS alert); the text is for the person who
reads the log at night. Both go to the log of the side that refused; the peer sees the alert.
"""

from enum import StrEnum

# TLS alerts, RFC 8446 section 6.2.
_BAD_CERTIFICATE = 42
_UNSUPPORTED_CERTIFICATE = 43
_CERTIFICATE_REVOKED = 44
_CERTIFICATE_EXPIRED = 45
_CERTIFICATE_UNKNOWN = 46
_UNKNOWN_CA = 48
_CERTIFICATE_REQUIRED = 116


class RefusalReason(StrEnum):
    """What was wrong with a certificate. The values are stable: they are metric labels."""

    NO_CERTIFICATE = "no_certificate"
    """The peer sent an empty Certificate message."""
    MALFORMED = "malformed"
    """Not one well-formed X.509 v3 certificate, or larger than we read."""
    SELF_SIGNED = "self_signed"
    """It vouches for itself, and it is none of our authorities."""
    UNKNOWN_ISSUER = "unknown_issuer"
    """No authority of that name is trusted, and none was sent."""
    BAD_SIGNATURE = "bad_signature"
    """The issuer's name is known, but its key did not sign this."""
    ISSUER_NOT_CA = "issuer_not_ca"
    """A certificate in the chain may not sign others (RFC 5280 section 6.1.4)."""
    ISSUER_NOT_CURRENT = "issuer_not_current"
    """An authority in the chain has expired or is not valid yet."""
    CHAIN_TOO_LONG = "chain_too_long"
    """More authorities between it and ours than are allowed."""
    CHAIN_INVALID = "chain_invalid"
    """Path validation failed for another cause, told in the text."""
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    WRONG_USAGE = "wrong_usage"
    """The extended key usage is absent or another one, or the key usage forbids signatures."""
    WEAK_KEY = "weak_key"
    """RSA below 2048 bits, or a kind of key that is not accepted."""
    REVOKED = "revoked"
    REVOCATION_UNKNOWN = "revocation_unknown"
    """Revocation lists are in use, but none is there for this issuer."""
    CRL_STALE = "crl_stale"
    """The revocation list is past its nextUpdate: who was revoked since is not known."""
    CRL_NOT_YET_VALID = "crl_not_yet_valid"
    """The revocation list was made in the future: one of two clocks is wrong."""
    BAD_NAME = "bad_name"
    """The Common Name is missing, there are two, or it is not a printable short name."""
    BAD_GROUP = "bad_group"
    """An OU entry is not a printable short name."""
    NAME_MISMATCH = "name_mismatch"
    """The certificate is for another host than the one that was dialled (servers only)."""

    @property
    def tls_alert(self) -> int:
        """The TLS alert that tells the peer (RFC 8446 section 6.2).

        QUIC carries it as CONNECTION_CLOSE error 0x100 + alert (RFC 9001 section 4.8).
        """
        return _ALERTS.get(self, _BAD_CERTIFICATE)


_ALERTS = {
    RefusalReason.NO_CERTIFICATE: _CERTIFICATE_REQUIRED,
    RefusalReason.SELF_SIGNED: _UNKNOWN_CA,
    RefusalReason.UNKNOWN_ISSUER: _UNKNOWN_CA,
    RefusalReason.EXPIRED: _CERTIFICATE_EXPIRED,
    RefusalReason.NOT_YET_VALID: _CERTIFICATE_EXPIRED,
    RefusalReason.ISSUER_NOT_CURRENT: _CERTIFICATE_EXPIRED,
    RefusalReason.WRONG_USAGE: _UNSUPPORTED_CERTIFICATE,
    RefusalReason.WEAK_KEY: _UNSUPPORTED_CERTIFICATE,
    RefusalReason.REVOKED: _CERTIFICATE_REVOKED,
    RefusalReason.REVOCATION_UNKNOWN: _CERTIFICATE_UNKNOWN,
    RefusalReason.CRL_STALE: _CERTIFICATE_UNKNOWN,
    RefusalReason.CRL_NOT_YET_VALID: _CERTIFICATE_UNKNOWN,
}


class CertificateRefused(Exception):
    """A peer's certificate was refused; ``str()`` is one line with the cause.

    Attributes:
        reason: for programs.
        text: for people; holds no control characters, whatever the certificate held.
    """

    def __init__(self, reason: RefusalReason, text: str) -> None:
        self.reason = reason
        self.text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
        super().__init__(f"{reason}: {self.text}")
