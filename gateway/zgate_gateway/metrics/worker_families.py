"""The processes: workers, and what each process takes."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, Metric

from zgate_gateway.metrics.families import counters, gauges
from zgate_gateway.metrics.snapshot import MetricsSnapshot

_MISDIRECTED = "misdirected_packets"


def worker_families(now: MetricsSnapshot) -> Iterator[Metric]:
    """By worker."""
    loads = {str(index): load for index, load in now.workers.items()}
    yield gauges(
        "zgate_worker_up",
        "1 while its process runs",
        "worker",
        {index: int(load.is_up) for index, load in loads.items()},
    )
    yield gauges(
        "zgate_worker_sessions",
        "Sessions it holds",
        "worker",
        {index: load.sessions for index, load in loads.items()},
    )
    yield counters(
        "zgate_worker_restarts",
        "Times that it ended and was started again",
        "worker",
        {index: load.restarts for index, load in loads.items()},
    )
    yield counters(
        "zgate_misdirected_packets",
        "Packets of another worker's sessions",
        "worker",
        {index: load.counters.get(_MISDIRECTED, 0) for index, load in loads.items()},
    )
    events = CounterMetricFamily(
        "zgate_worker_events", "What its packet engine counts", labels=["worker", "event"]
    )
    for index, load in loads.items():
        for event, count in load.counters.items():
            if event != _MISDIRECTED:
                events.add_metric([index, event], count)
    yield events


def process_families(now: MetricsSnapshot) -> Iterator[Metric]:
    """By process: the supervisor, and each worker that is there."""
    processes = now.processes.items()
    yield counters(
        "zgate_process_cpu_seconds",
        "Processor time of a process",
        "process",
        {name: load.cpu_s for name, load in processes},
    )
    yield gauges(
        "zgate_process_resident_memory_bytes",
        "Memory of a process",
        "process",
        {name: load.resident_bytes for name, load in processes},
    )
    yield gauges(
        "zgate_process_open_fds",
        "Descriptors that a process has open",
        "process",
        {name: load.open_fds for name, load in processes if load.open_fds is not None},
    )
    yield gauges(
        "zgate_event_loop_lag_seconds",
        "Longest that its event loop was late in the last 15 to 30 seconds",
        "process",
        {name: load.loop_lag_s for name, load in processes},
    )
