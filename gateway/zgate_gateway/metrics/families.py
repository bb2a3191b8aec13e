"""Short ways to make metric families with one label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily


def gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    """A gauge by one label's value."""
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def counters(name: str, text: str, label: str, values: Mapping[str, float]) -> CounterMetricFamily:
    """A counter by one label's value; the name without ``_total``."""
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def complete(values: Mapping[str, int], keys: Iterable[str]) -> dict[str, int]:
    """All of these keys, zero where nothing was counted yet: who alerts on an increase must see
    the series before the first one.
    """
    return {**dict.fromkeys(keys, 0), **values}
