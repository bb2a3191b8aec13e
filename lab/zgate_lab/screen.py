"""A program on a real pseudo-terminal, and what a person would see there (pyte)."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyte

WAIT_S = 20.0
#: Written before the program starts, and there again when it has ended.
SHELL_LINE = "what was there before"


class Screen:
    """A program, its terminal, and the other end of that terminal.

    :ivar written: everything that it wrote, as bytes.
    """

    def __init__(self, *argv: str | Path, width: int = 80, height: int = 24, **environment: str):
        self.master, self.slave = pty.openpty()
        self._set_size(width, height)
        self.before = termios.tcgetattr(self.slave)
        self.display = _AlternateScreen(width, height)
        self._stream = pyte.ByteStream(self.display)
        self.written = b""
        os.write(self.slave, SHELL_LINE.encode() + b"\r\n")
        self.process = subprocess.Popen(
            # Its own session, and this terminal is the one that Ctrl-C comes from.
            ["setsid", "--ctty", *map(str, argv)],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=_environment(environment),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_S)
        os.close(self.slave)
        os.close(self.master)

    @property
    def text(self) -> str:
        """The lines that are on the screen now."""
        return "\n".join(line.rstrip() for line in self.display.display)

    def resize(self, width: int, height: int) -> None:
        """As when somebody pulls at a window's corner."""
        self.display.resize(height, width)
        self._set_size(width, height)

    def _set_size(self, width: int, height: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self.master, keys.encode())

    def read(self, timeout_s: float = 0.05) -> None:
        """Take in what the program has written so far."""
        while select.select([self.master], [], [], timeout_s)[0]:
            data = os.read(self.master, 65536)
            self.written += data
            self._stream.feed(data)
            timeout_s = 0.0

    def wait_for(self, condition: str | Callable[[], Any], timeout_s: float = WAIT_S) -> None:
        """Until a text is on the screen, or something is true."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.read()
            if condition in self.text if isinstance(condition, str) else condition():
                return
        raise AssertionError(f"{condition!r} did not come; on the screen:\n{self.text}")

    def wait_ended(self) -> int:
        """Until the program has ended; its exit status."""
        self.wait_for(lambda: self.process.poll() is not None)
        self.read(0.2)
        return self.process.returncode

    def is_stopped(self) -> bool:
        """Whether it is stopped, as by Ctrl-Z."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program."""
        self.process.send_signal(number)

    def assert_clean(self) -> None:
        """The terminal is as it was: its modes, its cursor, what was on it."""
        now = termios.tcgetattr(self.slave)
        assert now == self.before
        assert self.text.strip() == SHELL_LINE
        assert not self.display.is_alternate
        assert not self.display.cursor.hidden
        assert pyte.modes.DECAWM in self.display.mode
        assert self.display.cursor.attrs == pyte.screens.Char(" ")


class _AlternateScreen(pyte.Screen):  # type: ignore[misc]  # pyte has no types
    """pyte does not know the alternate screen (xterm's mode 1049)."""

    is_alternate = False

    def set_mode(self, *modes: int, **options: Any) -> None:
        if 1049 in modes and options.get("private") and not self.is_alternate:
            self.is_alternate = True
            self._kept = {number: dict(line) for number, line in self.buffer.items()}
            self._kept_cursor = self.cursor.x, self.cursor.y
        super().set_mode(*modes, **options)

    def reset_mode(self, *modes: int, **options: Any) -> None:
        if 1049 in modes and options.get("private") and self.is_alternate:
            self.is_alternate = False
            self.erase_in_display(2)
            for number, line in self._kept.items():
                self.buffer[number].update(line)
            self.cursor.x, self.cursor.y = self._kept_cursor
        super().reset_mode(*modes, **options)


def _environment(changes: Mapping[str, str]) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return kept | {"TERM": "xterm-256color", "LANG": "C.UTF-8", "PYTHONUTF8": "1"} | dict(changes)


def zgatectl(*arguments: str | Path) -> list[str | Path]:
    """The command line that runs zgatectl with this interpreter."""
    return [sys.executable, "-m", "zgate_cli.main", *arguments]
