"""One CONNECT-IP session: a request stream and its datagrams, either role (RFC 9484).

The owner feeds what arrived on the stream, sends what the methods return, and acts on the
events; the session keeps no clock and does no I/O. What a peer sends never raises: it
becomes an event. LocalError is for calls that this end may not make now.

    client                                proxy
    request()            --- HEADERS -->  receive_headers() -> RequestReceived
    receive_headers()    <-- HEADERS ---  accept() | refuse()
    request_addresses()  ---- DATA ---->  receive_data() -> AddressesRequested
    receive_data()       <--- DATA -----  assign(), advertise()
    check_outgoing()     -- DATAGRAM -->  unwrap()
    unwrap()             <- DATAGRAM ---  check_outgoing()

Who may send what is decided by a PacketGate from two lists. In the client's session the
peer stands for the routes that it advertised, and this end for the addresses that it was
assigned and the routes that it advertised itself. In the proxy's session the peer stands
for the addresses that this end assigned to it, and this end for the routes that it
advertised and its own addresses. What a *client* assigns or advertises gives it no right
until the proxy's owner calls ``install_peer_routes``.
"""

from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Protocol

from zgate_protocol.capsule import (
    NO_REQUEST,
    AddressAssign,
    AddressRequest,
    AssignedAddress,
    Capsule,
    CapsuleDecoder,
    DatagramCapsule,
    RouteAdvertisement,
)
from zgate_protocol.dns_capsule import DnsAssign
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.errors import H3Error, LocalError, MalformedCapsule, MalformedMessage
from zgate_protocol.events import (
    AddressesAssigned,
    AddressesRequested,
    AddressObserved,
    DatagramReceived,
    DnsAssigned,
    DrainAsked,
    Established,
    Event,
    OffersChanged,
    PeerClosed,
    Refused,
    RegistrationAnswered,
    RequestReceived,
    RequestRefused,
    RoutesAdvertised,
    ServicesOffered,
    StreamAborted,
)
from zgate_protocol.http_datagram import MIN_IPV6_MTU_BYTES, datagram_prefix
from zgate_protocol.http_message import (
    Header,
    NotServed,
    build_refusal,
    build_request,
    build_success,
    parse_request,
    parse_response,
)
from zgate_protocol.ip_range import IpAddress, IpNetwork, IpRange, limit_ranges, normalize_ranges
from zgate_protocol.limits import DEFAULT_LIMITS, Limits
from zgate_protocol.packet_gate import PacketGate
from zgate_protocol.service_capsule import (
    Drain,
    ObservedAddress,
    OfferState,
    Register,
    Registered,
    ServiceCapsule,
)
from zgate_protocol.structured_field import ProxyError, build_proxy_status
from zgate_protocol.uri_template import Scope, ScopeError, UriTemplate, default_template

_PROXY_NAME = "zgate"
_ANY_AUTHORITY = default_template("proxy.invalid")


class Role(Enum):
    """Which end of the request this is."""

    CLIENT = "client"
    PROXY = "proxy"


class Decoder(Protocol):
    """Turns the bytes of a data stream into capsules; see CapsuleDecoder."""

    def feed(self, data: bytes, fin: bool = False) -> list[Capsule]:
        """Take in bytes, and with ``fin`` the end; return the capsules that became complete."""


class _State(Enum):
    IDLE = "no request yet"
    REQUESTED = "requested, not answered"
    OPEN = "open"
    CLOSED = "closed"


