"""Is this the log that the gateway wrote? Needs the files alone, and memory that does not grow.

The files are read in the order of their first records, line by line. What is compared:

1. A line is a record, or bytes that the next record tells of (`chain_repaired`).
2. A record's number follows the one before: else records are missing, repeated or moved.
3. ``prev`` is the hash of the line before: else that line was changed. If the link after it is
   broken, too, the later record is the changed one: its own ``prev`` cannot be believed.
4. Signed heads are signed, by a key that the caller trusts if one is named.
5. A file begins with `chain_opened`, and the last one reaches the head that the caller knows.

A chain proves nothing about its own end: whoever cuts the last records off, at the end of a line,
leaves a shorter chain. Four things tell: the next file, a signed head at the end (``sealed``), a
copy of the gateway's ``audit.head`` (``position``), and the gateway itself at its next start.
"""

from __future__ import annotations

import gzip
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from zgate_gateway.audit_chain import (
    CHAIN_HEAD,
    CHAIN_OPENED,
    CHAIN_POSITION,
    CHAIN_REPAIRED,
    GENESIS,
    Debris,
    Head,
    Lines,
    Record,
    parse_record,
    scan,
    signature_of,
)
from zgate_gateway.audit_head import is_signed

#: More findings, notes, gaps or rivals than these are counted, not kept.
MAX_FINDINGS = 100
_MAX_GAPS = 1000
_MAX_RIVALS = 16
_GZIP_MAGIC = b"\x1f\x8b"
_SETTLE_S = 0.05


class Unreadable(Exception):
    """A file cannot be read; the text names it and the cause."""


class Kind(StrEnum):
    """What was done to the log."""

    CHANGED = "changed"
    REMOVED = "removed"
    INSERTED = "inserted"
    REORDERED = "reordered"
    TRUNCATED = "truncated"
    FORGED = "forged"


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file. ``order`` is the file's place in the chain."""

    file: str
    line: int
    order: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One trace of tampering. ``seq`` is the record's, None where no number is known."""

    kind: Kind
    place: Place
    seq: int | None
    text: str
    expected: str | None = None
    found: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the finding for JSON."""
        return {
            "kind": self.kind.value,
            "file": self.place.file,
            "line": self.place.line,
            "seq": self.seq,
            "text": self.text,
            "expected": self.expected,
            "found": self.found,
        }


@dataclass(slots=True)
class Report:
    """What a verification found. ``signed_seq``: nothing up to there can change unnoticed."""

    files: list[str] = field(default_factory=list)
    records: int = 0
    first_seq: int | None = None
    last: Head = GENESIS
    signed_heads: int = 0
    signed_seq: int = 0
    keys: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    findings_left_out: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def is_intact(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "intact": self.is_intact,
            "files": self.files,
            "records": self.records,
            "first_seq": self.first_seq,
            "last_seq": self.last.seq,
            "last_sha256": self.last.digest,
            "signed_heads": self.signed_heads,
            "signed_seq": self.signed_seq,
            "keys": self.keys,
            "findings": [finding.as_dict() for finding in self.findings],
            "findings_left_out": self.findings_left_out,
            "notes": self.notes,
        }


@dataclass(frozen=True, slots=True)
class Trust:
    """What the caller knows beside the log.

    :ivar keys: public keys in hex; None: a signature by any key counts, and proves little.
    :ivar position: the record of a copied ``audit.head``, its signature checked.
    :ivar sealed: the log must end with a signed head, as rotated and stopped ones do.
    """

    keys: frozenset[str] | None = None
    position: Record | None = None
    sealed: bool = False


def verify_files(paths: Sequence[Path], trust: Trust | None = None) -> Report:
    """Verify the files as one chain, whatever their order. Raises :class:`Unreadable`.

    Files that gzip has compressed are read as they are. A file that is named twice is read once.
    """
    verifier = Verifier(trust or Trust())
    with ExitStack() as stack:
        opened = [_Log(path, stack) for path in paths]
        distinct = {log.identity: log for log in reversed(opened)}
        for log in sorted(distinct.values(), key=_Log.first_seq):
            with _errors_of(log.path):
                verifier.read(str(log.path), log)
    return verifier.finish()


class _Log:
    """One open file: a rotation meanwhile does not take it away."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        with _errors_of(path):
            plain = stack.enter_context(path.open("rb"))
            found = os.fstat(plain.fileno())
            self.identity = (found.st_dev, found.st_ino)
            is_packed = plain.peek(2)[:2] == _GZIP_MAGIC
        self._stream = gzip.GzipFile(fileobj=plain) if is_packed else plain

    def first_seq(self) -> tuple[int, str]:
        """Where it belongs. A file without records comes last."""
        with _errors_of(self.path):
            seq = next((found.seq for _, _, found in scan(self) if found), 1 << 62)
            self._stream.seek(0)
        return seq, str(self.path)

    def readline(self, limit: int, /) -> bytes:
        """The next line. The log may be written meanwhile: its last line gets a moment to end."""
        data = self._stream.readline(limit)
        if data and not data.endswith(b"\n") and len(data) < limit:
            time.sleep(_SETTLE_S)
            data += self._stream.readline(limit - len(data))
        return data


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Turn what reading a file raises into :class:`Unreadable`."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise Unreadable(f"{path}: {cause}") from error


