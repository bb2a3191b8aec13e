"""The chain that ties each audit record to the one before it.

A record is one line of ASCII, and the line's exact bytes are what counts::

    {"seq":7,"prev":"<SHA-256 of line 6, its newline included>","ts":...,"event":...,...}

``head -n 6 FILE | tail -n 1 | sha256sum`` gives the ``prev`` of line 7. ``seq`` begins at 1, and
goes on over restarts and files. Whoever changes, removes, inserts or moves a record has to change
every record after it; a ``chain_head`` record, signed with Ed25519, is where that ends for whoever
lacks the key. Three events belong to the chain itself:

``chain_opened``    the first record of every file, so that a file whose beginning is gone is known
``chain_repaired``  stands after bytes that are no record, as a full disk or a power cut leaves
                    them (``lost_bytes``, ``lost_sha256``; zero bytes: only a newline was missing)
``chain_head``      signed (``key``, ``signature``); the last record of a file that was rotated or
                    whose gateway ended in an orderly way

Bytes are never taken out of the log, whatever they are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

CHAIN_OPENED = "chain_opened"
CHAIN_REPAIRED = "chain_repaired"
CHAIN_HEAD = "chain_head"
#: Stands in the head file only (`zgate_gateway.audit_head`): never in a log, so that nobody closes
#: a shortened log with it.
CHAIN_POSITION = "chain_position"

#: A longer line is no record. The longest honest one holds a peer's certificate names, escaped.
MAX_LINE_BYTES = 1 << 20

_SIGNED = b"zgate audit chain\n"
_RECORD = re.compile(
    rb'\{"seq":([1-9][0-9]{0,17}),"prev":"([0-9a-f]{64})","ts":"[^"\\]*","event":"([a-z_]+)"[,}]'
)
_SIGNATURE = re.compile(rb',"key":"([0-9a-f]{64})","signature":"([0-9a-f]{128})"\}\n\Z')


class AuditError(Exception):
    """The audit log cannot be opened. The text names the file, the cause and the cure."""


@dataclass(frozen=True, slots=True)
class Head:
    """How far a chain has come: its last record's number, and the SHA-256 of that line in hex."""

    seq: int
    digest: str


GENESIS = Head(0, "0" * 64)


@dataclass(frozen=True, slots=True)
class Record:
    """A line that is an audit record; what it says is not judged."""

    seq: int
    prev: str
    event: str
    line: bytes

    @property
    def head(self) -> Head:
        """The chain's head if this is its last record."""
        return Head(self.seq, digest_of(self.line))

    @property
    def fields(self) -> dict[str, Any]:
        """Everything that the record says."""
        found: dict[str, Any] = json.loads(self.line)
        return found


@dataclass(frozen=True, slots=True)
class Signature:
    """What stands at the end of a signed record: who signed, and which bytes."""

    key: bytes
    signature: bytes
    message: bytes


def digest_of(line: bytes) -> str:
    """Return the SHA-256 of a line, its newline included, in hex."""
    return hashlib.sha256(line).hexdigest()


def next_line(head: Head, body: bytes, sign: Callable[[bytes], bytes] | None = None) -> bytes:
    """Return the line that follows ``head``; ``body`` is a JSON object, not empty, in ASCII.

    With ``sign`` the record ends with the signature (hex) of all that stands before it.
    """
    text = b'{"seq":%d,"prev":"%s",%s' % (head.seq + 1, head.digest.encode(), body[1:])
    if sign is not None:
        signature = sign(_SIGNED + text[:-1]).hex().encode()
        text = b'%s,"signature":"%s"}' % (text[:-1], signature)
    return text + b"\n"


def parse_record(line: bytes) -> Record | None:
    """Return the record that a line (with its newline) is; None: it is none."""
    found = _RECORD.match(line)
    if found is None or not line.endswith(b"}\n"):
        return None
    try:
        json.loads(line.decode("ascii"))
    except (ValueError, RecursionError):
        return None
    return Record(int(found[1]), found[2].decode(), found[3].decode(), line)


def signature_of(record: Record) -> Signature | None:
    """Return the signature that a record carries; None: it carries none that is well formed."""
    found = _SIGNATURE.search(record.line)
    if found is None:
        return None
    message = _SIGNED + record.line[: found.end(1) + 1]  # up to the quote that ends the key
    return Signature(bytes.fromhex(found[1].decode()), bytes.fromhex(found[2].decode()), message)


class Lines(Protocol):
    """What lines can be read from."""

    def readline(self, limit: int, /) -> bytes:
        """Return the next line with its newline, or its first ``limit`` bytes; b"" at the end."""


def scan(stream: Lines) -> Iterator[tuple[int, bytes, Record | None]]:
    """Yield each line with its number, and as a record if it is one.

    A line that is too long comes in parts under one number; the last line may lack its newline.
    """
    number, at_start = 1, True
    while data := stream.readline(MAX_LINE_BYTES):
        yield number, data, parse_record(data) if at_start else None
        at_start = data.endswith(b"\n")
        number += at_start


class Debris:
    """Bytes after a record that are none: how many, and their SHA-256.

    The newline before the next record is not counted: writing on may have added it.
    """

    def __init__(self) -> None:
        self.lost_bytes = 0
        self._hash = hashlib.sha256()
        self._holds_newline = False

    def feed(self, data: bytes) -> None:
        """Add what follows."""
        if self._holds_newline and data:
            self._add(b"\n")
            self._holds_newline = False
        if data.endswith(b"\n"):
            self._holds_newline = True
            data = data[:-1]
        self._add(data)

    def _add(self, data: bytes) -> None:
        self.lost_bytes += len(data)
        self._hash.update(data)

    @property
    def fields(self) -> dict[str, Any]:
        """What the record after it says of it."""
        return {"lost_bytes": self.lost_bytes, "lost_sha256": self._hash.hexdigest()}
