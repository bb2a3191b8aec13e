"""What runs out, told in time and not too early."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from zgate_gateway.expiry import Validity, tell
from zgate_gateway.problems import Problems

NOW = datetime(2026, 11, 21, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
MONTH = 30 * DAY


def one(kind: str, lifetime: timedelta, left: timedelta, key: str = "key") -> Validity:
    return Validity(kind, key, NOW + left - lifetime, NOW + left)


def names(*found: Validity) -> list[str]:
    problems = Problems()
    tell(problems, found, NOW, MONTH)
    return [problem.name for problem in problems.active()]


@pytest.mark.parametrize(
    ("lifetime", "left", "expected"),
    [
        (365 * DAY, 31 * DAY, []),
        (365 * DAY, 30 * DAY, ["certificate_expires"]),
        (365 * DAY, timedelta(seconds=1), ["certificate_expires"]),
        (365 * DAY, timedelta(0), ["certificate_expired"]),
        (24 * HOUR, 7 * HOUR, []),  # short-lived ones are renewed with a third left
        (24 * HOUR, 6 * HOUR, ["certificate_expires"]),
    ],
)
def test_when_it_is_told(lifetime: timedelta, left: timedelta, expected: list[str]) -> None:
    assert names(one("certificate", lifetime, left)) == expected


def test_an_expired_authority_beside_a_valid_one_stops_nobody() -> None:
    old, new = one("ca", 365 * DAY, -DAY, "ca:CN=old"), one("ca", 365 * DAY, 300 * DAY, "ca:CN=new")
    problems = Problems()
    tell(problems, [old, new], NOW, MONTH)
    (problem,) = problems.active()
    assert (problem.name, problem.is_blocking) == ("ca_expires", False)
    assert "CN=old expired" in problem.text and "CN=new" not in problem.text
    assert names(old) == ["ca_expired"]


def test_what_has_run_out_keeps_new_sessions_out_until_it_is_renewed() -> None:
    problems = Problems()
    tell(problems, [one("crl", 7 * DAY, -HOUR)], NOW, MONTH)
    assert [problem.is_blocking for problem in problems.active()] == [True]
    assert "zgatectl pki crl" in problems.active()[0].text
    tell(problems, [one("crl", 7 * DAY, 6 * DAY)], NOW, MONTH)
    assert problems.active() == []
