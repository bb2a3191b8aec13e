"""What a connector says of itself, and how it is shown."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from zgate_connector.report import gateway_lines, print_status, print_unavailable
from zgate_connector.status import (
    ConnectorStatus,
    GatewayStatus,
    OfferAnswer,
    ServiceState,
    State,
    fetch_status,
)
from zgate_host.status_socket import StatusServer, StatusUnavailable

SINCE = datetime(2026, 3, 1, 12, tzinfo=UTC)


def a_gateway(**changes: Any) -> GatewayStatus:
    values: dict[str, Any] = {
        "gateway": "gw.example:443",
        "server_name": "gw.example",
        "state": State.CONNECTED,
        "reason": "",
        "since": SINCE,
        "gateway_address": "203.0.113.10:443",
        "observed_address": "198.51.100.7:4711",
        "addresses": ["10.100.0.2", "10.101.255.254"],
        "routes": ["10.100.0.0/16"],
        "mtu_bytes": 1400,
        "is_draining": False,
        "answers": [
            OfferAnswer(
                kind="service",
                name="pacs",
                code="accepted",
                text="",
                service_addresses=["10.101.0.1", "fd7a::1"],
            ),
            OfferAnswer(
                kind="route",
                name="10.20.0.0/16",
                code="overlap",
                text="the pool is in it",
                service_addresses=[],
            ),
        ],
        "services": [
            ServiceState(
                name="pacs",
                health="down",
                reason="10.0.5.9 port 104 (tcp): refused",
                open_flows=1,
                total_flows=7,
                bytes_up=1500,
                bytes_down=2_000_000,
            )
        ],
        "reconnects": 0,
        "next_attempt_s": None,
        "failed_addresses": [],
        "counters": {},
        "drops": {"TOO_BIG": 2},
    }
    return GatewayStatus(**values | changes)


def a_status(*gateways: GatewayStatus) -> ConnectorStatus:
    return ConnectorStatus(
        gateways=list(gateways or (a_gateway(),)),
        networks=["10.20.0.0/16"],
        engine="native",
        notes=["a note"],
        pid=1,
    )


def test_connected_is_a_session_with_every_gateway() -> None:
    assert a_status(a_gateway(), a_gateway()).is_connected
    assert not a_status(a_gateway(), a_gateway(state=State.BACKOFF)).is_connected


async def test_the_whole_status_arrives(tmp_path: Path) -> None:
    file = tmp_path / "connector.sock"
    with pytest.raises(StatusUnavailable, match="no connector answers on"):
        fetch_status(file)
    server = StatusServer(file, a_status)
    await server.start()
    try:
        assert await asyncio.to_thread(fetch_status, file) == a_status()
    finally:
        server.close()


def test_lines_of_a_session() -> None:
    lines = dict(gateway_lines(a_gateway(), SINCE + timedelta(seconds=75)))
    assert lines == {
        "state": "connected, for 1 min 15 s",
        "address": "203.0.113.10:443",
        "seen at": "198.51.100.7:4711",
        "service": "pacs at 10.101.0.1, fd7a::1; down (10.0.5.9 port 104 (tcp): refused),"
        " 1 of 7 flows open, 1.5 kB up, 2.0 MB down",
        "route": "10.20.0.0/16: refused: overlap: the pool is in it",
        "reconnects": "0",
        "dropped": "TOO_BIG 2",
    }


def test_lines_without_a_session() -> None:
    lost = a_gateway(
        state=State.BACKOFF,
        reason="no answer",
        next_attempt_s=3.4,
        answers=[],
        drops={},
        observed_address=None,
    )
    lines = dict(gateway_lines(lost, SINCE))
    assert (lines["why"], lines["next attempt"]) == ("no answer", "in 3 s")
    assert "seen at" not in lines
    draining = dict(gateway_lines(a_gateway(is_draining=True), SINCE))
    assert draining["state"] == "connected, for 0 s, draining"


def test_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_status(a_status(), as_json=False)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "gw.example:443"
    assert printed[-2:] == ["networks        10.20.0.0/16", "note            a note"]
    print_status(a_status(), as_json=True)
    assert json.loads(capsys.readouterr().out) == json.loads(a_status().model_dump_json())
    print_unavailable("nobody answers", as_json=True)
    assert json.loads(capsys.readouterr().out)["state"] == "not running"
    print_unavailable("nobody answers", as_json=False)
    assert capsys.readouterr().err == "not running: nobody answers\n"


def test_one_line_for_a_service_manager() -> None:
    down = a_gateway(gateway="two.example:443", state=State.BACKOFF, reason="no answer")
    status = a_status(a_gateway(), down)
    assert status.summary == "gw.example:443: connected; two.example:443: backoff (no answer)"
