"""Is this client who it says it is? The gateway's question after every TLS handshake.

aioquic asks a client for its certificate and checks that it holds the key; everything else is
decided here, in this order:

1. the certificates parse, and there are not too many of them;
2. the chain leads to one of our authorities, with signatures, dates, basic constraints and
   clientAuth in place (`cryptography.x509.verification`);
3. every key in the chain is strong enough, and the leaf may sign;
4. nothing in the chain is revoked, by a current list of its issuer;
5. the subject has one well-formed Common Name and well-formed groups; what the certificate says
   about services is read beside them (`service_names.py`).

All of it is pure: certificates and the time come in as arguments. `reload.py` reads files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from zgate_identity.chain import (
    Expectation,
    authority_policy,
    describe,
    diagnose,
    dns_names,
    is_authority,
    key_problem,
    only_refusals,
    parse_chain,
    require_digital_signature,
    require_strong_keys,
)
from zgate_identity.names import client_groups, client_name
from zgate_identity.refusal import CertificateRefused, RefusalReason
from zgate_identity.revocation import CrlError, PathStep, Revocation, authority_key, path_of
from zgate_identity.service_names import offered_services, reached_services

MAX_INTERMEDIATES = 2
CLIENT = Expectation(ExtendedKeyUsageOID.CLIENT_AUTH, "clientAuth", names_hosts=False)


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """A client whose certificate was accepted.

    Attributes:
        name: the Common Name; the client's name everywhere.
        groups: the OU entries, in their order, each once.
        serial: the serial number of the certificate.
        not_after: when the first certificate of the chain expires, aware, UTC.
        fingerprint: SHA-256 of the certificate, 64 hexadecimal digits. To show, not to decide by:
            the client can write its certificate's signature in several ways.
        path: the certificates that vouch, from the client's own up, each as serial number and
            issuer; for `ClientVerifier.recheck`.
        offers: the services that the certificate lets it offer; `*`: every one.
        reaches: the services that the certificate narrows it to; None: it is not narrowed.
    """

    name: str
    groups: tuple[str, ...]
    serial: int
    not_after: datetime
    fingerprint: str
    path: tuple[PathStep, ...] = field(repr=False)
    offers: tuple[str, ...] = ()
    reaches: tuple[str, ...] | None = None


class ClientVerifier:
    """Verifies client certificates against fixed authorities and revocation lists.

    Immutable, so that one may be swapped for the next while it is in use.

    Args:
        ca_certs: the authorities that are trusted.
        crls: their revocation lists. Empty: revocation is not checked. With any list in use,
            a certificate whose issuer has none is refused.
        max_intermediates: authorities allowed between a client and one of ours.

    Attributes:
        authorities: those that are trusted and not revoked.
        revocation: the revocation lists.

    Raises:
        ValueError: no authority, or a certificate that is none, or one with a weak key; and
            `CrlError`, its subclass, for a list that cannot be used.
    """

    def __init__(
        self,
        ca_certs: Sequence[x509.Certificate],
        crls: Sequence[x509.CertificateRevocationList] = (),
        *,
        max_intermediates: int = MAX_INTERMEDIATES,
    ) -> None:
        check_authorities(ca_certs)
        self.revocation = Revocation.load(crls, ca_certs)
        self.authorities = self.revocation.not_revoked(ca_certs)
        if not self.authorities:
            raise CrlError("every authority is revoked")
        self._authority_keys = frozenset(authority_key(ca) for ca in self.authorities)
        self._policy = (
            PolicyBuilder()
            .store(Store(list(self.authorities)))
            .max_chain_depth(max_intermediates)
            .extension_policies(ca_policy=authority_policy(), ee_policy=CLIENT.leaf_policy())
        )

    def verify(
        self, leaf_der: bytes | None, intermediates_der: Sequence[bytes], now: datetime
    ) -> PeerIdentity:
        """Who the peer is.

        Args:
            leaf_der: the peer's own certificate; None or empty if it sent none.
            intermediates_der: the others that it sent, in any order.
            now: aware.

        Raises:
            CertificateRefused: for whatever is wrong with what the peer sent. Nothing else.
        """
        with only_refusals():
            return self._verify(leaf_der, intermediates_der, now)

    def _verify(
        self, leaf_der: bytes | None, intermediates_der: Sequence[bytes], now: datetime
    ) -> PeerIdentity:
        leaf, others = parse_chain(leaf_der, intermediates_der)
        try:
            chain = self._policy.time(now).build_client_verifier().verify(leaf, others).chain
        except VerificationError as error:
            raise diagnose(
                leaf,
                others,
                self.authorities,
                expectation=CLIENT,
                now=now,
                library_text=str(error),
            ) from error
        require_strong_keys(chain)
        require_digital_signature(leaf)
        path = path_of(chain)
        self.revocation.require_not_revoked(path, now)
        names = dns_names(leaf)
        return PeerIdentity(
            name=client_name(leaf.subject),
            groups=client_groups(leaf.subject),
            serial=leaf.serial_number,
            not_after=min(certificate.not_valid_after_utc for certificate in chain),
            fingerprint=leaf.fingerprint(hashes.SHA256()).hex(),
            path=path,
            offers=offered_services(names),
            reaches=reached_services(names),
        )

    def recheck(self, identity: PeerIdentity, now: datetime) -> None:
        """Whether an identity that was accepted before still holds: for open sessions.

        Call it when the files were reloaded, and when `PeerIdentity.not_after` passes.

        Raises:
            CertificateRefused: EXPIRED, UNKNOWN_ISSUER if its authority is trusted no more, or
                REVOKED, REVOCATION_UNKNOWN, CRL_STALE, CRL_NOT_YET_VALID.
        """
        what = f"the certificate of {identity.name!r} (serial {identity.serial:040x})"
        if now > identity.not_after:
            raise CertificateRefused(
                RefusalReason.EXPIRED, f"{what} expired at {identity.not_after:%F %T} UTC"
            )
        if identity.path[-1].issuer not in self._authority_keys:
            raise CertificateRefused(
                RefusalReason.UNKNOWN_ISSUER, f"the authority of {what} is trusted no more"
            )
        self.revocation.require_not_revoked(identity.path, now)


def check_authorities(ca_certs: Sequence[x509.Certificate]) -> None:
    """Refuse, at loading, authorities that could never vouch for anybody.

    Raises:
        ValueError: there is none, one is no authority, or its key is weak.
    """
    if not ca_certs:
        raise ValueError("there is no certificate of an authority")
    for certificate in ca_certs:
        if not is_authority(certificate):
            raise ValueError(f"{describe(certificate)} is not that of a certificate authority")
        problem = key_problem(certificate)
        if problem:
            raise ValueError(f"{describe(certificate)}, an authority, has {problem}")
