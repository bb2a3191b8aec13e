"""The audit key and the note of the chain's head."""

import stat
from pathlib import Path

import pytest
from zgate_gateway.audit_chain import GENESIS, AuditError, Head, next_line, parse_record
from zgate_gateway.audit_head import (
    BadPublicKey,
    HeadKeeper,
    is_signed,
    parse_position,
    read_public_key,
)

HEAD = Head(7, "ab" * 32)


def test_the_key_is_made_once_and_for_nobody_else(tmp_path: Path) -> None:
    first = HeadKeeper(tmp_path)
    key = tmp_path / "audit.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert HeadKeeper(tmp_path).public_key == first.public_key
    assert read_public_key(tmp_path / "audit.pub") == first.public_key


def test_a_public_key_that_was_replaced_is_put_back(tmp_path: Path) -> None:
    keeper = HeadKeeper(tmp_path)
    (tmp_path / "audit.pub").write_text("something else")
    HeadKeeper(tmp_path)
    assert read_public_key(tmp_path / "audit.pub") == keeper.public_key


def test_a_key_that_was_deleted_is_written_again_with_the_next_note(tmp_path: Path) -> None:
    keeper = HeadKeeper(tmp_path)
    for file in tmp_path.iterdir():
        file.unlink()
    keeper.note(HEAD)
    again = HeadKeeper(tmp_path)
    assert (again.public_key, again.noted()) == (keeper.public_key, HEAD)
    assert stat.S_IMODE((tmp_path / "audit.key").stat().st_mode) == 0o600


def test_a_key_that_cannot_be_used_is_an_error_with_a_cure(tmp_path: Path) -> None:
    HeadKeeper(tmp_path)
    key = tmp_path / "audit.key"
    key.chmod(0o640)
    with pytest.raises(AuditError, match=r"audit\.key: others may read it; chmod 600"):
        HeadKeeper(tmp_path)
    key.chmod(0o600)
    key.write_text("no key")
    with pytest.raises(AuditError, match="no Ed25519 key in PEM; restore it"):
        HeadKeeper(tmp_path)
    with pytest.raises(AuditError, match="nowhere"):
        HeadKeeper(tmp_path / "nowhere")


def test_the_note_says_what_was_noted(tmp_path: Path) -> None:
    keeper = HeadKeeper(tmp_path)
    assert keeper.noted() is None
    keeper.note(GENESIS)
    keeper.note(HEAD)
    assert keeper.noted() == HEAD
    assert {path.name for path in tmp_path.iterdir()} == {"audit.key", "audit.pub", "audit.head"}


def test_a_note_that_was_changed_is_not_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = HeadKeeper(tmp_path)
    keeper.note(HEAD)
    file = tmp_path / "audit.head"
    honest = file.read_bytes()
    for index in range(len(honest)):
        changed = bytearray(honest)
        changed[index] ^= 1
        file.write_bytes(changed)
        assert keeper.noted() is None
        file.write_bytes(honest[:index])
        assert keeper.noted() is None
    assert "is not what this gateway wrote" in caplog.text
    file.unlink()
    file.mkdir()
    assert keeper.noted() is None


def test_another_key_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = HeadKeeper(tmp_path / "other")
    other.note(HEAD)
    position = parse_position((tmp_path / "other/audit.head").read_bytes())
    assert position is not None and is_signed(position)
    assert not is_signed(position, {HeadKeeper(tmp_path).public_key})


def test_a_record_without_a_signature_is_not_signed() -> None:
    record = parse_record(next_line(GENESIS, b'{"ts":"x","event":"chain_head"}'))
    assert record is not None and not is_signed(record)


def test_a_key_that_is_no_point_is_no_signature() -> None:
    text = '{"ts":"x","event":"chain_head","key":"%s"}' % ("ff" * 32)
    record = parse_record(next_line(GENESIS, text.encode(), lambda _: bytes(64)))
    assert record is not None and not is_signed(record)


def test_what_is_no_public_key(tmp_path: Path) -> None:
    file = tmp_path / "x.pub"
    with pytest.raises(BadPublicKey, match="does not exist"):
        read_public_key(file)
    file.write_text("hello")
    with pytest.raises(BadPublicKey, match="no public key in PEM"):
        read_public_key(file)
