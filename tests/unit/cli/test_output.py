"""Numbers, times and texts as people read them."""

import io
import sys
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_cli.output import byte_text, cell, console, duration_text, table, time_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (12_345_678, "12.3 MB"),
        (2**64, "18.4 EB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert byte_text(count) == text


@given(st.integers(0, 2**64))
def test_bytes_never_need_more_than_eight_columns(count: int) -> None:
    assert len(byte_text(count)) <= 8


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (60, "1m 00s"), (3725, "1h 02m"), (93784, "1d 02h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_times() -> None:
    assert time_text(datetime(2026, 3, 1, 12, 0, 7, tzinfo=UTC)) == "2026-03-01 12:00:07Z"
    assert time_text(None) == "-"


@given(st.text())
def test_nothing_unprintable_reaches_the_terminal(text: str) -> None:
    shown = cell(text).plain
    assert all(one.isprintable() or one == "\n" for one in shown)


def test_nothing_is_a_dash_and_zero_is_zero() -> None:
    assert (cell(None).plain, cell("").plain, cell(0).plain) == ("-", "-", "0")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "no_color", "coloured"),
    [(Terminal(), "", True), (Terminal(), "1", False), (io.StringIO(), "", False)],
)
def test_colour_on_terminals_only(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, no_color: str, coloured: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys, "stdout", stream)
    console().print(cell("deny", "red"))
    assert ("\x1b[31m" in stream.getvalue()) is coloured
    assert "deny" in stream.getvalue()


def test_a_pipe_is_wide_enough_for_any_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    shown = table("a", "b", "c")
    address = "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255"
    shown.add_row(*[cell(address)] * 3)
    console().print(shown)
    assert stream.getvalue().count(address) == 3
