"""What an agent says of itself; `zgate_host.status_socket` carries it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from zgate_host import status_socket
from zgate_host.status_socket import FailedAddress

from zgate_agent.config import Mode
from zgate_agent.machine import State
from zgate_agent.split_dns import Method


class DnsStatus(BaseModel):
    """How names of services are resolved."""

    model_config = ConfigDict(frozen=True)

    method: Method = Method.NONE
    servers: list[str] = []
    domains: list[str] = []
    """Only names below these are asked from the servers."""


class AgentStatus(BaseModel):
    """The whole status. Fields are only ever added."""

    model_config = ConfigDict(frozen=True)

    state: State
    reason: str
    """Why there is no session; empty while there is one."""
    since: datetime
    """When the agent got into this state."""
    gateway: str
    """As configured: that of the session, or the one tried last."""
    gateways: list[str] = []
    """All that are configured, in their order."""
    server_name: str
    gateway_address: str | None
    """Address and port of the session, or of the last one."""
    local_address: str | None
    observed_address: str | None = None
    """Where the gateway sees us: after every NAT on the way."""
    dns: DnsStatus = DnsStatus()
    addresses: list[str]
    """Virtual IPs that are programmed."""
    routes: list[str]
    """Networks that go into the tunnel."""
    pinned: list[str]
    """Addresses of the gateway that are kept out of the tunnel by a host route."""
    mode: Mode
    tun: str
    engine: str = ""
    """The packet engine that runs: native or python."""
    mtu_bytes: int | None
    reconnects: int
    """Sessions after the first."""
    rebinds: int
    """Moves of a session to another local address."""
    failures: int = 0
    """Attempts at an address of a gateway that gave no session."""
    next_attempt_s: float | None
    """Seconds until the next attempt: in backoff, or of a renewal that failed."""
    is_renewing: bool = False
    """Another session is dialled beside the present one."""
    renewal_problem: str = ""
    """Why the present session could not be replaced by another; empty: it could."""
    is_draining: bool = False
    """The gateway has said that it is to stop."""
    failed_addresses: list[FailedAddress]
    notes: list[str]
    """What is not as configured, and why."""
    counters: dict[str, float]
    """Of the present session, or of the last one."""
    drops: dict[str, int]
    """Packets dropped by the agent, by reason; of the same session."""
    pid: int

    @property
    def is_connected(self) -> bool:
        """Whether there is a session."""
        return self.state is State.CONNECTED

    @property
    def summary(self) -> str:
        """One line: the state, and with whom, or why not."""
        if self.is_connected:
            own = ", ".join(self.addresses) or "no address"
            return f"connected to {self.gateway_address}: {own}"
        return f"{self.state}: {self.reason}" if self.reason else str(self.state)


def fetch_status(socket_file: Path) -> AgentStatus:
    """Ask the agent behind a socket.

    Raises:
        StatusUnavailable: no agent answers there, or something else does.
    """
    return status_socket.fetch_status(socket_file, AgentStatus, "agent", "zgate-agent run")
