"""The sessions of all workers: who may come, which addresses it holds, what the kernel knows.

In the supervisor. What is decided here holds for the whole gateway: one session for each identity,
the number of sessions, the addresses. A session's end goes the same way, whoever wants it: the
kernel forgets the client first, then its worker tells the peer.

A client that comes with a second session, to renew the first, loses no packet by it:

    admitted      the first one has addresses, kernel entry and steering still
    established   the second one's worker knows it: it has them now. The kernel's entry is the same
                  if the client's rights are, so flows and counters go on
    a moment on   the first one, whose packets from the client passed until then, is closed
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from zgate_control.store import StoreError
from zgate_identity.refusal import CertificateRefused
from zgate_identity.verifier import PeerIdentity
from zgate_protocol import goodbye
from zgate_protocol.structured_field import ProxyError

from zgate_gateway.admission import Applicant, IpAddress, PeerPath, Refusal, WorkerLink
from zgate_gateway.pool import AddressPool, PoolExhausted

logger = logging.getLogger(__name__)

#: How long a session that another one has replaced passes what its client still sends by it.
GRACE_S = 1.0
#: Who comes again within so long after its session's end has reconnected.
_LATELY_S = 60.0


class KernelClients(Protocol):
    """What the sessions need of the kernel: `zgate_gateway.kernel.Kernel`."""

    def add_client(
        self,
        name: str,
        groups: Sequence[str],
        addresses: Sequence[IpAddress],
        reaches: Sequence[str] | None,
    ) -> None:
        """From now on the kernel judges packets of these addresses by this client's policy."""

    def remove_client(self, name: str) -> None:
        """From now on it passes none."""

    def client_bytes(self, name: str) -> tuple[int, int]:
        """Bytes counted up and down."""


class Steering(Protocol):
    """Which worker gets the packets for an address: `zgate_bpf.steering_tables.AddressOwners`."""

    def assign(self, address: IpAddress, owner: int) -> None:
        """From now on this worker does."""

    def release(self, address: IpAddress, owner: int) -> None:
        """From now on this worker does not."""


class SessionListener(Protocol):
    """Who is told of sessions: the audit log."""

    def session_up(self, session: SessionRecord) -> None:
        """A session is established."""

    def session_down(self, session: SessionRecord, cause: str) -> None:
        """A session has ended."""

    def session_refused(self, client: str, peer: str, reason: str, text: str) -> None:
        """A verified client was refused."""


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """What an operator can say about sessions."""

    newest_wins: bool
    max_sessions: int


@dataclass(eq=False, slots=True)
class SessionRecord:
    """One established session, as the supervisor knows it; `path` follows the client's.

    Attributes:
        is_up: its worker has it; until then an earlier session of the client has its place.
        bytes_before: what had been counted for the client, up and down, when it came.
        bytes_until: the same when another session took its place.
        admission_s: see `Admission.timing_s`.
    """

    session_id: str
    identity: PeerIdentity
    worker: WorkerLink
    path: PeerPath
    addresses: tuple[IpAddress, ...]
    target: str
    ip_protocol: int | None
    established_at: datetime
    established_s: float
    is_up: bool = True
    is_leaving: bool = False
    closed: bool = False
    bytes_before: tuple[int, int] = (0, 0)
    bytes_until: tuple[int, int] | None = None
    admission_s: tuple[float, ...] = ()

    @property
    def client(self) -> str:
        """The client's name."""
        return self.identity.name

    @property
    def peer(self) -> str:
        """The client's outer address and port, for people."""
        return str(self.path)


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _nobody_asks(_addresses: Sequence[IpAddress]) -> None:
    """What was open before does not matter."""


def _nothing_offered(_session: SessionRecord, _cause: str) -> None:
    """No session offers anything."""


