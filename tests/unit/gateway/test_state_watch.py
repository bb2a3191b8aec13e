"""Directories that cannot be written: found out with real, small file systems."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from zgate_gateway.problems import Problems
from zgate_gateway.state_watch import Room, StateWatch

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
SIZE = 8 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def found(disk: Path, problems: Problems | None = None) -> list[str]:
    problems = Problems() if problems is None else problems
    StateWatch([disk], problems).update([Room.of(disk)])
    return [one.name for one in problems.active()]


def test_a_look_leaves_nothing_behind(disk: Path) -> None:
    free = os.statvfs(disk).f_bfree
    assert found(disk) == []
    assert list(disk.iterdir()) == [] and os.statvfs(disk).f_bfree == free


def test_little_room_and_none(disk: Path) -> None:
    problems = Problems()
    fill = disk / "fill"
    fill.write_bytes(bytes(SIZE * 94 // 100))
    assert found(disk, problems) == []
    fill.write_bytes(bytes(SIZE * 97 // 100))
    assert found(disk, problems) == ["disk_full"]
    fill.write_bytes(bytes(SIZE * 94 // 100))  # not much better
    assert found(disk, problems) == ["disk_full"]
    fill.write_bytes(bytes(SIZE))
    assert found(disk, problems) == ["disk_full"]
    assert "0.0 of 8 MiB are free" in problems.active()[0].text
    fill.unlink()
    assert found(disk, problems) == []


def test_a_read_only_file_system_and_a_directory_that_is_gone(disk: Path) -> None:
    problems = Problems()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert found(disk, problems) == ["state_not_writable"]
    assert "Read-only file system" in problems.active()[0].text
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert found(disk, problems) == []
    assert found(disk / "nowhere") == ["state_not_writable"]
