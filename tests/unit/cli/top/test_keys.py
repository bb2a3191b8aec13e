"""Bytes of a terminal as keys."""

from hypothesis import given
from hypothesis import strategies as st
from zgate_cli.top.keys import KeyReader


def keys(*parts: bytes) -> list[str]:
    reader = KeyReader()
    return [key for part in parts for key in reader.feed(part)] + reader.flush()


def test_keys_by_name() -> None:
    assert keys(b"qK\r\n\t\x7f\x0c") == ["q", "K", "enter", "enter", "tab", "backspace", "redraw"]
    assert keys(b"\x1b[A\x1bOB\x1b[5~\x1b[6~\x1b[H\x1bOF") == [
        *("up", "down", "pgup", "pgdn", "home", "end")
    ]
    assert keys("ü".encode()[:1], "ü".encode()[1:]) == ["ü"]


def test_an_escape_alone() -> None:
    reader = KeyReader()
    assert reader.feed(b"\x1b") == [] and reader.is_waiting
    assert reader.flush() == ["esc"] and not reader.is_waiting
    assert keys(b"\x1bq") == ["esc", "q"]
    assert keys(b"\x1b\x1b[A") == ["esc", "up"]


def test_a_sequence_in_pieces() -> None:
    assert keys(b"\x1b", b"[", b"5", b"~") == ["pgup"]


def test_what_is_unknown_is_nothing() -> None:
    assert keys(b"\x1b[1;5A\x1b[200~\x1b[?1;2c") == []


def test_the_answer_about_synchronized_updates() -> None:
    for number, known in ((b"0", False), (b"1", True), (b"2", True), (b"4", False)):
        reader = KeyReader()
        assert reader.has_synchronized_updates is None
        assert reader.feed(b"\x1b[?2026;" + number + b"$y") == []
        assert reader.has_synchronized_updates is known


@given(st.binary(max_size=200), st.integers(1, 20))
def test_any_noise(data: bytes, step: int) -> None:
    reader = KeyReader()
    for at in range(0, len(data), step):
        reader.feed(data[at : at + step])
        assert len(reader._waiting) <= 32
    reader.flush()
