"""zgatectl drain, without a connector."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from zgate_cli import gateway_drain
from zgate_gateway.api import schemas

SINCE = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_drain, "_POLL_S", 0.0)


def state(left: int, *, is_over: bool = False, closed: int = 0) -> schemas.GatewayDrainState:
    return schemas.GatewayDrainState(
        since=SINCE,
        deadline_s=30.0,
        deadline_at=SINCE + timedelta(seconds=30),
        sessions_left=left,
        is_over=is_over,
        closed_sessions=closed,
    )


def asked(fake_gateway: Any) -> schemas.GatewayDrainRequest:
    [(_, request)] = [call for call in fake_gateway.calls if call[0] == "drain_gateway"]
    assert isinstance(request, schemas.GatewayDrainRequest)
    return request


def test_it_waits_until_all_have_gone(zgatectl: Any, fake_gateway: Any) -> None:
    fake_gateway.drains = [state(2), state(2), state(1), state(0)]
    done = zgatectl("drain")
    assert done.stdout.splitlines() == [
        "2 sessions left",
        "1 session left",
        "0 sessions left",
        "The gateway is drained: no session is left.",
    ]
    assert asked(fake_gateway) == schemas.GatewayDrainRequest(deadline_s=30.0, undo=False)


def test_who_is_left_at_the_deadline(zgatectl: Any, fake_gateway: Any) -> None:
    fake_gateway.drains = [state(3), state(0, is_over=True, closed=3)]
    done = zgatectl("drain", "--deadline", "5", code=1)
    assert "3 sessions had to be closed" in done.stderr
    assert asked(fake_gateway).deadline_s == 5.0


def test_json_waits_and_says_how_it_ended(zgatectl_json: Any, fake_gateway: Any) -> None:
    fake_gateway.drains = [state(1), state(0)]
    answer = schemas.GatewayDrain(**zgatectl_json("drain"))
    assert answer.drain == state(0)


def test_json_at_the_deadline(zgatectl: Any, fake_gateway: Any) -> None:
    fake_gateway.drains = [state(1), state(0, is_over=True, closed=1)]
    done = zgatectl("drain", "--json", code=1)
    assert json.loads(done.stdout)["drain"]["closed_sessions"] == 1


def test_without_waiting(zgatectl: Any, fake_gateway: Any) -> None:
    fake_gateway.drains = [state(7)]
    assert zgatectl("drain", "--no-wait").stdout == "The gateway is draining; 7 sessions left.\n"


def test_who_interrupts_is_not_told_that_all_have_gone(
    zgatectl: Any, fake_gateway: Any, monkeypatch: Any
) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gateway_drain.time, "sleep", interrupt)
    fake_gateway.drains = [state(2)]
    done = zgatectl("drain", code=1)
    assert "it stays drained" in done.stderr and "zgatectl drain --undo" in done.stderr
    assert not asked(fake_gateway).undo


def test_undo(zgatectl: Any, fake_gateway: Any) -> None:
    assert zgatectl("drain", "--undo").stdout == "The gateway takes sessions again.\n"
    assert asked(fake_gateway).undo


def test_somebody_else_has_undone_it(zgatectl: Any, fake_gateway: Any) -> None:
    fake_gateway.drains = [state(2), None]
    assert "somebody has undone it" in zgatectl("drain", code=1).stderr


def test_undo_has_no_deadline(zgatectl: Any) -> None:
    assert (
        "--undo takes no --deadline"
        in zgatectl("drain", "--undo", "--deadline", "3", code=2).stderr
    )


def test_the_bar_of_a_terminal(zgatectl: Any, fake_gateway: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    fake_gateway.drains = [state(2), state(0)]
    assert "no session is left" in zgatectl("drain").stdout
