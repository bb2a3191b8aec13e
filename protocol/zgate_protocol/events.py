"""What a ConnectIpSession tells its owner: small frozen facts, in the order they happened."""

from dataclasses import dataclass

from zgate_protocol.capsule import AssignedAddress
from zgate_protocol.dns_capsule import DnsAssign
from zgate_protocol.errors import H3Error
from zgate_protocol.http_message import Header
from zgate_protocol.ip_range import IpRange
from zgate_protocol.service_capsule import ObservedAddress, OfferState, Register, Registered
from zgate_protocol.uri_template import Scope


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """Proxy: a well-formed IP proxying request; answer with ``accept`` or ``refuse``."""

    scope: Scope
    """What the client limits itself to. A hostname target must be resolved before the answer."""
    authority: str
    path: str
    capsule_protocol: bool
    """Whether the client sent ``Capsule-Protocol: ?1``; its absence is no reason to refuse."""


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """Proxy: not a request that can be served; the session is closed.

    Send ``headers`` with FIN, then, unless ``error_code`` is NO_ERROR, reset the stream.
    """

    status: int
    reason: str
    headers: tuple[Header, ...]
    error_code: H3Error


@dataclass(frozen=True, slots=True)
class Established:
    """Client: the proxy accepted the request (any 2xx that can start the Capsule Protocol)."""

    status: int
    capsule_protocol: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """Client: any final status that is not 2xx, redirects too; abort the stream."""

    status: int
    proxy_status: str
    """The Proxy-Status field, made safe to print; empty when absent."""


@dataclass(frozen=True, slots=True)
class AddressesAssigned:
    """The peer assigned addresses to us: always the full list, which replaces the earlier one."""

    addresses: tuple[AssignedAddress, ...]
    refused_request_ids: tuple[int, ...]
    """Requests that the peer answered with "no address"."""


@dataclass(frozen=True, slots=True)
class AddressesRequested:
    """The peer asks for addresses; each entry must be answered by one entry of ``assign``."""

    requests: tuple[AssignedAddress, ...]


@dataclass(frozen=True, slots=True)
class RoutesAdvertised:
    """The peer's routes: always the full list, which replaces the earlier one."""

    ranges: tuple[IpRange, ...]


@dataclass(frozen=True, slots=True)
class DatagramReceived:
    """An HTTP datagram that came in a DATAGRAM capsule; give it to ``unwrap``."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class ServicesOffered:
    """Proxy: the full list of services that the peer offers; answer it with a Registered."""

    register: Register


@dataclass(frozen=True, slots=True)
class OffersChanged:
    """Proxy: how the peer's services do; comes each second, and is its sign of life."""

    state: OfferState


@dataclass(frozen=True, slots=True)
class RegistrationAnswered:
    """Client: what became of the services and routes that were offered."""

    registered: Registered


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """Client: no new flows come; those that are open have ``deadline_ms`` (0: no deadline)."""

    deadline_ms: int


@dataclass(frozen=True, slots=True)
class AddressObserved:
    """Client: the address that the proxy sees it at; always newer than the one before."""

    observed: ObservedAddress


@dataclass(frozen=True, slots=True)
class DnsAssigned:
    """Client: which names are asked from which servers; replaces the earlier one."""

    dns: DnsAssign


@dataclass(frozen=True, slots=True)
class StreamAborted:
    """The session cannot go on: reset the stream (both directions) with ``error_code``."""

    error_code: H3Error
    reason: str


@dataclass(frozen=True, slots=True)
class PeerClosed:
    """The peer ended its side of the stream cleanly: the session is over, end ours too."""


Event = (
    RequestReceived
    | RequestRefused
    | Established
    | Refused
    | AddressesAssigned
    | AddressesRequested
    | RoutesAdvertised
    | DatagramReceived
    | ServicesOffered
    | OffersChanged
    | RegistrationAnswered
    | DrainAsked
    | AddressObserved
    | DnsAssigned
    | StreamAborted
    | PeerClosed
)
