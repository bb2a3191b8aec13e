"""Which set-ups are followed, and when one is over."""

from __future__ import annotations

import time
from typing import Any

import pytest
from zgate_gateway.tracing import watch
from zgate_gateway.tracing.setup import Mark, Result, SetupTrace
from zgate_gateway.tracing.watch import SetupWatch


class FakeSink:
    def __init__(self) -> None:
        self.taken: list[SetupTrace] = []
        self.is_closed = False

    def take(self, trace: SetupTrace) -> None:
        self.taken.append(trace)

    def counters(self) -> dict[str, int]:
        return {"spans_sent": len(self.taken)}

    async def close(self) -> None:
        self.is_closed = True


class FakeConnection:
    """As much of a connection as is looked at."""

    def __init__(self) -> None:
        self.peer_address = ("198.51.100.7", 40000)
        self.is_terminated = False
        self.engine = self
        self.first_packet_s = 0.0


@pytest.fixture
def sink() -> FakeSink:
    return FakeSink()


@pytest.fixture
def all_of_them(sink: FakeSink) -> SetupWatch:
    return SetupWatch(sink, 1.0)


def begin(watching: SetupWatch) -> tuple[Any, SetupTrace]:
    connection: Any = FakeConnection()
    trace = watching.begin(connection)
    assert trace is not None and watching.of(connection) is trace
    return connection, trace


def test_so_many_are_followed(sink: FakeSink) -> None:
    chances = iter([0.0, 0.24, 0.25, 0.99])
    watching = SetupWatch(sink, 0.25, chance=lambda: next(chances))
    followed = [watching.begin(FakeConnection()) is not None for _ in range(4)]  # type: ignore[arg-type]
    assert followed == [True, True, False, False]
    nothing = SetupWatch(sink, 0.0)
    assert nothing.begin(FakeConnection()) is None  # type: ignore[arg-type]


def test_how_many_at_once_is_bounded(
    all_of_them: SetupWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_MOST", 1)
    begin(all_of_them)
    assert all_of_them.begin(FakeConnection()) is None  # type: ignore[arg-type]


def test_a_packet_that_the_engine_has_carried_ends_it(
    all_of_them: SetupWatch, sink: FakeSink
) -> None:
    connection, trace = begin(all_of_them)
    trace.established()
    all_of_them.look()
    assert sink.taken == []
    connection.first_packet_s = trace.marks[Mark.RESPONDED] + 0.125
    all_of_them.look()
    assert sink.taken == [trace]
    assert trace.marks[Mark.PACKET] == connection.first_packet_s
    assert trace.peer == "198.51.100.7:40000"
    assert all_of_them.of(connection) is None


def test_who_says_nothing_is_not_waited_for(all_of_them: SetupWatch, sink: FakeSink) -> None:
    _, trace = begin(all_of_them)
    trace.established()
    trace.marks = {mark: when - 11 for mark, when in trace.marks.items()}
    all_of_them.look()
    assert sink.taken == [trace] and trace.result is Result.ESTABLISHED


@pytest.mark.parametrize("ends", ["terminated", "late"])
def test_what_nobody_tells_the_end_of(all_of_them: SetupWatch, sink: FakeSink, ends: str) -> None:
    connection, trace = begin(all_of_them)
    if ends == "late":
        trace.marks[Mark.BEGUN] = time.monotonic() - 61
    else:
        connection.is_terminated = True
    all_of_them.look()
    assert sink.taken == [trace] and trace.result is Result.FAILED


async def test_the_end(all_of_them: SetupWatch, sink: FakeSink) -> None:
    _, trace = begin(all_of_them)
    await all_of_them.close()
    assert sink.taken == [trace] and sink.is_closed
    assert all_of_them.counters() == {"spans_sent": 1}