@dataclass(slots=True)
class _Gap:
    """Records that should have come before ``place``."""

    first: int
    last: int
    place: Place


@dataclass(frozen=True, slots=True)
class _Seen:
    """A record that stands where its number says."""

    place: Place
    head: Head


@dataclass(slots=True)
class _Suspect:
    """A record whose hash is not what the next one says."""

    seen: _Seen
    first_seq: int
    expected: str
    by: Place


class Verifier:
    """One verification; feed it files in the chain's order."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._report = Report()
        self._found: dict[Place, Finding] = {}
        self._keys: dict[str, None] = {}
        #: The last record, and others under the same number: the next record tells which is true.
        self._last: list[_Seen] = []
        self._last_event = ""
        self._suspect: _Suspect | None = None
        self._gaps: list[_Gap] = []
        self._debris: Debris | None = None
        self._debris_places: list[Place] = []  # the first and the last line
        self._ends_torn = False

    def read(self, name: str, stream: Lines) -> None:
        """Take the next file in."""
        order = len(self._report.files)
        self._report.files.append(name)
        is_first = True
        for number, data, found in scan(stream):
            place = Place(name, number, order)
            self._ends_torn = not data.endswith(b"\n")
            record = parse_record(data + b"\n") if self._ends_torn else found
            if record is None:
                self._take_debris(place, data)
                continue
            self._take(place, record, opens_file=is_first)
            is_first = False
            if self._ends_torn:  # only the newline is missing, and the next record has to say so
                self._debris, self._debris_places = Debris(), [place, place]

    def finish(self) -> Report:
        """Return the result."""
        self._flush_suspect()
        self._flush_rivals()
        self._flush_debris_at_end()
        for gap in self._gaps:
            self._tell_gap(gap)
        self._check_end()
        report = self._report
        report.keys = list(self._keys)
        report.last = self._last[0].head if self._last else GENESIS
        report.findings = sorted(
            self._found.values(), key=lambda one: (one.place.order, one.place.line)
        )
        if not report.records:
            report.notes.append("there is no record")
        return report

    # Lines that are no records.

    def _take_debris(self, place: Place, data: bytes) -> None:
        if self._debris is None:
            self._debris, self._debris_places = Debris(), [place, place]
        self._debris.feed(data)
        self._debris_places[1] = place

    def _settle_debris(self, place: Place, record: Record) -> bool:
        """Compare what is no record with what the record after it tells; whether it fits."""
        debris, self._debris = self._debris, None
        told = None
        if record.event in (CHAIN_REPAIRED, CHAIN_OPENED):
            fields = record.fields
            if "lost_bytes" in fields:
                told = {name: fields.get(name) for name in ("lost_bytes", "lost_sha256")}
        if debris is None:
            if told is not None and told != Debris().fields:
                self._add(
                    Kind.REMOVED,
                    place,
                    record.seq,
                    f"record {record.seq} tells of {told['lost_bytes']} torn bytes before it, and "
                    "they are gone",
                )
            return True
        if told == debris.fields:
            torn = (
                f"{debris.lost_bytes} bytes of a torn record" if debris.lost_bytes else "no newline"
            )
            self._note(f"{self._debris_places[0]}: {torn}, as record {record.seq} says")
            return True
        return False

    def _tell_debris(self, record: Record | None) -> None:
        """Lines that nobody accounts for stand between the last record and this one."""
        first, last = self._debris_places
        lines = f"line {first.line}" if first == last else f"lines {first.line} to {last.line}"
        is_one = first == last
        expected = self._last[0].head.seq + 1 if self._last else 1
        missing = record.seq - expected if record is not None else 0
        if missing > 0:
            end = expected + missing - 1
            stood = f"record {expected}" if missing == 1 else f"records {expected} to {end}"
            text = f"{lines} {'is no record' if is_one else 'are no records'}; {stood} stood here"
            self._add(Kind.CHANGED, first, expected, text)
        elif record is not None and record.event in (CHAIN_REPAIRED, CHAIN_OPENED):
            text = f"the torn bytes of {lines} are not those that record {record.seq} tells of"
            self._add(Kind.CHANGED, first, record.seq, text)
        else:
            text = f"{lines} {'is no record' if is_one else 'are no records'}"
            self._add(Kind.INSERTED, first, None, text)

    def _flush_debris_at_end(self) -> None:
        if self._debris is None:
            return
        first = self._debris_places[0]
        if self._ends_torn:
            text = f"line {first.line} is cut off: the log ends within it, and nothing repairs it"
            expected = self._last[0].head.seq if self._last else 0
            cut = expected + (self._debris.lost_bytes > 0)
            self._add(Kind.TRUNCATED, first, cut, text)
        else:
            self._tell_debris(None)

    # Records.

    def _take(self, place: Place, record: Record, *, opens_file: bool) -> None:
        self._report.records += 1
        if record.event == CHAIN_POSITION:
            self._add(Kind.INSERTED, place, record.seq, "a head file's line stands in the log")
            return
        had_debris = self._debris is not None
        fits = self._settle_debris(place, record)
        if not fits:
            self._tell_debris(record)
        seen = _Seen(place, record.head)
        if not self._last:
            self._begin(seen, record, opens_file=opens_file)
        else:
            self._link(seen, record, excused=had_debris and not fits)
        # A signature under another event is a head whose name was changed.
        if record.event == CHAIN_HEAD or signature_of(record) is not None:
            self._check_signature(place, record)

    def _begin(self, seen: _Seen, record: Record, *, opens_file: bool) -> None:
        self._report.first_seq = record.seq
        if record.event != CHAIN_OPENED or not opens_file:
            self._add(
                Kind.REMOVED,
                seen.place,
                record.seq,
                f"the file begins with record {record.seq} ({record.event}): what stood before it "
                f"is gone, a {CHAIN_OPENED} record at least",
                expected=CHAIN_OPENED,
                found=record.event,
            )
        elif record.seq == 1 and record.prev != GENESIS.digest:
            text = "record 1 names a record before it"
            self._add(Kind.CHANGED, seen.place, 1, text, expected=GENESIS.digest, found=record.prev)
        elif record.seq > 1:
            self._note(f"records 1 to {record.seq - 1} are not in these files")
        self._accept(seen, record)

    def _link(self, seen: _Seen, record: Record, *, excused: bool) -> None:
        before = self._last[0].head.seq
        if record.seq == before + 1:
            self._follow(seen, record)
        elif any(record.prev == one.head.digest for one in self._last):
            text = f"record {before + 1} was changed: it calls itself record {record.seq}"
            self._add(
                Kind.CHANGED,
                seen.place,
                before + 1,
                text,
                expected=str(before + 1),
                found=str(record.seq),
            )
            self._follow(_Seen(seen.place, Head(before + 1, seen.head.digest)), record)
        elif record.seq > before + 1:
            if not excused:
                self._open_gap(before + 1, record.seq - 1, seen.place)
            self._accept(seen, record)
        else:
            self._go_back(seen, record)

    def _follow(self, seen: _Seen, record: Record) -> None:
        """The number is right: is the hash, of one of those with the number before?"""
        for one in self._last:
            if one.head.digest == record.prev:
                self._last.remove(one)
                self._last.insert(0, one)
                self._accept(seen, record)
                return
        suspect = self._last[0]
        first = self._suspect.first_seq if self._suspect is not None else suspect.head.seq
        self._suspect = None
        self._accept(seen, record)
        self._suspect = _Suspect(suspect, first, record.prev, seen.place)

    def _accept(self, seen: _Seen, record: Record) -> None:
        self._flush_suspect()
        self._flush_rivals()
        self._last = [seen]
        self._last_event = record.event
        position = self._trust.position
        if position is not None and seen.head.seq == position.seq - 1:
            self._compare_position(seen, position)

    def _go_back(self, seen: _Seen, record: Record) -> None:
        """A number that was due earlier."""
        last = self._last[0].head
        if record.seq == last.seq and seen.head != last and len(self._last) < _MAX_RIVALS:
            self._last.append(seen)
            return
        for gap in self._gaps:
            if gap.first <= record.seq <= gap.last:
                self._fill(gap, record.seq)
                text = f"record {record.seq} stands behind record {last.seq}"
                self._add(
                    Kind.REORDERED,
                    seen.place,
                    record.seq,
                    text,
                    expected=str(last.seq + 1),
                    found=str(record.seq),
                )
                return
        self._tell_inserted(seen, last)

    def _tell_inserted(self, seen: _Seen, last: Head) -> None:
        text = f"a second record {seen.head.seq}, which the chain does not hold"
        self._add(Kind.INSERTED, seen.place, seen.head.seq, text, expected=str(last.seq + 1))

    def _open_gap(self, first: int, last: int, place: Place) -> None:
        gap = _Gap(first, last, place)
        if len(self._gaps) < _MAX_GAPS:
            self._gaps.append(gap)
        else:
            self._tell_gap(gap)

    def _fill(self, gap: _Gap, seq: int) -> None:
        self._gaps.remove(gap)
        if gap.first < seq:
            self._gaps.append(_Gap(gap.first, seq - 1, gap.place))
        if seq < gap.last:
            self._gaps.append(_Gap(seq + 1, gap.last, gap.place))

    # What has become clear.

    def _flush_rivals(self) -> None:
        for rival in self._last[1:]:
            self._tell_inserted(rival, self._last[0].head)
        del self._last[1:]

    def _flush_suspect(self) -> None:
        suspect, self._suspect = self._suspect, None
        # If the next record is known to be changed, it is no witness against this one.
        if suspect is None or suspect.by in self._found:
            return
        seen = suspect.seen
        text = f"record {seen.head.seq} was changed"
        if suspect.first_seq < seen.head.seq:
            text += f" (and maybe others from {suspect.first_seq} on)"
        text += f": its SHA-256 is not what line {suspect.by.line} says"
        self._add(
            Kind.CHANGED,
            seen.place,
            seen.head.seq,
            text,
            expected=suspect.expected,
            found=seen.head.digest,
        )

    def _tell_gap(self, gap: _Gap) -> None:
        is_one = gap.first == gap.last
        text = (
            f"record {gap.first} is missing"
            if is_one
            else f"records {gap.first} to {gap.last} are missing"
        )
        self._add(
            Kind.REMOVED, gap.place, gap.first, f"{text} before this line", expected=str(gap.first)
        )

    def _check_end(self) -> None:
        report, position = self._report, self._trust.position
        seq = self._last[0].head.seq if self._last else 0
        if position is not None and seq < position.seq - 1:
            text = f"the log ends with record {seq}, and had come to record {position.seq - 1}"
            self._tell_end(seq + 1, text, str(position.seq - 1), str(seq))
        if self._trust.sealed and (self._last_event != CHAIN_HEAD or report.signed_seq != seq):
            text = f"the log does not end with a signed head: it is cut after record {seq}, or open"
            self._tell_end(seq + 1, text, CHAIN_HEAD, self._last_event or "nothing")

    def _check_signature(self, place: Place, record: Record) -> None:
        report, found = self._report, signature_of(record)
        if found is None or not is_signed(record):
            text = f"record {record.seq} was changed: its signature does not fit"
            self._add(Kind.CHANGED, place, record.seq, text)
            return
        key = found.key.hex()
        self._keys[key] = None
        if self._trust.keys is not None and key not in self._trust.keys:
            text = f"record {record.seq} is signed by a key that is not trusted"
            self._add(Kind.FORGED, place, record.seq, text, found=key)
            return
        report.signed_heads += 1
        report.signed_seq = max(report.signed_seq, record.seq)

    def _compare_position(self, seen: _Seen, position: Record) -> None:
        if seen.head.digest != position.prev:
            text = f"record {seen.head.seq} was changed: the head file has another SHA-256"
            self._add(
                Kind.CHANGED,
                seen.place,
                seen.head.seq,
                text,
                expected=position.prev,
                found=seen.head.digest,
            )
        else:
            self._report.signed_seq = max(self._report.signed_seq, seen.head.seq)

    # Noting.

    def _add(
        self,
        kind: Kind,
        place: Place,
        seq: int | None,
        text: str,
        *,
        expected: str | None = None,
        found: str | None = None,
    ) -> None:
        """Keep a finding; the first one about a line is the most exact."""
        if place in self._found:
            return
        if len(self._found) >= MAX_FINDINGS:
            self._report.findings_left_out += 1
            return
        self._found[place] = Finding(kind, place, seq, text, expected, found)

    def _tell_end(self, seq: int, text: str, expected: str, found: str) -> None:
        """The log should go on after its last line."""
        place = Place(self._report.files[-1] if self._report.files else "-", 1)
        if self._last:
            last = self._last[0].place
            place = Place(last.file, last.line + 1, last.order)
        self._add(Kind.TRUNCATED, place, seq, text, expected=expected, found=found)

    def _note(self, text: str) -> None:
        if len(self._report.notes) < MAX_FINDINGS:
            self._report.notes.append(text)


def lines_of(report: Report, *, trusts_keys: bool = False) -> Iterator[str]:
    """Yield the report as text; ``trusts_keys``: the caller has said whose signatures count."""
    for finding in report.findings:
        yield f"{finding.place}: {finding.kind}: {finding.text}"
        if finding.expected is not None or finding.found is not None:
            yield f"    expected {finding.expected or '-'}, found {finding.found or '-'}"
    if report.findings_left_out:
        yield f"and {report.findings_left_out} more findings"
    for note in report.notes:
        yield f"note: {note}"
    if not report.is_intact:
        count = len(report.findings) + report.findings_left_out
        findings = "1 finding" if count == 1 else f"{count} findings"
        yield f"TAMPERED WITH: {findings} in {_extent(report)}"
        return
    yield f"intact: {_extent(report)}"
    if report.records:
        yield _signed(report, trusts_keys)


def _extent(report: Report) -> str:
    if not report.records:
        return "no record"
    return (
        f"{report.records} records, {report.first_seq} to {report.last.seq}, "
        f"the last one {report.last.digest}"
    )


def _signed(report: Report, trusts_keys: bool) -> str:
    if not report.signed_seq:
        return "nothing is signed: whoever could write these files could have made them"
    whose = "by a trusted key"
    if not trusts_keys:
        whose = f"by {', '.join(report.keys) or 'the head file'}; --public-key tells whose that is"
    rest = report.last.seq - report.signed_seq
    open_end = f"; the last {rest} are not" if rest else ""
    return f"signed up to record {report.signed_seq}{open_end}, {whose}"
