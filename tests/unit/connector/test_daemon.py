"""All sessions together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from zgate_connector.config import ConnectorConfig
from zgate_connector.daemon import Connector

from .test_status import a_gateway


class FakeSession:
    """Runs until it is cancelled, or fails."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.calls: list[str] = []

    async def run(self) -> None:
        try:
            if self.failure is not None:
                raise self.failure
            await asyncio.Event().wait()
        finally:
            self.calls.append("ended")

    def reconnect(self) -> None:
        self.calls.append("reconnect")

    def network_changed(self) -> None:
        self.calls.append("network")

    def health_changed(self) -> None:
        self.calls.append("health")

    def status(self) -> Any:
        return a_gateway()


async def test_all_end_when_told_to(config: ConnectorConfig) -> None:
    sessions: list[Any] = [FakeSession(), FakeSession()]
    connector = Connector(config, sessions, lambda: ["a note"])
    task = asyncio.create_task(connector.run())
    await asyncio.sleep(0)
    connector.reconnect()
    connector.health_changed()
    connector.network_changed()
    status = connector.status()
    assert (len(status.gateways), status.notes) == (2, ["a note"])
    connector.stop("SIGTERM")
    connector.stop("SIGTERM again")
    assert await asyncio.wait_for(task, 5) == "SIGTERM"
    assert all(one.calls == ["reconnect", "health", "network", "ended"] for one in sessions)


async def test_stopped_before_it_runs(config: ConnectorConfig) -> None:
    connector = Connector(config, [FakeSession()], list)  # type: ignore[list-item]
    connector.stop("early")
    assert await asyncio.wait_for(connector.run(), 5) == "early"


async def test_a_session_that_ends_by_itself_ends_all(config: ConnectorConfig) -> None:
    other = FakeSession()
    sessions: list[Any] = [FakeSession(AssertionError("a bug")), other]
    with pytest.raises(AssertionError, match="a bug"):
        await asyncio.wait_for(Connector(config, sessions, list).run(), 5)
    assert other.calls == ["ended"]
