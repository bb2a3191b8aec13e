"""zgatectl sessions and kick."""

from typing import Any

import pytest
from zgate_gateway.api import schemas


def test_sessions_fit(zgatectl: Any, fits: Any) -> None:
    text = fits(zgatectl("sessions"))
    lines = text.splitlines()
    assert lines[0].split() == ["client", "addresses", "from", "up", "rx", "tx"]
    assert lines[1].startswith("client-1 ")
    assert "12.3 MB" in text and "987.7 GB" in text and "1h 02m" in text
    assert "fd7a:7a67:6174:65::2" in text.replace("\n", "")


def test_sessions_as_json(zgatectl_json: Any) -> None:
    found = schemas.SessionList(**zgatectl_json("sessions")).sessions
    assert [one.client for one in found] == ["client-1", "client-2"]
    assert found[0].rtt_ms == 12.34


def test_the_gateway_sorts_filters_and_limits(zgatectl: Any, fake_gateway: Any) -> None:
    text = zgatectl("sessions", "--sort", "rate", "-r", "-f", "client", "--limit", "1").stdout
    assert text.splitlines()[-1] == "1 more are up (--limit)."
    ((_, query),) = fake_gateway.calls
    assert (query.sort, query.reverse, query.filter, query.limit) == ("rate", True, "client", 1)
    assert zgatectl("sessions", "-f", "nobody").stdout == "No session fits the filter.\n"
    assert "200 characters" in zgatectl("sessions", "-f", "x" * 201, code=2).stderr


def test_no_session(zgatectl: Any, fake_gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_gateway, "up", [])
    assert zgatectl("sessions").stdout == "No session is up.\n"


def test_a_hostile_name_cannot_steer_the_terminal(
    zgatectl: Any, fake_gateway: Any, fits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = fake_gateway._session("a\x1b[2J\u202eb\u009b[red]x[/red]")
    monkeypatch.setattr(fake_gateway, "up", [evil])
    text = fits(zgatectl("sessions"))
    assert not {"\x1b", "\u202e", "\u009b"} & set(text)
    assert "red" in text  # markup is text


def test_kick(zgatectl: Any, fake_gateway: Any) -> None:
    text = zgatectl("kick", "client-1", "--reason", "lost laptop").stdout
    assert text == "Closed 1 session of client-1 (10.100.0.2).\n"
    assert fake_gateway.calls == [("kick", "client-1", "lost laptop")]


def test_kick_as_json(zgatectl_json: Any) -> None:
    assert schemas.Kick(**zgatectl_json("kick", "client-1")).sessions_closed == 1


@pytest.mark.parametrize("name", ["..", "a/b", "a b", "ü?#%", "x/../y"])
def test_kick_says_the_name_as_it_is(zgatectl: Any, fake_gateway: Any, name: str) -> None:
    zgatectl("kick", "--", name)
    assert fake_gateway.calls == [("kick", name, "")]


def test_kick_without_a_session_fails(zgatectl: Any) -> None:
    result = zgatectl("kick", "nobody", code=1)
    assert result.stderr == (
        "zgatectl: nobody has no session; zgatectl sessions lists those that are up\n"
    )


@pytest.mark.parametrize("reason", ["x" * 201, "two\nlines"])
def test_a_bad_reason(zgatectl: Any, fake_gateway: Any, reason: str) -> None:
    assert "--reason" in zgatectl("kick", "client-1", "--reason", reason, code=2).stderr
    assert fake_gateway.calls == []


def test_a_bad_name_is_bad_input(zgatectl: Any, fake_gateway: Any) -> None:
    assert "client" in zgatectl("kick", "x" * 65, code=2).stderr
    assert fake_gateway.calls == []
