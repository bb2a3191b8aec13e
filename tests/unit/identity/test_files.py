import os
import stat
import threading
from pathlib import Path

import pytest
from zgate_identity import files
from zgate_identity.files import (
    PRIVATE_MODE,
    IdentityFileError,
    locked_directory,
    read_file,
    write_file,
)


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_written_with_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    for umask in (0, 0o077, 0o777):
        before = os.umask(umask)
        try:
            write_file(tmp_path / "key", b"secret", PRIVATE_MODE)
            write_file(tmp_path / "certificate", b"public")
        finally:
            os.umask(before)
        assert mode(tmp_path / "key") == 0o600
        assert mode(tmp_path / "certificate") == 0o644


def test_a_key_is_never_readable_by_others_not_even_while_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        files.os, "fsync", lambda _fd: seen.extend(mode(each) for each in tmp_path.iterdir())
    )
    write_file(tmp_path / "key", b"secret", PRIVATE_MODE)
    assert set(seen) == {0o600}


def test_a_failure_leaves_the_old_content_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "crl.pem"
    write_file(target, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(IdentityFileError, match=r"crl\.pem: cannot be written \(No space left"):
        write_file(target, b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["crl.pem"]
    assert target.read_bytes() == b"old"


def test_writing_into_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(IdentityFileError, match="cannot be written"):
        write_file(tmp_path / "missing" / "file", b"")


def test_reading_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IdentityFileError, match="does not exist"):
        read_file(tmp_path / "missing")
    with pytest.raises(IdentityFileError, match="directory"):
        read_file(tmp_path)
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 3)
    (tmp_path / "large").write_bytes(b"1234")
    with pytest.raises(IdentityFileError, match="larger than 3 bytes"):
        read_file(tmp_path / "large")


def test_the_lock_lets_one_in_at_a_time(tmp_path: Path) -> None:
    order: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        waiting.set()
        with locked_directory(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked_directory(tmp_path):
        thread.start()
        assert waiting.wait(5)
        thread.join(0.1)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


def test_locking_what_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(IdentityFileError, match="cannot be opened"),
        locked_directory(tmp_path / "missing"),
    ):
        pytest.fail("the lock of nothing was given")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_writes_belongs_to_whom_the_folder_belongs(tmp_path: Path) -> None:
    nobody = 65_534
    os.chown(tmp_path, nobody, nobody)
    write_file(tmp_path / "key", b"secret", PRIVATE_MODE)
    made = (tmp_path / "key").stat()
    assert (made.st_uid, made.st_gid) == (nobody, nobody)
    assert mode(tmp_path / "key") == 0o600
