"""A task that fails begins anew; one that ends has ended."""

from __future__ import annotations

import asyncio

import pytest
from zgate_gateway import keep_going as module
from zgate_gateway.keep_going import keep_going


async def test_what_fails_begins_anew_and_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)
    errors = [OSError("one"), OSError("one"), ValueError("two")]

    async def work() -> None:
        if errors:
            raise errors.pop(0)

    await asyncio.wait_for(keep_going("looking", work), 5)
    assert errors == []
    assert [record.getMessage() for record in caplog.records] == [
        "looking failed, and begins anew"
    ] * 2


async def test_what_fails_again_after_it_has_worked_is_told_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)
    monkeypatch.setattr(module, "_WORKED_S", 0.0)
    errors = [OSError("one"), OSError("one")]

    async def work() -> None:
        if errors:
            raise errors.pop()

    await asyncio.wait_for(keep_going("looking", work), 5)
    assert len(caplog.records) == 2


async def test_what_is_cancelled_ends() -> None:
    task = asyncio.create_task(keep_going("waiting", asyncio.Event().wait))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
