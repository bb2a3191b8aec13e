"""What people read."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from zgate_agent.machine import State
from zgate_agent.report import print_status, print_unavailable, status_lines

from .conftest import a_status

NOW = a_status().since + timedelta(seconds=75)


def test_connected() -> None:
    lines = dict(status_lines(a_status(), NOW))
    assert lines["state"] == "connected, for 1 min 15 s"
    assert "why" not in lines
    assert lines["gateway"] == "gw.example:443 at 203.0.113.10:443, from 198.18.1.2"
    assert lines["virtual IP"] == "10.100.0.2/32"
    assert lines["interface"] == "zgate-agent0 (split tunnel), MTU 1400"
    assert lines["up"] == "3 packets, 2.5 kB"
    assert "down" not in lines
    assert lines["dropped"] == "TOO_BIG 1"


def test_not_connected_says_why_and_when_next() -> None:
    status = a_status(State.BACKOFF, "no answer").model_copy(update={"next_attempt_s": 3.4})
    lines = dict(status_lines(status, NOW))
    assert (lines["why"], lines["next attempt"]) == ("no answer", "in 3 s")


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (59, "59 s"), (60, "1 min 0 s"), (7260, "2 h 1 min")]
)
def test_spans(seconds: int, text: str) -> None:
    lines = dict(status_lines(a_status(), a_status().since + timedelta(seconds=seconds)))
    assert lines["state"].endswith(f"for {text}")


def test_json_is_the_status_itself(capsys: pytest.CaptureFixture[str]) -> None:
    print_status(a_status(), as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(a_status().model_dump_json())


def test_text_has_one_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    print_status(a_status(), as_json=False)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed][:2] == ["state", "gateway"]


def test_no_agent(capsys: pytest.CaptureFixture[str]) -> None:
    print_unavailable("no agent answers", as_json=True)
    assert json.loads(capsys.readouterr().out)["state"] == "not running"
    print_unavailable("no agent answers", as_json=False)
    assert capsys.readouterr().err == "not running: no agent answers\n"
