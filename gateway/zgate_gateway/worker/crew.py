"""All workers: started, watched, started again, asked, stopped.

    start    the processes, so that they load while the supervisor sets up the rest;
             then each is configured, with its descriptors
    life     a worker that ends is replaced at once; one that ends again and again, less and less
             often; one that does not answer is killed
    stop     goodbyes, then the end; who does not end is killed

A worker's socket and queue stay open here: what arrives while it is dead waits for its successor.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from zgate_gateway.admission import PeerPath
from zgate_gateway.worker import messages
from zgate_gateway.worker.launch import Launched
from zgate_gateway.worker.messages import Configure, Message
from zgate_gateway.worker.process import WorkerProcess

logger = logging.getLogger(__name__)

_PING_INTERVAL_S = 1.0
_MAX_UNANSWERED = 10
_REPORT_TIMEOUT_S = 0.5
#: Its modules alone take an emulated processor 13 s, and it has others to serve.
_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 4.0
#: A worker that lived longer did not die of its start.
_STABLE_AFTER_S = 10.0
_LONGEST_DELAY_S = 5.0


class WorkerError(Exception):
    """The workers cannot start; the text says why."""


class CrewOwner(Protocol):
    """Who has the workers."""

    def configuration(self, index: int) -> tuple[Configure, Sequence[int]]:
        """What a worker needs to begin, and its descriptors."""

    def message(self, process: WorkerProcess, message: Message) -> None:
        """A worker asks or tells."""

    def worker_lost(self, process: WorkerProcess, cause: str) -> list[PeerPath]:
        """A worker is dead: nothing of its sessions may stay. Where their clients were."""

    def worker_answered(self) -> None:
        """A worker has answered, from the loop that carries its packets."""


@dataclass(slots=True)
class _Slot:
    """A worker's place, over all its lives."""

    index: int
    process: WorkerProcess | None = None
    restarts: int = 0
    delay_s: float = 0.0
    counters: Counter[str] = field(default_factory=Counter)
    lost: list[PeerPath] = field(default_factory=list)
    restart: asyncio.TimerHandle | None = None


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One worker for status pages; `pid` is None while there is none."""

    index: int
    pid: int | None
    restarts: int
    counters: dict[str, int]
    loop_lag_s: float = 0.0


class Crew:
    """See the module's text."""

    def __init__(self, count: int, owner: CrewOwner, loop: asyncio.AbstractEventLoop) -> None:
        self._slots = [_Slot(index) for index in range(count)]
        self._owner = owner
        self._loop = loop
        self._requests = itertools.count(1)
        self._past_drops: Counter[str] = Counter()
        self._past_refused: Counter[str] = Counter()
        self._past_handshakes: Counter[str] = Counter()
        self._past_retry_tokens: Counter[str] = Counter()
        self._is_working = False
        self._is_stopping = False
        self._all_gone = asyncio.Event()

    def spawn(self, launched: Sequence[Launched] = ()) -> None:
        """Start the processes, but for those that run already; they wait to be configured.

        Raises:
            OSError: a process cannot be started.
        """
        for slot, one in itertools.zip_longest(self._slots, launched):
            slot.process = WorkerProcess(slot.index, self, self._loop, one)

    async def work(self) -> None:
        """Configure all, and wait until they accept connections.

        Raises:
            WorkerError: one did not get that far.
        """
        started = [slot.process for slot in self._slots if slot.process is not None]
        for process in started:
            self._configure(process)
        for process in started:
            try:
                await asyncio.wait_for(asyncio.shield(process.ready), _START_TIMEOUT_S)
            except TimeoutError:
                raise WorkerError(f"worker {process.index} did not start in time") from None
            except asyncio.CancelledError:
                if not process.ready.cancelled():
                    raise
                text = process.failure or "it ended; its log says why"
                raise WorkerError(f"worker {process.index}: {text}") from None
        if len(started) < len(self._slots):
            raise WorkerError("a worker ended at its start; the log says why")
        self._is_working = True

    def _configure(self, process: WorkerProcess) -> None:
        configuration, descriptors = self._owner.configuration(process.index)
        process.send(configuration, descriptors)

    # Meanwhile.

    @property
    def processes(self) -> list[WorkerProcess]:
        """Those that are there now."""
        return [slot.process for slot in self._slots if slot.process is not None]

    def tell(self, message: Message) -> None:
        """Say the same to all."""
        for process in self.processes:
            process.send(message)

    def end_lost(self, paths: Sequence[PeerPath]) -> None:
        """Have a worker tell the clients of a gateway that was killed."""
        for process in self.processes[:1]:
            process.end_lost(paths)

    async def watch(self) -> None:
        """See that all answer, and know their counters, for as long as this runs."""
        while True:
            await asyncio.sleep(_PING_INTERVAL_S)
            for process in self.processes:
                if self._hangs(process):
                    logger.error(
                        "worker %(worker)d does not answer: killed",
                        {"event": "worker_hangs", "worker": process.index},
                    )
                    process.kill()
                elif process.ready.done():
                    process.ping(next(self._requests))

    def _hangs(self, process: WorkerProcess) -> bool:
        if not process.ready.done():
            return self._loop.time() - process.started_s >= _START_TIMEOUT_S
        # Counted, not timed: whoever was stopped itself must not blame the workers.
        return process.unanswered >= _MAX_UNANSWERED

    async def refresh(self, only: Mapping[int, Sequence[str]] | None = None) -> None:
        """Ask all for their counters and sessions; who does not answer soon is left out.

        :param only: by worker, of which sessions; a worker that is not named is asked for its
            counters alone. None: of all sessions, and a worker may have thousands.
        """
        answers = [
            process.ask(next(self._requests), None if only is None else only.get(process.index, ()))
            for process in self.processes
            if process.ready.done()
        ]
        if answers:
            _, late = await asyncio.wait(answers, timeout=_REPORT_TIMEOUT_S)
            for answer in late:
                answer.cancel()

    async def ping(self, session_id: str, index: int, timeout_s: float) -> float | None:
        """The round trip to a session's peer, in seconds; None: it did not answer in time."""
        process = self._slots[index].process
        if process is None:
            return None
        answer = process.ping_session(next(self._requests), session_id)
        done, _ = await asyncio.wait([answer], timeout=timeout_s)
        if not done:
            answer.cancel()
            return None
        return None if answer.cancelled() else answer.result()

    def exited(self, process: WorkerProcess, status: int) -> None:
        """See `ProcessOwner.exited`."""
        slot = self._slots[process.index]
        slot.process = None
        self._past_drops.update(process.latest.drops)
        self._past_refused.update(process.latest.certificates_refused)
        self._past_handshakes.update(process.latest.handshakes)
        self._past_retry_tokens.update(process.latest.retry_tokens)
        slot.counters.update(process.latest.counters)
        cause = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        slot.lost += self._owner.worker_lost(process, "its worker process has ended")
        if self._is_stopping:
            if not self.processes:
                self._all_gone.set()
            return
        if not self._is_working:
            return
        slot.restarts += 1
        logger.error(
            "worker %(worker)d, pid %(pid)d, has ended (%(reason)s)",
            {"event": "worker_ended", "worker": process.index, "pid": process.pid, "reason": cause},
        )
        if self._loop.time() - process.started_s >= _STABLE_AFTER_S:
            slot.delay_s = 0.0
        slot.restart = self._loop.call_later(slot.delay_s, self._restart, slot)
        slot.delay_s = min(_LONGEST_DELAY_S, max(0.25, slot.delay_s * 2))

    def _restart(self, slot: _Slot) -> None:
        slot.restart = None
        try:
            slot.process = WorkerProcess(slot.index, self, self._loop)
            self._configure(slot.process)
        except OSError as error:
            logger.error(
                "worker %(worker)d cannot be started: %(error)s",
                {"event": "worker_start_failed", "worker": slot.index, "error": error},
            )
            if slot.process is not None:
                slot.process.kill()
            else:
                slot.restart = self._loop.call_later(_LONGEST_DELAY_S, self._restart, slot)
            return
        slot.process.end_lost(slot.lost)
        slot.lost = []

    def answered(self) -> None:
        """See `ProcessOwner.answered`."""
        self._owner.worker_answered()

    def message(self, process: WorkerProcess, message: Message) -> None:
        """See `ProcessOwner.message`."""
        self._owner.message(process, message)

    # What they have counted.

    def states(self) -> list[WorkerState]:
        """Each worker, with its counters over all its lives."""
        return [
            WorkerState(
                slot.index,
                slot.process.pid if slot.process is not None else None,
                slot.restarts,
                dict(self._sum(slot.counters, [slot.process.latest.counters]))
                if slot.process is not None
                else dict(slot.counters),
                slot.process.latest.loop_lag_s if slot.process is not None else 0.0,
            )
            for slot in self._slots
        ]

    def not_ready(self) -> list[WorkerState]:
        """Those that are being started again, or will be."""
        ready = {one.index for one in self.processes if one.ready.done()}
        return [state for state in self.states() if state.index not in ready]

    def session(self, session_id: str, index: int) -> messages.SessionReport | None:
        """What a worker said of a session when it was last asked."""
        process = self._slots[index].process
        return process.sessions.get(session_id) if process is not None else None

    def drops(self) -> Counter[str]:
        """Packets dropped in userspace since start, by reason."""
        return self._sum(self._past_drops, [one.latest.drops for one in self.processes])

    def certificates_refused(self) -> Counter[str]:
        """Clients that did not prove who they are, by reason."""
        return self._sum(
            self._past_refused, [one.latest.certificates_refused for one in self.processes]
        )

    def handshakes(self) -> Counter[str]:
        """Handshakes since start, by what became of them."""
        return self._sum(self._past_handshakes, [one.latest.handshakes for one in self.processes])

    def retry_tokens(self) -> Counter[str]:
        """Retry tokens since start, by what became of them."""
        return self._sum(
            self._past_retry_tokens, [one.latest.retry_tokens for one in self.processes]
        )

    @property
    def retry_active(self) -> bool:
        """Whether a worker has new clients prove their address first."""
        return any(process.latest.retry_active for process in self.processes)

    @staticmethod
    def _sum(past: Counter[str], present: Sequence[dict[str, int]]) -> Counter[str]:
        total = Counter(past)
        for counted in present:
            total.update(counted)
        return total

    # End.

    async def stop(self) -> None:
        """Let each say its goodbyes and end; twice is no error."""
        self._is_stopping = True
        for slot in self._slots:
            if slot.restart is not None:
                slot.restart.cancel()
        if not self.processes:
            return
        self.tell(messages.Stop())
        try:
            await asyncio.wait_for(self._all_gone.wait(), _STOP_TIMEOUT_S)
        except TimeoutError:
            logger.error("workers did not end in time: killed", {"event": "workers_killed"})
            for process in self.processes:
                process.kill()
            await self._all_gone.wait()
