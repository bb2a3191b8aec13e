"""The gateway asked from a thread of its own, so that one that hangs stops no key."""

from __future__ import annotations

import os
import queue
import threading
from pathlib import Path

import httpx
from zgate_gateway.api import schemas

from zgate_cli.client import GatewayClient
from zgate_cli.errors import CommandError
from zgate_cli.top.state import (
    Answered,
    Ask,
    AskFlows,
    Event,
    Failed,
    FlowsAnswered,
    Kick,
    Kicked,
)

_TIMEOUT = httpx.Timeout(10.0, connect=3.0)
_REASON = "kicked from zgatectl top"


class Asker:
    """Questions in, events out. `wake_fd` gets a byte for each event.

    The thread is a daemon: a question that is under way at the end keeps nobody waiting.
    """

    def __init__(self, socket_path: Path, wake_fd: int) -> None:
        self._socket_path = socket_path
        self._wake_fd = wake_fd
        self._questions: queue.SimpleQueue[Ask | AskFlows | Kick] = queue.SimpleQueue()
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="asker", daemon=True).start()

    def ask(self, question: Ask | AskFlows | Kick) -> None:
        """Have it asked; the answer comes among `events`."""
        self._questions.put(question)

    def _work(self) -> None:
        with GatewayClient(self._socket_path, timeout=_TIMEOUT) as gateway:
            while True:
                self.events.put(answer(gateway, self._questions.get()))
                os.write(self._wake_fd, b"\0")


def answer(gateway: GatewayClient, question: Ask | AskFlows | Kick) -> Event:
    """Ask, and say what came of it; never raises, for nobody would ask any more."""
    try:
        match question:
            case Ask(query):
                return Answered(query, gateway.status(), gateway.sessions(query))
            case AskFlows(client, limit):
                wanted = schemas.FlowQuery(client=client, limit=limit)
                return FlowsAnswered(client, gateway.flows(wanted))
            case Kick(client):
                kicked = gateway.kick(client, schemas.KickRequest(reason=_REASON))
                return Kicked(f"closed {kicked.sessions_closed} session of {client}", is_done=True)
    except Exception as error:
        text = error.message if isinstance(error, CommandError) else repr(error)
        if isinstance(question, Kick):
            return Kicked(f"not kicked: {text}", is_done=False)
        return Failed(text)
