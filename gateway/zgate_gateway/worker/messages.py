"""What supervisor and worker say to each other.

A message is a frozen dataclass; on the wire it is JSON, ``[name, [field, ...]]``, one to a packet.
Both ends are of one install, so there is no version: what does not fit a message's fields exactly
is a fault, and ends the worker.

A worker has verified its clients and carries their packets, so it is trusted with what it says of
its own sessions, and with nothing of others'.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Generic, TypeVar, get_args

from zgate_protocol.service_capsule import OfferedService, OfferStatus, RegistrationAnswer

from zgate_gateway.admission import Applicant, PeerPath
from zgate_gateway.worker.message_codec import codec_of

MAX_MESSAGE_BYTES = 128 * 1024
#: Entries of one message that holds many.
BATCH_ENTRIES = 128
#: Of those about services, whose names and texts are long.
SERVICE_BATCH_ENTRIES = 32

Entry = TypeVar("Entry")
IpAddress = IPv4Address | IPv6Address


class MessageError(ValueError):
    """Bytes that are no message."""


def in_parts(entries: Sequence[Entry]) -> Iterator[tuple[tuple[Entry, ...], bool]]:
    """What fits into messages about services, one after the other, and whether it is the last."""
    for start in range(0, max(1, len(entries)), SERVICE_BATCH_ENTRIES):
        part = entries[start : start + SERVICE_BATCH_ENTRIES]
        yield tuple(part), start + SERVICE_BATCH_ENTRIES >= len(entries)


class Parts(Generic[Entry]):
    """Puts together what came in parts; one list for each session at a time."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Entry]] = {}

    def add(
        self, session_id: str, part: Sequence[Entry], is_last: bool
    ) -> tuple[Entry, ...] | None:
        """The whole, once its last part is here."""
        whole = self._waiting.setdefault(session_id, [])
        whole.extend(part)
        return tuple(self._waiting.pop(session_id)) if is_last else None

    def forget(self, session_id: str) -> None:
        """The session is over."""
        self._waiting.pop(session_id, None)


# From the supervisor.


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """Where traces of session set-ups go; see `zgate_gateway.config.TracingConfig`."""

    endpoint: str
    sample_ratio: float
    client_addresses: bool


@dataclass(frozen=True, slots=True)
class Configure:
    """The first message, with descriptors: UDP socket, TUN queue, owners of addresses and networks.

    After them, copies of the files (`zgate_gateway.copies`): certificate, key, authorities, and
    revocation lists if there are any. Without them the files themselves are read.

    Attributes:
        worker, workers: which one of how many.
        engine: native or python; the native one reads and writes vnet headers.
        secret: of the connection IDs; retry_key: of Retry tokens.
        routes: what agents are told to send here.
        networks: what lies behind connectors.
        pools: the clients' virtual IPs, which connectors are told to send here.
        service_pools: the services' virtual IPs and the offers' addresses.
        dns_domain: services have names under it, answered at the gateway's addresses.
        dialects: which are served beside RFC 9484's framing.
        tracing: None: no traces.
    """

    worker: int
    workers: int
    log_level: str
    log_format: str
    secret: bytes = field(repr=False)
    retry_key: bytes = field(repr=False)
    certificate_file: Path
    key_file: Path
    ca_file: Path
    crl_file: Path | None
    engine: str
    congestion: str
    idle_timeout_s: float
    max_udp_payload_bytes: int
    tun_name: str
    routes: tuple[str, ...]
    gateway_ipv4: IPv4Address
    gateway_ipv6: IPv6Address
    pools: tuple[str, ...]
    service_pools: tuple[str, ...]
    dns_domain: str
    dialects: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    tracing: TracingSettings | None = None


@dataclass(frozen=True, slots=True)
class EndLost:
    """Clients of a worker that has died: send each a stateless reset."""

    paths: tuple[PeerPath, ...]


