"""Is this gateway the one that was dialled? The agent's question after the TLS handshake.

aioquic checks the chain, the dates and the host name, but not what the certificate is for: any
client of the same CA whose certificate carried the gateway's name could stand in for it. This
check, which repeats the others, asks for serverAuth too.
"""

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from zgate_identity.chain import (
    Expectation,
    authority_policy,
    describe,
    diagnose,
    extension,
    only_refusals,
    parse_chain,
    require_digital_signature,
    require_strong_keys,
)
from zgate_identity.names import general_name, parse_host
from zgate_identity.refusal import CertificateRefused, RefusalReason
from zgate_identity.verifier import MAX_INTERMEDIATES, check_authorities

SERVER = Expectation(ExtendedKeyUsageOID.SERVER_AUTH, "serverAuth", names_hosts=True)


class ServerVerifier:
    """Verifies the gateway's certificate for one host name or address.

    Raises:
        ValueError: no usable authority, or `server_name` is no host name and no address.
    """

    def __init__(self, ca_certs: Sequence[x509.Certificate], server_name: str) -> None:
        check_authorities(ca_certs)
        self._authorities = tuple(ca_certs)
        self._host = general_name(parse_host(server_name))
        self._policy = (
            PolicyBuilder()
            .store(Store(list(ca_certs)))
            .max_chain_depth(MAX_INTERMEDIATES)
            .extension_policies(ca_policy=authority_policy(), ee_policy=SERVER.leaf_policy())
        )

    def verify(
        self, leaf_der: bytes | None, intermediates_der: Sequence[bytes], now: datetime
    ) -> None:
        """Return if the peer is the host that was dialled.

        Raises:
            CertificateRefused: it is not, or not provably. Nothing else is raised.
        """
        with only_refusals():
            self._verify(leaf_der, intermediates_der, now)

    def _verify(
        self, leaf_der: bytes | None, intermediates_der: Sequence[bytes], now: datetime
    ) -> None:
        leaf, others = parse_chain(leaf_der, intermediates_der)
        verifier = self._policy.time(now).build_server_verifier(self._host)
        try:
            chain = verifier.verify(leaf, others)
        except VerificationError as error:
            refusal = diagnose(
                leaf,
                others,
                self._authorities,
                expectation=SERVER,
                now=now,
                library_text=str(error),
            )
            if refusal.reason is RefusalReason.CHAIN_INVALID and not self._names_host(leaf):
                refusal = CertificateRefused(
                    RefusalReason.NAME_MISMATCH,
                    f"{describe(leaf)} is not for {self._host.value}",
                )
            raise refusal from error
        require_strong_keys(chain)
        require_digital_signature(leaf)

    def _names_host(self, leaf: x509.Certificate) -> bool:
        names = extension(leaf, x509.SubjectAlternativeName)
        return names is not None and self._host in list(names)
