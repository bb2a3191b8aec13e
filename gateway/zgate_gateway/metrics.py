"""Prometheus metrics: one collector that reads one snapshot per scrape.

Nothing is counted here. The kernel, the packet engine and the daemon count; a scrape asks them
once (:class:`MetricsSnapshot`) and renders what they said, so that ``/metrics``, ``zgatectl
status`` and the kernel's tables cannot disagree. Counters start at zero with the daemon, as
Prometheus expects.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from zgate_protocol.service_capsule import OfferStatus


@dataclass(frozen=True, slots=True)
class ClientTraffic:
    """Kernel counters of one client; up is from the client."""

    up_packets: int = 0
    up_bytes: int = 0
    down_packets: int = 0
    down_bytes: int = 0
    dropped_packets: int = 0


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """One worker process; counters are those of all its lives."""

    is_up: bool
    sessions: int
    restarts: int
    counters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PoolLevel:
    """One address pool: how many addresses it has and how many are leased."""

    capacity: int
    leased: int
    connected: int


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
    """Services and connectors: ``offers`` by state, ``networks`` by whether somebody leads there,
    ``refused`` by code, ``flows`` by connector and service.
    """

    services: int = 0
    connectors: int = 0
    drained: int = 0
    offers: Mapping[str, int] = field(default_factory=dict)
    networks: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    flows: Mapping[tuple[str, str], OfferTraffic] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """Everything ``/metrics`` shows, taken at one moment.

    Mappings are keyed by label value: ``drops`` by drop reason name, ``sessions_refused`` by
    reason, ``pools`` by family (``ipv4``, ``ipv6``), ``kernel_maps`` by map name as (used, size),
    ``clients`` by client name, ``workers`` by their number, ``edge_packets`` by verdict and reason,
    ``dns_queries`` by what became of them.
    ``alerts`` are the names of those that last.
    """

    version: str
    engine_name: str
    ready: bool
    started_at_s: float
    sessions: int = 0
    sessions_total: int = 0
    sessions_refused: Mapping[str, int] = field(default_factory=dict)
    policy_revision: int = 0
    policy_rules: int = 0
    policy_loaded_at_s: float | None = None
    policy_reload_failures: int = 0
    pools: Mapping[str, PoolLevel] = field(default_factory=dict)
    drops: Mapping[str, int] = field(default_factory=dict)
    clients: Mapping[str, ClientTraffic] = field(default_factory=dict)
    kernel_maps: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    alerts: Collection[str] = ()
    events_lost: int = 0
    events_suppressed: int = 0
    audit_written: int = 0
    audit_lost: int = 0
    workers: Mapping[int, WorkerLoad] = field(default_factory=dict)
    edge_mode: str = "off"
    edge_interface: str = ""
    edge_packets: Mapping[tuple[str, str], int] = field(default_factory=dict)
    retry_active: bool = False
    dns_up: bool = False
    dns_queries: Mapping[str, int] = field(default_factory=dict)
    services: ServiceLevels = field(default_factory=ServiceLevels)


class GatewayCollector(Collector):
    """Turns a snapshot into metric families at each scrape."""

    def __init__(self, snapshot: Callable[[], MetricsSnapshot]) -> None:
        self._snapshot = snapshot

    def describe(self) -> list[Metric]:
        """Return nothing: registering must not take a snapshot."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Take one snapshot and yield every metric family of it."""
        now = self._snapshot()
        yield from _gateway(now)
        yield from _policy(now)
        yield from _pools(now)
        yield from _traffic(now)
        yield from _kernel(now)
        yield from _workers(now)
        yield from _edge(now)
        yield from _dns(now)
        yield from _services(now.services)
        yield from _logs(now)


