"""The sessions of one worker: who is connected, where its packets go.

How one begins, and what a client says on it: `zgate_gateway.client_connection`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from zgate_datapath.connection import Connection
from zgate_datapath.tunnel import Tunnel, add_drops
from zgate_identity.verifier import PeerIdentity
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.ip_range import IpRange
from zgate_protocol.uri_template import UriTemplate

from zgate_gateway.admission import (
    Admission,
    Answer,
    Applicant,
    IpAddress,
    PeerPath,
    Refusal,
    Registrar,
)

_DEPARTED_S = 2.0


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What a worker tells its clients, and which one it is.

    Attributes:
        gateway_addresses: the gateway's own virtual IPs, packed, IPv4 and IPv6.
    """

    routes: tuple[IpRange, ...]
    template: UriTemplate
    gateway_addresses: tuple[bytes, bytes]
    worker: int = 0


class SessionOwner(Protocol):
    """The handler of the connection that a session is on."""

    @property
    def connection(self) -> Connection:
        """The connection itself."""

    def path(self) -> PeerPath:
        """Where the client is, and which of our connection IDs it sends to."""

    def end_session(self, session: Session, cause: str) -> None:
        """The table has closed the session: tell the peer, unless it told us."""


@dataclass(eq=False, slots=True)
class Session:
    """One established session."""

    session_id: str
    identity: PeerIdentity
    owner: SessionOwner
    tunnel: Tunnel
    addresses: tuple[IpAddress, ...]
    path: PeerPath
    last_packet_s: float
    carried_packets: int = 0
    closed: bool = False

    @property
    def client(self) -> str:
        """The client's name."""
        return self.identity.name

    def all_drops(self) -> Iterator[tuple[DropReason, int]]:
        """What was dropped in userspace, by reason: by the tunnel's checks and by its queue."""
        yield from self.tunnel.drops.items()
        yield from self.tunnel.connection.dropped.items()


def _tell_nobody(packet: bytes, reason: DropReason, mtu_bytes: int) -> None:
    """Nothing forwards yet."""


class SessionTable:
    """The sessions of one worker.

    `owner_of` says which worker should get the packets for an address (packed); None: no one.
    """

    def __init__(
        self,
        settings: SessionSettings,
        *,
        registrar: Registrar,
        write_tun: Callable[[bytes], bool],
        owner_of: Callable[[bytes], int | None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.settings = settings
        self.by_client: dict[str, Session] = {}
        self.by_id: dict[str, Session] = {}
        self.by_address: dict[bytes, Session] = {}
        self.drops: dict[DropReason, int] = {}
        self.misdirected_packets = 0
        self.write_tun = write_tun
        # Tells the sender of a packet for a client why it was dropped; the forwarder sets it.
        self.on_undelivered: Callable[[bytes, DropReason, int], None] = _tell_nobody
        self.loop = loop
        self._registrar = registrar
        self._owner_of = owner_of
        # Addresses of late, and until when: what the device's queue still holds is no wonder.
        self._departed: dict[bytes, float] = {}

    @property
    def gateway_addresses(self) -> tuple[bytes, bytes]:
        """The gateway's own virtual IPs, IPv4 and IPv6, as the source of ICMP errors."""
        return self.settings.gateway_addresses

    def apply(self, applicant: Applicant, answer: Answer) -> None:
        """Ask for a session; see `Registrar.apply`."""
        self._registrar.apply(applicant, answer)

    def establish(
        self,
        admission: Admission,
        owner: SessionOwner,
        identity: PeerIdentity,
        tunnel: Tunnel,
    ) -> Session:
        """Begin the session that was granted."""
        session = Session(
            session_id=admission.session_id,
            identity=identity,
            owner=owner,
            tunnel=tunnel,
            addresses=admission.addresses,
            path=owner.path(),
            last_packet_s=self.loop.time(),
        )
        self.by_client[identity.name] = self.by_id[session.session_id] = session
        for address in admission.addresses:
            self.by_address[address.packed] = session
            self._departed.pop(address.packed, None)
        return session

    def decline(self, admission: Admission, cause: str) -> None:
        """Give back what was granted: the client has gone meanwhile."""
        self._registrar.ended(admission.session_id, cause)

    def count_refused(self, client: str, peer: str, refusal: Refusal) -> None:
        """A verified client's request was refused here, before anybody was asked."""
        self._registrar.refused(client, peer, refusal)

    def close(self, session: Session, cause: str) -> None:
        """End a session: the kernel first, then the peer. Twice is no error."""
        if not session.closed:
            self._registrar.ended(session.session_id, cause)
            self._end(session, cause)

    def closed(self, session_id: str, cause: str) -> None:
        """The supervisor has ended a session: tell the peer."""
        session = self.by_id.get(session_id)
        if session is not None:
            self._end(session, cause)

    def _end(self, session: Session, cause: str) -> None:
        session.closed = True
        session.tunnel.session.close()
        self._forget(session)
        session.owner.end_session(session, cause)

    def _forget(self, session: Session) -> None:
        self.by_id.pop(session.session_id, None)
        if self.by_client.get(session.client) is session:
            del self.by_client[session.client]
        now = self.loop.time()
        for address in session.addresses:
            if self.by_address.get(address.packed) is session:
                del self.by_address[address.packed]
                self._departed[address.packed] = now + _DEPARTED_S
        add_drops(self.drops, session.all_drops())
        session.tunnel.connection.dropped.clear()

    def total_drops(self) -> dict[DropReason, int]:
        """Packets dropped in userspace by reason, ended sessions included."""
        total = dict(self.drops)
        for session in self.by_id.values():
            add_drops(total, session.all_drops())
        return total

    def count_drop(self, reason: DropReason) -> None:
        """A packet was dropped that belongs to no session."""
        self.drops[reason] = self.drops.get(reason, 0) + 1

    def count_stray(self, destination: bytes) -> None:
        """A packet for a client came out of the TUN, and no session here has its address.

        It is lost; the question is whether it came to the wrong worker. Not if the address was
        ours a moment ago: it waited in our queue.
        """
        self.count_drop(DropReason.NO_SESSION)
        if destination in self._departed:
            return
        owner = self._owner_of(destination)
        if owner is not None and owner != self.settings.worker:
            self.misdirected_packets += 1

    def upkeep(self) -> list[Session]:
        """Forget the departed; the sessions whose client has moved since this was last asked."""
        now = self.loop.time()
        for address in [one for one, until in self._departed.items() if until <= now]:
            del self._departed[address]
        moved = []
        for session in self.by_id.values():
            carried = session.tunnel.connection.engine.carried.received_packets
            if carried != session.carried_packets:  # the native engine tells of none
                session.carried_packets, session.last_packet_s = carried, now
            path = session.owner.path()
            if path != session.path:
                session.path = path
                moved.append(session)
        return moved
