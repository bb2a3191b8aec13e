"""Prometheus metrics of an agent or a connector, on a TCP port if one is configured.

Off by default, for agents run on people's devices. `/health` is beside it. Neither asks who reads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from zgate_host.small_http import SmallHttp

logger = logging.getLogger(__name__)

Labels = tuple[str, ...]


def gauge(
    name: str, text: str, labels: Iterable[str] = (), values: Iterable[tuple[Labels, float]] = ()
) -> GaugeMetricFamily:
    """A gauge with a value for each tuple of label values."""
    family = GaugeMetricFamily(name, text, labels=tuple(labels))
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def counter(
    name: str, text: str, labels: Iterable[str] = (), values: Iterable[tuple[Labels, float]] = ()
) -> CounterMetricFamily:
    """A counter, likewise; the name without ``_total``."""
    family = CounterMetricFamily(name, text, labels=tuple(labels))
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


class _Now(Collector):
    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families()

    def describe(self) -> list[Metric]:
        return []


@asynccontextmanager
async def serving_metrics(
    address: str, port: int | None, families: Callable[[], Iterable[Metric]]
) -> AsyncIterator[int | None]:
    """Answer on the port for as long as this lasts; gives its number, or None where there is none.

    A port that cannot be had is told in the log: no tunnel fails for it.

    Args:
        port: None: no metrics.
        families: called for each scrape, in the event loop.
    """
    if port is None:
        yield None
        return
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Now(families))
    pages = SmallHttp(
        {
            "/metrics": lambda: (CONTENT_TYPE_LATEST, generate_latest(registry)),
            "/health": lambda: ("application/json", b'{"ok": true}'),
        }
    )
    try:
        server = await asyncio.start_server(pages.serve, address, port)
    except OSError as error:
        logger.error(
            "no metrics: %(error)s; set metrics.address and metrics.port",
            {"event": "metrics_off", "error": error},
        )
        yield None
        return
    async with server:
        yield int(server.sockets[0].getsockname()[1])
