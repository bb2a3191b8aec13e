"""What signals do to a connector, also while it is being made anew."""

from __future__ import annotations

from typing import Any

import pytest
from zgate_connector.config import ConnectorConfig
from zgate_connector.service import _Reloads


class FakeConnector:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def stop(self, reason: str) -> None:
        self.told.append(reason)

    def reconnect(self) -> None:
        self.told.append("reconnect")


class Signals:
    """`_Reloads`, and the configuration that is in the file."""

    def __init__(self, config: ConnectorConfig) -> None:
        self.file = config
        self.reloads = _Reloads(config, lambda: self.file)

    def hang_up(self, **changes: Any) -> None:
        self.file = self.file.model_copy(update=changes)
        self.reloads.reload()

    def make(self) -> FakeConnector:
        connector = FakeConnector()
        self.reloads.watch(connector)  # type: ignore[arg-type]
        return connector


@pytest.fixture
def signals(config: ConnectorConfig) -> Signals:
    return Signals(config)


def test_another_configuration_is_for_another_connector(signals: Signals) -> None:
    signals.reloads.take()
    connector = signals.make()
    signals.hang_up()
    assert connector.told == ["reconnect"]
    signals.hang_up(keepalive_s=7)
    assert connector.told == ["reconnect", "another configuration"]
    assert signals.reloads.take().keepalive_s == 7
    assert signals.make().told == []


def test_a_second_one_while_the_first_is_carried_out(signals: Signals) -> None:
    signals.reloads.take()
    signals.make()
    signals.hang_up(keepalive_s=7)
    signals.reloads.take()
    signals.hang_up(keepalive_s=8)
    assert signals.make().told == ["another configuration"], "it has the one of before"
    assert signals.reloads.take().keepalive_s == 8
    assert signals.make().told == []


def test_the_end_while_it_is_made_anew(signals: Signals) -> None:
    signals.reloads.take()
    signals.reloads.stop("SIGTERM")
    assert signals.make().told == ["SIGTERM"]
