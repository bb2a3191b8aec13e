"""What a terminal sends, as names of keys. Sans-IO."""

from __future__ import annotations

import codecs
import re

ESCAPE = "\x1b"
#: Final parts of the sequences that terminals send, whatever mode their cursor keys are in.
_NAMES = {
    "[A": "up", "OA": "up",
    "[B": "down", "OB": "down",
    "[C": "right", "OC": "right",
    "[D": "left", "OD": "left",
    "[H": "home", "OH": "home", "[1~": "home", "[7~": "home",
    "[F": "end", "OF": "end", "[4~": "end", "[8~": "end",
    "[5~": "pgup", "[6~": "pgdn", "[3~": "delete",
}  # fmt: skip
_SINGLE = {
    "\r": "enter", "\n": "enter", "\t": "tab", "\x7f": "backspace", "\x08": "backspace",
    "\x0c": "redraw", "\x15": "clear", "\x04": "eof",
}  # fmt: skip
#: ECMA-48 section 5.4: parameters, intermediates, a final byte. Or SS3 and one letter.
_SEQUENCE = re.compile(r"\[[0-?]*[ -/]*[@-~]|O[A-Za-z]")
_UNFINISHED = re.compile(r"(\[[0-?]*[ -/]*|O)?")
_MODE_REPORT = re.compile(r"\[\?2026;([0-4])\$y")
#: A sequence that is longer is none: noise must not be collected for ever.
_MAX_SEQUENCE = 32


class KeyReader:
    """Bytes in, keys out; a sequence may come in several pieces.

    :ivar has_synchronized_updates: what the terminal has answered to the question for its
        mode 2026; None: nothing yet.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting = ""
        self.has_synchronized_updates: bool | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether an escape has come, of which it is not clear yet whether it is the key."""
        return bool(self._waiting)

    def feed(self, data: bytes) -> list[str]:
        """The keys in these bytes; a character stands for itself."""
        text = self._waiting + self._decoder.decode(data)
        self._waiting = ""
        keys = []
        while text:
            if text[0] != ESCAPE:
                keys += self._plain(text[0])
                text = text[1:]
                continue
            found = _SEQUENCE.match(text, 1)
            if found:
                keys += self._sequence(found[0])
                text = text[1 + len(found[0]) :]
            elif _UNFINISHED.fullmatch(text, 1) and len(text) <= _MAX_SEQUENCE:
                self._waiting, text = text, ""
            else:  # the key, and something after it
                keys.append("esc")
                text = text[1:]
        return keys

    def flush(self) -> list[str]:
        """Nothing has followed for a while: the escape was the key."""
        waited, self._waiting = self._waiting, ""
        return ["esc"] if waited else []

    def _sequence(self, text: str) -> list[str]:
        report = _MODE_REPORT.fullmatch(text)
        if report:
            # 1 and 2: it can be set and reset; 0: not known; 3, 4: fixed.
            self.has_synchronized_updates = report[1] in "12"
            return []
        name = _NAMES.get(text)
        return [name] if name else []

    @staticmethod
    def _plain(character: str) -> list[str]:
        if character in _SINGLE:
            return [_SINGLE[character]]
        return [character] if character.isprintable() else []