@dataclass(frozen=True, slots=True)
class Admitted:
    """The answer to `Apply`: the kernel knows the client. `timing_s`: see `Admission`."""

    request_id: int
    session_id: str
    addresses: tuple[IpAddress, ...]
    timing_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Denied:
    """The answer to `Apply`: no. `error` is a `ProxyError`."""

    request_id: int
    status: int
    error: str
    text: str


@dataclass(frozen=True, slots=True)
class ServiceReached:
    """The answer to `ReachService`: the service's virtual IPs; none: the client may not."""

    request_id: int
    addresses: tuple[IpAddress, ...]


@dataclass(frozen=True, slots=True)
class CloseSession:
    """The session is over: tell its client. The kernel has forgotten it already."""

    session_id: str
    cause: str


@dataclass(frozen=True, slots=True)
class OffersAnswered:
    """What became of all that a session offers, services and routes, in parts (`in_parts`).

    It comes again when something becomes of it later: the policy may change its mind.

    Attributes:
        revision: of the connector's list of services; 0: it has sent none.
    """

    session_id: str
    revision: int
    answers: tuple[RegistrationAnswer, ...]
    is_last: bool


@dataclass(frozen=True, slots=True)
class Grant:
    """All that a session holds now beside its own virtual IPs; replaces the earlier grant.

    Attributes:
        addresses: of its offers, on which it answers for services.
        networks: those that it leads to.
    """

    session_id: str
    addresses: tuple[IpAddress, ...]
    networks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServiceAgent:
    """Which agent registered last for a service that the session offers: its virtual IPs, or none.

    Packets of that session for the service go to it if their destination is nobody's.
    """

    session_id: str
    service: str
    addresses: tuple[IpAddress, ...]


@dataclass(frozen=True, slots=True)
class DrainSession:
    """The session gets no new flows; tell its connector. 0: no deadline."""

    session_id: str
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class DrainAll:
    """The gateway is to stop: tell all clients but connectors to go elsewhere by then."""

    deadline_ms: int


@dataclass(frozen=True, slots=True)
class Routes:
    """What agents are told to send here from now on; and which networks lie behind connectors,
    whether one is there now or not."""

    routes: tuple[str, ...]
    networks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReloadTrust:
    """Authorities or revocation lists have changed."""


@dataclass(frozen=True, slots=True)
class ReloadCertificate:
    """The gateway's own certificate has changed."""


@dataclass(frozen=True, slots=True)
class SetLogLevel:
    """Log so much from now on."""

    level: str


@dataclass(frozen=True, slots=True)
class AskReport:
    """Say what you have counted. Asked each second too, to see that the worker is alive.

    Attributes:
        with_sessions: of each session, too.
        only: if there are any, of these sessions alone: a worker may have thousands.
    """

    request_id: int
    with_sessions: bool
    only: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PingSession:
    """Ask a session's peer for a sign of life; `SessionPinged` is the answer."""

    request_id: int
    session_id: str


@dataclass(frozen=True, slots=True)
class StopAccepting:
    """No new connection."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Let the goodbyes leave, then end."""


# From a worker.


@dataclass(frozen=True, slots=True)
class Ready:
    """Connections are accepted."""

    engine: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker cannot do its work, and ends."""

    text: str


@dataclass(frozen=True, slots=True)
class TunLost:
    """The TUN device has been deleted."""


@dataclass(frozen=True, slots=True)
class Apply:
    """A verified client asks for a session."""

    request_id: int
    applicant: Applicant


@dataclass(frozen=True, slots=True)
class SessionEstablished:
    """A session that was granted can carry packets."""

    session_id: str


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """A session of this worker is over."""

    session_id: str
    cause: str


@dataclass(frozen=True, slots=True)
class ClientMoved:
    """The client of a session is somewhere else now."""

    session_id: str
    path: PeerPath


@dataclass(frozen=True, slots=True)
class OfferServices:
    """A connector's list of services, which replaces its earlier one, in parts (`in_parts`)."""

    session_id: str
    revision: int
    services: tuple[OfferedService, ...]
    is_last: bool


