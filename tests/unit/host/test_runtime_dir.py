"""One agent to a folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from zgate_host.runtime_dir import (
    AlreadyRunning,
    RuntimeDir,
    SeveralRunning,
    service_runtime_dir,
)


def test_the_folder_is_made_and_owned_by_one(tmp_path: Path) -> None:
    directory = RuntimeDir(tmp_path / "a" / "b", "agent")
    with directory.locked():
        with pytest.raises(AlreadyRunning, match=rf"pid {os.getpid()}\) uses"), directory.locked():
            pass
        assert directory.socket_file.parent == directory.path
    with directory.locked():
        pass


def test_a_folder_of_somebody_elses_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path.stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: mine + 1)
    if mine == 0:
        os.chown(tmp_path, 4711, -1)
    directory = RuntimeDir(tmp_path, "agent")
    with pytest.raises(PermissionError, match="the folder is user"), directory.locked():
        pass
    assert not directory.lock_file.exists()


def test_a_killed_owner_owns_nothing(tmp_path: Path) -> None:
    directory = RuntimeDir(tmp_path, "agent")
    pid = os.fork()
    if pid == 0:
        with directory.locked():
            os._exit(0)
    os.waitpid(pid, 0)
    with directory.locked():
        assert (tmp_path / "agent.lock").read_text() == f"{os.getpid()}\n"


def test_the_folder_that_a_service_manager_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    assert service_runtime_dir() is None
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/one:/run/two")
    assert service_runtime_dir() == Path("/run/one")


def socket_in(folder: Path) -> None:
    """As a daemon has it, whether it still runs or not."""
    folder.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "agent.sock"))


def test_units_are_found_below_the_folder(tmp_path: Path) -> None:
    directory = RuntimeDir(tmp_path, "agent")
    assert directory.only_running() == directory
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "agent.sock").write_text("no socket")
    socket_in(tmp_path / "laptop")
    assert directory.only_running() == RuntimeDir(tmp_path / "laptop", "agent")
    socket_in(tmp_path / "ward")
    with pytest.raises(SeveralRunning, match=r"name one with --runtime-dir: .*/laptop, .*/ward"):
        directory.only_running()
    socket_in(tmp_path)
    assert directory.only_running() == directory
