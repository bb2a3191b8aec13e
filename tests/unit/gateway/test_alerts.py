"""Kernel tables that fill up: told once, as long as it lasts, and once when it is over."""

from __future__ import annotations

import asyncio
import logging
from itertools import chain, repeat

import pytest
from zgate_bpf.kernel_policy import MapUsage
from zgate_gateway.alerts import MapAlerts
from zgate_gateway.problems import Problem, Problems


def use(share: int, *, table: str = "flows") -> dict[str, MapUsage]:
    return {table: MapUsage(share, 100), "clients": MapUsage(1, 100)}


@pytest.fixture
def problems() -> Problems:
    return Problems()


@pytest.fixture
def alerts(problems: Problems) -> MapAlerts:
    return MapAlerts(dict, problems)


def only(problems: Problems) -> Problem:
    (one,) = problems.active()
    return one


def test_nothing_is_said_of_tables_with_room(
    alerts: MapAlerts, problems: Problems, caplog: pytest.LogCaptureFixture
) -> None:
    alerts.update(use(89))
    assert problems.active() == [] and caplog.text == ""


def test_crossing_and_relief_are_one_line_each(
    alerts: MapAlerts, caplog: pytest.LogCaptureFixture
) -> None:
    for share in (89, 90, 95, 88, 85, 91, 84, 89, 100):
        alerts.update(use(share))
    lines = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert lines == ["alert map_flows begins", "alert map_flows ends", "alert map_flows begins"]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_an_alert_says_since_when_how_full_and_what_helps(
    alerts: MapAlerts, problems: Problems
) -> None:
    alerts.update(use(90))
    begun = only(problems)
    alerts.update(use(97))
    alert = only(problems)
    assert alert.name == "map_flows" and not alert.is_blocking
    assert alert.since == begun.since
    assert "flows: 97 of 100 entries" in alert.text and "limits.max_flows" in alert.text


def test_tables_of_the_policy_have_their_own_cure(alerts: MapAlerts, problems: Problems) -> None:
    alerts.update(use(100, table="intervals"))
    assert "fewer rules" in only(problems).text


@pytest.mark.parametrize("table", ["services", "offers", "endpoints", "networks"])
def test_tables_of_services_have_their_own_cure(
    alerts: MapAlerts, problems: Problems, table: str
) -> None:
    alerts.update(use(95, table=table))
    assert "zgatectl connectors" in only(problems).text


async def test_a_table_that_cannot_be_read_does_not_end_the_watch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = chain([OSError(12, "Cannot allocate memory")], repeat(use(100)))
    looked = asyncio.Event()

    def usage() -> dict[str, MapUsage]:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        loop.call_soon_threadsafe(looked.set)
        return answer

    loop = asyncio.get_running_loop()
    problems = Problems()
    alerts = MapAlerts(usage, problems)
    watching = asyncio.create_task(alerts.watch(interval_s=0.01))
    try:
        async with asyncio.timeout(10):
            await looked.wait()
            while not problems.active():
                await asyncio.sleep(0.01)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    assert "is not known: Cannot allocate memory" in caplog.text
