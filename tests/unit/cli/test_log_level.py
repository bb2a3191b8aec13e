"""zgatectl log-level."""

from __future__ import annotations

from typing import Any

import pytest
from zgate_gateway.api import schemas


def test_what_it_is(zgatectl: Any, fake_gateway: Any) -> None:
    assert zgatectl("log-level").stdout == "info, as configured\n"
    assert fake_gateway.calls == [("log_level",)]


def test_changed_until_the_configuration_is_read_again(zgatectl: Any, fake_gateway: Any) -> None:
    told = zgatectl("log-level", "debug").stdout
    assert told == "debug until SIGHUP or the next start; configured: info\n"
    request = schemas.LogLevelRequest(level=schemas.LogLevel.DEBUG)
    assert fake_gateway.calls == [("set_log_level", request)]


@pytest.mark.parametrize(
    ("duration", "seconds"), [("10m", 600.0), ("90s", 90.0), ("1.5h", 5400.0), ("7d", 604800.0)]
)
def test_changed_for_a_while(
    zgatectl: Any, fake_gateway: Any, duration: str, seconds: float
) -> None:
    told = zgatectl("log-level", "debug", "--for", duration).stdout
    assert told == "debug until 2026-03-01 12:00:00Z; configured: info\n"
    assert fake_gateway.calls[0][1].for_s == seconds


def test_json(zgatectl_json: Any) -> None:
    answer = schemas.LogLevelState(**zgatectl_json("log-level", "warning", "--for", "5"))
    assert (answer.level, answer.configured) == ("warning", "info")
    assert answer.until is not None


@pytest.mark.parametrize(
    "arguments",
    [
        ("loud",),
        ("--for", "10m"),
        *[("debug", "--for", bad) for bad in ("0", "8d", "-1", "ten", "1w", "10 m", "")],
    ],
)
def test_what_is_no_good(zgatectl: Any, fake_gateway: Any, arguments: tuple[str, ...]) -> None:
    zgatectl("log-level", *arguments, code=2)
    assert fake_gateway.calls == []
