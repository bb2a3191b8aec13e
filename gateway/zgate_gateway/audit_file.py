"""One open file of the audit log: where its chain has come to, and writing on from there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from zgate_gateway.audit_chain import (
    AuditError,
    Debris,
    Head,
    digest_of,
    next_line,
    parse_record,
    scan,
)

#: Enough for the last record unless the file ends with a lot that is none; then all of it is read.
_TAIL_BYTES = 1 << 18


class AuditFile:
    """A file opened for append, and locked: a chain has one writer.

    :ivar head: of the last record in the file; None: it holds none.
    :ivar debris: what stands after the last record and has to be told by the next one.
    :ivar has_records: the next record is not the first of the file.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raises :class:`AuditError`."""
        self.path = path
        self.fd = _open(path)
        try:
            found = os.fstat(self.fd)
            self._identity = (found.st_dev, found.st_ino)
            self.size_bytes = found.st_size if stat.S_ISREG(found.st_mode) else 0
            end = self._find_end() if self.size_bytes else End()
        except OSError as error:
            os.close(self.fd)
            raise AuditError(f"audit log {path}: {error.strerror}; move it away") from error
        self.head, self.debris = end.head, end.debris
        self._mid_line, self._owes_newline = end.mid_line, end.owes_newline
        self.has_records = self.head is not None

    def _find_end(self) -> End:
        with os.fdopen(self.fd, "rb", closefd=False) as stream:
            return find_end(stream, self.size_bytes)

    def is_at_path(self) -> bool:
        """Whether the path still leads to this file; False after a rotation."""
        try:
            found = self.path.lstat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def append(self, body: bytes, head: Head, sign: Callable[[bytes], bytes] | None = None) -> None:
        """Write the record that follows ``head``, which is then ``self.head``.

        Raises:
            OSError: it was not written, or not all of it; then the rest is in ``debris``.
        """
        line = next_line(head, body, sign)
        data = b"\n" + line if self._mid_line else line
        count = os.write(self.fd, data)
        self.size_bytes += count
        missing = len(data) - count
        if missing > 1:
            self._note_torn(data[:count])
            raise OSError(errno.ENOSPC, f"only {count} of {len(data)} bytes fitted")
        # Without its newline it is a record all the same, and the next one says so.
        self.head = Head(head.seq + 1, digest_of(line))
        self.debris = Debris() if missing else None
        self._mid_line = self._owes_newline = bool(missing)
        self.has_records = True

    def _note_torn(self, written: bytes) -> None:
        if not written:
            return
        self._mid_line = not written.endswith(b"\n")
        if self._owes_newline:  # the first byte has ended the record before
            written, self._owes_newline = written[1:], False
        if self.debris is None:
            self.debris = Debris()
        self.debris.feed(written)


@dataclass(slots=True)
class End:
    """How a file ends.

    :ivar head: of its last record; None: it holds none.
    :ivar debris: what stands after that record; None: nothing.
    :ivar mid_line: its last byte is no newline.
    :ivar owes_newline: because that of the last record is missing.
    """

    head: Head | None = None
    debris: Debris | None = None
    mid_line: bool = False
    owes_newline: bool = False


def find_end(stream: BinaryIO, size_bytes: int) -> End:
    """Look for the last record. Raises :class:`OSError`."""
    start = max(0, size_bytes - _TAIL_BYTES)
    stream.seek(start)
    if start:
        stream.readline()  # the window begins within a line
    end = _read_end(stream)
    if end.head is None and start:
        stream.seek(0)
        end = _read_end(stream)
    return end


def _read_end(stream: BinaryIO) -> End:
    end = End()
    for _number, data, record in scan(stream):
        unended = parse_record(data + b"\n") if not data.endswith(b"\n") else None
        if record is not None:
            end = End(record.head)
        elif unended is not None:
            end = End(unended.head, Debris(), owes_newline=True)
        else:
            end.debris = end.debris or Debris()
            end.debris.feed(data)
        end.mid_line = not data.endswith(b"\n")
    return end


def furthest_sibling(path: Path) -> End:
    """Look for the chain's head in the files that rotation has put beside ``path``."""
    furthest = End()
    for sibling in path.parent.glob(f"{glob.escape(path.name)}?*"):
        with contextlib.suppress(OSError), sibling.open("rb") as stream:
            end = find_end(stream, sibling.stat().st_size)
            if end.head is not None and (furthest.head is None or end.head.seq > furthest.head.seq):
                furthest = end
    return furthest


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags, 0o640)
    except OSError as error:
        raise AuditError(
            f"audit log {path}: {error.strerror}; create its directory, or make it writable, "
            "or set audit.path"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise AuditError(
            f"audit log {path}: another process writes it; stop that gateway, or set audit.path"
        ) from error
    return fd
