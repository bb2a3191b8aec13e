"""What the kernel and the XDP program saw of packets, and how full their tables are."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from zgate_protocol.drop_reason import DropReason

from zgate_gateway.metrics.families import complete, counters, gauges
from zgate_gateway.metrics.snapshot import MetricsSnapshot

_REASONS = tuple(reason.name for reason in DropReason if reason)


def traffic_families(now: MetricsSnapshot) -> Iterator[Metric]:
    """Of all clients together, and the heads of those by client (`zgate_gateway.metrics.text`)."""
    traffic = now.traffic
    yield counters(
        "zgate_packets",
        "Packets passed by the kernel; up is from clients",
        "direction",
        {"up": traffic.up_packets, "down": traffic.down_packets},
    )
    yield counters(
        "zgate_bytes",
        "Inner IP bytes passed by the kernel; up is from clients",
        "direction",
        {"up": traffic.up_bytes, "down": traffic.down_bytes},
    )
    yield CounterMetricFamily("zgate_flows", "Flows allowed by the kernel", traffic.flows)
    labels = ["client", "direction"]
    yield CounterMetricFamily(
        "zgate_client_packets", "Packets of a client passed by the kernel", labels=labels
    )
    yield CounterMetricFamily(
        "zgate_client_bytes", "Inner IP bytes of a client passed by the kernel", labels=labels
    )
    yield CounterMetricFamily(
        "zgate_client_dropped_packets", "Packets of a client dropped by the kernel", labels=labels
    )
    yield GaugeMetricFamily(
        "zgate_clients_left_out",
        "Connected clients without series of their own (metrics.per_client)",
        now.clients_left_out,
    )
    yield counters(
        "zgate_drops", "Packets dropped, by reason", "reason", complete(now.drops, _REASONS)
    )


def table_families(now: MetricsSnapshot) -> Iterator[Metric]:
    """The kernel's tables."""
    yield gauges(
        "zgate_kernel_map_entries",
        "Entries in use; of events, bytes",
        "map",
        {name: used for name, (used, _) in now.kernel_maps.items()},
    )
    yield gauges(
        "zgate_kernel_map_size",
        "Entries that fit; of events, bytes",
        "map",
        {name: size for name, (_, size) in now.kernel_maps.items()},
    )


def edge_families(now: MetricsSnapshot) -> Iterator[Metric]:
    """Before the UDP port."""
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