class Registry:
    """All sessions of the gateway.

    `recheck` raises `CertificateRefused` when an identity holds no more: a worker may have
    verified it by files that are old by now. `lease_clock` says when leases were last used: who has
    been away for long is not to be judged by a wall clock that jumps.
    """

    def __init__(
        self,
        settings: RegistrySettings,
        *,
        pools: Sequence[AddressPool],
        kernel: KernelClients,
        steering: Steering,
        listener: SessionListener,
        recheck: Callable[[PeerIdentity, datetime], None],
        loop: asyncio.AbstractEventLoop,
        lease_clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self.settings = settings
        self.accepting = True
        self.refuses_because = "the gateway is shutting down"
        self.by_client: dict[str, SessionRecord] = {}
        self.by_id: dict[str, SessionRecord] = {}
        self.by_address: dict[IpAddress, SessionRecord] = {}
        self.established_total = 0
        self.refused: dict[str, int] = {}
        self.reconnects: Counter[str] = Counter()
        #: Called with a session and the cause before anything else is done about its end.
        self.on_ending: Callable[[SessionRecord, str], None] = _nothing_offered
        #: Called when the kernel knows a client anew, with its addresses: it has no flows yet.
        self.on_arrival: Callable[[Sequence[IpAddress]], None] = _nobody_asks
        self.loop = loop
        self._pools = tuple(pools)
        self._kernel = kernel
        self._steering = steering
        self._listener = listener
        self._recheck = recheck
        self._lease_clock = lease_clock
        self._ids = itertools.count(1)
        self._ended_s: dict[str, float] = {}  # the oldest first

    def admit(self, applicant: Applicant, worker: WorkerLink) -> SessionRecord:
        """Establish a session.

        Raises:
            Refusal: counted and recorded; the request must be answered with its status.
        """
        try:
            session = self._admit(applicant, worker)
        except Refusal as refusal:
            self.count_refused(applicant.identity.name, str(applicant.path), refusal)
            raise
        self._listener.session_up(session)
        return session

    def _admit(self, applicant: Applicant, worker: WorkerLink) -> SessionRecord:
        identity, now = applicant.identity, datetime.now(UTC)
        self._check(identity, now)
        previous = self.by_client.get(identity.name)
        was_here = "up" if previous is not None else self._ended_lately(identity.name)
        addresses: list[IpAddress] = []
        began_s = time.monotonic()
        try:
            for pool in self._pools:
                addresses.append(pool.acquire(identity.name, self._lease_clock()).address)
            leased_s = time.monotonic()
            if previous is None:
                self._install(identity, addresses, worker)
        except PoolExhausted as error:
            self._release(identity.name, addresses, worker)
            raise Refusal(
                503, ProxyError.CONNECTION_LIMIT_REACHED, f"address pool: {error}"
            ) from error
        except (StoreError, OSError, RuntimeError) as error:
            self._release(identity.name, addresses, worker)
            logger.error(
                "cannot admit %(client)s: %(error)s",
                {"event": "admission_failed", "client": identity.name, "error": error},
            )
            raise Refusal(
                503, ProxyError.PROXY_INTERNAL_ERROR, "the gateway cannot take clients"
            ) from error
        session = SessionRecord(
            session_id=f"s{next(self._ids)}",
            identity=identity,
            worker=worker,
            path=applicant.path,
            addresses=tuple(addresses),
            target=applicant.target,
            ip_protocol=applicant.ip_protocol,
            established_at=now,
            established_s=self.loop.time(),
            is_up=previous is None,
            admission_s=(began_s, leased_s, time.monotonic()),
        )
        self.by_id[session.session_id] = session
        if previous is None:
            self._give_place(session)
        self.established_total += 1
        if was_here:
            self.reconnects[was_here] += 1
        return session

    def _install(
        self, identity: PeerIdentity, addresses: Sequence[IpAddress], worker: WorkerLink
    ) -> None:
        for address in addresses:
            self._steering.assign(address, worker.index)
        self._kernel.add_client(identity.name, identity.groups, addresses, identity.reaches)
        self.on_arrival(addresses)

    def _give_place(self, session: SessionRecord) -> None:
        self.by_client[session.client] = session
        self.by_address.update(dict.fromkeys(session.addresses, session))

    def established(self, session_id: str, worker: WorkerLink) -> None:
        """A worker has a session that it was granted: an earlier one of the client gives way."""
        session = self.by_id.get(session_id)
        if session is None or session.worker is not worker or session.is_up:
            return
        session.is_up = True
        previous = self.by_client.get(session.client)
        try:
            self._take_place(session, previous)
        except (OSError, RuntimeError) as error:
            logger.error(
                "cannot let a newer session of %(client)s in: %(error)s",
                {"event": "admission_failed", "client": session.client, "error": error},
            )
            for one in (previous, session):
                if one is not None:
                    self.close(one, "the gateway cannot take clients")

    def _take_place(self, session: SessionRecord, previous: SessionRecord | None) -> None:
        """Nothing is taken away before what replaces it is there."""
        if previous is not None:
            previous.bytes_until = self._kernel.client_bytes(previous.client)
        if previous is not None and _means_the_same(session, previous):
            for address in session.addresses:
                self._steering.assign(address, session.worker.index)
            session.bytes_before = previous.bytes_until or (0, 0)
        else:
            self._install(session.identity, session.addresses, session.worker)
        self._give_place(session)
        if previous is None:
            return
        for address in set(previous.addresses) - set(session.addresses):
            if self.by_address.get(address) is previous:
                del self.by_address[address]
            self._steering.release(address, previous.worker.index)
        self._tell_ending(previous, goodbye.REPLACED)
        self.loop.call_later(GRACE_S, self.close, previous, goodbye.REPLACED)

    def _ended_lately(self, client: str) -> str:
        """Whether the client had a session until lately: who comes again and again is counted."""
        ended_s = self._ended_s.get(client, -_LATELY_S)
        return "ended" if self.loop.time() - ended_s < _LATELY_S else ""

    def _note_end(self, client: str) -> None:
        now_s = self.loop.time()
        self._ended_s.pop(client, None)
        self._ended_s[client] = now_s
        while now_s - self._ended_s[oldest := next(iter(self._ended_s))] >= _LATELY_S:
            del self._ended_s[oldest]

    def _check(self, identity: PeerIdentity, now: datetime) -> None:
        if not self.accepting:
            raise Refusal(503, ProxyError.DESTINATION_UNAVAILABLE, self.refuses_because)
        try:
            self._recheck(identity, now)
        except CertificateRefused as refused:
            raise Refusal(403, ProxyError.HTTP_REQUEST_DENIED, str(refused.reason)) from refused
        if identity.name in self.by_client:
            if not self.settings.newest_wins:
                raise Refusal(
                    409, ProxyError.CONNECTION_LIMIT_REACHED, "this client has a session already"
                )
        elif len(self.by_client) >= self.settings.max_sessions:
            raise Refusal(
                503, ProxyError.CONNECTION_LIMIT_REACHED, "the gateway has no room for sessions"
            )

    def _release(self, client: str, acquired: Sequence[IpAddress], worker: WorkerLink) -> None:
        families = {address.version for address in acquired}
        for pool in self._pools:
            if pool.family in families:
                pool.release(client, self._lease_clock())
        for address in acquired:
            if address in self.by_address:
                continue  # another session of the client has it
            try:
                self._steering.release(address, worker.index)
            except OSError as error:
                # The worker has no session for it: what comes is dropped there.
                logger.error(
                    "packets for %(address)s still go to a worker: %(error)s",
                    {"event": "steering_not_undone", "address": address, "error": error},
                )

    def count_refused(self, client: str, peer: str, refusal: Refusal) -> None:
        """A verified client's request was refused."""
        self.refused[refusal.reason] = self.refused.get(refusal.reason, 0) + 1
        self._listener.session_refused(client, peer, refusal.reason, str(refusal))

    def close(self, session: SessionRecord, cause: str) -> None:
        """End a session: the kernel first, then the peer. Twice is no error."""
        if self._forget(session, cause):
            session.worker.close_session(session.session_id, cause)

    def ended(self, session_id: str, worker: WorkerLink, cause: str) -> None:
        """A worker says that a session of its own is over."""
        session = self.by_id.get(session_id)
        if session is not None and session.worker is worker:
            self._forget(session, cause)

    def moved(self, session_id: str, worker: WorkerLink, path: PeerPath) -> None:
        """A worker says that a client of its own is somewhere else now."""
        session = self.by_id.get(session_id)
        if session is not None and session.worker is worker:
            session.path = path

    def worker_lost(self, worker: WorkerLink, cause: str) -> list[PeerPath]:
        """A worker has died: nothing of its sessions stays. Where their clients were."""
        lost = [session for session in self.by_id.values() if session.worker is worker]
        for session in lost:
            self._forget(session, cause)
        return [session.path for session in lost]

    def _forget(self, session: SessionRecord, cause: str) -> bool:
        if session.closed:
            return False
        session.closed = True
        self._tell_ending(session, cause)
        try:
            # First, for what the kernel has counted for the client goes with it.
            self._listener.session_down(session, cause)
        except Exception:
            # A log that fails must not keep a revoked client alive.
            logger.exception(
                "the end of session %(session)s was not recorded",
                {"event": "session_end_fault", "session": session.session_id},
            )
        self.by_id.pop(session.session_id, None)
        for address in session.addresses:
            if self.by_address.get(address) is session:
                del self.by_address[address]
        self._note_end(session.client)
        if self.by_client.get(session.client) is session:
            del self.by_client[session.client]
            try:
                self._kernel.remove_client(session.client)
            except (OSError, RuntimeError) as error:
                # No packet of the client reaches the kernel any more, whatever it remembers.
                logger.error(
                    "client %(client)s stays in the kernel: %(error)s",
                    {"event": "client_not_removed", "client": session.client, "error": error},
                )
        self._release(session.client, session.addresses, session.worker)
        return True

    def _tell_ending(self, session: SessionRecord, cause: str) -> None:
        if session.is_leaving:
            return
        session.is_leaving = True
        try:
            # Nothing may be led to a client that is on its way out.
            self.on_ending(session, cause)
        except Exception:
            logger.exception(
                "what session %(session)s offers did not end in order",
                {"event": "session_offers_fault", "session": session.session_id},
            )

    def touch_leases(self) -> None:
        """Note in the store that the connected clients are there."""
        now = self._lease_clock()
        for pool in self._pools:
            pool.touch_connected(now)


def _means_the_same(session: SessionRecord, previous: SessionRecord) -> bool:
    """Whether the kernel's entry of one session is that of another, too."""
    new, old = session.identity, previous.identity
    return (new.groups, new.reaches, session.addresses) == (
        old.groups,
        old.reaches,
        previous.addresses,
    )
