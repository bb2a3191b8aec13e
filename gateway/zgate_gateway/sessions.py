"""The sessions of one worker: who is connected, where its packets go.

How one begins, and what a client says on it: `zgate_gateway.client_connection`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Protocol

from zgate_datapath.connection import Connection
from zgate_datapath.tunnel import Tunnel, add_drops
from zgate_identity.verifier import PeerIdentity
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.ip_range import IpRange, RouteTable, normalize_ranges
from zgate_protocol.service_capsule import Drain, Registered, ServiceCapsule
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
from zgate_gateway.prefixes import IpNetwork, PrefixTable

logger = logging.getLogger(__name__)

_DEPARTED_S = 2.0
_TOLD_AT_ONCE = 8
# A connector speaks once a second. Two of its words may come late, or be lost and come again.
_SILENT_AFTER_S = 2.2
# A look that comes so much later than it should says nothing about others.
_LATE_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What a worker tells its clients, and which one it is.

    Attributes:
        gateway_addresses: the gateway's own virtual IPs, packed, IPv4 and IPv6.
        pools: the clients' virtual IPs: what they are answered goes back by way of us.
        service_pools: the services' virtual IPs, and the addresses of their offers.
        networks: what lies behind connectors, at the start.
        dns_domain: the gateway answers for names of services under it; "": for none.
    """

    routes: tuple[IpRange, ...]
    template: UriTemplate
    gateway_addresses: tuple[bytes, bytes]
    worker: int = 0
    pools: tuple[IpRange, ...] = ()
    service_pools: tuple[IpRange, ...] = ()
    networks: tuple[IpNetwork, ...] = ()
    dns_domain: str = ""


class SessionOwner(Protocol):
    """The handler of the connection that a session is on."""

    @property
    def connection(self) -> Connection:
        """The connection itself."""

    def path(self) -> PeerPath:
        """Where the client is, and which of our connection IDs it sends to."""

    def end_session(self, session: Session, cause: str) -> None:
        """The table has closed the session: tell the peer, unless it told us."""

    def holdings_changed(self, session: Session) -> None:
        """What the session holds, or what it is to send here, is another: let both ends know."""

    def tell(self, session: Session, capsule: ServiceCapsule) -> None:
        """Tell the peer."""

    def leave(self, session: Session, deadline_ms: int) -> None:
        """The gateway is to stop: let the peer know, if it can go elsewhere."""

    def agent_changed(self, service: str, addresses: Sequence[IpAddress]) -> None:
        """Another agent registered last for a service that the session offers; or none is left."""

    def moved(self, session: Session) -> None:
        """The client is somewhere else now."""


