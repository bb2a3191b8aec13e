"""The log's level, changed while the gateway runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from zgate_config import ConfigError
from zgate_config.errors import Mistake
from zgate_config.log_settings import LogSettings
from zgate_config.logs import set_level
from zgate_gateway.config import GatewayConfig
from zgate_gateway.log_level import RunningLevel, log_level_in

from ...loopback import eventually  # noqa: TID252


@pytest.fixture(autouse=True)
def _level_as_before() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in ("", "quic", "http3", "asyncio")}
    set_level("info")
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def told() -> list[str]:
    """What the workers were told."""
    return []


@pytest.fixture
def running(told: list[str]) -> RunningLevel:
    return RunningLevel("info", told.append)


def configured(level: str) -> GatewayConfig:
    return GatewayConfig(log=LogSettings.model_validate({"level": level}))


def test_it_is_changed_here_and_in_the_workers(running: RunningLevel, told: list[str]) -> None:
    running.set("debug")
    assert logging.getLogger().level == logging.DEBUG
    assert told == ["debug"]
    running.set("debug")
    assert told == ["debug"], "it was so already"
    shown = log_level_in(running)
    assert (shown.level, shown.configured, shown.until) == ("debug", "info", None)


async def test_it_comes_back_by_itself(running: RunningLevel, told: list[str]) -> None:
    running.set("debug", 0.05)
    assert running.until is not None
    assert running.until - datetime.now(UTC) <= timedelta(seconds=0.05)
    await eventually(lambda: running.level == "info")
    assert logging.getLogger().level == logging.INFO
    assert told == ["debug", "info"]
    assert running.until is None


async def test_the_last_word_counts(running: RunningLevel, told: list[str]) -> None:
    running.set("debug", 0.01)
    running.set("warning")
    await asyncio.sleep(0.05)
    assert (running.level, running.until) == ("warning", None)
    running.set("error", 3600)
    running.set("info", 3600)
    assert running.until is None, "nothing has to come back"
    assert told == ["debug", "warning", "error", "info"]


def test_sighup_is_the_configurations(running: RunningLevel, told: list[str]) -> None:
    running.set("debug")
    running.read_again(configured("info"), lambda: configured("warning"))
    assert (running.level, running.configured) == ("warning", "warning")
    assert told == ["debug", "warning"]


def test_a_configuration_that_is_no_good_changes_nothing(
    running: RunningLevel, told: list[str]
) -> None:
    def load() -> GatewayConfig:
        raise ConfigError([Mistake("gateway.yaml", 1, (), "expected a mapping")])

    running.set("debug")
    running.read_again(configured("info"), load)
    assert (running.level, told) == ("debug", ["debug"])


@pytest.mark.parametrize(("first", "second"), [("info", "error"), ("error", "info")])
def test_it_is_told_by_whichever_level_lets_it(
    first: str, second: str, caplog: pytest.LogCaptureFixture
) -> None:
    set_level(first)
    RunningLevel(first, lambda _: None).set(second)
    assert [record.getMessage() for record in caplog.records] == [
        f"log level: {second}, until further notice"
    ]
