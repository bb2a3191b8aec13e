"""zgatectl ping, and snapshots of top."""

from __future__ import annotations

import json
from typing import Any

from zgate_cli.answers import PingReport, TopSnapshot


def test_ping(zgatectl: Any, fake_gateway: Any) -> None:
    fake_gateway.rtts_ms = [10.0, None, 20.0]
    text = zgatectl("ping", "client-1", "-c", "3", "-i", "0.1").stdout
    assert text.splitlines() == [
        "client-1 (10.100.0.2) at 198.51.100.7:40000: 1: 10.00 ms",
        "client-1 (10.100.0.2) at 198.51.100.7:40000: 2: no answer in 3 s",
        "client-1 (10.100.0.2) at 198.51.100.7:40000: 3: 20.00 ms",
        "3 sent, 2 answered; 10.00 / 15.00 / 20.00 ms (least, mean, most)",
    ]


def test_ping_as_json(zgatectl_json: Any, fake_gateway: Any) -> None:
    fake_gateway.rtts_ms = [10.0, None]
    report = PingReport(**zgatectl_json("ping", "client-1", "-c", "2", "-i", "0.1"))
    assert (report.sent, report.received, report.rtts_ms) == (2, 1, [10.0, None])
    assert (report.min_ms, report.mean_ms, report.max_ms) == (10, 10, 10)


def test_nobody_answers(zgatectl: Any, fake_gateway: Any) -> None:
    fake_gateway.rtts_ms = [None]
    result = zgatectl("ping", "client-1", "-c", "1", code=1)
    assert "1 sent, 0 answered" in result.stdout
    assert "client-1 did not answer; " in result.stderr


def test_nobody_is_there(zgatectl: Any) -> None:
    assert "nobody has no session" in zgatectl("ping", "nobody", code=1).stderr


def test_a_snapshot(zgatectl_json: Any, fake_gateway: Any) -> None:
    snapshot = TopSnapshot(**zgatectl_json("top", "-i", "0.2", "--limit", "1", "--sort", "drops"))
    assert (snapshot.status.sessions, len(snapshot.sessions.sessions)) == (2, 1)
    queries = [call[1] for call in fake_gateway.calls if call[0] == "sessions"]
    assert [(one.sort, one.limit, one.rates) for one in queries] == [("drops", 1, True)] * 2


def test_snapshots_are_a_line_each(zgatectl: Any) -> None:
    lines = zgatectl("top", "--json", "-c", "2", "-i", "0.2").stdout.splitlines()
    assert [TopSnapshot(**json.loads(line)).sessions.total for line in lines] == [2, 2]


def test_a_long_filter(zgatectl: Any) -> None:
    assert "at most 100 characters" in zgatectl("top", "--filter", "x" * 101, code=2).stderr
