"""YAML text to plain values, with the line on which every value stands.

PyYAML's parser gives events; this module builds the values from them itself. That gives line
numbers, finds keys that are given twice, keeps nesting and size bounded, and reads plain scalars as
YAML 1.2's core schema does and not as YAML 1.1 does, where ``no`` is false, ``010`` is eight and
``22:30`` is 1350.

Left out on purpose: tags (nothing here needs them), merge keys (``<<``), several documents in one
file. Anchors and aliases work; what they expand to is bounded.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import yaml
from yaml import events

from zgate_config.errors import ConfigError, KeyPath, Mistake, quote

MAX_FILE_BYTES = 64 * 1024 * 1024
"""Larger files are refused before they are parsed."""
MAX_NESTING = 32
"""Mappings and lists inside one another."""
MAX_VALUES = 8_000_000
"""Values in one file, those counted again that an alias repeats."""
_MAX_INTEGER_DIGITS = 18

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)\Z")
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?\Z")
_WORDS: dict[str, bool | None] = {"": None, "~": None}
_WORDS |= dict.fromkeys(("null", "Null", "NULL"))
_WORDS |= dict.fromkeys(("true", "True", "TRUE"), True)
_WORDS |= dict.fromkeys(("false", "False", "FALSE"), False)
#: JSON writes characters beyond U+FFFF as two escapes; YAML has one escape of eight digits.
_SURROGATE_PAIR = re.compile(
    r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})"
)
_Loader: type[yaml.SafeLoader | yaml.CSafeLoader] = (
    yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
)

ScalarValue = str | int | float | bool | None


@dataclass(slots=True)
class _Scalar:
    value: ScalarValue
    line: int
    size: int = 1


@dataclass(slots=True)
class _Sequence:
    line: int
    items: list[_Node] = field(default_factory=list)
    size: int = 1
    anchor: str | None = None


@dataclass(slots=True)
class _Mapping:
    line: int
    items: dict[str, _Node] = field(default_factory=dict)
    key_lines: dict[str, int] = field(default_factory=dict)
    size: int = 1
    anchor: str | None = None
    pending_key: str | None = None


_Node = _Scalar | _Sequence | _Mapping


class Document:
    """A file that is well-formed: its values and where they stand.

    :ivar name: the file's name, as messages give it.
    :ivar sha256: of the file's bytes, in hexadecimal.
    """

    def __init__(self, name: str, sha256: str, root: _Node) -> None:
        self.name = name
        self.sha256 = sha256
        self._root = root

    @property
    def value(self) -> object:
        """The values as dicts, lists and scalars. A new copy for each call."""
        return _plain(self._root)

    def line_of(self, path: KeyPath) -> int:
        """Return the line of the value at ``path``, or of what is nearest to it from the top."""
        return self._walk(path)[1]

    def value_at(self, path: KeyPath) -> object:
        """Return the value at ``path``; ``None`` if there is none."""
        node, _, found = self._walk(path)
        return _plain(node) if found else None

    def mistake(self, path: KeyPath, text: str) -> Mistake:
        """Return a mistake at ``path``, with its file and line."""
        return Mistake(self.name, self.line_of(path), path, text)

    def _walk(self, path: KeyPath) -> tuple[_Node, int, bool]:
        """Go down ``path`` as far as it exists: the node, its line, whether the path ended."""
        node, line = self._root, self._root.line
        for key in path:
            if isinstance(node, _Mapping) and isinstance(key, str) and key in node.items:
                line, node = node.key_lines[key], node.items[key]
            elif isinstance(node, _Sequence) and isinstance(key, int) and key < len(node.items):
                node = node.items[key]
                line = node.line
            else:
                return node, line, False
        return node, line, True


def read_document(path: Path) -> Document:
    """Read a file. Raises :class:`ConfigError` if it cannot be read or is not well-formed."""
    return parse_document(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """Return a file's content, to be parsed. Raises :class:`ConfigError` if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(
            [Mistake(str(path), None, (), f"expected a readable file, got: {reason}")]
        ) from error


def parse_document(data: bytes | str, name: str) -> Document:
    """Parse the contents of a file called ``name``. Raises :class:`ConfigError`."""
    text, sha256 = _decode(data, name)
    parser = _Parser(text, name)
    try:
        return Document(name, sha256, parser.parse())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "something else"
        line = mark.line + 1 if mark is not None else None
        parser.refuse(f"expected valid YAML, got: {problem}", line)
    except yaml.reader.ReaderError as error:
        position = error.position
        line = text.encode()[:position].count(b"\n") + 1
        parser.refuse(f"expected printable text, got: {error.reason}", line)
    except yaml.YAMLError as error:
        parser.refuse(f"expected valid YAML, got: {quote(str(error))}", None)


def _decode(data: bytes | str, name: str) -> tuple[str, str]:
    try:
        raw = data.encode() if isinstance(data, str) else data
        if len(raw) > MAX_FILE_BYTES:
            text = f"expected at most {MAX_FILE_BYTES} bytes, got more"
            raise ConfigError([Mistake(name, None, (), text)])
        text = raw.decode("utf-8-sig")
    except UnicodeEncodeError as error:
        mistake = Mistake(name, None, (), f"expected Unicode text, got: {error.reason}")
        raise ConfigError([mistake]) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        mistake = Mistake(name, line, (), f"expected UTF-8 text, got: {error.reason}")
        raise ConfigError([mistake]) from error
    if text.lstrip().startswith("{"):
        text = _SURROGATE_PAIR.sub(_join_surrogates, text)
    return text, hashlib.sha256(raw).hexdigest()


