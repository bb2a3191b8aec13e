"""Services, connectors, networks, and names."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from zgate_gateway.metrics.families import counters, gauges
from zgate_gateway.metrics.snapshot import MetricsSnapshot, ServiceLevels


def service_families(now: MetricsSnapshot) -> Iterator[Metric]:
    """What is offered, by whom, and whether anybody leads there."""
    levels = now.services
    yield gauges(
        "zgate_services", "Services known by name, by their best offer", "state", levels.services
    )
    yield GaugeMetricFamily("zgate_connectors", "Sessions that offer something", levels.connectors)
    yield GaugeMetricFamily(
        "zgate_connectors_silent", "Connectors of which nothing is heard", levels.silent
    )
    yield GaugeMetricFamily("zgate_connectors_drained", "Connectors drained", levels.drained)
    yield gauges("zgate_offers", "Offers, by what becomes of flows to them", "state", levels.offers)
    yield gauges(
        "zgate_networks",
        "Networks behind connectors; nobody: none is there",
        "led_by",
        levels.networks,
    )
    yield counters(
        "zgate_registrations_refused", "Services and networks refused", "code", levels.refused
    )
    yield from _offers(levels)


def _offers(levels: ServiceLevels) -> Iterator[Metric]:
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
    for names, traffic in levels.flows.items():
        open_flows.add_metric(names, traffic.open_flows)
        total.add_metric(names, traffic.total_flows)
        octets.add_metric([*names, "up"], traffic.bytes_up)
        octets.add_metric([*names, "down"], traffic.bytes_down)
    yield from (open_flows, total, octets)


def dns_families(now: MetricsSnapshot) -> Iterator[Metric]:
    """Names of services."""
    yield GaugeMetricFamily(
        "zgate_dns_up", "1 if names of services are answered on all addresses", int(now.dns_up)
    )
    yield counters(
        "zgate_dns_queries",
        "Questions for names of services, by what became of them",
        "outcome",
        now.dns_queries,
    )
