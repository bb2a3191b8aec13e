"""One agent to a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from zgate_host.runtime_dir import AlreadyRunning, RuntimeDir, service_runtime_dir


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
