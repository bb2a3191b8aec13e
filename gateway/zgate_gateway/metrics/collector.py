"""All metric families of one snapshot, as prometheus-client takes them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from zgate_gateway.metrics import (
    gateway_families,
    service_families,
    traffic_families,
    worker_families,
)
from zgate_gateway.metrics.snapshot import MetricsSnapshot

_SUBJECTS = (
    gateway_families.state_families,
    gateway_families.session_families,
    gateway_families.policy_families,
    gateway_families.certificate_families,
    gateway_families.pool_families,
    traffic_families.traffic_families,
    traffic_families.table_families,
    traffic_families.edge_families,
    worker_families.worker_families,
    worker_families.process_families,
    service_families.service_families,
    service_families.dns_families,
    gateway_families.log_families,
)


class SnapshotCollector(Collector):
    """Turns a snapshot into metric families.

    Those by client are heads without samples: `zgate_gateway.metrics.text` adds these.
    """

    def __init__(self, snapshot: MetricsSnapshot) -> None:
        self._snapshot = snapshot

    def describe(self) -> list[Metric]:
        """Return nothing: a registry of one collector need not look for duplicates."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family."""
        for subject in _SUBJECTS:
            yield from subject(self._snapshot)


def make_registry(snapshot: MetricsSnapshot) -> CollectorRegistry:
    """Return a registry of its own (not the global one) with the snapshot's families in it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(snapshot))
    return registry
