"""Edge-triggered readiness of many sockets, and work shared out fairly, in an asyncio loop.

asyncio's own readers and writers are level-triggered: a relay would add and remove them all the
time, and would hear of a reset only of a socket that it waits for. Here each socket is registered
once, in an epoll of our own, which the loop watches as one descriptor. What is ready goes into a
queue; each in it does a bounded piece of work and goes to the end, so that no flow starves another,
and after a bounded number of pieces the loop gets its turn.
"""

from __future__ import annotations

import asyncio
import logging
import select
from collections import deque
from typing import Protocol

logger = logging.getLogger(__name__)

_READING = select.EPOLLIN | select.EPOLLET
_BOTH = _READING | select.EPOLLOUT
_MAX_EVENTS = 256
PIECES_PER_TURN = 32


class Watcher(Protocol):
    """Who is told of a socket's events."""

    def ready(self, events: int) -> None:
        """The socket has become ready (EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP).

        Only remember it, and queue work: others of the same batch have not heard theirs yet.
        """


class Job(Protocol):
    """Something that works in pieces."""

    is_queued: bool

    def work(self) -> bool:
        """Do a bounded piece of work; whether there is more that need not be waited for."""

    def abort(self) -> None:
        """End what it works for: there is a mistake in it."""


class Poller:
    """See the module's text. Close it last."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._watchers: dict[int, Watcher] = {}
        self._queue: deque[Job] = deque()
        self._is_scheduled = False
        loop.add_reader(self._epoll.fileno(), self._on_ready)

    def watch(self, descriptor: int, watcher: Watcher, *, for_writing: bool = True) -> None:
        """Tell `watcher` of this socket's events, beginning with those that are there now.

        `for_writing`: also that it takes bytes again; of UDP that is told after each datagram.
        """
        self._watchers[descriptor] = watcher
        self._epoll.register(descriptor, _BOTH if for_writing else _READING)

    def forget(self, descriptor: int) -> None:
        """Tell nobody any more; before the socket is closed."""
        if self._watchers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def queue(self, job: Job) -> None:
        """Have it work soon; once, however often it is asked for."""
        if not job.is_queued:
            job.is_queued = True
            self._queue.append(job)
            self._schedule()

    def close(self) -> None:
        """Watch nothing, work no more."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._watchers.clear()
            self._queue.clear()

    def _on_ready(self) -> None:
        for descriptor, events in self._epoll.poll(0, _MAX_EVENTS):
            watcher = self._watchers.get(descriptor)
            if watcher is not None:
                watcher.ready(events)
        self._work()

    def _turn(self) -> None:
        self._is_scheduled = False
        self._work()

    def _work(self) -> None:
        for _ in range(PIECES_PER_TURN):
            if not self._queue:
                return
            job = self._queue.popleft()
            job.is_queued = False
            try:
                has_more = job.work()
            except Exception:
                # A mistake of ours in one flow must not stop the others.
                logger.exception("a flow failed", {"event": "flow_failed"})
                job.abort()
                continue
            if has_more:
                self.queue(job)
        if self._queue:
            self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._turn)