def make_registry(snapshot: Callable[[], MetricsSnapshot]) -> CollectorRegistry:
    """Return a registry of its own (not the global one) with the gateway's collector in it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(GatewayCollector(snapshot))
    return registry


def _gateway(now: MetricsSnapshot) -> Iterator[Metric]:
    yield InfoMetricFamily(
        "zgate_build",
        "Version and packet engine",
        {"version": now.version, "engine": now.engine_name},
    )
    yield GaugeMetricFamily("zgate_ready", "1 when new sessions are taken", int(now.ready))
    yield GaugeMetricFamily("zgate_start_time_seconds", "Unix time of start", now.started_at_s)
    yield GaugeMetricFamily("zgate_sessions", "Sessions that are up", now.sessions)
    yield CounterMetricFamily(
        "zgate_sessions_established", "Sessions established since start", now.sessions_total
    )
    yield _counters(
        "zgate_sessions_refused", "Sessions refused, by reason", "reason", now.sessions_refused
    )


def _policy(now: MetricsSnapshot) -> Iterator[Metric]:
    yield GaugeMetricFamily("zgate_policy_revision", "Revision in force", now.policy_revision)
    yield GaugeMetricFamily("zgate_policy_rules", "Rules in the policy file", now.policy_rules)
    yield CounterMetricFamily(
        "zgate_policy_reload_failures", "Reloads that were refused", now.policy_reload_failures
    )
    if now.policy_loaded_at_s is not None:
        yield GaugeMetricFamily(
            "zgate_policy_loaded_time_seconds", "Unix time of the last load", now.policy_loaded_at_s
        )


def _pools(now: MetricsSnapshot) -> Iterator[Metric]:
    capacity = GaugeMetricFamily(
        "zgate_pool_addresses", "Addresses that clients can hold", labels=["family"]
    )
    leased = GaugeMetricFamily(
        "zgate_pool_leased", "Addresses that belong to a client", labels=["family"]
    )
    connected = GaugeMetricFamily(
        "zgate_pool_connected", "Addresses of connected clients", labels=["family"]
    )
    for family, level in now.pools.items():
        capacity.add_metric([family], level.capacity)
        leased.add_metric([family], level.leased)
        connected.add_metric([family], level.connected)
    yield from (capacity, leased, connected)


def _traffic(now: MetricsSnapshot) -> Iterator[Metric]:
    packets = CounterMetricFamily(
        "zgate_client_packets", "Packets passed by the kernel", labels=["client", "direction"]
    )
    octets = CounterMetricFamily(
        "zgate_client_bytes", "Inner bytes passed by the kernel", labels=["client", "direction"]
    )
    dropped = CounterMetricFamily(
        "zgate_client_dropped_packets", "Packets dropped by the kernel", labels=["client"]
    )
    for name, traffic in now.clients.items():
        packets.add_metric([name, "up"], traffic.up_packets)
        packets.add_metric([name, "down"], traffic.down_packets)
        octets.add_metric([name, "up"], traffic.up_bytes)
        octets.add_metric([name, "down"], traffic.down_bytes)
        dropped.add_metric([name], traffic.dropped_packets)
    yield from (packets, octets, dropped)


def _kernel(now: MetricsSnapshot) -> Iterator[Metric]:
    yield _counters("zgate_drops", "Packets dropped, by reason", "reason", now.drops)
    used = GaugeMetricFamily("zgate_kernel_map_entries", "Entries in use", labels=["map"])
    size = GaugeMetricFamily("zgate_kernel_map_size", "Entries that fit", labels=["map"])
    for name, (entries, limit) in now.kernel_maps.items():
        used.add_metric([name], entries)
        size.add_metric([name], limit)
    yield from (used, size)
    alerts = GaugeMetricFamily("zgate_alert", "1 while it lasts", labels=["name"])
    for name in now.alerts:
        alerts.add_metric([name], 1)
    yield alerts


def _workers(now: MetricsSnapshot) -> Iterator[Metric]:
    up = GaugeMetricFamily("zgate_worker_up", "1 while its process runs", labels=["worker"])
    sessions = GaugeMetricFamily("zgate_worker_sessions", "Sessions it holds", labels=["worker"])
    restarts = CounterMetricFamily(
        "zgate_worker_restarts", "Times that it ended and was started again", labels=["worker"]
    )
    misdirected = CounterMetricFamily(
        "zgate_misdirected_packets", "Packets of another worker's sessions", labels=["worker"]
    )
    counters = CounterMetricFamily(
        "zgate_engine", "Packet engine counters, by name", labels=["worker", "counter"]
    )
    for index, load in now.workers.items():
        name = [str(index)]
        up.add_metric(name, int(load.is_up))
        sessions.add_metric(name, load.sessions)
        restarts.add_metric(name, load.restarts)
        for counter, value in load.counters.items():
            if counter == "misdirected_packets":
                misdirected.add_metric(name, value)
            else:
                counters.add_metric([*name, counter], value)
    yield from (up, sessions, restarts, misdirected, counters)


def _edge(now: MetricsSnapshot) -> Iterator[Metric]:
    yield InfoMetricFamily(
        "zgate_edge",
        "The XDP program before the UDP port",
        {"mode": now.edge_mode, "interface": now.edge_interface},
    )
    packets = CounterMetricFamily(
        "zgate_edge_packets",
        "Packets to the UDP port, by what the XDP program did with them",
        labels=["verdict", "reason"],
    )
    for labels, count in now.edge_packets.items():
        packets.add_metric(labels, count)
    yield packets
    yield GaugeMetricFamily(
        "zgate_retry_active",
        "1 while new clients have to prove their address",
        int(now.retry_active),
    )


def _dns(now: MetricsSnapshot) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "zgate_dns_up", "1 if names of services are answered on all addresses", int(now.dns_up)
    )
    yield _counters(
        "zgate_dns_queries",
        "Questions for names of services, by what became of them",
        "outcome",
        now.dns_queries,
    )


def _services(now: ServiceLevels) -> Iterator[Metric]:
    yield GaugeMetricFamily("zgate_services", "Services known by name", now.services)
    yield GaugeMetricFamily("zgate_connectors", "Sessions that offer something", now.connectors)
    yield GaugeMetricFamily("zgate_connectors_drained", "Connectors drained", now.drained)
    yield _levels("zgate_offers", "Offers, by what becomes of flows to them", "state", now.offers)
    yield _levels(
        "zgate_networks",
        "Networks behind connectors; nobody: none is there",
        "led_by",
        now.networks,
    )
    yield _counters(
        "zgate_registrations_refused", "Services and networks refused", "code", now.refused
    )
    labels = ["connector", "service"]
    open_flows = GaugeMetricFamily(
        "zgate_offer_open_flows", "Flows that a connector has open", labels=labels
    )
    total = CounterMetricFamily(
        "zgate_offer_flows", "Flows of a connector's session", labels=labels
    )
    octets = CounterMetricFamily(
        "zgate_offer_bytes",
        "Bytes of a connector's session; up is to the backend",
        labels=[*labels, "direction"],
    )
    for names, traffic in now.flows.items():
        open_flows.add_metric(names, traffic.open_flows)
        total.add_metric(names, traffic.total_flows)
        octets.add_metric([*names, "up"], traffic.bytes_up)
        octets.add_metric([*names, "down"], traffic.bytes_down)
    yield from (open_flows, total, octets)


def _logs(now: MetricsSnapshot) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "zgate_events_lost", "Kernel events lost to a full ring", now.events_lost
    )
    yield CounterMetricFamily(
        "zgate_events_suppressed", "Kernel events left out by rate limits", now.events_suppressed
    )
    yield CounterMetricFamily("zgate_audit_written", "Audit records written", now.audit_written)
    yield CounterMetricFamily(
        "zgate_audit_lost", "Audit records that could not be written", now.audit_lost
    )


def _levels(name: str, text: str, label: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counters(name: str, text: str, label: str, values: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
