"""An agent's status as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

from prometheus_client.core import InfoMetricFamily, Metric
from zgate_host.metrics_port import counter, gauge

from zgate_agent.machine import State
from zgate_agent.status import AgentStatus

_ONE = ()


def families(status: AgentStatus) -> Iterator[Metric]:
    """All of them. Those of a session begin at zero with each; docs/metrics.md has them."""
    build = {"version": version("zgate"), "engine": status.engine}
    yield InfoMetricFamily("zgate_agent_build", "Version and packet engine", build)
    yield gauge(
        "zgate_agent_state",
        "1 for the state that the agent is in",
        ["state"],
        [((str(one),), int(one is status.state)) for one in State],
    )
    yield gauge(
        "zgate_agent_state_timestamp_seconds",
        "Unix time since which it is",
        values=[(_ONE, status.since.timestamp())],
    )
    yield counter(
        "zgate_agent_reconnects", "Sessions after the first", values=[(_ONE, status.reconnects)]
    )
    yield counter(
        "zgate_agent_rebinds",
        "Moves of a session to another local address",
        values=[(_ONE, status.rebinds)],
    )
    yield counter(
        "zgate_agent_failed_attempts",
        "Attempts at an address of a gateway that gave no session",
        values=[(_ONE, status.failures)],
    )
    yield from _session(status)


def _session(status: AgentStatus) -> Iterator[Metric]:
    numbers = status.counters if status.is_connected else {}
    rtt_s = numbers.get("smoothed_rtt_s")
    yield gauge(
        "zgate_agent_rtt_seconds",
        "Round trip to the gateway, smoothed",
        values=[(_ONE, rtt_s)] if rtt_s else [],
    )
    mtu_bytes = status.mtu_bytes
    yield gauge(
        "zgate_agent_mtu_bytes",
        "Largest packet that the tunnel takes",
        values=[(_ONE, mtu_bytes)] if mtu_bytes and status.is_connected else [],
    )
    yield gauge(
        "zgate_agent_draining",
        "1 if the gateway has said that it is to stop",
        values=[(_ONE, int(status.is_draining))],
    )
    yield counter(
        "zgate_agent_drops",
        "Packets of the session dropped by the agent, by reason",
        ["reason"],
        [((reason,), count) for reason, count in status.drops.items()],
    )
