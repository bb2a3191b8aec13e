"""A terminal that is drawn on: taken, painted, given back as it was, whatever happens.

Only lines that have changed are written, all of them in one write, between the marks of a
synchronized update where the terminal knows those: nothing flickers, and ssh carries little.
"""

from __future__ import annotations

import os
import shutil
import sys
import termios
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

#: Alternate screen, no cursor, no wrapping at the margin; and back.
_TAKE = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
_GIVE_BACK = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
#: DECRQM: does it know synchronized updates?
_ASK_SYNCHRONIZED = "\x1b[?2026$p"
_BEGIN_UPDATE, _END_UPDATE = "\x1b[?2026h", "\x1b[?2026l"
#: These would show the question.
_PLAIN_TERMINALS = ("linux", "vt", "dumb", "ansi")
_NO_ECHO_NO_LINES = ~(termios.ECHO | termios.ICANON)


class Terminal:
    """The terminal behind two descriptors.

    :ivar is_synchronized: whether it knows synchronized updates.
    """

    def __init__(self, input_fd: int, output_fd: int) -> None:
        self.input_fd = input_fd
        self._output_fd = output_fd
        self._saved: list[int | list[bytes | int]] | None = None
        self._painted: list[str] = []
        self._console = Console(
            file=sys.stdout,
            force_terminal=True,
            width=10_000,
            markup=False,
            highlight=False,
            emoji=False,
        )
        self.is_synchronized = False

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        try:
            size = os.get_terminal_size(self._output_fd)
        except OSError:
            return shutil.get_terminal_size()
        return (size.columns or 80, size.lines or 24)  # a serial line says 0

    def take(self) -> None:
        """Begin to draw; keys come one by one, and Ctrl-C is still a signal."""
        self._saved = termios.tcgetattr(self.input_fd)
        mode = termios.tcgetattr(self.input_fd)
        assert isinstance(mode[3], int)
        mode[3] &= _NO_ECHO_NO_LINES
        termios.tcsetattr(self.input_fd, termios.TCSANOW, mode)
        plain = os.environ.get("TERM", "dumb").startswith(_PLAIN_TERMINALS)
        self._write(_TAKE + ("" if plain else _ASK_SYNCHRONIZED))
        self.forget()

    def give_back(self) -> None:
        """End drawing: the terminal is as it was before. Twice is no error."""
        saved, self._saved = self._saved, None
        if saved is None:
            return
        try:
            self._write(_GIVE_BACK)
        finally:
            # What it has answered and nobody has read is not for the shell.
            termios.tcflush(self.input_fd, termios.TCIFLUSH)
            termios.tcsetattr(self.input_fd, termios.TCSANOW, saved)

    def forget(self) -> None:
        """Whatever is on the screen: paint all of it the next time."""
        self._painted = []

    def paint(self, lines: Sequence[Text], width: int) -> None:
        """Let the screen show these lines."""
        wanted = [self._encode(line, width) for line in lines]
        parts = [] if self._painted else ["\x1b[2J"]
        for number, text in enumerate(wanted):
            if number >= len(self._painted) or self._painted[number] != text:
                parts.append(f"\x1b[{number + 1};1H{text}")
        self._painted = wanted
        if not parts:
            return
        if self.is_synchronized:
            parts = [_BEGIN_UPDATE, *parts, _END_UPDATE]
        self._write("".join(parts))

    def _encode(self, line: Text, width: int) -> str:
        with self._console.capture() as captured:
            self._console.print(line, end="", soft_wrap=True)
        rest = "\x1b[0m\x1b[K" if line.cell_len < width else "\x1b[0m"
        return captured.get() + rest

    def _write(self, text: str) -> None:
        data = text.encode(sys.stdout.encoding or "ascii", "replace")
        while data:
            data = data[os.write(self._output_fd, data) :]
