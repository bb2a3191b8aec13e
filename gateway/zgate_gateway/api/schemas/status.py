"""The gateway as a whole."""

from __future__ import annotations

from pydantic import AwareDatetime, Field

from zgate_gateway.api.schemas.base import (
    MAX_DRAIN_S,
    Answer,
    GatewayState,
    Request,
    VerdictAction,
)


class PoolUse(Answer):
    """One family's address pool."""

    family: int = Field(description="4 or 6", ge=4, le=6)
    network: str
    gateway: str
    capacity: int = Field(description="addresses that clients can hold", ge=0)
    leased: int = Field(description="addresses that belong to a client, connected or not", ge=0)
    connected: int = Field(description="leased addresses whose client is connected now", ge=0)


class PolicySummary(Answer):
    """The policy in force. Revision 0 is the deny-all policy of a gateway without a policy file."""

    revision: int = Field(ge=0)
    source: str | None = Field(None, description="policy file; null: no file, everything is denied")
    sha256: str | None = None
    loaded_at: AwareDatetime | None = None
    default_action: VerdictAction = VerdictAction.DENY
    clients: int = Field(0, ge=0)
    groups: int = Field(0, ge=0)
    rules: int = Field(0, ge=0)
    kernel_policies: int = Field(0, ge=0, description="distinct rule lists loaded into the kernel")
    not_in_force_because: str | None = Field(
        None, description="why what the policy file says now was refused; null: it was not"
    )


class Alert(Answer):
    """Something that somebody should look at, as long as it lasts."""

    name: str = Field(description="map_flows, ...; the label of zgate_alert")
    text: str = Field(description="what it is, and what helps")
    since: AwareDatetime


class MapUse(Answer):
    """How full one kernel table is."""

    used: int = Field(ge=0)
    size: int = Field(ge=0)


class AuditState(Answer):
    """The audit log's own health. ``lost`` above zero means records are missing from the file."""

    path: str
    written: int = Field(0, ge=0)
    lost: int = Field(0, ge=0)
    last_error: str | None = None


class DnsState(Answer):
    """The responder for names of services, at the gateway's virtual IPs."""

    domain: str = Field(description="services have names under it")
    problem: str | None = Field(None, description="why not every address is answered at")
    queries: dict[str, int] = Field(default_factory=dict, description="by what became of them")


class EdgeState(Answer):
    """The XDP program before the UDP port, and whether new clients have to prove their address."""

    mode: str = Field("off", description="native (in the driver), generic, or off")
    interface: str | None = None
    note: str | None = Field(None, description="why it is off, or not in the driver")
    passed: dict[str, int] = Field(
        default_factory=dict, description="packets to the port that it let through, by kind"
    )
    dropped: dict[str, int] = Field(default_factory=dict, description="packets, by reason")
    blocked: int = Field(0, ge=0, description="networks in the blocklist")
    blocklist_problem: str | None = Field(
        None, description="why the blocklist's file as it is now is not in force"
    )
    retry_active: bool = Field(False, description="a first packet now is answered with Retry")


class EventState(Answer):
    """The kernel's event ring: flow records that did not reach the audit log, and why."""

    received: int = Field(0, ge=0)
    lost: int = Field(0, ge=0, description="the ring buffer was full")
    suppressed: int = Field(0, ge=0, description="rate limited per client, in the kernel")


class Worker(Answer):
    """A process that carries packets."""

    worker: int = Field(ge=0, description="its number")
    pid: int | None = Field(description="null: it has ended, and is being started again")
    sessions: int = Field(0, ge=0)
    restarts: int = Field(0, ge=0, description="since the gateway's start")
    misdirected_packets: int = Field(0, ge=0, description="of another worker's sessions; lost")


class GatewayDrainState(Answer):
    """A drain of the gateway that goes on."""

    since: AwareDatetime
    deadline_s: float = Field(ge=0, description="from `since` on")
    deadline_at: AwareDatetime = Field(description="when the sessions that are left are closed")
    sessions_left: int = Field(ge=0)
    is_over: bool = Field(False, description="the deadline has passed")
    closed_sessions: int = Field(0, ge=0, description="those that were left then")


class GatewayDrain(Answer):
    """``POST /v1/drain``; it returns at once."""

    drain: GatewayDrainState | None = Field(description="null: it is drained no more")


class GatewayDrainRequest(Request):
    """The body of ``POST /v1/drain``."""

    deadline_s: float = Field(
        30.0, ge=0, le=MAX_DRAIN_S, description="then the sessions that are left are closed"
    )
    undo: bool = Field(False, description="take sessions again")


class Status(Answer):
    """The gateway at a glance (``GET /v1/status``)."""

    version: str
    state: GatewayState
    not_ready_because: list[str] = Field(default_factory=list)
    drain: GatewayDrainState | None = Field(None, description="null: it is not drained")
    started_at: AwareDatetime
    uptime_s: float = Field(ge=0)
    pid: int = Field(gt=0)
    listen: list[str] = Field(description="UDP address:port, one per socket")
    engine: str
    workers: list[Worker] = Field(default_factory=list)
    tun_name: str
    tun_mtu_bytes: int
    sessions: int = Field(ge=0)
    sessions_max: int = Field(ge=0)
    sessions_total: int = Field(0, ge=0, description="established since start")
    sessions_refused: dict[str, int] = Field(default_factory=dict, description="by reason")
    services: int = Field(0, ge=0, description="services that the gateway knows")
    services_up: int = Field(0, ge=0, description="those of them that take new flows")
    connectors: int = Field(0, ge=0)
    networks: int = Field(0, ge=0, description="networks behind connectors")
    pools: list[PoolUse] = Field(default_factory=list)
    policy: PolicySummary
    alerts: list[Alert] = Field(default_factory=list)
    kernel_maps: dict[str, MapUse] = Field(default_factory=dict)
    kernel_events: EventState = Field(default_factory=EventState)
    drops: dict[str, int] = Field(default_factory=dict, description="packets, by drop reason")
    audit: AuditState | None = None
    edge: EdgeState | None = None
    dns: DnsState | None = None