@dataclass(frozen=True, slots=True)
class OfferStates:
    """How services do that a session offers; those left out are as they were."""

    session_id: str
    statuses: tuple[OfferStatus, ...]


@dataclass(frozen=True, slots=True)
class OfferRoutes:
    """The networks that a connector leads to; replaces its earlier list."""

    session_id: str
    routes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReachService:
    """The client of a session asks for a service by its name."""

    request_id: int
    session_id: str
    service: str


@dataclass(frozen=True, slots=True)
class ConnectorSilent:
    """Nothing comes from a connector that ought to be heard each second; or it comes again."""

    session_id: str
    is_silent: bool


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """The worker refused a verified client's request by itself. `error` is a `ProxyError`."""

    client: str
    peer: str
    status: int
    error: str
    text: str


@dataclass(frozen=True, slots=True)
class CertificateRefused:
    """A client did not prove who it is; `left_out` others were before, too many to tell."""

    peer: str
    reason: str
    text: str
    left_out: int


@dataclass(frozen=True, slots=True)
class SessionPinged:
    """The answer to `PingSession`, once the peer has answered; None: there is no such session."""

    request_id: int
    rtt_s: float | None


@dataclass(frozen=True, slots=True)
class SessionReport:
    """One session's numbers; times in seconds."""

    session_id: str
    rtt_s: float
    mtu_bytes: int
    last_packet_s: float
    drops: dict[str, int]


@dataclass(frozen=True, slots=True)
class Report:
    """The answer to `AskReport`: counters since the worker began.

    Sessions come in as many messages as it takes; `is_last` is the one that closes the answer.

    Attributes:
        handshakes, retry_tokens: by what became of them (`zgate_gateway.metrics.snapshot`).
        loop_lag_s: the longest that the event loop was late, lately (`zgate_gateway.loop_lag`).
    """

    request_id: int
    is_last: bool
    sessions: tuple[SessionReport, ...]
    counters: dict[str, int]
    drops: dict[str, int]
    certificates_refused: dict[str, int]
    retry_active: bool
    handshakes: dict[str, int] = field(default_factory=dict)
    retry_tokens: dict[str, int] = field(default_factory=dict)
    loop_lag_s: float = 0.0


Message = (
    Configure
    | EndLost
    | Admitted
    | Denied
    | ServiceReached
    | CloseSession
    | OffersAnswered
    | Grant
    | ServiceAgent
    | DrainSession
    | DrainAll
    | Routes
    | ReloadTrust
    | ReloadCertificate
    | SetLogLevel
    | AskReport
    | PingSession
    | StopAccepting
    | Stop
    | Ready
    | Failed
    | TunLost
    | Apply
    | SessionEstablished
    | SessionEnded
    | ClientMoved
    | OfferServices
    | OfferStates
    | OfferRoutes
    | ReachService
    | ConnectorSilent
    | RequestRefused
    | CertificateRefused
    | SessionPinged
    | Report
)

_BY_NAME: dict[str, type] = {kind.__name__: kind for kind in get_args(Message)}


def encode(message: Message) -> bytes:
    """A message as one packet.

    Raises:
        MessageError: it is too large.
    """
    plain = [type(message).__name__, codec_of(_BY_NAME[type(message).__name__]).to_plain(message)]
    data = json.dumps(plain, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageError(f"a {plain[0]} of {len(data)} bytes: at most {MAX_MESSAGE_BYTES} fit")
    return data


def decode(data: bytes) -> Message:
    """The message in a packet.

    Raises:
        MessageError: there is none, or not exactly one.
    """
    try:
        name, plain = json.loads(data)
        message: Message = codec_of(_BY_NAME[name]).from_plain(plain)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise MessageError(f"no message: {error!r}") from error
    return message
