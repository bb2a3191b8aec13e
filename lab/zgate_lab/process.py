"""Processes that run in a namespace: started, watched, stopped."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from zgate_lab.errors import LabTimeout, ProcessExited
from zgate_lab.namespace import command_in
from zgate_lab.ownership import ProcessIdentity, Run
from zgate_lab.waiting import SLOWNESS, wait_until

Value = TypeVar("Value")

STOP_TIMEOUT_S = 10.0
LOG_TAIL_CHARACTERS = 3000


class Process:
    """A process in a namespace, with everything that it prints in a log file.

    It leads a session of its own, so a Ctrl-C at the terminal reaches it only through its owner.
    """

    def __init__(
        self,
        run: Run,
        namespace: str,
        name: str,
        argv: Sequence[str | Path],
        *,
        log_path: Path,
        environment: Mapping[str, str] | None = None,
    ):
        self.name = name
        self.namespace = namespace
        self.argv = tuple(map(str, argv))
        self.log_path = log_path
        self._run = run
        with log_path.open("ab") as log:
            # A restarted process goes on in its predecessor's file, but has not printed that.
            self._log_start_bytes = log.tell()
            self._popen = subprocess.Popen(
                command_in(namespace, argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            )
        self._identity = self._remember()

    @property
    def pid(self) -> int:
        """The process ID, which is the program's own."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit code; None while it runs, minus the signal's number when one killed it."""
        return self._popen.poll()

    def is_running(self) -> bool:
        """Tell whether it has not ended yet."""
        return self.returncode is None

    def output(self) -> str:
        """Everything that it has printed so far, both streams."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start_bytes)
            return log.read().decode(errors="replace")

    def wait_for(
        self, condition: Callable[[], Value], timeout_s: float, what: str = "a condition"
    ) -> Value:
        """Wait for a condition that needs this process alive, and return its true value.

        Raises ProcessExited as soon as the process ends, LabTimeout after `timeout_s`; both with
        the end of its log.
        """

        def alive_and_true() -> Value:
            value = condition()
            if not value and not self.is_running():
                raise ProcessExited(
                    f"{self.name} ended with {self.returncode} before {what}{self._tail()}"
                )
            return value

        try:
            return wait_until(alive_and_true, timeout_s, what)
        except LabTimeout as error:
            raise LabTimeout(f"{self.name}: {error}{self._tail()}") from None

    def wait_for_output(self, pattern: str, timeout_s: float) -> re.Match[str]:
        """Wait until the regular expression is found in what it has printed."""
        compiled = re.compile(pattern, re.MULTILINE)
        found = self.wait_for(
            lambda: compiled.search(self.output()), timeout_s, f"{pattern!r} in its log"
        )
        assert found is not None
        return found

    def wait(self, timeout_s: float) -> int:
        """Wait until it ends by itself; return its exit code."""
        timeout_s *= SLOWNESS
        try:
            code = self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise LabTimeout(
                f"{self.name} still runs after {timeout_s:g} s{self._tail()}"
            ) from None
        self._forget()
        return code

    def signal(self, signal_number: int) -> None:
        """Send a signal to it, if it still runs."""
        self._popen.send_signal(signal_number)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Ask it to end (SIGTERM), insist after `timeout_s` (SIGKILL); return its exit code."""
        self._popen.terminate()
        try:
            return self.wait(timeout_s)
        except LabTimeout:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL it and the children in its session; return its exit code."""
        if self.is_running():
            # Not reaped yet, so the number still belongs to it and to its group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        return self.wait(STOP_TIMEOUT_S)

    def _remember(self) -> ProcessIdentity | None:
        try:
            identity = ProcessIdentity.of(self.pid)
        except ProcessLookupError:
            return None  # it has ended already
        self._run.add_process(identity)
        return identity

    def _forget(self) -> None:
        if self._identity is not None:
            self._run.forget_process(self._identity)
            self._identity = None

    def _tail(self) -> str:
        text = self.output()[-LOG_TAIL_CHARACTERS:].strip()
        return f"\n--- {self.log_path}:\n{text}" if text else " (it printed nothing)"
