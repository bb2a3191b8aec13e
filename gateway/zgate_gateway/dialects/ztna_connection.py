"""One client's connection in the ztna-v1 dialect: registrations, packets, its address.

A registration's way: datagram -> session, if there is none yet (address, kernel, audit log: as for
everybody) -> the supervisor says whether the agent may reach the service, or the connector may
offer it -> the answer. The session is that of RFC 9484's clients from then on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from ipaddress import IPv4Address, ip_network

from zgate_datapath.connection import Connection, Ending, Headers
from zgate_datapath.endpoint import ServerEndpoint
from zgate_datapath.path_mtu import PathMtuState
from zgate_datapath.peer_authentication import ServerQuicConnection
from zgate_datapath.tun import VNET_HEADER_BYTES
from zgate_datapath.tunnel import add_drops
from zgate_datapath.udp import Address
from zgate_identity.verifier import PeerIdentity
from zgate_protocol.address_discovery import seen_address
from zgate_protocol.capsule import NO_REQUEST, AssignedAddress
from zgate_protocol.dialects import ztna_v1
from zgate_protocol.dialects.ztna_v1 import (
    InvalidRegistration,
    PlainPacket,
    RefusalCode,
    Registration,
    ServicePacket,
    ZtnaSession,
)
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.icmp import TokenBucket, error_for_drop
from zgate_protocol.ip_range import IpRange, RouteTable, ranges_of
from zgate_protocol.service_capsule import Registered, ServiceCapsule

from zgate_gateway.admission import (
    MAX_SESSION_SERVICES,
    Admission,
    Applicant,
    IpAddress,
    Refusal,
)
from zgate_gateway.dialects.translation import Translation
from zgate_gateway.dialects.ztna_offers import ZtnaOffers
from zgate_gateway.dialects.ztna_tunnel import ZtnaTunnel
from zgate_gateway.proved_connection import ProvedConnection
from zgate_gateway.sessions import Session, SessionTable
from zgate_gateway.tracing.setup import Mark, Result

logger = logging.getLogger(__name__)

_REGISTRATIONS_PER_S = 10
_REGISTRATIONS_BURST = 64
_ICMP_PER_S = 100
_BEAT_INTERVAL_S = 1.0
_NO_ERROR = 0


class ZtnaConnection(ProvedConnection):
    """The gateway's side of it (`zgate_datapath` ConnectionHandler, `SessionOwner`)."""

    nothing_asked = (_NO_ERROR, "no service was registered")
    dialect = ztna_v1.ALPN

    def __init__(
        self,
        table: SessionTable,
        endpoint: ServerEndpoint,
        connection: Connection,
        quic: ServerQuicConnection,
    ) -> None:
        super().__init__(table, endpoint, connection, quic)
        self._tunnel: ZtnaTunnel | None = None
        settings = table.settings
        self._translation = Translation(RouteTable((*settings.pools, *settings.service_pools)))
        self._offers = ZtnaOffers()
        self._waiting: dict[Registration, None] = {}
        self._applied = False
        self._beat: asyncio.TimerHandle | None = None
        self._told_address: Address | None = None
        self._registrations = TokenBucket(
            rate_per_s=_REGISTRATIONS_PER_S, burst=_REGISTRATIONS_BURST
        )
        self._icmp_bucket = TokenBucket(rate_per_s=_ICMP_PER_S, burst=_ICMP_PER_S)

    # ConnectionHandler.

    def settings_received(self) -> None:
        """There is no HTTP/3."""

    def headers_received(self, stream_id: int, headers: Headers, ended: bool) -> None:
        """There is no HTTP/3."""

    def data_received(self, stream_id: int, data: bytes, ended: bool) -> None:
        """There is no HTTP/3."""

    def stream_reset(self, stream_id: int, error_code: int) -> None:
        """There is no stream."""

    def datagrams_received(self, payloads: Sequence[bytes]) -> None:
        """Registrations, and packets: into the TUN, where the kernel decides."""
        if self._session is not None:
            self._session.last_packet_s = self._table.loop.time()
        for payload in payloads:
            match ztna_v1.parse_datagram(payload):
                case PlainPacket(packet):
                    self._carry(packet, None)
                case ServicePacket(service, packet):
                    self._carry(packet, service)
                case Registration() as registration:
                    self._register(registration)
                case InvalidRegistration(name):
                    self._say(ztna_v1.encode_refused(RefusalCode.INVALID, name))
                case None:
                    self._count(DropReason.BAD_DATAGRAM)

    def tun_read(self, read: bytes, is_too_big: bool) -> None:
        """What the native engine has read from the TUN for the client."""
        if self._tunnel is None:
            self._table.count_drop(DropReason.NO_SESSION)
            return
        reason = self._tunnel.send_read(read, is_too_big=is_too_big)
        if reason:
            packet = read[VNET_HEADER_BYTES:]
            self._table.on_undelivered(packet, reason, self._tunnel.mtu_bytes)

    def mtu_changed(self) -> None:
        """Datagrams can be sent: now, or of another size than before."""
        if self._identity is not None:
            self._tell_address()
        # A path that carries less than QUIC needs carries nothing.
        if self._session is not None and self.connection.path_mtu.state is PathMtuState.UNUSABLE:
            self._table.close(self._session, "the path is too small")

    def can_send(self) -> None:
        """The gateway never waits: what does not fit is dropped and counted."""

    def terminated(self, ending: Ending) -> None:
        """The connection is gone, with all it carried."""
        self._no_deadline()
        if self.trace is not None:
            self.trace.ended(str(ending))
        if self._session is not None:
            is_goodbye = not ending.is_transport and not ending.reason
            self._table.close(self._session, "closed by the client" if is_goodbye else str(ending))
        add_drops(self._table.drops, self.connection.dropped.items())

    # Packets.

    def _carry(self, packet: bytes, service: str | None) -> None:
        if self._tunnel is None:
            self._table.count_drop(DropReason.NO_SESSION)
            return
        if self.trace is not None:
            self.trace.first_packet()
            self.trace = None
        taken = self._tunnel.take(packet, service)
        if isinstance(taken, DropReason):
            self._answer(packet, taken)
        elif not self._table.write_tun(taken):
            self._tunnel.count(DropReason.TUN_WRITE_FAILED)

    def _answer(self, packet: bytes, reason: DropReason) -> None:
        """Tell the client, in its own addresses, why its packet was not forwarded."""
        if self._tunnel is None or not self._icmp_bucket.allow(self._table.loop.time()):
            return
        error = error_for_drop(reason, packet, self._table.gateway_addresses)
        if error is not None:
            self._tunnel.reply(error)

    def _count(self, reason: DropReason) -> None:
        if self._tunnel is not None:
            self._tunnel.count(reason)
        else:
            self._table.count_drop(reason)

    # Registrations.

    def _register(self, registration: Registration) -> None:
        if self._identity is None or not self._registrations.allow(self._table.loop.time()):
            self._count(DropReason.QUEUE_FULL)
        elif self._session is not None:
            self._proceed(self._session, registration)
        elif len(self._waiting) < MAX_SESSION_SERVICES:
            self._waiting[registration] = None
            self._ask_for_session(self._identity)

    def _ask_for_session(self, identity: PeerIdentity) -> None:
        if not self._applied:
            self._applied = True
            if self.trace is not None:
                self.trace.mark(Mark.REQUESTED)
                self.trace.mark(Mark.APPLIED)
            self._table.apply(Applicant(identity, self.path()), self._answered)

    def _answered(self, outcome: Admission | Refusal) -> None:
        """The supervisor has decided whether there is a session."""
        self._applied = False
        if self.trace is not None:
            self.trace.answered(outcome)
        waiting, self._waiting = list(self._waiting), {}
        if isinstance(outcome, Refusal):
            logger.info(
                "registration refused: %(reason)s",
                {"event": "registration_refused", "reason": outcome},
            )
            if self.trace is not None:
                self.trace.refused(Result.REFUSED, str(outcome), outcome.status)
            for registration in waiting:
                self._refuse(registration.service, RefusalCode.NOT_AUTHORIZED)
        elif self.connection.is_terminated:
            self._table.decline(outcome, "closed by the client")
        else:
            self._establish(outcome, waiting)

    def _establish(self, admission: Admission, waiting: Sequence[Registration]) -> None:
        identity = self._identity
        assert identity is not None
        session = ZtnaSession()
        session.begin()
        self._tunnel = ZtnaTunnel(self.connection, session, self._translation)
        established = self._table.establish(admission, self, identity, self._tunnel)
        self._session = established
        self._translation.set_own(admission.addresses)
        try:
            self.holdings_changed(established)
            self._table.established(established)
            if self.trace is not None:
                self.trace.established()
            for registration in waiting:
                self._proceed(established, registration)
        except Exception:
            # Not raised into whoever brought the answer, who serves other sessions too.
            logger.exception(
                "a session did not begin; its connection ends", {"event": "session_begin_fault"}
            )
            self._table.close(established, "internal error")

    def _proceed(self, session: Session, registration: Registration) -> None:
        """Ask the supervisor, who alone knows policy and services."""
        name = registration.service
        if not registration.is_connector:
            self._table.registrar.reach_service(
                session.session_id, name, lambda found: self._reached(session, name, found)
            )
        elif self._offers.is_accepted(name):
            self._say(ztna_v1.encode_registered(name))
        elif self._offers.count < MAX_SESSION_SERVICES:
            register = self._offers.add(name)
            if register is not None:
                self._table.registrar.offer_services(session.session_id, register)
        else:
            self._refuse(name, RefusalCode.INVALID)

    def _reached(self, session: Session, name: str, found: Sequence[IpAddress]) -> None:
        """The virtual IPs of a service that the agent may reach; none: it may not."""
        if session.closed or self.connection.is_terminated:
            return
        services = self._translation.services
        if not found or (name not in services and len(services) >= MAX_SESSION_SERVICES):
            self._refuse(name, RefusalCode.NOT_AUTHORIZED)
            return
        self._translation.reach(name, found)
        try:
            self.holdings_changed(session)
        except Exception:
            logger.exception(
                "a session could not reach a service; it ends", {"event": "service_reach_fault"}
            )
            self._table.close(session, "internal error")
        else:
            self._say(ztna_v1.encode_registered(name))

    def _refuse(self, name: str, code: RefusalCode) -> None:
        self._say(ztna_v1.encode_refused(code, name.encode()))

    def _say(self, data: bytes) -> None:
        self.connection.enqueue(b"\x30" + data)
        self._flush_soon()

    def _tell_address(self) -> None:
        """Where we see the client; the dialect has IPv4 only."""
        address = self.connection.peer_address
        if address is None or address == self._told_address:
            return
        self._told_address = address
        seen = seen_address(str(address[0]))
        if isinstance(seen, IPv4Address):
            self._say(ztna_v1.encode_seen_at(seen, int(address[1])))

    # What the table says (SessionOwner).

    def holdings_changed(self, session: Session) -> None:
        """What the client holds or may reach is more or less than before."""
        tunnel = session.tunnel
        held = [AssignedAddress(NO_REQUEST, ip_network(one)) for one in session.all_addresses]
        tunnel.session.assign(held)
        reached = ranges_of(ip_network(packed) for packed in self._translation.reached)
        answered: tuple[IpRange, ...] = self._table.settings.pools if session.offers else ()
        tunnel.session.advertise((*reached, *answered))
        tunnel.carry_for([address.packed for address in session.all_addresses])

    def tell(self, session: Session, capsule: ServiceCapsule) -> None:
        """Of all that others are told of, this dialect has words for registrations only."""
        if not isinstance(capsule, Registered):
            return
        news = self._offers.answered(capsule)
        self._translation.serve(news.served)
        if news.statuses:
            self._table.registrar.offer_states(session.session_id, news.statuses)
        for name, code in news.outcomes:
            if code is None:
                self._say(ztna_v1.encode_registered(name))
            else:
                self._refuse(name, code)
        session.beats = bool(news.served)
        if session.beats and self._beat is None:
            self._keep_beating()

    def _keep_beating(self) -> None:
        """A connector has nothing to say each second, but it acknowledges what we say."""
        self._beat = None
        session = self._session
        if session is not None and session.beats and not self.connection.is_terminated:
            self.connection.ping()
            self._endpoint.flush(self.connection)
            self._beat = self._table.loop.call_later(_BEAT_INTERVAL_S, self._keep_beating)

    def leave(self, session: Session, deadline_ms: int) -> None:
        """This protocol has no word for it."""

    def agent_changed(self, service: str, addresses: Sequence[IpAddress]) -> None:
        """Whose the packets for nobody's address are, of a service that is offered here."""
        self._translation.answer_to(service, addresses)

    def moved(self, session: Session) -> None:  # noqa: ARG002
        """The client is somewhere else now."""
        self._tell_address()

    def end_session(self, session: Session, cause: str) -> None:
        """The table has closed our session: without it the connection has no purpose."""
        if self._session is session:
            self._session = self._tunnel = None
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None
        if not self.connection.is_terminated:
            self.connection.close(_NO_ERROR, cause)
        self._flush_soon()

    def _flush_soon(self) -> None:
        self._endpoint.touch(self.connection)
        self._table.loop.call_soon(self._endpoint.flush_touched)
