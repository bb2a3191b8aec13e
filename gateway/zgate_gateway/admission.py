"""Who asks for a session, who gets one, and why not: what workers and the supervisor both know.

A worker has verified the client's certificate; the supervisor decides (`zgate_gateway.registry`),
for it alone knows the other workers' sessions, the addresses that are free, and the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from zgate_identity.verifier import PeerIdentity
from zgate_protocol.structured_field import ProxyError, build_proxy_status

IpAddress = IPv4Address | IPv6Address

_PROXY_NAME = "zgate"


@dataclass(frozen=True, slots=True)
class PeerPath:
    """Where a client is, and the connection ID that it sends to: enough to end its connection.

    Should its worker die, another process can still send it a stateless reset.
    """

    host: str
    port: int
    connection_id: bytes

    def __str__(self) -> str:
        host = self.host.removeprefix("::ffff:")
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Applicant:
    """A verified client that asks for a session; `target` and `ip_protocol` are its scope."""

    identity: PeerIdentity
    path: PeerPath
    target: str = "*"
    ip_protocol: int | None = None


@dataclass(frozen=True, slots=True)
class Admission:
    """A session is granted: the kernel knows the client by these addresses already."""

    session_id: str
    addresses: tuple[IpAddress, ...]


class Refusal(Exception):
    """A request is refused: HTTP status, Proxy-Status error type, and the reason for our log."""

    def __init__(self, status: int, error: ProxyError, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.error = error
        self.proxy_status = build_proxy_status(_PROXY_NAME, error, text)
        self.reason = str(error.value)


Answer = Callable[[Admission | Refusal], None]


class Registrar(Protocol):
    """Whom a worker asks and tells. Nothing blocks; an answer may come at once, or never."""

    def apply(self, applicant: Applicant, answer: Answer) -> None:
        """Ask for a session."""

    def ended(self, session_id: str, cause: str) -> None:
        """A session is over, by the client's doing or ours."""

    def refused(self, client: str, peer: str, refusal: Refusal) -> None:
        """A verified client's request was refused by the worker itself."""


class WorkerLink(Protocol):
    """How the supervisor reaches the worker that holds a session."""

    @property
    def index(self) -> int:
        """The worker's number."""

    def close_session(self, session_id: str, cause: str) -> None:
        """The session is over: tell its client."""
