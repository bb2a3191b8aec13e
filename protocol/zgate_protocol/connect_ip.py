"""One CONNECT-IP session: a request stream and its datagrams, either role (RFC 9484)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network, IPv6Network

from zgate_protocol.capsule import AssignedAddress
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.events import Event
from zgate_protocol.ip_range import IpRange
from zgate_protocol.uri_template import Scope, UriTemplate

Header = tuple[bytes, bytes]


class Role(Enum):
    """Which end of the request this is."""

    CLIENT = "client"
    PROXY = "proxy"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one peer can make us hold; beyond it its stream is aborted (EXCESSIVE_LOAD)."""

    max_addresses: int = 64
    max_routes: int = 4096
    max_address_requests: int = 256
    max_datagram_capsule_bytes: int = 9216


class ConnectIpSession:
    """Sans-IO state of one session. No method raises on anything that the peer sent."""

    wrap_prefix: bytes
    """Put before an IP packet it makes a QUIC DATAGRAM payload: quarter stream ID, context 0."""
    scope: Scope

    def __init__(
        self,
        role: Role,
        stream_id: int,
        *,
        template: UriTemplate | None = None,
        limits: Limits | None = None,
    ) -> None:
        raise NotImplementedError

    # Request and response.

    def request(self, authority: str, path: str, scheme: str = "https") -> list[Header]:
        """Client: the header list that opens the session."""
        raise NotImplementedError

    def receive_headers(self, headers: Sequence[Header]) -> list[Event]:
        """Take in a HEADERS frame."""
        raise NotImplementedError

    def accept(self, resolved: Iterable[IPv4Network | IPv6Network] = ()) -> list[Header]:
        """Proxy: the header list that accepts; ``resolved`` = addresses of a hostname target."""
        raise NotImplementedError

    def refuse(self, status: int, proxy_status: str = "") -> list[Header]:
        """Proxy: the header list that refuses; send it with FIN."""
        raise NotImplementedError

    # Capsules.

    def receive_data(self, data: bytes, fin: bool = False) -> list[Event]:
        """Take in DATA bytes."""
        raise NotImplementedError

    def assign(self, addresses: Iterable[AssignedAddress]) -> bytes:
        """Return the capsule that tells the peer the full list of addresses it holds."""
        raise NotImplementedError

    def request_addresses(self, prefixes: Iterable[IPv4Network | IPv6Network]) -> bytes:
        """Return the capsule that asks for addresses; 0.0.0.0/32 and ::/128 mean any."""
        raise NotImplementedError

    def advertise(self, ranges: Iterable[IpRange]) -> bytes:
        """Return the capsule with our full list of routes, narrowed to the request's scope."""
        raise NotImplementedError

    def install_peer_routes(self, ranges: Iterable[IpRange]) -> None:
        """Proxy: let the peer send from and receive for these ranges (after our own policy)."""
        raise NotImplementedError

    # Packets (hot path).

    def unwrap(self, payload: bytes) -> bytes | DropReason:
        """Return the IP packet of an HTTP datagram (bytes after the quarter stream ID) or why not."""
        raise NotImplementedError

    def check_outgoing(self, packet: bytes) -> DropReason:
        """Say whether ``packet`` may be sent to the peer; NONE (false) means yes."""
        raise NotImplementedError

    def close(self) -> None:
        """Both directions end; later datagrams are dropped (SESSION_CLOSED)."""
        raise NotImplementedError
