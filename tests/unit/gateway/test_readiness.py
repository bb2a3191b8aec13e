"""Whether new sessions find what they need: looked at in a thread, and what goes wrong there."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from zgate_control.store import StoreError
from zgate_gateway import readiness as readiness_module
from zgate_gateway.problems import Problems
from zgate_gateway.readiness import Readiness


class FakeGateway:
    """Ready; ``asked`` counts the looks at its store, and ``raises`` is what one of them raises."""

    def __init__(self) -> None:
        self.state = "ready"
        self.kernel = SimpleNamespace(revision=1)
        self.problems = Problems()
        self.network = SimpleNamespace(verify_programs=lambda: None)
        self.store = SimpleNamespace(check=self.check)
        self.asked = 0
        self.raises: Exception | None = None
        self.goes_on = threading.Event()
        self.goes_on.set()

    def check(self) -> None:
        self.asked += 1
        assert self.goes_on.wait(10)
        if self.raises is not None:
            raise self.raises


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> FakeGateway:
    monkeypatch.setattr(readiness_module, "_FRESH_S", 0.0)
    return FakeGateway()


def of(gateway: Any) -> Readiness:
    return Readiness(gateway)


async def test_what_is_missing_is_named(gateway: FakeGateway) -> None:
    readiness = of(gateway)
    assert await readiness.objections() == {}
    gateway.state, gateway.kernel.revision = "draining", 0
    gateway.raises = StoreError("zgate.db", "the disk is full", "free some space")
    found = await readiness.objections()
    assert set(found) == {"state", "policy", "store"}
    assert "free some space" in found["store"]


async def test_a_look_that_fails_is_not_the_last_one(gateway: FakeGateway) -> None:
    readiness = of(gateway)
    gateway.raises = RuntimeError("can't start new thread")
    with pytest.raises(RuntimeError):
        await readiness.objections()
    gateway.raises = None
    assert await readiness.objections() == {}


async def test_a_look_that_hangs_stays_the_only_one(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness_module, "_PATIENCE_S", 0.05)
    readiness = of(gateway)
    gateway.goes_on.clear()
    for _ in range(3):
        assert "no answer" in (await readiness.objections())["store"]
    assert gateway.asked == 1
    gateway.goes_on.set()
    monkeypatch.setattr(readiness_module, "_PATIENCE_S", 10.0)
    assert await readiness.objections() == {}
    assert gateway.asked == 1, "its answer is taken"
