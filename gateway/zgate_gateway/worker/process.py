"""One life of a worker, as the supervisor sees it: a child process and the channel to it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from typing import Protocol

from zgate_protocol.service_capsule import RegistrationAnswer

from zgate_gateway.admission import IpAddress, PeerPath
from zgate_gateway.worker import messages
from zgate_gateway.worker.channel import Channel
from zgate_gateway.worker.launch import Launched, launch
from zgate_gateway.worker.messages import BATCH_ENTRIES, Message, Report, SessionReport

logger = logging.getLogger(__name__)


class ProcessOwner(Protocol):
    """Who is told of a worker."""

    def message(self, process: WorkerProcess, message: Message) -> None:
        """A worker said something that is not about itself."""

    def exited(self, process: WorkerProcess, status: int) -> None:
        """A worker's process is gone: nothing runs of it any more."""

    def answered(self) -> None:
        """A worker has answered: it lives."""


class WorkerProcess:
    """See the module's text (`zgate_gateway.admission.WorkerLink`).

    Attributes:
        ready: done when it accepts connections, with its packet engine's name; cancelled when it
            ended before.
        failure: why it could not do its work, in its own words.
        latest: its counters when it was last asked; `sessions` the same, by session ID.
        unanswered: how many pings in a row were not answered.
    """

    def __init__(
        self,
        index: int,
        owner: ProcessOwner,
        loop: asyncio.AbstractEventLoop,
        launched: Launched | None = None,
    ) -> None:
        self.index = index
        self.ready: asyncio.Future[str] = loop.create_future()
        self.failure = ""
        self.latest = Report(0, True, (), {}, {}, {}, False)
        self.sessions: dict[str, SessionReport] = {}
        self.unanswered = 0
        self.started_s = loop.time()
        self._owner = owner
        self._loop = loop
        self._answers: dict[int, asyncio.Future[None]] = {}
        self._pings: dict[int, asyncio.Future[float | None]] = {}
        self._gathered: dict[int, dict[str, SessionReport]] = {}
        launched = launched or launch()
        self._popen = launched.popen
        self._exit_fd = os.pidfd_open(self._popen.pid)
        self._channel = Channel(
            launched.channel, loop, on_message=self._on_message, on_lost=self._on_lost
        )
        loop.add_reader(self._exit_fd, self._on_exit)

    @property
    def pid(self) -> int:
        """Its process ID."""
        return self._popen.pid

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Say something."""
        self._channel.send(message, descriptors)

    def close_session(self, session_id: str, cause: str) -> None:
        """See `WorkerLink.close_session`."""
        self.sessions.pop(session_id, None)
        self.send(messages.CloseSession(session_id, cause))

    def answer_offers(
        self, session_id: str, revision: int, answers: Sequence[RegistrationAnswer]
    ) -> None:
        """See `WorkerLink.answer_offers`."""
        for part, is_last in messages.in_parts(answers):
            self.send(messages.OffersAnswered(session_id, revision, part, is_last))

    def grant(
        self, session_id: str, addresses: Sequence[IpAddress], networks: Sequence[str]
    ) -> None:
        """See `WorkerLink.grant`."""
        self.send(messages.Grant(session_id, tuple(addresses), tuple(networks)))

    def tell_agent(self, session_id: str, service: str, addresses: Sequence[IpAddress]) -> None:
        """See `WorkerLink.tell_agent`."""
        self.send(messages.ServiceAgent(session_id, service, tuple(addresses)))

    def drain_session(self, session_id: str, deadline_ms: int) -> None:
        """See `WorkerLink.drain_session`."""
        self.send(messages.DrainSession(session_id, deadline_ms))

    def end_lost(self, paths: Sequence[PeerPath]) -> None:
        """Have it tell the clients of a predecessor that their connections are no more."""
        for start in range(0, len(paths), BATCH_ENTRIES):
            self.send(messages.EndLost(tuple(paths[start : start + BATCH_ENTRIES])))

    def ping(self, request_id: int) -> None:
        """Ask for its counters, and whether it lives: `unanswered` is 0 when it answers."""
        self.unanswered += 1
        self.send(messages.AskReport(request_id, with_sessions=False))

    def ask(self, request_id: int, only: Sequence[str] | None = None) -> asyncio.Future[None]:
        """Ask for its counters and those of sessions, all or some; done when they are there.

        Never if it does not answer: whoever waits no longer cancels, and the answer is forgotten.
        """
        answer = self._loop.create_future()
        self._answers[request_id] = answer
        if only is None:
            self._gathered[request_id] = {}
        answer.add_done_callback(lambda _: self._forget(request_id))
        with_sessions = only is None or len(only) > 0
        self.send(messages.AskReport(request_id, with_sessions, tuple(only or ())))
        return answer

    def ping_session(self, request_id: int, session_id: str) -> asyncio.Future[float | None]:
        """Ask a session's peer for a sign of life; done with the round trip, in seconds.

        With None if there is no such session; never if the peer does not answer (see `ask`).
        """
        answer = self._loop.create_future()
        self._pings[request_id] = answer
        answer.add_done_callback(lambda _: self._pings.pop(request_id, None))
        self.send(messages.PingSession(request_id, session_id))
        return answer

    def _forget(self, request_id: int) -> None:
        self._answers.pop(request_id, None)
        self._gathered.pop(request_id, None)

    def kill(self) -> None:
        """End it here and now; `ProcessOwner.exited` follows."""
        if self._popen.returncode is None:
            self._popen.send_signal(signal.SIGKILL)

    def _on_message(self, message: Message) -> None:
        match message:
            case messages.Ready(engine):
                if not self.ready.done():
                    self.ready.set_result(engine)
            case messages.Failed(text):
                self.failure = text
            case messages.Report():
                self._on_report(message)
            case messages.SessionPinged(request_id, rtt_s):
                pinged = self._pings.get(request_id)
                if pinged is not None and not pinged.done():
                    pinged.set_result(rtt_s)
            case _:
                if isinstance(message, messages.SessionEnded):
                    self.sessions.pop(message.session_id, None)
                self._owner.message(self, message)

    def _on_report(self, report: Report) -> None:
        gathered = self._gathered.get(report.request_id)
        held = self.sessions if gathered is None else gathered
        held.update((one.session_id, one) for one in report.sessions)
        if not report.is_last:
            return
        self.latest = report
        self.unanswered = 0
        self._owner.answered()
        if gathered is not None:
            self.sessions = gathered
        answer = self._answers.get(report.request_id)
        if answer is not None and not answer.done():
            answer.set_result(None)

    def _on_lost(self, reason: str) -> None:
        if self._popen.poll() is None:
            logger.debug(
                "worker %(worker)d, pid %(pid)d: %(reason)s",
                {
                    "event": "worker_channel_lost",
                    "worker": self.index,
                    "pid": self.pid,
                    "reason": reason,
                },
            )
        # Whatever it still does, nobody could tell it to stop.
        self.kill()

    def _on_exit(self) -> None:
        status = self._popen.wait()
        self._loop.remove_reader(self._exit_fd)
        os.close(self._exit_fd)
        self._channel.close()
        self.ready.cancel()
        for answer in list(self._answers.values()):
            answer.cancel()
        for pinged in list(self._pings.values()):
            pinged.cancel()
        self._owner.exited(self, status)
