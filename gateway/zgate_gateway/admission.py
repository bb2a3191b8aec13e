"""Who asks for a session, who gets one, and why not: what workers and the supervisor both know.

A worker has verified the client's certificate; the supervisor decides (`zgate_gateway.registry`),
for it alone knows the other workers' sessions, the addresses that are free, and the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from zgate_identity.verifier import PeerIdentity
from zgate_protocol.service_capsule import OfferStatus, Register, RegistrationAnswer
from zgate_protocol.structured_field import ProxyError, build_proxy_status

IpAddress = IPv4Address | IPv6Address

#: Services that one session may have registered for, or offer in the ztna-v1 dialect.
MAX_SESSION_SERVICES = 64

_PROXY_NAME = "zgate"


@dataclass(frozen=True, slots=True)
class PeerPath:
    """Where a client is, and the connection ID that it sends to: enough to end its connection.

    Should its worker die, another process can still send it a stateless reset.

    Attributes:
        local_host: the address of ours that it sends to; empty: we listen at one only.
    """

    host: str
    port: int
    connection_id: bytes
    local_host: str = ""

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
    """A session is granted: the kernel knows the client by these addresses already.

    Attributes:
        timing_s: when the supervisor began, had the leases, and the kernel's entry (monotonic
            time); empty where nobody wants to know.
    """

    session_id: str
    addresses: tuple[IpAddress, ...]
    timing_s: tuple[float, ...] = ()


class Refusal(Exception):
    """A request is refused: HTTP status, Proxy-Status error type, and the reason for our log."""

    def __init__(self, status: int, error: ProxyError, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.error = error
        self.proxy_status = build_proxy_status(_PROXY_NAME, error, text)
        self.reason = str(error.value)


Answer = Callable[[Admission | Refusal], None]
Reached = Callable[[tuple[IpAddress, ...]], None]


class Registrar(Protocol):
    """Whom a worker asks and tells. Nothing blocks; an answer may come at once, or never."""

    def apply(self, applicant: Applicant, answer: Answer) -> None:
        """Ask for a session."""

    def established(self, session_id: str) -> None:
        """A session that was granted can carry packets."""

    def ended(self, session_id: str, cause: str) -> None:
        """A session is over, by the client's doing or ours."""

    def refused(self, client: str, peer: str, refusal: Refusal) -> None:
        """A verified client's request was refused by the worker itself."""

    def offer_services(self, session_id: str, register: Register) -> None:
        """A session offers these services: the full list."""

    def offer_states(self, session_id: str, statuses: Sequence[OfferStatus]) -> None:
        """How a session's services do."""

    def offer_routes(self, session_id: str, networks: tuple[str, ...]) -> None:
        """A session leads to these networks: the full list."""

    def reach_service(self, session_id: str, service: str, answer: Reached) -> None:
        """Ask for a service's virtual IPs: none if the session's client may not reach it."""

    def connector_silent(self, session_id: str, is_silent: bool) -> None:
        """Nothing comes from a session that ought to be heard each second; or it comes again."""


class WorkerLink(Protocol):
    """How the supervisor reaches the worker that holds a session."""

    @property
    def index(self) -> int:
        """The worker's number."""

    def close_session(self, session_id: str, cause: str) -> None:
        """The session is over: tell its client."""

    def answer_offers(
        self, session_id: str, revision: int, answers: Sequence[RegistrationAnswer]
    ) -> None:
        """Tell a connector what became of all that it offers."""

    def grant(
        self, session_id: str, addresses: Sequence[IpAddress], networks: Sequence[str]
    ) -> None:
        """All that a session holds from now on beside its own virtual IPs."""

    def tell_agent(self, session_id: str, service: str, addresses: Sequence[IpAddress]) -> None:
        """Whose a connector's packets are that it sends to nobody; none: nobody's."""

    def drain_session(self, session_id: str, deadline_ms: int) -> None:
        """Tell a connector that it gets no new flows; 0: no deadline."""