class ConnectIpSession:
    """Sans-IO state of one session.

    ``unwrap(payload)`` returns the IP packet of an HTTP datagram payload (what follows the
    quarter stream ID), or the DropReason; ``check_outgoing(packet)`` returns NONE (false)
    if a packet may be sent to the peer. Both are the hot path, bound once to the gate.
    """

    needs_datagrams = True
    """Whether packets travel in HTTP datagrams, which the peer must then take."""

    def __init__(
        self,
        role: Role,
        stream_id: int,
        *,
        template: UriTemplate | None = None,
        own_addresses: Iterable[IpAddress] = (),
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """``own_addresses``: the proxy's own ends of the tunnel, which the peer may reach.

        ``template`` is what a proxy serves, the well-known path by default; its authority
        is not compared (certificate and listener decided that).
        """
        self.role = role
        self.stream_id = stream_id
        self.scope = Scope()
        self.wrap_prefix = datagram_prefix(stream_id)
        """Put before an IP packet it makes the payload of a QUIC DATAGRAM frame."""
        self._template = template or _ANY_AUTHORITY
        self._limits = limits
        self._state = _State.IDLE
        self._decoder: Decoder = CapsuleDecoder(limits)
        self.gate = PacketGate(
            is_proxy=role is Role.PROXY, max_cached_pairs=limits.max_cached_pairs
        )
        self.unwrap: Callable[[bytes], bytes | DropReason] = self.gate.unwrap
        self.check_outgoing: Callable[[bytes], DropReason] = self.gate.check_outgoing
        self._own_ranges = tuple(IpRange(address, address) for address in own_addresses)
        self._resolved: tuple[IpNetwork, ...] = ()
        self._next_request_id = 1
        self._pending: dict[int, AssignedAddress] = {}
        self._seen_request_ids: set[int] = set()
        self._last_observation = -1
        # Given by us to the peer, and by the peer to us.
        self.addresses_given: tuple[AssignedAddress, ...] = ()
        self.routes_given: tuple[IpRange, ...] = ()
        self.addresses_received: tuple[AssignedAddress, ...] = ()
        self.routes_received: tuple[IpRange, ...] = ()
        self._peer_routes: tuple[IpRange, ...] = ()

    def __repr__(self) -> str:
        return f"<ConnectIpSession {self.role.value} stream {self.stream_id} {self._state.value}>"

    @property
    def is_open(self) -> bool:
        """Whether the request was accepted and the stream still stands."""
        return self._state is _State.OPEN

    @property
    def is_closed(self) -> bool:
        """Whether the session is over; every datagram is dropped."""
        return self._state is _State.CLOSED

    @property
    def pending_requests(self) -> tuple[AssignedAddress, ...]:
        """Address requests of the peer that no ``assign`` has answered."""
        return tuple(self._pending.values())

    # Request and response.

    def request(self, authority: str, path: str, scheme: str = "https") -> list[Header]:
        """Client: return the header section that opens the session (section 4.4)."""
        self._require(Role.CLIENT, _State.IDLE)
        headers = build_request(authority, path, scheme)
        self._state = _State.REQUESTED
        return headers

    def accept(self, resolved: Iterable[IpNetwork] = ()) -> list[Header]:
        """Proxy: return the header section that accepts (section 4.5).

        A hostname target needs the networks that it was ``resolved`` to, before the answer
        (section 4.1): LocalError without.
        """
        self._require(Role.PROXY, _State.REQUESTED)
        self._resolved = tuple(resolved)
        if self.scope.hostname is not None and not self._resolved:
            raise LocalError(f"{self.scope.hostname} is not resolved: refuse with dns_error")
        self._state = _State.OPEN
        self.gate.open(is_scoped=self.scope.is_limited)
        self._update_gate()
        return build_success()

    def refuse(self, status: int, proxy_status: str = "") -> list[Header]:
        """Proxy: return the header section that refuses; send it with FIN."""
        self._require(Role.PROXY, _State.REQUESTED)
        headers = build_refusal(status, proxy_status)
        self.close()
        return headers

    def receive_headers(self, headers: Sequence[Header]) -> list[Event]:
        """Take in a HEADERS frame of this stream."""
        if self._state is _State.CLOSED:
            return []
        if self.role is Role.PROXY and self._state is _State.IDLE:
            return [self._receive_request(headers)]
        if self.role is Role.CLIENT and self._state is _State.REQUESTED:
            return self._receive_response(headers)
        return [self._abort(H3Error.FRAME_UNEXPECTED, "HEADERS after the CONNECT request")]

    def _receive_request(self, headers: Sequence[Header]) -> Event:
        try:
            request = parse_request(headers)
            scope = self._template.match(request.path)
        except (MalformedMessage, ScopeError) as error:
            return self._turn_away(400, str(error), H3Error.MESSAGE_ERROR)
        except NotServed as error:
            return self._turn_away(error.status, error.reason)
        if scope is None:
            return self._turn_away(404, "no IP proxying at this path")
        if scope.names_extension_header:
            return self._turn_away(403, "a scope cannot be an IPv6 extension header")
        return self._requested(
            RequestReceived(scope, request.authority, request.path, request.capsule_protocol)
        )

    def _requested(self, request: RequestReceived) -> RequestReceived:
        self.scope = request.scope
        self._state = _State.REQUESTED
        return request

    def _turn_away(
        self, status: int, reason: str, error_code: H3Error = H3Error.NO_ERROR
    ) -> RequestRefused:
        self.close()
        kind = ProxyError.HTTP_REQUEST_DENIED if status == 403 else ProxyError.HTTP_REQUEST_ERROR
        headers = build_refusal(status, build_proxy_status(_PROXY_NAME, kind, reason))
        return RequestRefused(status, reason, tuple(headers), error_code)

    def _receive_response(self, headers: Sequence[Header]) -> list[Event]:
        try:
            response = parse_response(headers)
        except MalformedMessage as error:
            return [self._abort(error.error_code, error.reason)]
        if response.is_interim:
            return []
        if not response.is_success:
            self.close()
            return [Refused(response.status, response.proxy_status)]
        self._state = _State.OPEN
        self.gate.open(is_scoped=False)
        return [Established(response.status, response.capsule_protocol)]

    # Capsules from the peer.

    def receive_data(self, data: bytes, fin: bool = False) -> list[Event]:
        """Take in bytes of DATA frames, and with ``fin`` the end of the peer's side.

        Capsules that a proxy gets before it answered become events at once; keep them until
        ``accept``, or drop them with the request.
        """
        if self._state is _State.CLOSED:
            return []
        events: list[Event] = []
        try:
            for capsule in self._decoder.feed(data, fin):
                event = self._receive_capsule(capsule)
                if event is not None:
                    events.append(event)
        except MalformedCapsule as error:
            events.append(self._abort(error.error_code, error.reason))
            return events
        if fin:
            self.close()
            events.append(PeerClosed())
        return events

    def _receive_capsule(self, capsule: Capsule) -> Event | None:
        match capsule:
            case AddressAssign():
                return self._receive_assignment(capsule)
            case AddressRequest():
                return self._receive_request_for_addresses(capsule)
            case RouteAdvertisement():
                self.routes_received = capsule.ranges
                self._update_gate()
                return RoutesAdvertised(capsule.ranges)
            case DatagramCapsule():
                return DatagramReceived(capsule.payload)
            case Register() | OfferState() if self.role is Role.PROXY:
                return _event_of_offer(capsule)
            case Registered() | Drain() | ObservedAddress() | DnsAssign() if (
                self.role is Role.CLIENT
            ):
                return self._receive_notice(capsule)
        return None  # of the other role's: as good as unknown

    def _receive_notice(
        self, capsule: Registered | Drain | ObservedAddress | DnsAssign
    ) -> Event | None:
        match capsule:
            case Registered():
                return RegistrationAnswered(capsule)
            case Drain():
                return DrainAsked(capsule.deadline_ms)
            case DnsAssign():
                return DnsAssigned(capsule)
            case ObservedAddress():
                if capsule.sequence <= self._last_observation:
                    return None
                self._last_observation = capsule.sequence
                return AddressObserved(capsule)

    def _receive_assignment(self, capsule: AddressAssign) -> Event:
        granted = tuple(entry for entry in capsule.addresses if not entry.is_refusal)
        refused = tuple(entry.request_id for entry in capsule.addresses if entry.is_refusal)
        self.addresses_received = granted
        self._update_gate()
        return AddressesAssigned(granted, refused)

    def _receive_request_for_addresses(self, capsule: AddressRequest) -> Event:
        for entry in capsule.requests:
            if entry.request_id in self._seen_request_ids:
                raise MalformedCapsule(f"request ID {entry.request_id} is used again")
            if len(self._seen_request_ids) >= self._limits.max_address_requests:
                raise MalformedCapsule("too many address requests", H3Error.EXCESSIVE_LOAD)
            self._seen_request_ids.add(entry.request_id)
            self._pending[entry.request_id] = entry
        return AddressesRequested(capsule.requests)

    # Capsules to the peer.

    def assign(self, addresses: Iterable[AssignedAddress]) -> bytes:
        """Return the capsule with the *full* list of addresses that the peer now holds.

        What is not in the list is taken away. An entry that answers a request carries its
        ID, and ``request.refusal()`` refuses it; all others carry 0. LocalError for an ID
        that the peer did not send.
        """
        entries = tuple(addresses)
        self._require_stream()
        for entry in entries:
            if entry.request_id != NO_REQUEST and entry.request_id not in self._seen_request_ids:
                raise LocalError(f"the peer sent no request {entry.request_id}")
        for entry in entries:
            self._pending.pop(entry.request_id, None)
        self.addresses_given = tuple(entry for entry in entries if not entry.is_refusal)
        self._update_gate()
        return AddressAssign(entries).encode()

    def request_addresses(self, prefixes: Iterable[IpNetwork]) -> bytes:
        """Return the capsule that asks for addresses, each under a request ID of its own.

        0.0.0.0/32 and ::/128 mean "any address of this version". LocalError if there is
        nothing to ask for.
        """
        self._require_stream()
        wanted = tuple(prefixes)
        if not wanted:
            raise LocalError("an ADDRESS_REQUEST holds at least one request")
        first = self._next_request_id
        self._next_request_id += len(wanted)
        requests = (AssignedAddress(first + i, prefix) for i, prefix in enumerate(wanted))
        return AddressRequest(tuple(requests)).encode()

    def advertise(self, ranges: Iterable[IpRange]) -> bytes:
        """Return the capsule with our *full* list of routes.

        They are put in order, freed of overlap, and narrowed to the request's scope
        (sections 4.6 and 4.7.3).
        """
        self._require_stream()
        self.routes_given = self._within_scope(ranges)
        self._update_gate()
        return RouteAdvertisement(self.routes_given).encode()

    def send_capsule(self, capsule: ServiceCapsule) -> bytes:
        """Return the bytes of a capsule about services, for a stream that can carry it now."""
        self._require_stream()
        return capsule.encode()

    def _within_scope(self, ranges: Iterable[IpRange]) -> tuple[IpRange, ...]:
        if self.role is Role.CLIENT or not self.scope.is_limited:
            return normalize_ranges(ranges)
        target = self.scope.target
        if isinstance(target, str):
            return limit_ranges(ranges, self._resolved, self.scope.ip_protocol)
        networks = None if target is None else (target,)
        return limit_ranges(ranges, networks, self.scope.ip_protocol)

    def install_peer_routes(self, ranges: Iterable[IpRange]) -> None:
        """Proxy: let the peer send from these ranges, and receive for them.

        For network-to-network routing: what the client advertised, after the owner's own
        policy looked at it. Replaces the earlier ranges.
        """
        self._peer_routes = normalize_ranges(ranges)
        self._update_gate()

    # The end, and what holds it up.

    def check_link_mtu(self, mtu_bytes: int) -> list[Event]:
        """Abort if IPv6 is in use and the tunnel cannot carry 1280 bytes (section 7.2).

        ``mtu_bytes`` is the largest IP packet that fits a QUIC DATAGRAM frame now. Call it
        whenever that changes and whenever addresses do.
        """
        if self._state is _State.CLOSED or mtu_bytes >= MIN_IPV6_MTU_BYTES:
            return []
        held = self.addresses_given + self.addresses_received
        if not any(entry.prefix.version == 6 for entry in held):
            return []
        reason = f"IPv6 needs {MIN_IPV6_MTU_BYTES} bytes, the tunnel carries {mtu_bytes}"
        return [self._abort(H3Error.REQUEST_CANCELLED, reason)]

    def close(self) -> None:
        """Both directions have ended; later datagrams are dropped (SESSION_CLOSED)."""
        self._state = _State.CLOSED
        self.gate.close()
        self._pending.clear()

    def _abort(self, error_code: H3Error, reason: str) -> StreamAborted:
        self.close()
        return StreamAborted(error_code, reason)

    def _update_gate(self) -> None:
        given = tuple(IpRange.of(entry.prefix) for entry in self.addresses_given)
        if self.role is Role.PROXY:
            peer = given + self._peer_routes
            here = self.routes_given + self._own_ranges
        else:
            received = tuple(IpRange.of(entry.prefix) for entry in self.addresses_received)
            peer = given + self.routes_received
            here = received + self.routes_given
        self.gate.set_tables(peer=peer, here=here)

    def _require(self, role: Role, state: _State) -> None:
        if self.role is not role or self._state is not state:
            raise LocalError(f"not now: {self!r}")

    def _require_stream(self) -> None:
        """Capsules go out on an open stream; a client may send them before the answer."""
        early = self.role is Role.CLIENT and self._state is _State.REQUESTED
        if self._state is not _State.OPEN and not early:
            raise LocalError(f"not now: {self!r}")


def _event_of_offer(capsule: Register | OfferState) -> Event:
    if isinstance(capsule, Register):
        return ServicesOffered(capsule)
    return OffersChanged(capsule)