def _join_surrogates(match: re.Match[str]) -> str:
    high, low = int(match[2], 16), int(match[3], 16)
    return f"{match[1]}\\U{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):08x}"


class _Parser:
    """Builds the tree of one document, with a stack of its own instead of recursion."""

    def __init__(self, text: str, name: str) -> None:
        self._text = text
        self._name = name
        self._anchors: dict[str, _Node] = {}
        self._stack: list[_Sequence | _Mapping] = []
        self._root: _Node | None = None
        self._values = 0

    def refuse(self, text: str, line: int | None) -> NoReturn:
        raise ConfigError([Mistake(self._name, line, self._path(), text)]) from None

    def parse(self) -> _Node:
        for event in self._events():
            line = _line(event)
            if isinstance(event, events.ScalarEvent):
                self._scalar(event, line)
            elif isinstance(event, events.AliasEvent):
                self._alias(event, line)
            elif isinstance(event, events.CollectionStartEvent):
                self._begin(event, line)
            elif isinstance(event, events.CollectionEndEvent):
                node = self._stack.pop()
                self._add(node, node.anchor, node.line)
            elif isinstance(event, events.DocumentStartEvent) and self._root is not None:
                self.refuse("expected one document, got a second one", line)
        return self._root or _Scalar(None, 1)

    def _events(self) -> Iterator[events.Event]:
        parsed: Iterator[events.Event] = yaml.parse(self._text, Loader=_Loader)
        return parsed

    def _path(self) -> KeyPath:
        """Where the parser is: the key or the position that each open collection waits for."""
        keys = (
            len(node.items) if isinstance(node, _Sequence) else node.pending_key
            for node in self._stack
        )
        return tuple(key for key in keys if key is not None)

    def _begin(self, event: events.CollectionStartEvent, line: int) -> None:
        self._check_tag(event.tag, line)
        self._refuse_key(line, "a collection")
        if len(self._stack) >= MAX_NESTING:
            self.refuse(f"expected at most {MAX_NESTING} levels, got more", line)
        is_mapping = isinstance(event, events.MappingStartEvent)
        node = _Mapping(line) if is_mapping else _Sequence(line)
        node.anchor = event.anchor
        self._stack.append(node)

    def _scalar(self, event: events.ScalarEvent, line: int) -> None:
        self._check_tag(event.tag, line)
        plain = not event.style
        parent = self._stack[-1] if self._stack else None
        if isinstance(parent, _Mapping) and parent.pending_key is None:
            if plain and event.value == "<<":
                self.refuse('expected a key, got the merge key "<<", which is not supported', line)
            self._key(parent, event.value, line)
            return
        value = self._resolve(event.value, line) if plain else event.value
        self._add(_Scalar(value, line), event.anchor, line)

    def _key(self, parent: _Mapping, key: str, line: int) -> None:
        if key in parent.items:
            first = parent.key_lines[key]
            parent.pending_key = key
            self.refuse(f"expected each key once, got it again (first in line {first})", line)
        parent.pending_key = key
        parent.key_lines[key] = line

    def _alias(self, event: events.AliasEvent, line: int) -> None:
        self._refuse_key(line, "an alias")
        anchor = event.anchor or ""
        node = self._anchors.get(anchor)
        if node is None:
            self.refuse(f"expected a value anchored before, got the alias {quote(anchor)}", line)
        self._values += node.size - 1
        self._add(node, None, line)

    def _add(self, node: _Node, anchor: str | None, line: int) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            self.refuse(f"expected at most {MAX_VALUES} values, got more", line)
        if anchor is not None:
            self._anchors[anchor] = node
        if not self._stack:
            self._root = node
            return
        parent = self._stack[-1]
        parent.size += node.size
        if isinstance(parent, _Sequence):
            parent.items.append(node)
        elif parent.pending_key is not None:
            parent.items[parent.pending_key] = node
            parent.pending_key = None

    def _refuse_key(self, line: int, what: str) -> None:
        parent = self._stack[-1] if self._stack else None
        if isinstance(parent, _Mapping) and parent.pending_key is None:
            self.refuse(f"expected text as a key, got {what}", line)

    def _check_tag(self, tag: str | None, line: int) -> None:
        if tag is not None:
            self.refuse(f"expected no tag, got {quote(tag)}", line)

    def _resolve(self, text: str, line: int) -> ScalarValue:
        """Read a plain scalar: null, a truth value, a number as JSON writes it, else text."""
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.match(text):
            if len(text.lstrip("+-")) > _MAX_INTEGER_DIGITS:
                self.refuse(f"expected at most {_MAX_INTEGER_DIGITS} digits, got more", line)
            return int(text)
        if _DECIMAL.match(text):
            number = float(text)
            if not math.isfinite(number):
                self.refuse(f"expected a number in range, got {quote(text)}", line)
            return number
        return text


def _line(event: events.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark is not None else 1


def _plain(node: _Node) -> object:
    """The tree as dicts and lists. Recursion is bounded by MAX_NESTING."""
    if isinstance(node, _Mapping):
        return {key: _plain(item) for key, item in node.items.items()}
    if isinstance(node, _Sequence):
        return [_plain(item) for item in node.items]
    return node.value
