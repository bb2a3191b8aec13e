"""A client verifier whose files can be read again.

The CA bundle and the revocation list are read together and become one new `ClientVerifier`,
which replaces the old one by a single assignment: no handshake sees half of a change. A file
that cannot be used changes nothing; the error says why.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from zgate_identity.files import IdentityFileError
from zgate_identity.refusal import CertificateRefused
from zgate_identity.revocation import CrlError
from zgate_identity.tls_files import check_ca_file, read_crls
from zgate_identity.verifier import MAX_INTERMEDIATES, ClientVerifier, PeerIdentity


class ReloadingClientVerifier:
    """`ClientVerifier` on files; same `verify` and `recheck`.

    Args:
        ca_file: PEM, the authorities that are trusted.
        crl_file: PEM, their revocation lists; None: revocation is not checked.
        now: aware; a revocation list that is stale then is refused here already.
        max_intermediates: as for `ClientVerifier`.

    Raises:
        IdentityFileError: a file cannot be used.
    """

    def __init__(
        self,
        ca_file: Path,
        crl_file: Path | None,
        now: datetime,
        *,
        max_intermediates: int = MAX_INTERMEDIATES,
    ) -> None:
        self.ca_file = ca_file
        self.crl_file = crl_file
        self._max_intermediates = max_intermediates
        self._current = self._load(now)

    @property
    def current(self) -> ClientVerifier:
        """The verifier in use; a new object after every reload."""
        return self._current

    def verify(
        self, leaf_der: bytes | None, intermediates_der: Sequence[bytes], now: datetime
    ) -> PeerIdentity:
        """See `ClientVerifier.verify`."""
        return self._current.verify(leaf_der, intermediates_der, now)

    def recheck(self, identity: PeerIdentity, now: datetime) -> None:
        """See `ClientVerifier.recheck`."""
        self._current.recheck(identity, now)

    def reload(self, now: datetime) -> None:
        """Read both files again. Open sessions are the caller's to `recheck`.

        Raises:
            IdentityFileError: a file cannot be used; the old ones stay in force.
        """
        fresh = self._load(now)
        if self.crl_file and fresh.revocation.goes_back_behind(self._current.revocation):
            raise IdentityFileError(
                self.crl_file,
                "is older than the revocation list in use",
                "put the newest one there; to go back on purpose, restart",
            )
        self._current = fresh

    def _load(self, now: datetime) -> ClientVerifier:
        authorities = check_ca_file(self.ca_file, now)
        if self.crl_file is None:
            return ClientVerifier(authorities, max_intermediates=self._max_intermediates)
        crls = read_crls(self.crl_file)
        try:
            fresh = ClientVerifier(authorities, crls, max_intermediates=self._max_intermediates)
            fresh.revocation.require_current(now)
        except CrlError as error:
            raise IdentityFileError(self.crl_file, str(error)) from error
        except CertificateRefused as refusal:
            raise IdentityFileError(self.crl_file, refusal.text) from refusal
        return fresh
