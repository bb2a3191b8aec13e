"""A configuration that is read again."""

from __future__ import annotations

import logging

import pytest
from zgate_config import ConfigError, StrictModel
from zgate_config.errors import Mistake
from zgate_config.log_settings import LogSettings
from zgate_config.reread import changed_keys, read_again


class Inner(StrictModel):
    port: int = 443


class Settings(StrictModel):
    log: LogSettings = LogSettings()
    listen: Inner = Inner()
    routes: tuple[str, ...] = ()
    metrics: Inner | None = None


def test_the_keys_that_differ_two_levels_deep() -> None:
    found = Settings(
        log=LogSettings(level="debug"), listen=Inner(port=1), routes=("a",), metrics=Inner()
    )
    assert changed_keys(Settings(), Settings()) == []
    assert changed_keys(Settings(), found) == ["log.level", "listen.port", "routes", "metrics"]


def test_the_level_needs_no_restart_and_all_else_does(caplog: pytest.LogCaptureFixture) -> None:
    found = Settings(log=LogSettings(level="debug"))
    applied: list[Settings] = []
    read_again(Settings(), lambda: found, applied.append)
    assert applied == [found]
    assert not caplog.records

    def apply(_: Settings) -> None:
        assert not caplog.records, "the level first: it may be what lets the rest be said"

    read_again(Settings(), lambda: Settings(listen=Inner(port=1), routes=("a",)), apply)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.args == {"event": "restart_needed", "keys": ["listen.port", "routes"]}


def test_what_cannot_be_read_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def load() -> Settings:
        raise ConfigError([Mistake("gateway.yaml", 1, (), "expected a mapping")])

    applied: list[Settings] = []
    read_again(Settings(), load, applied.append)
    assert applied == []
    [record] = caplog.records
    assert "gateway.yaml" in record.getMessage()
