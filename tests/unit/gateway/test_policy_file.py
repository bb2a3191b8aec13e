"""A file is replaced whole, or not at all."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from zgate_gateway.policy_file import PolicyFileError, StagedFile, keep_aside


def test_nothing_is_seen_before_the_commit(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("old")
    path.chmod(0o604)
    with StagedFile(path, b"new") as staged:
        assert path.read_text() == "old"
        staged.commit()
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    assert [entry.name for entry in tmp_path.iterdir()] == ["policy.yaml"]


def test_what_is_not_committed_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("old")
    with StagedFile(path, b"new"):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["policy.yaml"]
    assert path.read_text() == "old"


def test_a_new_file_is_not_for_everybody(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    with StagedFile(path, b"new") as staged:
        staged.commit()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "policy.yaml"
    target.write_text("old")
    link = tmp_path / "policy.yaml"
    link.symlink_to("real/policy.yaml")
    with StagedFile(link, b"new") as staged:
        staged.commit()
    assert link.is_symlink() and target.read_text() == "new"


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(PolicyFileError, match=r"cannot be written .*; make its directory"):
        StagedFile(tmp_path / "none" / "policy.yaml", b"new")


def test_keep_aside(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("edited")
    assert keep_aside(path).read_text() == "edited"
    assert path.read_text() == "edited"
    with pytest.raises(PolicyFileError, match="cannot be read"):
        keep_aside(tmp_path / "none")
