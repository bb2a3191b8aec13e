"""One client's connection, seen from the gateway: its request, its capsules, its packets.

A request's way: HTTP/3 headers -> `ConnectIpSession` checks them (RFC 9484) -> the supervisor's
`Registry` decides, takes addresses from the pools, tells the kernel -> 200, ADDRESS_ASSIGN,
ROUTE_ADVERTISEMENT -> packets. The other way round at the end: the kernel forgets the client
first, then the peer is told.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from email.utils import formatdate
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from aioquic.h3.connection import ErrorCode
from zgate_datapath.connection import Connection, Ending, Headers
from zgate_datapath.endpoint import ServerEndpoint
from zgate_datapath.path_mtu import PathMtuState
from zgate_datapath.peer_authentication import ServerQuicConnection
from zgate_datapath.tun import VNET_HEADER_BYTES
from zgate_datapath.tunnel import Tunnel, add_drops
from zgate_datapath.udp import Address
from zgate_protocol import events
from zgate_protocol.address_discovery import seen_address
from zgate_protocol.capsule import AssignedAddress
from zgate_protocol.connect_ip import ConnectIpSession, Role
from zgate_protocol.dns_capsule import DnsAssign
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.errors import H3Error
from zgate_protocol.icmp import TokenBucket, answer_echo, error_for_drop
from zgate_protocol.ip_range import IpRange
from zgate_protocol.service_capsule import Drain, ObservedAddress, ServiceCapsule
from zgate_protocol.structured_field import ProxyError
from zgate_protocol.uri_template import Scope

from zgate_gateway.admission import Admission, Applicant, IpAddress, Refusal
from zgate_gateway.offer_intake import OfferIntake, TooMuchOffered
from zgate_gateway.proved_connection import ProvedConnection
from zgate_gateway.sessions import Session, SessionTable
from zgate_gateway.tracing.setup import Mark, Result

logger = logging.getLogger(__name__)

IpNetwork = IPv4Network | IPv6Network
_Offers = events.ServicesOffered | events.OffersChanged | events.RoutesAdvertised
_OFFERS = (events.ServicesOffered, events.OffersChanged, events.RoutesAdvertised)

_RESOLVE_TIMEOUT_S = 5.0
# One session per connection: a client needs one request, and a few to try again.
_MAX_OPEN_REQUESTS = 4
_MAX_REQUESTS = 64
_ICMP_PER_S = 100
_PATH_TOO_SMALL = "the path carries no IPv6 packet of 1280 bytes"


class ClientConnection(ProvedConnection):
    """The gateway's side of one client's connection (`zgate_datapath` ConnectionHandler)."""

    nothing_asked = (ErrorCode.H3_NO_ERROR, "no session was asked for")
    dialect = "connect-ip"

    def __init__(
        self,
        table: SessionTable,
        endpoint: ServerEndpoint,
        connection: Connection,
        quic: ServerQuicConnection,
    ) -> None:
        super().__init__(table, endpoint, connection, quic)
        self._streams: dict[int, ConnectIpSession] = {}
        self._intakes: dict[int, OfferIntake] = {}
        self._observations = 0
        self._told_address: Address | None = None
        self._resolving: dict[int, asyncio.Task[None]] = {}
        self._applied = False
        self._requests = 0
        self._icmp_bucket = TokenBucket(rate_per_s=_ICMP_PER_S, burst=_ICMP_PER_S)

    # ConnectionHandler.

    def settings_received(self) -> None:
        """Requests are answered as they come."""

    def headers_received(self, stream_id: int, headers: Headers, ended: bool) -> None:
        """A request, or (on a known stream) trailers, which a capsule stream cannot have."""
        if self._identity is None:
            return
        known = self._streams.get(stream_id)
        if known is not None:
            self._handle(stream_id, known, known.receive_headers(headers))
            return
        self._requests += 1
        if self._requests > _MAX_REQUESTS:
            self.connection.close(ErrorCode.H3_EXCESSIVE_LOAD, "too many requests")
            return
        if len(self._streams) >= _MAX_OPEN_REQUESTS:
            self.connection.abort_stream(stream_id, ErrorCode.H3_REQUEST_REJECTED)
            return
        session = self.make_session(stream_id, headers)
        self._streams[stream_id] = session
        self._handle(stream_id, session, session.receive_headers(headers))
        if ended and stream_id in self._streams:
            self.data_received(stream_id, b"", True)

    def make_session(self, stream_id: int, headers: Headers) -> ConnectIpSession:  # noqa: ARG002
        """What reads a request with these headers."""
        return ConnectIpSession(Role.PROXY, stream_id, template=self._table.settings.template)

    def make_tunnel(self, session: ConnectIpSession) -> Tunnel:
        """What carries the packets of a session that is granted."""
        return Tunnel(self.connection, session, session.stream_id)

    def data_received(self, stream_id: int, data: bytes, ended: bool) -> None:
        """Capsules."""
        session = self._streams.get(stream_id)
        if session is not None:
            self._handle(stream_id, session, session.receive_data(data, fin=ended))

    def stream_reset(self, stream_id: int, error_code: int) -> None:
        """The client gave the session up."""
        if stream_id in self._streams:
            self._drop_stream(stream_id, f"reset by the client (error 0x{error_code:x})")
            self.connection.abort_stream(stream_id, ErrorCode.H3_REQUEST_CANCELLED)

    def datagrams_received(self, payloads: Sequence[bytes]) -> None:
        """Packets from the client: into the TUN, where the kernel decides."""
        session = self._session
        if session is None:
            for payload in payloads:
                reason = self.connection.reject_datagram(payload)
                is_early = reason is DropReason.UNKNOWN_STREAM
                self._table.count_drop(DropReason.NO_SESSION if is_early else reason)
            return
        tunnel, write = session.tunnel, self._table.write_tun
        session.last_packet_s = self._table.loop.time()
        if self.trace is not None:
            self.trace.first_packet()
            self.trace = None
        for received in payloads:
            payload = received if tunnel.owns(received) else tunnel.shorten(received) or b""
            if not payload:
                tunnel.count(self.connection.reject_datagram(received))
                continue
            packet = tunnel.receive(payload)
            if isinstance(packet, DropReason):
                self._answer(session, payload, packet)
            elif not write(packet):
                tunnel.count(DropReason.TUN_WRITE_FAILED)

    def tun_read(self, read: bytes, is_too_big: bool) -> None:
        """What the engine has read from the TUN for the client and leaves to be judged."""
        session = self._session
        if session is None:
            self._table.count_drop(DropReason.NO_SESSION)
            return
        reason = session.tunnel.send_read(read, is_too_big=is_too_big)
        if reason:
            self._table.on_undelivered(read[VNET_HEADER_BYTES:], reason, session.tunnel.mtu_bytes)

    def mtu_changed(self) -> None:
        """RFC 9484 section 7.2: below IPv6's 1280 bytes there is no session."""
        session = self._session
        if session is None:
            return
        if self.connection.path_mtu.state is PathMtuState.UNUSABLE:
            self._table.close(session, _PATH_TOO_SMALL)
        else:
            self._check_link(session)

    def _check_link(self, session: Session) -> None:
        """The client's own limit on datagrams may be what is too small for IPv6."""
        tunnel = session.tunnel
        self._handle(
            tunnel.stream_id, tunnel.session, tunnel.session.check_link_mtu(tunnel.mtu_bytes)
        )

    def can_send(self) -> None:
        """The gateway never waits: what does not fit is dropped and counted."""

    def terminated(self, ending: Ending) -> None:
        """The connection is gone, with all it carried."""
        self._no_deadline()
        if self.trace is not None:
            self.trace.ended(str(ending))
        is_goodbye = ending.error_code == ErrorCode.H3_NO_ERROR and not ending.is_transport
        self._drop_all(str(ending) if ending.reason or not is_goodbye else "closed by the client")
        add_drops(self._table.drops, self.connection.dropped.items())

    # Requests and capsules.

    def _handle(
        self, stream_id: int, session: ConnectIpSession, happened: Sequence[events.Event]
    ) -> None:
        for event in happened:
            if isinstance(event, events.RequestReceived):
                self._begin(stream_id, session, event)
            elif isinstance(event, events.RequestRefused):
                self._refuse_headers(stream_id, list(event.headers), event.reason)
                if event.error_code is not H3Error.NO_ERROR:
                    # Not our side: a reset would take back the answer.
                    self.connection.stop_reading(stream_id, int(event.error_code))
            elif isinstance(event, events.AddressesRequested):
                self._assign(session, stream_id, event.requests)
            elif isinstance(event, events.DatagramReceived):
                self._receive_capsule(session, event.payload)
            elif isinstance(event, _OFFERS):
                self._take_offers(stream_id, event)
            elif isinstance(event, events.StreamAborted):
                self._drop_stream(stream_id, f"protocol error: {event.reason}")
                self.connection.abort_stream(stream_id, int(event.error_code))
            elif isinstance(event, events.PeerClosed):
                self._drop_stream(stream_id, "closed by the client")
                self._end_stream(stream_id)

    def _receive_capsule(self, session: ConnectIpSession, payload: bytes) -> None:
        """A packet that came in a DATAGRAM capsule instead of a datagram (RFC 9297 section 3.5)."""
        established = self._session
        if established is None or established.tunnel.session is not session:
            self._table.count_drop(DropReason.NO_SESSION)
        else:
            self.datagrams_received([established.tunnel.restore(payload)])

    def _take_offers(self, stream_id: int, event: _Offers) -> None:
        """What the client offers; it may say so before its session is granted."""
        if stream_id not in self._streams:
            return
        session = self._session
        is_established = session is not None and session.tunnel.stream_id == stream_id
        intake = self._intakes.get(stream_id)
        if intake is None:
            intake = OfferIntake(self._table.registrar, self._table.loop.time)
            self._intakes[stream_id] = intake
            if session is not None and is_established:
                intake.begin(session.session_id)
        try:
            match event:
                case events.ServicesOffered(register):
                    intake.services(register)
                case events.OffersChanged(state):
                    intake.state(state)
                case events.RoutesAdvertised(ranges):
                    intake.routes(ranges)
        except TooMuchOffered as too_much:
            self._drop_stream(stream_id, str(too_much))
            self.connection.abort_stream(stream_id, int(H3Error.EXCESSIVE_LOAD))
        if session is not None and is_established:
            session.beats = intake.beats

    def _begin(
        self, stream_id: int, session: ConnectIpSession, request: events.RequestReceived
    ) -> None:
        if self.trace is not None:
            self.trace.mark(Mark.REQUESTED)
        hostname = request.scope.hostname
        if hostname is None:
            self._ask(stream_id, session, request.scope, ())
        elif self._resolving:
            self._refuse_here(
                stream_id,
                session,
                Refusal(409, ProxyError.CONNECTION_LIMIT_REACHED, "a name is being resolved"),
            )
        else:
            # RFC 9484 section 4.1: resolve before answering.
            self._resolving[stream_id] = self._table.loop.create_task(
                self._resolve(stream_id, session, request.scope, hostname)
            )

    async def _resolve(
        self, stream_id: int, session: ConnectIpSession, scope: Scope, hostname: str
    ) -> None:
        try:
            networks = await self._look_up(hostname)
            if stream_id in self._streams:
                self._ask(stream_id, session, scope, networks)
        except Refusal as refusal:
            self._refuse_here(stream_id, session, refusal)
        except Exception:
            # Nobody waits for this task.
            logger.exception("a request raised; its connection ends", {"event": "request_fault"})
            self.connection.close(ErrorCode.H3_INTERNAL_ERROR, "internal error")
        finally:
            self._resolving.pop(stream_id, None)
            self._endpoint.flush(self.connection)

    async def _look_up(self, hostname: str) -> tuple[IpNetwork, ...]:
        """The name's addresses; raises `Refusal`."""
        try:
            async with asyncio.timeout(_RESOLVE_TIMEOUT_S):
                found = await self._table.loop.getaddrinfo(hostname, None, type=socket.SOCK_DGRAM)
        except TimeoutError:
            raise Refusal(504, ProxyError.DNS_TIMEOUT, "no answer from DNS") from None
        except (OSError, UnicodeError) as error:
            # UnicodeError: a label that IDNA does not take.
            raise Refusal(502, ProxyError.DNS_ERROR, "the name is not known") from error
        # A zone ("%eth0") means link-local, which is never forwarded.
        texts = {str(entry[4][0]) for entry in found}
        networks = tuple(ip_network(ip_address(text)) for text in texts if "%" not in text)
        if not networks:
            raise Refusal(502, ProxyError.DNS_ERROR, "the name has no address")
        return networks

    def _ask(
        self,
        stream_id: int,
        session: ConnectIpSession,
        scope: Scope,
        resolved: tuple[IpNetwork, ...],
    ) -> None:
        """Ask for a session, unless it is clear from here that there can be none."""
        identity = self._identity
        assert identity is not None
        assert self.connection.h3 is not None
        try:
            if session.needs_datagrams and not self.connection.h3.peer_takes_datagrams():
                raise Refusal(
                    400, ProxyError.HTTP_REQUEST_ERROR, "SETTINGS_H3_DATAGRAM is required"
                )
            if self._session is not None or self._applied:
                raise Refusal(
                    409, ProxyError.CONNECTION_LIMIT_REACHED, "one session per connection"
                )
        except Refusal as refusal:
            self._refuse_here(stream_id, session, refusal)
            return

        def answer(outcome: Admission | Refusal) -> None:
            self._answered(stream_id, session, resolved, outcome)

        self._applied = True
        if self.trace is not None:
            self.trace.mark(Mark.APPLIED)
        self._table.apply(
            Applicant(identity, self.path(), str(scope.target or "*"), scope.ip_protocol), answer
        )

    def _answered(
        self,
        stream_id: int,
        session: ConnectIpSession,
        resolved: tuple[IpNetwork, ...],
        outcome: Admission | Refusal,
    ) -> None:
        """The supervisor has decided. Whatever goes wrong here costs this connection only."""
        self._applied = False
        if self.trace is not None:
            self.trace.answered(outcome)
        is_there = stream_id in self._streams and not self.connection.is_terminated
        if not is_there:
            if isinstance(outcome, Admission):
                self._table.decline(outcome, "closed by the client")
            return
        if isinstance(outcome, Refusal):
            self._refuse(stream_id, session, outcome)
        else:
            self._establish(stream_id, session, resolved, outcome)
        self._flush_soon()

    def _establish(
        self,
        stream_id: int,
        session: ConnectIpSession,
        resolved: tuple[IpNetwork, ...],
        admission: Admission,
    ) -> None:
        identity = self._identity
        assert identity is not None
        tunnel = self.make_tunnel(session)
        established = self._table.establish(admission, self, identity, tunnel)
        self._session = established
        try:
            self.connection.send_headers(stream_id, session.accept(resolved))
            self._assign(session, stream_id, session.pending_requests)
            self._advertise(established)
            tunnel.carry_for([address.packed for address in established.addresses])
            self._assign_dns(established)
            self._tell_address(established)
            self._table.established(established)
            if self.trace is not None:
                self.trace.established()
            if intake := self._intakes.get(stream_id):
                established.beats = intake.beats
                intake.begin(established.session_id)
        except Exception:
            # Not raised into whoever brought the answer, who serves other sessions too.
            logger.exception(
                "a session did not begin; its connection ends", {"event": "session_begin_fault"}
            )
            self._table.close(established, "internal error")
            return
        self._check_link(established)

    def _refuse_here(self, stream_id: int, session: ConnectIpSession, refusal: Refusal) -> None:
        """Refuse what nobody else need be asked about."""
        identity = self._identity
        self._table.count_refused(identity.name if identity else "-", self.peer, refusal)
        self._refuse(stream_id, session, refusal)

    def _refuse(self, stream_id: int, session: ConnectIpSession, refusal: Refusal) -> None:
        headers = session.refuse(refusal.status, refusal.proxy_status)
        self._refuse_headers(stream_id, headers, str(refusal))

    def _refuse_headers(self, stream_id: int, headers: Headers, reason: str) -> None:
        logger.info("request refused: %(reason)s", {"event": "request_refused", "reason": reason})
        if self.trace is not None:
            self.trace.refused(Result.REFUSED, reason, int(dict(headers)[b":status"]))
        if stream_id in self._streams:
            del self._streams[stream_id]
            self._intakes.pop(stream_id, None)
            # RFC 9110 section 6.6.1; `zgatectl netcheck` compares clocks by it.
            dated = [*headers, (b"date", formatdate(usegmt=True).encode())]
            self.connection.send_headers(stream_id, dated, end=True)

    def _assign(
        self,
        session: ConnectIpSession,
        stream_id: int,
        requests: Sequence[AssignedAddress],
    ) -> None:
        """Send the full list of the client's addresses (RFC 9484 section 4.7.1).

        A request for any address, or for one that the client holds, is answered with it; a
        request for another is refused (section 4.7.2): the lease is all it is entitled to.
        """
        if self._session is None or self._session.tunnel.session is not session:
            return
        held: dict[IpNetwork, int] = {ip_network(a): 0 for a in self._session.all_addresses}
        refused: list[AssignedAddress] = []
        for request in requests:
            granted = next((n for n in held if _satisfies(n, request.prefix)), None)
            if granted is None:
                refused.append(AssignedAddress(request.request_id, _refusal_of(request.prefix)))
            elif held[granted] == 0:
                held[granted] = request.request_id
            else:
                refused.append(AssignedAddress(request.request_id, _refusal_of(request.prefix)))
        entries = [AssignedAddress(request_id, network) for network, request_id in held.items()]
        self.connection.send_data(stream_id, session.assign([*entries, *refused]))

    def _advertise(self, session: Session) -> None:
        ip_session = session.tunnel.session
        routes = self._table.routes_for(session)
        self.connection.send_data(session.tunnel.stream_id, ip_session.advertise(routes))

    def _assign_dns(self, session: Session) -> None:
        settings = self._table.settings
        if settings.dns_domain:
            servers = tuple(ip_address(packed) for packed in settings.gateway_addresses)
            self.tell(session, DnsAssign(servers, (settings.dns_domain,)))

    # What the table says (SessionOwner).

    def holdings_changed(self, session: Session) -> None:
        """The gate and the engine first: the peer may use at once what it is told of."""
        tunnel = session.tunnel
        tunnel.session.install_peer_routes(IpRange.of(network) for network in session.networks)
        tunnel.carry_for(
            [address.packed for address in session.all_addresses],
            [(network.network_address.packed, network.prefixlen) for network in session.networks],
        )
        self._assign(tunnel.session, tunnel.stream_id, ())
        self._advertise(session)
        self._flush_soon()

    def tell(self, session: Session, capsule: ServiceCapsule) -> None:
        """Tell the peer."""
        data = session.tunnel.session.send_capsule(capsule)
        if data:  # a dialect may have no word for it
            self.connection.send_data(session.tunnel.stream_id, data)
            self._flush_soon()

    def leave(self, session: Session, deadline_ms: int) -> None:
        """No request is taken any more; and who leads nowhere itself is to go elsewhere."""
        self.connection.send_goaway()
        if not session.offers:
            self.tell(session, Drain(deadline_ms))
        self._flush_soon()

    def agent_changed(self, service: str, addresses: Sequence[IpAddress]) -> None:
        """Only the ztna-v1 dialect has agents that register."""

    def moved(self, session: Session) -> None:
        """The client is somewhere else now."""
        self._tell_address(session)

    def _tell_address(self, session: Session) -> None:
        """Where we see the client, unless QUIC has told it (address discovery)."""
        address = self.connection.peer_address
        is_known = address == self._told_address or self.connection.tells_observed_address
        if address is None or is_known:
            return
        self._told_address = address
        observed = ObservedAddress(self._observations, seen_address(address[0]), address[1])
        self._observations += 1
        self.tell(session, observed)

    def _flush_soon(self) -> None:
        self._endpoint.touch(self.connection)
        self._table.loop.call_soon(self._endpoint.flush_touched)

    # Ends.

    def end_session(self, session: Session, cause: str) -> None:
        """The table has closed our session: tell the peer, unless it told us."""
        if self._session is session:
            self._session = None
        stream_id = session.tunnel.stream_id
        if stream_id in self._streams:
            del self._streams[stream_id]
            self._end_stream(stream_id)
        if not self.connection.is_terminated:
            # One session per connection: without it the connection has no purpose.
            self.connection.close(ErrorCode.H3_NO_ERROR, cause)
        self._flush_soon()

    def _drop_stream(self, stream_id: int, cause: str) -> None:
        self._streams.pop(stream_id, None)
        self._intakes.pop(stream_id, None)
        task = self._resolving.pop(stream_id, None)
        if task is not None:
            task.cancel()
        session = self._session
        if session is not None and session.tunnel.stream_id == stream_id:
            self._session = None
            self._table.close(session, cause)

    def _drop_all(self, cause: str) -> None:
        for stream_id in list(self._streams):
            self._drop_stream(stream_id, cause)
        if self._session is not None:
            self._table.close(self._session, cause)

    def _end_stream(self, stream_id: int) -> None:
        if not self.connection.is_terminated:
            try:
                self.connection.send_data(stream_id, b"", end=True)
            except Exception as error:
                logger.debug(
                    "stream %(stream)d was over: %(error)s",
                    {"event": "stream_over", "stream": stream_id, "error": error},
                )

    # ICMP to the client.

    def _answer(self, session: Session, payload: bytes, reason: DropReason) -> None:
        """Tell the client why its packet was not forwarded (RFC 9484 section 7.2.1)."""
        if not self._icmp_bucket.allow(self._table.loop.time()):
            return
        packet = payload[len(session.tunnel.payload_prefix) :]
        sources = self._table.gateway_addresses
        if reason is DropReason.LINK_LOCAL_PEER:
            # RFC 9484 section 7.2: the other end may probe the link's MTU with a link-local echo.
            answer = answer_echo(packet, sources[1])
        else:
            answer = error_for_drop(reason, packet, sources)
        if answer is not None:
            session.tunnel.reply(answer)


def _satisfies(held: IpNetwork, wanted: IpNetwork) -> bool:
    """Whether `held` answers a request for `wanted` (unspecified means any of its family)."""
    if held.version != wanted.version:
        return False
    return int(wanted.network_address) == 0 or wanted == held


def _refusal_of(prefix: IpNetwork) -> IpNetwork:
    """RFC 9484 section 4.7.2: all zeros with the full prefix length."""
    return ip_network("0.0.0.0/32") if prefix.version == 4 else ip_network("::/128")
