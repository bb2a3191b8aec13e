"""What a scrape of an agent says."""

from __future__ import annotations

from prometheus_client.core import Metric
from zgate_agent.machine import State
from zgate_agent.metrics import families
from zgate_agent.status import AgentStatus

from .conftest import a_status


def samples(status: AgentStatus) -> dict[str, float]:
    found: list[Metric] = list(families(status))
    return {
        "/".join([sample.name, *sample.labels.values()]): sample.value
        for family in found
        for sample in family.samples
        if "info" not in sample.name
    }


def test_connected() -> None:
    more = {"failures": 7, "rebinds": 2, "counters": {"smoothed_rtt_s": 0.02}}
    status = a_status().model_copy(update=more)
    assert samples(status) == {
        "zgate_agent_state/connecting": 0,
        "zgate_agent_state/connected": 1,
        "zgate_agent_state/backoff": 0,
        "zgate_agent_state/stopped": 0,
        "zgate_agent_state_timestamp_seconds": status.since.timestamp(),
        "zgate_agent_reconnects_total": 1,
        "zgate_agent_rebinds_total": 2,
        "zgate_agent_failed_attempts_total": 7,
        "zgate_agent_rtt_seconds": 0.02,
        "zgate_agent_mtu_bytes": 1400,
        "zgate_agent_draining": 0,
        "zgate_agent_drops_total/TOO_BIG": 1,
    }


def test_what_is_not_known_is_not_there() -> None:
    found = samples(a_status(State.BACKOFF, "no answer"))
    assert found["zgate_agent_state/backoff"] == 1
    assert "zgate_agent_rtt_seconds" not in found
    assert "zgate_agent_mtu_bytes" not in found
