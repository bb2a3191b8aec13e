from __future__ import annotations

import asyncio
import logging
import select
import socket
from collections.abc import Iterator

import pytest
import pytest_asyncio
from zgate_connector.poller import PIECES_PER_TURN, Poller


class Watch:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.events: list[int] = []

    def ready(self, events: int) -> None:
        self.events.append(events)


class Work:
    """So many pieces, each noted in a log that all share."""

    def __init__(self, name: str, pieces: int, log: list[str]) -> None:
        self.is_queued = False
        self.name = name
        self.pieces = pieces
        self.log = log
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True

    def work(self) -> bool:
        self.log.append(self.name)
        self.pieces -= 1
        return self.pieces > 0


class Broken(Work):
    def work(self) -> bool:
        super().work()
        raise RuntimeError("a mistake")


@pytest_asyncio.fixture
async def poller():
    made = Poller(asyncio.get_running_loop())
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    yield ends
    for end in ends:
        end.close()


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_what_is_ready_is_told_once_and_again_when_it_changes(
    poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    watch = Watch()
    poller.watch(pair[0].fileno(), watch)
    await turn()
    assert watch.events == [select.EPOLLOUT]
    await turn()
    assert len(watch.events) == 1
    pair[1].send(b"x")
    await turn()
    assert watch.events[1] & select.EPOLLIN
    assert len(watch.events) == 2
    pair[1].close()
    await turn()
    assert watch.events[2] & select.EPOLLHUP


async def test_who_is_forgotten_is_not_told(
    poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    watch = Watch()
    poller.watch(pair[0].fileno(), watch)
    poller.forget(pair[0].fileno())
    poller.forget(pair[0].fileno())
    pair[1].send(b"x")
    await turn()
    assert watch.events == []


async def test_work_takes_turns(poller: Poller) -> None:
    log: list[str] = []
    for name, pieces in (("a", 3), ("b", 1), ("c", 2)):
        poller.queue(Work(name, pieces, log))
    await turn()
    assert log == ["a", "b", "c", "a", "c", "a"]


async def test_queued_twice_is_once(poller: Poller) -> None:
    log: list[str] = []
    work = Work("a", 1, log)
    poller.queue(work)
    poller.queue(work)
    await turn()
    assert log == ["a"]


async def test_the_loop_gets_its_turn(poller: Poller) -> None:
    log: list[str] = []
    poller.queue(Work("a", 10 * PIECES_PER_TURN, log))
    seen = []
    while len(log) < 10 * PIECES_PER_TURN:
        await asyncio.sleep(0)
        seen.append(len(log))
    steps = [after - before for before, after in zip([0, *seen], seen, strict=False)]
    assert max(steps) <= PIECES_PER_TURN


async def test_a_mistake_in_one_does_not_stop_the_others(
    poller: Poller, caplog: pytest.LogCaptureFixture
) -> None:
    log: list[str] = []
    broken = Broken("broken", 5, log)
    poller.queue(broken)
    poller.queue(Work("a", 2, log))
    with caplog.at_level(logging.ERROR):
        await turn()
    assert log == ["broken", "a", "a"]
    assert "a mistake" in caplog.text
    assert broken.is_aborted


async def test_nothing_works_after_the_end() -> None:
    poller = Poller(asyncio.get_running_loop())
    log: list[str] = []
    poller.queue(Work("a", 1, log))
    poller.close()
    poller.close()
    await turn()
    assert log == []
