"""The loop of ``zgatectl top``: signals, keys and answers to the state, the view to the screen."""

from __future__ import annotations

import os
import queue
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from zgate_cli.top.asker import Asker
from zgate_cli.top.history import ASCII_BLOCKS, BLOCKS
from zgate_cli.top.keys import KeyReader
from zgate_cli.top.state import (
    Ask,
    AskFlows,
    Command,
    Event,
    Key,
    Kick,
    Quit,
    Redraw,
    Resized,
    State,
    Tick,
)
from zgate_cli.top.terminal import Terminal
from zgate_cli.top.view import clock_now, lines_of

_SIGNALS = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGWINCH, signal.SIGTSTP,
    signal.SIGCONT,
)  # fmt: skip
#: After this long nothing follows an escape any more, unless the line is very slow.
_ESCAPE_WAIT_S = 0.1
_ENDS_WITH = 128  # as shells count what a signal ended


@contextmanager
def _signals_to(wake_fd: int) -> Iterator[None]:
    """Write the numbers of signals to a pipe; afterwards all is as before."""

    def noted(_number: int, _frame: FrameType | None) -> None:
        """Python writes the number by itself, if there is a handler."""

    before = {one: signal.signal(one, noted) for one in _SIGNALS}
    wake_before = signal.set_wakeup_fd(wake_fd, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wake_before)
        for number, handler in before.items():
            signal.signal(number, handler)


def run(socket_path: Path, state: State, *, input_fd: int, output_fd: int) -> int:
    """Show the gateway until somebody quits; the exit code."""
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    terminal = Terminal(input_fd, output_fd)
    try:
        with _signals_to(wake_write):
            terminal.take()
            try:
                return _Driver(terminal, Asker(socket_path, wake_write), state, wake_read).run()
            finally:
                terminal.give_back()
    except OSError:
        return 1  # the terminal has gone
    # The pipe stays open: the thread may still write to it.


class _Driver:
    def __init__(self, terminal: Terminal, asker: Asker, state: State, wake_fd: int) -> None:
        self._terminal = terminal
        self._asker = asker
        self._state = state
        self._wake_fd = wake_fd
        self._keys = KeyReader()
        self._exit_code: int | None = None
        # Whoever set another encoding sees other blocks than boxes with question marks.
        self._blocks = BLOCKS if _is_unicode() else ASCII_BLOCKS

    def run(self) -> int:
        """The loop."""
        self._handle(Resized(*self._terminal.size))
        while self._exit_code is None:
            self._paint()
            ready = self._wait()
            if self._terminal.input_fd in ready:
                self._read_keys()
            elif self._keys.is_waiting:
                self._press(self._keys.flush())
            if self._wake_fd in ready:
                self._wake()
            self._handle(Tick())
        return self._exit_code

    def _wait(self) -> Sequence[int]:
        wake_at = self._state.wake_at()
        # The clock in the title goes on, whatever happens.
        timeout_s = 1.0 if wake_at is None else min(1.0, max(0.0, wake_at - time.monotonic()))
        if self._keys.is_waiting:
            timeout_s = min(timeout_s, _ESCAPE_WAIT_S)
        ready, _, _ = select.select([self._terminal.input_fd, self._wake_fd], [], [], timeout_s)
        return ready

    def _read_keys(self) -> None:
        data = os.read(self._terminal.input_fd, 1024)
        if not data:
            self._exit_code = 1
            return
        self._press(self._keys.feed(data))
        self._terminal.is_synchronized = self._keys.has_synchronized_updates is True

    def _press(self, keys: Sequence[str]) -> None:
        for name in keys:
            self._handle(Key(name))

    def _wake(self) -> None:
        for number in os.read(self._wake_fd, 4096):
            if number:
                self._signal(signal.Signals(number))
        while True:
            try:
                self._handle(self._asker.events.get_nowait())
            except queue.Empty:
                return

    def _signal(self, number: signal.Signals) -> None:
        match number:
            case signal.SIGWINCH:
                self._handle(Resized(*self._terminal.size))
            case signal.SIGTSTP:
                self._terminal.give_back()
                os.kill(os.getpid(), signal.SIGSTOP)
                self._terminal.take()
            case signal.SIGCONT:
                # Whoever stopped us otherwise may have left the terminal in another state.
                self._terminal.give_back()
                self._terminal.take()
                self._handle(Resized(*self._terminal.size))
            case signal.SIGINT:
                self._exit_code = 0
            case _:
                self._exit_code = _ENDS_WITH + number

    def _handle(self, event: Event) -> None:
        for command in self._state.handle(event, time.monotonic()):
            self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        match command:
            case Ask() | AskFlows() | Kick():
                self._asker.ask(command)
            case Redraw():
                self._terminal.forget()
            case Quit():
                self._exit_code = 0

    def _paint(self) -> None:
        state = self._state
        lines = lines_of(state, time.monotonic(), clock=clock_now(), blocks=self._blocks)
        self._terminal.paint(lines, state.width)


def _is_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
