"""Problems: told when they begin and when they end, and shown while they last."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from zgate_gateway.problems import NAMES, Problems

NOW = datetime(2026, 11, 21, tzinfo=UTC)
RUNBOOKS = Path(__file__).parents[3] / "docs/runbooks"


@pytest.fixture
def problems() -> Problems:
    times = (NOW + timedelta(seconds=n) for n in range(100))
    return Problems(clock=lambda: next(times))


def test_beginning_and_end_are_logged_once_each(
    problems: Problems, caplog: pytest.LogCaptureFixture
) -> None:
    problems.begin("disk_full", "no room")
    problems.begin("disk_full", "still no room")
    assert [(one.text, one.since) for one in problems.active()] == [("still no room", NOW)]
    problems.end("disk_full", "3 MiB are free")
    problems.end("disk_full")
    assert [record.getMessage() for record in caplog.records] == [
        "alert disk_full begins: no room",
        "alert disk_full ends: 3 MiB are free",
    ]
    assert problems.active() == [] and "disk_full" not in problems


def test_a_text_begins_and_none_ends(problems: Problems) -> None:
    problems.set("dns_down", "port 53 is taken", is_blocking=True)
    problems.begin("audit_not_written", "why")
    assert [one.name for one in problems.active()] == ["audit_not_written", "dns_down"]
    assert problems.blocking() == ["dns_down: port 53 is taken"]
    problems.set("dns_down", None)
    assert problems.blocking() == []


def test_names_are_known_beforehand(problems: Problems) -> None:
    with pytest.raises(ValueError, match="no such problem"):
        problems.begin("something_else", "text")
    problems.begin("map_flows", "those of tables are the tables'")


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_has_a_runbook(name: str) -> None:
    page = "Zgate" + "".join(word.capitalize() for word in name.split("_"))
    assert (RUNBOOKS / f"{page}.md").exists()
