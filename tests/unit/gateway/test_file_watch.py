"""A file that changes in every way in which files change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from zgate_gateway import file_watch
from zgate_gateway.file_watch import watch_file
from zgate_identity.files import version_of


@asynccontextmanager
async def watched(path: Path, **options: float) -> AsyncIterator[list[str | None]]:
    """What the file held at each change that was told."""
    told: list[str | None] = []

    async def changed() -> None:
        told.append(path.read_text() if path.exists() else None)

    settings = {"debounce_s": 0.05, "look_interval_s": 60.0, **options}
    task = asyncio.create_task(watch_file(path, changed, seen=version_of(path), **settings))
    await asyncio.sleep(0)  # it listens from its first step on
    try:
        yield told
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def write(path: Path) -> None:
    path.write_text("new")


def rename_over(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("new")
    other.replace(path)


def delete_and_create(path: Path) -> None:
    path.unlink()
    path.write_text("new")


@pytest.mark.parametrize("change", [write, rename_over, delete_and_create])
async def test_each_way_of_change_is_told_once(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("old!")
    async with watched(path) as told:
        change(path)
        await until(lambda: bool(told))
        await asyncio.sleep(0.2)
        assert told == ["new"]


async def test_many_writes_are_one_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_watch, "_LONGEST_DEBOUNCE_S", 60.0)
    path = tmp_path / "policy.yaml"
    path.write_text("old")
    async with watched(path, debounce_s=0.3) as told:
        for number in range(10):
            path.write_text(f"new {number}")
            await asyncio.sleep(0.02)
        await until(lambda: bool(told))
        await asyncio.sleep(0.4)
        assert told == ["new 9"]


async def test_a_link_that_is_turned_and_a_target_that_is_written(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "policy.yaml").write_text(name)
    folder = tmp_path / "etc"
    folder.mkdir()
    path = folder / "policy.yaml"
    path.symlink_to("../one/policy.yaml")
    async with watched(path) as told:
        link = folder / "link"
        link.symlink_to("../two/policy.yaml")
        link.replace(path)
        await until(lambda: told == ["two"])
        (tmp_path / "two" / "policy.yaml").write_text("three")
        await until(lambda: told == ["two", "three"])


async def test_gone_and_back(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("old")
    async with watched(path) as told:
        path.unlink()
        await until(lambda: told == [None])
        path.write_text("new")
        await until(lambda: told == [None, "new"])


async def test_without_inotify_it_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoInotify:
        fd = -1

        def __init__(self, **_: object) -> None: ...
        def bind(self) -> None: ...
        def close(self) -> None: ...

    monkeypatch.setattr(file_watch, "Inotify", NoInotify)
    monkeypatch.setattr(file_watch, "_LOOK_INTERVAL_WITHOUT_INOTIFY_S", 0.05)
    path = tmp_path / "policy.yaml"
    path.write_text("old")
    async with watched(path) as told:
        path.write_text("newer")
        await until(lambda: told == ["newer"])


async def test_what_changed_before_it_began_is_told(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    seen = version_of(path)
    path.write_text("new")
    told = asyncio.Event()

    async def changed() -> None:
        told.set()

    task = asyncio.create_task(watch_file(path, changed, seen=seen, debounce_s=0.01))
    async with asyncio.timeout(20):
        await told.wait()
    task.cancel()
