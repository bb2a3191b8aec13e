"""The gateway's certificates while it runs: its own, the authorities', the revocation lists.

All of them are files, and each may change at any time: another certificate, another authority, a
new list. They are looked at four times a second, and at SIGHUP. New connections get what is new;
those that are up keep their certificate, and end if they are revoked, or expired by the
`SteadyClock`. What cannot be used (half written, a key of another certificate, gone) changes
nothing: the old one stays in use, a problem says so, and it is tried again until it is right.

A gateway without ``pki`` has an authority of its own, and renews what is about to run out. It does
that with the authority that it began with: one that is lost is not made anew while sessions live.

Workers get copies (`zgate_gateway.copies`), so that one that is started anew serves with what was
found to be good.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from zgate_identity.files import IdentityError, IdentityFileError, read_file, version_of
from zgate_identity.gateway_identity import ensure_gateway_identity
from zgate_identity.refusal import CertificateRefused
from zgate_identity.reload import ReloadingClientVerifier
from zgate_identity.tls_files import check_server_files
from zgate_identity.verifier import PeerIdentity

from zgate_gateway.config import GatewayConfig
from zgate_gateway.copies import MemoryFile
from zgate_gateway.expiry import Validity, tell, validities
from zgate_gateway.problems import Problems
from zgate_gateway.registry import Registry
from zgate_gateway.steady_clock import SteadyClock
from zgate_gateway.worker import messages

logger = logging.getLogger(__name__)

_LOOK_INTERVAL_S = 0.25
_RENEW_INTERVAL_S = 3600.0
_DATES_INTERVAL_S = 5.0
#: Two files do not change as one: so long they may not fit before anybody is told.
_PATIENCE_S = 2.0
_RETRY_INTERVAL_S = 5.0

_FAILURES = (IdentityError, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where they are."""

    certificate: Path
    key: Path
    ca: Path
    crl: Path | None


