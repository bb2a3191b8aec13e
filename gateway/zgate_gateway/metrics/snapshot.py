"""What one scrape shows: plain values, taken at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from zgate_protocol.service_capsule import OfferStatus

#: What becomes of a handshake: a session's identity is proved; the certificate was refused; it took
#: too long; it ended otherwise.
HANDSHAKE_RESULTS = ("completed", "refused", "timed_out", "failed")
#: Retry tokens (RFC 9000 section 8.1.2): sent to a new client; brought back and right, or wrong.
RETRY_TOKEN_RESULTS = ("issued", "accepted", "refused")
#: A policy was put in force; it was the same as before; it was refused.
POLICY_LOAD_RESULTS = ("loaded", "unchanged", "refused")
#: The earlier session of a client that comes again: it was still up, or had ended lately.
PREVIOUS_SESSIONS = ("up", "ended")


class ClientTraffic(NamedTuple):
    """What the kernel counted; up is from clients. The fields of `ClientCounters`."""

    up_packets: int = 0
    up_bytes: int = 0
    down_packets: int = 0
    down_bytes: int = 0
    up_dropped_packets: int = 0
    down_dropped_packets: int = 0
    flows: int = 0


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """One worker process; counters are those of all its lives."""

    is_up: bool
    sessions: int
    restarts: int
    counters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProcessLoad:
    """What a process takes, as the kernel counts; ``loop_lag_s`` as its event loop does.

    ``open_fds``: None: not to be known.
    """

    cpu_s: float
    resident_bytes: int
    open_fds: int | None
    loop_lag_s: float


@dataclass(frozen=True, slots=True)
class PoolLevel:
    """One address pool: how many addresses it has and how many are leased."""

    capacity: int
    leased: int
    connected: int


@dataclass(frozen=True, slots=True)
class DrainLevel:
    """A drain that goes on; the deadline is Unix time."""

    deadline_at_s: float
    sessions_left: int


@dataclass(frozen=True, slots=True)
class OfferTraffic:
    """What a connector counted of a service that it offers, since its session began."""

    open_flows: int
    total_flows: int
    bytes_up: int
    bytes_down: int

    @classmethod
    def of(cls, status: OfferStatus) -> OfferTraffic:
        """What the connector said last."""
        return cls(status.open_flows, status.total_flows, status.bytes_up, status.bytes_down)


@dataclass(frozen=True, slots=True)
class ServiceLevels:
    """Services and connectors: ``services`` and ``offers`` by state, ``networks`` by whether
    somebody leads there, ``refused`` by code, ``flows`` by connector and service.
    """

    services: Mapping[str, int] = field(default_factory=dict)
    connectors: int = 0
    silent: int = 0
    drained: int = 0
    offers: Mapping[str, int] = field(default_factory=dict)
    networks: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    flows: Mapping[tuple[str, str], OfferTraffic] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """Everything ``/metrics`` shows.

    Mappings are keyed by label value: ``checks`` by what new sessions need, ``drops`` by drop
    reason name, ``sessions_refused`` by reason, ``pools`` by family (``ipv4``, ``ipv6``),
    ``kernel_maps`` by map name as (used, size), ``clients`` by client name, ``workers`` by their
    number, ``processes`` by role, ``edge_packets`` by verdict and reason, ``dns_queries`` by what
    became of them, ``expiries`` by certificate, in Unix time, ``alerts`` by name: whether it lasts.

    :ivar traffic: of all clients, those counted that have gone; never less than it was.
    :ivar clients: of those clients that get series of their own (`zgate_gateway.metrics.top`).
    :ivar clients_left_out: clients that get none.
    """

    version: str
    engine_name: str
    ready: bool
    started_at_s: float
    uptime_s: float = 0.0
    checks: Mapping[str, bool] = field(default_factory=dict)
    drain: DrainLevel | None = None
    sessions: int = 0
    sessions_max: int = 0
    sessions_total: int = 0
    sessions_refused: Mapping[str, int] = field(default_factory=dict)
    reconnects: Mapping[str, int] = field(default_factory=dict)
    handshakes: Mapping[str, int] = field(default_factory=dict)
    retry_tokens: Mapping[str, int] = field(default_factory=dict)
    retry_active: bool = False
    policy_revision: int = 0
    policy_rules: int = 0
    policy_loaded_at_s: float | None = None
    policy_loads: Mapping[str, int] = field(default_factory=dict)
    expiries: Mapping[str, float] = field(default_factory=dict)
    pools: Mapping[str, PoolLevel] = field(default_factory=dict)
    drops: Mapping[str, int] = field(default_factory=dict)
    traffic: ClientTraffic = field(default_factory=ClientTraffic)
    clients: Mapping[str, ClientTraffic] = field(default_factory=dict)
    clients_left_out: int = 0
    kernel_maps: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    alerts: Mapping[str, bool] = field(default_factory=dict)
    events_lost: int = 0
    events_suppressed: int = 0
    audit_written: int = 0
    audit_lost: int = 0
    workers: Mapping[int, WorkerLoad] = field(default_factory=dict)
    processes: Mapping[str, ProcessLoad] = field(default_factory=dict)
    edge_mode: str = "off"
    edge_interface: str = ""
    edge_packets: Mapping[tuple[str, str], int] = field(default_factory=dict)
    dns_up: bool = False
    dns_queries: Mapping[str, int] = field(default_factory=dict)
    services: ServiceLevels = field(default_factory=ServiceLevels)
