"""What is wrong with a file, said in one line: ``FILE:LINE: key.path: expected X, got Y``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

KeyPath = tuple[str | int, ...]
"""Where a value stands: keys of mappings and positions in lists, from the top of the file."""

_PLAIN_KEY = re.compile(r"[\w-]+\Z")
_MAX_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong.

    :ivar file: the file's name as the user gave it.
    :ivar line: line number from 1; ``None`` where no line can be named (the file is missing).
    :ivar path: where in the file; empty for the file as a whole.
    :ivar text: what was expected and what was found.
    """

    file: str
    line: int | None
    path: KeyPath
    text: str

    def __str__(self) -> str:
        place = _one_line(self.file) if self.line is None else f"{_one_line(self.file)}:{self.line}"
        return (
            f"{place}: {format_key_path(self.path)}: {self.text}"
            if self.path
            else (f"{place}: {self.text}")
        )


class ConfigError(Exception):
    """A file that cannot be used. ``str()`` is one line; ``mistakes`` holds every mistake found."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        if not self.mistakes:
            raise ValueError("an error needs at least one mistake")
        super().__init__(self.mistakes)

    def __str__(self) -> str:
        """Return the first mistake, and how many more there are."""
        more = len(self.mistakes) - 1
        noun = "mistake" if more == 1 else "mistakes"
        return f"{self.mistakes[0]} (and {more} more {noun})" if more else str(self.mistakes[0])

    @property
    def lines(self) -> tuple[str, ...]:
        """One line for every mistake, in the order of the file."""
        return tuple(str(mistake) for mistake in self.mistakes)


def format_key_path(path: KeyPath) -> str:
    """``clients.alice.rules[0].ports``; keys with other characters than words' are quoted."""
    parts = (f"[{key}]" if isinstance(key, int) else f".{_format_key(key)}" for key in path)
    return "".join(parts).removeprefix(".")


def show(value: object) -> str:
    """``value`` as a message shows it: short, printable, in one line."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case str():
            return quote(value)
        case int() | float():
            return str(value)
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list" if value else "an empty list"
        case _:
            return f"a value of type {type(value).__name__}"


def quote(text: str) -> str:
    """``text`` in double quotes, cut to a length that fits a terminal, nothing unprintable left."""
    if len(text) > _MAX_SHOWN_CHARACTERS:
        text = f"{text[:_MAX_SHOWN_CHARACTERS]}..."
    quoted = json.dumps(text, ensure_ascii=False)
    return quoted if quoted.isprintable() else json.dumps(text)


def _format_key(key: str) -> str:
    return key if _PLAIN_KEY.match(key) and len(key) <= _MAX_SHOWN_CHARACTERS else quote(key)


def _one_line(file: str) -> str:
    return file if file.isprintable() else json.dumps(file)
