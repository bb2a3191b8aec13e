"""Where clients are, over the death of a gateway."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from zgate_gateway.admission import PeerPath
from zgate_gateway.path_memory import MAX_BYTES, PathMemory

ALICE = PeerPath("::ffff:192.0.2.1", 4711, b"12345678")
BOB = PeerPath("2001:db8::1", 9, b"87654321", "2001:db8::2")
NOWHERE = PeerPath("-", 0, b"00000000")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "clients.json"


def test_who_was_here_when_it_was_killed(file: Path) -> None:
    memory = PathMemory(file)
    memory.keep([ALICE])
    memory.keep([ALICE, BOB, NOWHERE])
    assert file.stat().st_mode & 0o077 == 0
    successor = PathMemory(file)
    assert set(successor.take_over()) == {ALICE, BOB}
    assert successor.take_over() == [], "once"


def test_it_is_written_when_something_has_changed(file: Path) -> None:
    memory = PathMemory(file)
    memory.keep([ALICE, BOB])
    file.unlink()
    memory.keep([BOB, ALICE])
    assert not file.exists()
    memory.keep([BOB])
    assert PathMemory(file).take_over() == [BOB]


def test_a_file_of_a_version_that_knew_no_local_address(file: Path) -> None:
    entry = [ALICE.host, ALICE.port, ALICE.connection_id.hex()]
    file.write_text(json.dumps([entry]))
    assert PathMemory(file).take_over() == [ALICE]


def test_an_orderly_end_leaves_nothing(file: Path) -> None:
    memory = PathMemory(file)
    memory.keep([ALICE])
    memory.forget()
    memory.forget()
    assert PathMemory(file).take_over() == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[[1]]",
        b'[["h", 1, "00"]]',
        b'{"a": 1}',
        b'[["h", 1, "xyz"]]',
        b"\xff",
        b'[["192.0.2.1", 1, "00", "h"]]',
        b'[["192.0.2.1", 1, "00", 5]]',
    ],
)
def test_a_damaged_file_costs_nothing_else(
    file: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_bytes(content)
    assert PathMemory(file).take_over() == []
    assert "not known who was here" in caplog.text
    assert not file.exists()


def test_a_file_that_is_too_large(file: Path) -> None:
    with file.open("wb") as large:
        large.truncate(MAX_BYTES + 1)
    assert PathMemory(file).take_over() == []


def test_a_disk_that_takes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory = PathMemory(tmp_path / "nowhere" / "clients.json")
    memory.keep([ALICE])
    memory.keep([BOB])
    assert caplog.text.count("is not written") == 1
