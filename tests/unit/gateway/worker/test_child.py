"""A worker's own upkeep, where a part of it fails. Its life as a process: ``test_crew.py``."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from zgate_gateway import keep_going
from zgate_gateway.worker import child
from zgate_gateway.worker.child import Worker


async def test_a_look_that_fails_is_not_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_LOOK_INTERVAL_S", 0.0)
    monkeypatch.setattr(keep_going, "_PAUSE_S", 0.0)
    looks: list[int] = []
    seen = asyncio.Event()

    def look() -> None:
        looks.append(1)
        if len(looks) == 1:
            raise ZeroDivisionError
        seen.set()

    part: Any = SimpleNamespace(close=lambda: None, stop=lambda: None, send=lambda _: None)
    worker: Any = object.__new__(Worker)
    worker.__dict__ |= {
        "_loop": asyncio.get_running_loop(),
        "_ended": asyncio.Event(),
        "_status": 0,
        "_tasks": set(),
        "_traces": None,
        "_configure": SimpleNamespace(engine="python"),
        "_loop_lag": SimpleNamespace(note=lambda *_: None),
        "_table": SimpleNamespace(look=look, upkeep=list),
        "_open": lambda: None,
        **dict.fromkeys(("_remote", "_forwarder", "_listener", "_channel"), part),
    }
    running = asyncio.create_task(worker.run())
    await asyncio.wait_for(seen.wait(), 10)
    worker._ended.set()
    assert await running == 0
