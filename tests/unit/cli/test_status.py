"""zgatectl status."""

from typing import Any

import pytest
from zgate_gateway.api import schemas


def test_json_is_the_api_s_answer(zgatectl_json: Any, fake_gateway: Any) -> None:
    assert schemas.Status(**zgatectl_json("status")) == fake_gateway.status()


def test_everything_fits_and_is_there(zgatectl: Any, fits: Any) -> None:
    text = " ".join(fits(zgatectl("status")).split())
    for expected in (
        "state ready",
        "1d 02h since 2026-03-01 12:00:00Z",
        "[::]:443/udp",
        "zgate0, MTU 1420",
        "2 of 10000, 7 since start; refused: 3 EXPIRED",
        "services 5, of which 4 up, 3 connectors, 2 networks behind them",
        "revision 7, /etc/zgate/policy.yaml (1 clients, 1 groups, 3 rules, default deny)",
        "10.100.0.0/16: 3 of 65533 leased, 2 connected",
        "flows 17 of 262144",
        "20 received, 2 suppressed, 1 lost",
        "/var/log/zgate/audit.jsonl: 20 written, 0 lost",
        "edge native XDP on eth0: 912 passed, 77 dropped, 3 networks blocked",
        "70 FIXED_BIT, 7 TOO_SHORT",
        "POLICY_RULE 5",
    ):
        assert expected in text
    for reason in ("NO_CLIENT", "FRAGMENT", "Retry"):
        assert reason not in text  # nothing was dropped for that reason


def test_why_it_is_not_ready(zgatectl: Any, fake_gateway: Any) -> None:
    fake_gateway.state = schemas.GatewayState.DRAINING
    fake_gateway.not_ready_because = ["SIGTERM was received"]
    text = zgatectl("status").stdout
    assert "draining" in text and "SIGTERM was received" in text


def test_whether_names_are_answered(zgatectl: Any, fake_gateway: Any) -> None:
    state = schemas.DnsState(domain="zgate.internal", queries={"answered": 7, "no_name": 2})
    status = fake_gateway.status
    fake_gateway.status = lambda: status().model_copy(update={"dns": state})
    text = " ".join(zgatectl("status").stdout.split())
    assert "names *.zgate.internal: 9 questions" in text and "everywhere" not in text
    state = state.model_copy(update={"problem": "UDP port 53 of 10.100.0.1: Address in use"})
    text = " ".join(zgatectl("status").stdout.split())
    assert "not answered everywhere: UDP port 53 of 10.100.0.1: Address in use" in text


def test_why_there_is_no_edge(zgatectl: Any, fake_gateway: Any) -> None:
    fake_gateway.edge = schemas.EdgeState(note="eth0 has an XDP program already (theirs)")
    text = " ".join(zgatectl("status").stdout.split())
    assert "edge off: eth0 has an XDP program already (theirs)" in text


def test_what_else_is_to_be_said_of_the_edge(zgatectl: Any, fake_gateway: Any) -> None:
    fake_gateway.edge = schemas.EdgeState(
        mode="generic",
        interface="eth0",
        note="not in the driver: Operation not supported",
        blocklist_problem="blocked.txt:3: expected a CIDR",
        retry_active=True,
    )
    text = " ".join(zgatectl("status").stdout.split())
    assert "generic XDP on eth0: 0 passed, 0 dropped" in text
    assert "not in the driver: Operation not supported" in text
    assert "blocklist not in force: blocked.txt:3" in text
    assert "new clients have to prove their address (Retry)" in text


def test_alerts_are_shown(
    zgatectl: Any, fake_gateway: Any, fits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alert = schemas.Alert(
        name="map_flows",
        text="kernel table flows: 95 of 100",
        since=fake_gateway.status().started_at,
    )
    status = fake_gateway.status().model_copy(update={"alerts": [alert]})
    monkeypatch.setattr(fake_gateway, "status", lambda: status)
    words = " ".join(fits(zgatectl("status")).split())
    assert "ALERT kernel table flows: 95 of 100 (since 2026-03-01 12:00:00Z)" in words
