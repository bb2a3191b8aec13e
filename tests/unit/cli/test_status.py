"""zgatectl status."""

from typing import Any

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
        "revision 7, /etc/zgate/policy.yaml (1 clients, 1 groups, 3 rules, default deny)",
        "10.100.0.0/16: 3 of 65533 leased, 2 connected",
        "flows 17 of 262144",
        "20 received, 2 suppressed, 1 lost",
        "/var/log/zgate/audit.jsonl: 20 written, 0 lost",
        "POLICY_RULE 5",
    ):
        assert expected in text
    assert "NO_CLIENT" not in text  # nothing was dropped for that reason


def test_why_it_is_not_ready(zgatectl: Any, fake_gateway: Any) -> None:
    fake_gateway.state = schemas.GatewayState.DRAINING
    fake_gateway.not_ready_because = ["SIGTERM was received"]
    text = zgatectl("status").stdout
    assert "draining" in text and "SIGTERM was received" in text
