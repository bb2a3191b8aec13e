"""Requests are strict, answers are read leniently, and every model survives JSON."""

import pytest
from pydantic import ValidationError
from zgate_gateway.api import schemas


def test_a_request_with_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        schemas.KickRequest.model_validate({"reason": "x", "resaon": "y"})


def test_an_answer_of_a_newer_gateway_is_understood() -> None:
    probe = schemas.Probe.model_validate({"ok": True, "state": "ready", "brand_new": 1})
    assert probe.state is schemas.GatewayState.READY


def test_every_answer_survives_json(fake_gateway: schemas.Answer) -> None:
    for answer in (fake_gateway.status(), fake_gateway.policy(), *fake_gateway.clients()):  # type: ignore[attr-defined]
        assert type(answer).model_validate_json(answer.model_dump_json()) == answer


def test_models_cannot_be_changed() -> None:
    kick = schemas.Kick(client="a", sessions_closed=1)
    with pytest.raises(ValidationError, match="frozen"):
        kick.client = "b"


def test_a_time_without_an_offset_is_refused() -> None:
    with pytest.raises(ValidationError, match="timezone"):
        schemas.PolicySummary.model_validate({"revision": 1, "loaded_at": "2026-03-01T12:00:00"})


@pytest.mark.parametrize("name", ["", "a\x1b[2J", "a\u009b", "x" * 65])
def test_names_that_could_move_a_cursor_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        schemas.WhyQuery.model_validate({"client": name, "destination": "::1", "protocol": 6})