@dataclass(eq=False, slots=True)
class Session:
    """One established session.

    Attributes:
        addresses: the client's own virtual IPs.
        offer_addresses: what it answers on for services.
        networks: what it leads to.
        services: the virtual IP that each of its offers answers for, by the offer's address.
        beats: it has said that it offers something, and is to be heard each second.
    """

    session_id: str
    identity: PeerIdentity
    owner: SessionOwner
    tunnel: Tunnel
    addresses: tuple[IpAddress, ...]
    path: PeerPath
    last_packet_s: float
    carried_packets: int = 0
    closed: bool = False
    offer_addresses: tuple[IpAddress, ...] = ()
    networks: tuple[IpNetwork, ...] = ()
    services: Mapping[bytes, bytes] = field(default_factory=dict)
    beats: bool = False
    is_silent: bool = False

    @property
    def all_addresses(self) -> tuple[IpAddress, ...]:
        """Those of the client, and those of its offers."""
        return self.addresses + self.offer_addresses

    @property
    def offers(self) -> bool:
        """Whether it holds more than its own addresses."""
        return bool(self.offer_addresses or self.networks)

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
        self.by_network: PrefixTable[Session] = PrefixTable()
        self.routes = settings.routes
        # The address of an offer -> that of its service, to which the packet was sent.
        self.services: dict[bytes, bytes] = {}
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
        self._departed_networks: dict[IpNetwork, float] = {}
        self._service_pools = RouteTable(settings.service_pools)
        self._networks: PrefixTable[bool] = PrefixTable()
        self.set_networks(settings.networks)
        self._looked_s = loop.time()

    @property
    def gateway_addresses(self) -> tuple[bytes, bytes]:
        """The gateway's own virtual IPs, IPv4 and IPv6, as the source of ICMP errors."""
        return self.settings.gateway_addresses

    @property
    def registrar(self) -> Registrar:
        """Whom to ask and to tell."""
        return self._registrar

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

    def established(self, session: Session) -> None:
        """A session can carry packets: an earlier one of the client may go."""
        if not session.closed:
            self._registrar.established(session.session_id)

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
        session.tunnel.let_go()
        self._forget(session)
        session.owner.end_session(session, cause)

    def _forget(self, session: Session) -> None:
        self.by_id.pop(session.session_id, None)
        if self.by_client.get(session.client) is session:
            del self.by_client[session.client]
        self._take_away(session, session.all_addresses, session.networks)
        self._forget_services(session)
        add_drops(self.drops, session.all_drops())
        session.tunnel.connection.dropped.clear()

    # What sessions hold.

    def _take_away(
        self, session: Session, addresses: Iterable[IpAddress], networks: Iterable[IpNetwork]
    ) -> None:
        until = self.loop.time() + _DEPARTED_S
        for address in addresses:
            if self.by_address.get(address.packed) is session:
                del self.by_address[address.packed]
                self._departed[address.packed] = until
        for network in networks:
            if self.by_network.remove(network, session):
                self._departed_networks[network] = until

    def granted(
        self, session_id: str, addresses: Sequence[IpAddress], networks: Sequence[IpNetwork]
    ) -> None:
        """All that a session holds now beside its own addresses; nothing if it is over."""
        session = self.by_id.get(session_id)
        if session is None:
            return
        self._take_away(
            session,
            set(session.offer_addresses) - set(addresses),
            set(session.networks) - set(networks),
        )
        session.offer_addresses, session.networks = tuple(addresses), tuple(networks)
        for address in addresses:
            self.by_address[address.packed] = session
            self._departed.pop(address.packed, None)
        for network in networks:
            self.by_network.put(network, session)
            self._departed_networks.pop(network, None)
        self._notify(session, session.owner.holdings_changed)

    def answered(self, session_id: str, registered: Registered) -> None:
        """What became of a session's offers."""
        session = self.by_id.get(session_id)
        if session is not None:
            self._forget_services(session)
            session.services = _services_of(registered)
            self.services.update(session.services)
        self._tell(session_id, registered)

    def _forget_services(self, session: Session) -> None:
        for address in session.services:
            self.services.pop(address, None)

    def agent_changed(self, session_id: str, service: str, addresses: Sequence[IpAddress]) -> None:
        """Which agent registered last for a service that a session offers."""
        session = self.by_id.get(session_id)
        if session is not None:
            self._notify(session, lambda told: told.owner.agent_changed(service, addresses))

    def drain(self, session_id: str, deadline_ms: int) -> None:
        """A session gets no new flows; 0: its open ones have no deadline."""
        self._tell(session_id, Drain(deadline_ms))

    def drain_all(self, deadline_ms: int) -> None:
        """The gateway is to stop: all but connectors are told, a few at a time."""
        self._drain_some(deque(self.by_id), deadline_ms)

    def _drain_some(self, session_ids: deque[str], deadline_ms: int) -> None:
        for _ in range(min(_TOLD_AT_ONCE, len(session_ids))):
            session = self.by_id.get(session_ids.popleft())
            if session is not None:
                self._notify(session, lambda told: told.owner.leave(told, deadline_ms))
        if session_ids:
            self.loop.call_soon(self._drain_some, session_ids, deadline_ms)

    def set_routes(self, routes: tuple[IpRange, ...]) -> None:
        """What all clients are to send here from now on."""
        if routes == self.routes:
            return
        self.routes = routes
        self._tell_routes(deque(self.by_id), routes)

    def set_networks(self, networks: Iterable[IpNetwork]) -> None:
        """What lies behind connectors from now on, wherever they are, and where none is there."""
        self._networks = PrefixTable()
        for network in networks:
            self._networks.put(network, True)

    def _tell_routes(self, session_ids: deque[str], routes: tuple[IpRange, ...]) -> None:
        """A few at a time: meanwhile packets wait."""
        if routes is not self.routes:
            return  # there are newer ones, and whoever tells them tells everybody
        for _ in range(min(_TOLD_AT_ONCE, len(session_ids))):
            session = self.by_id.get(session_ids.popleft())
            if session is not None:
                self._notify(session, session.owner.holdings_changed)
        if session_ids:
            self.loop.call_soon(self._tell_routes, session_ids, routes)

    def routes_for(self, session: Session) -> tuple[IpRange, ...]:
        """What this session is to send here: who offers something answers clients."""
        answers = self.settings.pools if session.offers else ()
        return normalize_ranges((*self.routes, *self.settings.service_pools, *answers))

    def _tell(self, session_id: str, capsule: ServiceCapsule) -> None:
        session = self.by_id.get(session_id)
        if session is not None:
            self._notify(session, lambda told: told.owner.tell(told, capsule))

    def _notify(self, session: Session, say: Callable[[Session], None]) -> None:
        """One session that cannot be told costs no other."""
        try:
            say(session)
        except Exception:
            logger.exception("a session could not be told; it ends", {"event": "session_fault"})
            self.close(session, "internal error")

    def holder_of(self, destination: bytes) -> Session | None:
        """Whose the packets for an address are: its own session's, or that of its network."""
        return self.by_address.get(destination) or self.by_network.find(destination)

    def look(self) -> None:
        """Notice which connectors have fallen silent, and which speak again."""
        now = self.loop.time()
        is_late, self._looked_s = now - self._looked_s > _LATE_LOOK_S, now
        for session in list(self.by_id.values()):
            if not session.beats:
                continue
            is_silent = now - session.owner.connection.last_received_s > _SILENT_AFTER_S
            # We were late ourselves, so what they said may still wait to be read.
            if is_silent == session.is_silent or (is_silent and is_late):
                continue
            session.is_silent = is_silent
            self._registrar.connector_silent(session.session_id, is_silent)

    def total_drops(self) -> dict[DropReason, int]:
        """Packets dropped in userspace by reason, ended sessions included."""
        total = dict(self.drops)
        for session in self.by_id.values():
            add_drops(total, session.all_drops())
        return total

    def count_drop(self, reason: DropReason) -> None:
        """A packet was dropped that belongs to no session."""
        self.drops[reason] = self.drops.get(reason, 0) + 1

    def judge_stray(self, destination: bytes) -> DropReason:
        """Why a packet that came out of the TUN is lost: no session here has its address.

        One for a service that nobody offers now, or a network that nobody leads to, was counted by
        the kernel, which let it come here to be answered. Of the others the question is whether
        they came to the wrong worker. Not if the address was ours a moment ago: they waited in our
        queue. Those for a network may have waited or not, and count here as well, not to be lost.
        """
        has_departed = destination in self._departed or self._was_behind_us(destination)
        owner = self._owner_of(destination)
        is_vacant = owner is None and bool(self._networks.find(destination))
        if not has_departed and owner is None and self._service_pools.holds(destination):
            return DropReason.NO_BACKEND
        if has_departed or not is_vacant:
            self.count_drop(DropReason.NO_SESSION)
        if not has_departed and owner is not None and owner != self.settings.worker:
            self.misdirected_packets += 1
        return DropReason.NO_BACKEND if is_vacant else DropReason.NO_SESSION

    def _was_behind_us(self, destination: bytes) -> bool:
        if not self._departed_networks:
            return False
        address = ip_address(destination)
        return any(address in network for network in self._departed_networks)

    def upkeep(self) -> list[Session]:
        """Forget the departed; the sessions whose client has moved since this was last asked."""
        now = self.loop.time()
        for address in [one for one, until in self._departed.items() if until <= now]:
            del self._departed[address]
        for network in [one for one, until in self._departed_networks.items() if until <= now]:
            del self._departed_networks[network]
        moved = []
        for session in list(self.by_id.values()):
            carried = session.tunnel.connection.engine.carried.received_packets
            if carried != session.carried_packets:  # the native engine tells of none
                session.carried_packets, session.last_packet_s = carried, now
            path = session.owner.path()
            if path != session.path:
                session.path = path
                moved.append(session)
                self._notify(session, session.owner.moved)
        return moved


def _services_of(registered: Registered) -> dict[bytes, bytes]:
    return {
        offer.packed: service.packed
        for answer in registered.answers
        for offer in answer.offer_addresses
        for service in answer.service_addresses
        if offer.version == service.version
    }
