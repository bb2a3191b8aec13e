"""What supervisor and worker say to each other.

A message is a frozen dataclass; on the wire it is JSON, ``[name, [field, ...]]``, one to a packet.
Both ends are of one install, so there is no version: what does not fit a message's fields exactly
is a fault, and ends the worker.

A worker has verified its clients and carries their packets, so it is trusted with what it says of
its own sessions, and with nothing of others'.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import get_args

from zgate_gateway.admission import Applicant, PeerPath
from zgate_gateway.worker.message_codec import codec_of

MAX_MESSAGE_BYTES = 128 * 1024
#: Entries of one message that holds many.
BATCH_ENTRIES = 128

IpAddress = IPv4Address | IPv6Address


class MessageError(ValueError):
    """Bytes that are no message."""


# From the supervisor.


@dataclass(frozen=True, slots=True)
class Configure:
    """The first message, with three descriptors: UDP socket, TUN queue, map of address owners.

    Attributes:
        worker, workers: which one of how many.
        engine: native or python; the native one reads and writes vnet headers.
        secret: of the connection IDs; retry_key: of Retry tokens.
    """

    worker: int
    workers: int
    log_level: str
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


@dataclass(frozen=True, slots=True)
class EndLost:
    """Clients of a worker that has died: send each a stateless reset."""

    paths: tuple[PeerPath, ...]


@dataclass(frozen=True, slots=True)
class Admitted:
    """The answer to `Apply`: the kernel knows the client."""

    request_id: int
    session_id: str
    addresses: tuple[IpAddress, ...]


@dataclass(frozen=True, slots=True)
class Denied:
    """The answer to `Apply`: no. `error` is a `ProxyError`."""

    request_id: int
    status: int
    error: str
    text: str


@dataclass(frozen=True, slots=True)
class CloseSession:
    """The session is over: tell its client. The kernel has forgotten it already."""

    session_id: str
    cause: str


@dataclass(frozen=True, slots=True)
class ReloadTrust:
    """Authorities or revocation lists have changed."""


@dataclass(frozen=True, slots=True)
class ReloadCertificate:
    """The gateway's own certificate has changed."""


@dataclass(frozen=True, slots=True)
class AskReport:
    """Say what you have counted. Asked each second too, to see that the worker is alive."""

    request_id: int
    with_sessions: bool


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
    """

    request_id: int
    is_last: bool
    sessions: tuple[SessionReport, ...]
    counters: dict[str, int]
    drops: dict[str, int]
    certificates_refused: dict[str, int]
    retry_active: bool


Message = (
    Configure
    | EndLost
    | Admitted
    | Denied
    | CloseSession
    | ReloadTrust
    | ReloadCertificate
    | AskReport
    | StopAccepting
    | Stop
    | Ready
    | Failed
    | TunLost
    | Apply
    | SessionEnded
    | ClientMoved
    | RequestRefused
    | CertificateRefused
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
