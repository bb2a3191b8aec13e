"""``zgatectl drain`` without a connector: the gateway's own clients go elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Protocol

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from zgate_gateway.api import schemas

from .client import GatewayClient
from .errors import CommandError
from .options import Invocation
from .output import console, print_json

DEFAULT_DEADLINE_S = 30.0
_POLL_S = 0.5


def drain_gateway(
    invocation: Invocation, *, undo: bool, deadline_s: float | None, waits: bool
) -> None:
    """Drain, or undo it; with `waits`, until no session is left or the deadline is over.

    Raises:
        CommandError: sessions were left at the deadline, Ctrl-C ended the waiting before that, or
            the drain is over.
    """
    request = schemas.GatewayDrainRequest(
        undo=undo, deadline_s=DEFAULT_DEADLINE_S if deadline_s is None else deadline_s
    )
    with GatewayClient(invocation.socket_path) as gateway:
        answer = gateway.drain_gateway(request)
        if answer.drain is not None and waits:
            with waiting("zgatectl drain --undo"):
                answer = _wait(gateway, answer, is_quiet=invocation.as_json)
        if invocation.as_json:
            print_json(answer)
    if not invocation.as_json:
        click.echo(_told(answer.drain))
    closed = answer.drain.closed_sessions if answer.drain is not None else 0
    if closed:
        raise CommandError(
            f"the deadline is over: {_sessions(closed)} had to be closed",
            "their clients come back to this gateway, or know another one in `gateways`",
        )


@contextmanager
def waiting(undo: str) -> Iterator[None]:
    """Ctrl-C ends the waiting, and not with 0: ``zgatectl drain && systemctl stop`` must not go on.

    Raises:
        CommandError: it was pressed.
    """
    try:
        yield
    except KeyboardInterrupt:
        cause = "interrupted: it stays drained, and not all have gone"
        raise CommandError(cause, f"{undo} takes it back") from None


def _told(drain: schemas.GatewayDrainState | None) -> str:
    if drain is None:
        return "The gateway takes sessions again."
    if drain.sessions_left:
        return f"The gateway is draining; {_sessions(drain.sessions_left)} left."
    return "The gateway is drained: no session is left."


def _sessions(count: int) -> str:
    return f"{count} session{'s' if count != 1 else ''}"


def _wait(
    gateway: GatewayClient, answer: schemas.GatewayDrain, *, is_quiet: bool
) -> schemas.GatewayDrain:
    drain = answer.drain
    assert drain is not None
    with _progress(drain.sessions_left, is_quiet=is_quiet) as shown:
        while drain.sessions_left and not drain.is_over:
            shown.update(drain)
            time.sleep(_POLL_S)
            found = gateway.status().drain
            if found is None:
                raise CommandError(
                    "the gateway is drained no more",
                    "somebody has undone it, or started the gateway anew",
                )
            drain = found
        shown.update(drain)
    return schemas.GatewayDrain(drain=drain)


class _Shown(Protocol):
    def update(self, drain: schemas.GatewayDrainState) -> None:
        """Show how it goes."""


class _Nothing:
    def update(self, drain: schemas.GatewayDrainState) -> None:
        """Nobody looks."""


class _Lines:
    """Where there is no terminal: a line when something has changed."""

    def __init__(self) -> None:
        self._last = -1

    def update(self, drain: schemas.GatewayDrainState) -> None:
        if drain.sessions_left != self._last:
            self._last = drain.sessions_left
            click.echo(f"{_sessions(self._last)} left")


class _Bar:
    def __init__(self, progress: Progress, sessions: int) -> None:
        self._progress = progress
        self._sessions = sessions
        self._task = progress.add_task("draining", total=max(1, sessions))

    def update(self, drain: schemas.GatewayDrainState) -> None:
        left_s = max(0.0, (drain.deadline_at - datetime.now(UTC)).total_seconds())
        text = f"draining, {_sessions(drain.sessions_left)} left, at most {left_s:.0f} s"
        self._progress.update(
            self._task, completed=self._sessions - drain.sessions_left, description=text
        )


@contextmanager
def _progress(sessions: int, *, is_quiet: bool) -> Iterator[_Shown]:
    out = console()
    if is_quiet:
        yield _Nothing()
    elif not out.is_terminal:
        yield _Lines()
    else:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        with Progress(*columns, console=out, transient=True) as progress:
            yield _Bar(progress, sessions)
