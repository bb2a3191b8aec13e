"""What a connector says of itself; `zgate_host.status_socket` carries it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from zgate_host import status_socket
from zgate_host.status_socket import FailedAddress


class State(StrEnum):
    """Where the connection to one gateway is."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    BACKOFF = "backoff"
    STOPPED = "stopped"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class OfferAnswer(_Frozen):
    """What a gateway made of one service or network."""

    kind: str
    """service or route."""
    name: str
    code: str
    """accepted, or why not: not_authorized, invalid, no_address, overlap, limit, internal."""
    text: str
    service_addresses: list[str]
    """What agents reach the service by."""

    @property
    def is_accepted(self) -> bool:
        """Whether the offer stands."""
        return self.code == "accepted"


class ServiceState(_Frozen):
    """How an offered service does, seen through one gateway."""

    name: str
    health: str
    """up or down."""
    reason: str
    open_flows: int
    total_flows: int
    bytes_up: int
    """From agents to the backend, in this session."""
    bytes_down: int


class GatewayStatus(_Frozen):
    """The session with one gateway, or why there is none."""

    gateway: str
    """As configured."""
    server_name: str
    state: State
    reason: str
    """Why there is no session; empty while there is one."""
    since: datetime
    gateway_address: str | None
    """Address and port of the session, or of the last one."""
    observed_address: str | None
    """Where the gateway sees us: after every NAT on the way."""
    addresses: list[str]
    """Virtual IPs: our own, and those of the offers."""
    routes: list[str]
    """Where clients come from."""
    mtu_bytes: int | None
    is_draining: bool
    answers: list[OfferAnswer]
    services: list[ServiceState]
    renewal_problem: str = ""
    """Why another certificate is not taken; empty: it is, or there is none."""
    reconnects: int
    """Sessions after the first."""
    failures: int = 0
    """Attempts at an address of the gateway that gave no session."""
    next_attempt_s: float | None
    failed_addresses: list[FailedAddress]
    counters: dict[str, float]
    drops: dict[str, int]
    """Packets dropped by the connector, by reason; of the same session."""


class ConnectorStatus(_Frozen):
    """The whole status. Fields are only ever added."""

    gateways: list[GatewayStatus]
    networks: list[str]
    engine: str
    notes: list[str]
    """What is not as configured, and why."""
    pid: int

    @property
    def is_connected(self) -> bool:
        """Whether there is a session with every gateway."""
        return all(one.state is State.CONNECTED for one in self.gateways)

    @property
    def summary(self) -> str:
        """One line: the state with each gateway, or why there is no session."""
        return "; ".join(
            f"{one.gateway}: {one.state}{f' ({one.reason})' if one.reason else ''}"
            for one in self.gateways
        )


def fetch_status(socket_file: Path) -> ConnectorStatus:
    """Ask the connector behind a socket.

    Raises:
        StatusUnavailable: no connector answers there, or something else does.
    """
    start = "zgate-connector --config FILE"
    return status_socket.fetch_status(socket_file, ConnectorStatus, "connector", start)