class CertificateKeeper:
    """See the module's text.

    :ivar files: where they are.
    :ivar verifier: what clients' certificates are checked against.
    """

    def __init__(self, config: GatewayConfig, problems: Problems, now: datetime) -> None:
        """Read all of them, and make what a gateway without ``pki`` lacks.

        Raises:
            IdentityError: a file cannot be used.
            ValueError: a server name is none.
            OSError: no memory for the copies.
        """
        self._config = config
        self._problems = problems
        self.files = files = self._find(now)
        self._own_files = {"certificate": files.certificate, "key": files.key}
        self._trust_files = {"ca": files.ca} | ({"crl": files.crl} if files.crl else {})
        # Before reading: what changes meanwhile shows at the first look.
        self._own_followed = _Followed(
            problems, "certificate_not_loaded", self._reload_own, self._own_files.values()
        )
        self._trust_followed = _Followed(
            problems, "trust_not_loaded", self._reload_trust, self._trust_files.values()
        )
        self._copies = {name: MemoryFile(name) for name in (*self._own_files, *self._trust_files)}
        self._tell_workers: Callable[[messages.Message], None] | None = None
        with self._copied(self._trust_files):
            self.verifier = ReloadingClientVerifier(files.ca, files.crl, now)
        with self._copied(self._own_files):
            self._own = check_server_files(files.certificate, files.key, now)
        self._dates_due_s = self._renew_due_s = 0.0

    def close(self) -> None:
        """Give the copies back."""
        for copy in self._copies.values():
            copy.close()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The copies, for a worker: certificate, key, authorities, and revocation lists if any."""
        return tuple(copy.fd for copy in self._copies.values())

    def open(
        self,
        *,
        sessions: Registry,
        tell_workers: Callable[[messages.Message], None],
        clock: SteadyClock,
    ) -> None:
        """Workers and sessions are there: they follow from now on."""
        self._sessions, self._tell_workers, self._clock = sessions, tell_workers, clock

    # Meanwhile.

    async def keep(self) -> None:
        """Follow the files and the time; for ever."""
        loop = asyncio.get_running_loop()
        self._renew_due_s = loop.time() + _RENEW_INTERVAL_S
        while True:
            self.check(loop.time())
            await asyncio.sleep(_LOOK_INTERVAL_S)

    def check(self, time_s: float) -> None:
        """One look. Revocation acts at once."""
        if self._config.pki is None and time_s >= self._renew_due_s:
            self._renew_due_s = time_s + _RENEW_INTERVAL_S
            self._renew()
        now = datetime.now(UTC)
        self._trust_followed.look(now, time_s)
        self._own_followed.look(now, time_s)
        self._recheck_sessions()
        if time_s >= self._dates_due_s:
            self._dates_due_s = time_s + _DATES_INTERVAL_S
            self._tell_dates(now)

    def reload(self) -> None:
        """SIGHUP, or a clock that was set: read everything again, and renew what has to be."""
        if self._config.pki is None:
            self._renew()
        now = datetime.now(UTC)
        time_s = asyncio.get_running_loop().time()
        self._trust_followed.look(now, time_s, at_once=True)
        self._own_followed.look(now, time_s, at_once=True)
        self._recheck_sessions()
        self._tell_dates(now)

    def expiries(self) -> Mapping[str, datetime]:
        """When what is in use runs out: ``gateway``, ``ca:SUBJECT``, ``crl``.

        An authority and its successor may have the same name: the one that ends first counts.
        """
        latest_first = sorted(self._validities(), key=lambda one: one.ends, reverse=True)
        return {one.key: one.ends for one in latest_first}

    def _validities(self) -> list[Validity]:
        current = self.verifier.current
        return validities(self._own.leaf, current.authorities, current.revocation.lists.values())

    def _tell_dates(self, now: datetime) -> None:
        warn_before = timedelta(days=self._config.certificates.warn_before_days)
        tell(self._problems, self._validities(), now, warn_before)

    def _recheck_sessions(self) -> None:
        """Close the sessions of those who hold no more by either clock.

        What was issued after a clock was set (a new revocation list) may lie in the steady clock's
        future; and who is revoked is so by whichever clock the list can be read.
        """
        steady, now = self._clock.now(), datetime.now(UTC)
        for session in list(self._sessions.by_client.values()):
            refused = self._refusal(session.identity, steady)
            if refused is not None:
                refused = self._refusal(session.identity, now)
            if refused is not None:
                self._sessions.close(session, f"certificate {refused.reason}")

    def _refusal(self, identity: PeerIdentity, now: datetime) -> CertificateRefused | None:
        try:
            self.verifier.recheck(identity, now)
        except CertificateRefused as refused:
            return refused
        return None

    # The gateway's own authority.

    def _find(self, now: datetime) -> CertificateFiles:
        pki = self._config.pki
        if pki is not None:
            return CertificateFiles(pki.certificate, pki.key, pki.ca, pki.crl)
        own = ensure_gateway_identity(self._config.state_dir, self._config.server_names, now)
        return CertificateFiles(own.certificate_file, own.key_file, own.ca_file, own.crl_file)

    def _renew(self) -> None:
        """Sign the revocation list anew, and our certificate, in time."""
        try:
            if not self.files.ca.exists():
                raise IdentityFileError(
                    self.files.ca,
                    "the gateway's own authority is gone",
                    "put the backup of its directory back; what runs goes on meanwhile",
                )
            self._find(datetime.now(UTC))
        except _FAILURES as error:
            text = getattr(error, "strerror", None) or str(error)
            self._problems.begin("identity_not_renewed", text)
            self._renew_due_s = min(self._renew_due_s, _in(_RETRY_INTERVAL_S))
        else:
            self._problems.end("identity_not_renewed")

    # The files.

    @contextlib.contextmanager
    def _copied(self, files: Mapping[str, Path]) -> Iterator[None]:
        """Copy what is found to be good in the block, and not what has come since."""
        before = {file: version_of(file) for file in files.values()}
        yield
        found = {name: read_file(file) for name, file in files.items()}
        for file, version in before.items():
            if version_of(file) != version:
                raise IdentityFileError(file, "is being replaced right now")
        for name, data in found.items():
            self._copies[name].write(data)

    def _reload_own(self, now: datetime) -> None:
        before = self._own.leaf
        with self._copied(self._own_files):
            own = check_server_files(self.files.certificate, self.files.key, now)
        self._own = own
        if self._tell_workers is not None:
            self._tell_workers(messages.ReloadCertificate())
        if self._own.leaf != before:
            logger.info(
                "the gateway's certificate is another one, valid until %(not_after)s UTC",
                {
                    "event": "certificate_changed",
                    "not_after": f"{self._own.leaf.not_valid_after_utc:%F %T}",
                },
            )

    def _reload_trust(self, now: datetime) -> None:
        with self._copied(self._trust_files):
            self.verifier.reload(now)
        if self._tell_workers is not None:
            self._tell_workers(messages.ReloadTrust())


class _Followed:
    """Some files that are loaded together, whenever one of them changes."""

    def __init__(
        self,
        problems: Problems,
        problem: str,
        load: Callable[[datetime], None],
        files: Iterable[Path],
    ) -> None:
        self._problems = problems
        self._problem = problem
        self._load = load
        self._files = tuple(files)
        self._seen = self._versions()
        self._failing_since_s: float | None = None
        self._retry_s = 0.0

    def _versions(self) -> tuple[object, ...]:
        return tuple(version_of(file) for file in self._files)

    def look(self, now: datetime, time_s: float, *, at_once: bool = False) -> None:
        """Load them if they are others than before, or did not do the last time.

        With ``at_once`` in any case, and a failure is told without patience.
        """
        versions = self._versions()
        is_retry = self._failing_since_s is not None and time_s >= self._retry_s
        if versions == self._seen and not is_retry and not at_once:
            return
        self._seen = versions  # before reading: what changes meanwhile shows next time
        try:
            self._load(now)
        except _FAILURES as error:
            self._failed(error, time_s, at_once=at_once)
        else:
            self._failing_since_s = None
            self._problems.end(self._problem)

    def _failed(self, error: Exception, time_s: float, *, at_once: bool) -> None:
        if self._failing_since_s is None:
            self._failing_since_s = time_s
        self._retry_s = time_s + _LOOK_INTERVAL_S
        if at_once or time_s - self._failing_since_s >= _PATIENCE_S:
            self._retry_s = time_s + _RETRY_INTERVAL_S
            cause = getattr(error, "strerror", None) or str(error)
            self._problems.begin(self._problem, f"what was read before stays in use: {cause}")


def _in(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds
