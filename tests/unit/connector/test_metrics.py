"""What a scrape of a connector says."""

from __future__ import annotations

from zgate_connector.metrics import families
from zgate_connector.status import ConnectorStatus, State

from .test_status import a_gateway, a_status


def samples(status: ConnectorStatus) -> dict[str, float]:
    found: dict[str, float] = {}
    for family in families(status):
        for sample in family.samples:
            key = "/".join([sample.name, *sample.labels.values()])
            assert key not in found
            found[key] = sample.value
    return {key: value for key, value in found.items() if "info" not in key}


def test_each_gateway_and_service() -> None:
    near = a_gateway(counters={"smoothed_rtt_s": 0.01}, reconnects=2)
    far = a_gateway(gateway="far:443", state=State.BACKOFF, services=[], failures=5, drops={})
    found = samples(a_status(near, far))
    gw = "gw.example:443"
    assert {key: value for key, value in found.items() if value and gw in key} == {
        f"zgate_connector_state/{gw}/connected": 1,
        f"zgate_connector_reconnects_total/{gw}": 2,
        f"zgate_connector_rtt_seconds/{gw}": 0.01,
        f"zgate_connector_offers_refused/{gw}": 1,
        f"zgate_connector_drops_total/{gw}/TOO_BIG": 2,
        f"zgate_connector_service_open_flows/{gw}/pacs": 1,
        f"zgate_connector_service_flows_total/{gw}/pacs": 7,
        f"zgate_connector_service_bytes_total/{gw}/pacs/up": 1500,
        f"zgate_connector_service_bytes_total/{gw}/pacs/down": 2_000_000,
    }
    assert found[f"zgate_connector_service_up/{gw}/pacs"] == 0
    assert found["zgate_connector_state/far:443/backoff"] == 1
    assert found["zgate_connector_failed_attempts_total/far:443"] == 5
    assert "zgate_connector_rtt_seconds/far:443" not in found
