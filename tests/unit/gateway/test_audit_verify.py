"""Whatever is done to a log is found and named; whatever a gateway writes is accepted."""

import errno
import gzip
import io
import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from zgate_gateway import audit_file, audit_verify
from zgate_gateway.audit import AuditLog
from zgate_gateway.audit_chain import (
    CHAIN_HEAD,
    CHAIN_OPENED,
    GENESIS,
    Head,
    Record,
    digest_of,
    next_line,
    parse_record,
)
from zgate_gateway.audit_head import HeadKeeper, parse_position
from zgate_gateway.audit_verify import (
    MAX_FINDINGS,
    Kind,
    Report,
    Trust,
    Unreadable,
    Verifier,
    lines_of,
    verify_files,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
OTHER = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
TRUST = Trust(keys=frozenset({KEY.public_key().public_bytes_raw().hex()}))
SEALED = Trust(keys=TRUST.keys, sealed=True)


def body(event: str, text: str = "") -> bytes:
    return b'{"ts":"2026-03-01T12:30:15.000250Z","event":"%s"%s}' % (event.encode(), text.encode())


def chain(
    events: list[str], head: Head = GENESIS, key: Ed25519PrivateKey = KEY
) -> tuple[list[bytes], Head]:
    """Lines of honest records, and where they end. ``head`` signs."""
    lines = []
    for event in events:
        if event == "head":
            text = f',"cause":"stop","key":"{key.public_key().public_bytes_raw().hex()}"'
            line = next_line(head, body(CHAIN_HEAD, text), key.sign)
        else:
            line = next_line(head, body(event, f',"client":"c{head.seq}"'))
        lines.append(line)
        head = Head(head.seq + 1, digest_of(line))
    return lines, head


HONEST, _ = chain([CHAIN_OPENED, *["flow_allowed"] * 4, "head", *["flow_denied"] * 5, "head"])
COUNT = len(HONEST)


def verify(*files: bytes | list[bytes], trust: Trust = TRUST) -> Report:
    verifier = Verifier(trust)
    for number, file in enumerate(files):
        data = file if isinstance(file, bytes) else b"".join(file)
        verifier.read(f"f{number}", io.BytesIO(data))
    return verifier.finish()


def found(report: Report) -> list[tuple[Kind, int, int | None]]:
    return [(one.kind, one.place.line, one.seq) for one in report.findings]


def test_an_honest_log() -> None:
    report = verify(HONEST, trust=SEALED)
    assert report.is_intact and report.notes == []
    assert (report.records, report.first_seq, report.last.seq) == (COUNT, 1, COUNT)
    assert report.last.digest == digest_of(HONEST[-1])
    assert (report.signed_heads, report.signed_seq) == (2, COUNT)
    assert report.keys == list(TRUST.keys or ())


def test_every_record_that_is_changed_is_named() -> None:
    """Each but the last: that one has no witness but its own signature."""
    for index, line in enumerate(HONEST):
        changed = line.replace(b"2026", b"2025")
        report = verify([*HONEST[:index], changed, *HONEST[index + 1 :]])
        assert found(report) == [(Kind.CHANGED, index + 1, index + 1)]


def test_every_record_whose_link_is_changed_is_named_itself() -> None:
    for index, line in enumerate(HONEST[1:-1], 1):
        changed = line.replace(b'"prev":"', b'"prev":"' + b"0" * 64, 1)
        changed = (
            changed[: 64 + changed.index(b'"prev":"') + 8] + changed[changed.index(b'","ts"') :]
        )
        report = verify([*HONEST[:index], changed, *HONEST[index + 1 :]])
        assert (Kind.CHANGED, index + 1, index + 1) in found(report)
        assert len(report.findings) == 1


def test_every_record_that_is_removed_is_named() -> None:
    for index in range(1, COUNT - 1):
        report = verify(HONEST[:index] + HONEST[index + 1 :])
        assert found(report) == [(Kind.REMOVED, index + 1, index + 1)]
        assert f"record {index + 1} is missing" in report.findings[0].text
    assert found(verify(HONEST[1:])) == [(Kind.REMOVED, 1, 2)]
    assert found(verify(HONEST[:-1], trust=SEALED)) == [(Kind.TRUNCATED, COUNT, COUNT)]


def test_several_that_are_removed_are_one_finding() -> None:
    (finding,) = verify(HONEST[:2] + HONEST[6:]).findings
    assert "records 3 to 6 are missing before this line" in finding.text


def test_every_record_that_is_repeated_is_named() -> None:
    for index in range(COUNT):
        for at in range(index + 1, COUNT + 1):
            report = verify([*HONEST[:at], HONEST[index], *HONEST[at:]])
            assert found(report) == [(Kind.INSERTED, at + 1, index + 1)]


def test_every_record_that_is_moved_is_named() -> None:
    for index in range(1, COUNT - 1):
        lines = [*HONEST[:index], HONEST[index + 1], HONEST[index], *HONEST[index + 2 :]]
        report = verify(lines)
        assert found(report) == [(Kind.REORDERED, index + 2, index + 1)]


def test_an_invented_record_is_named_although_it_fits_what_stands_before_it() -> None:
    for index in range(1, COUNT):
        head = Head(index, digest_of(HONEST[index - 1]))
        invented = next_line(head, body("flow_allowed", ',"client":"nobody"'))
        report = verify([*HONEST[:index], invented, *HONEST[index:]])
        if index < COUNT - 1:
            assert found(report) == [(Kind.INSERTED, index + 1, index + 1)]
        assert not report.is_intact


def test_a_line_that_is_no_record_is_named() -> None:
    for index in range(COUNT):
        report = verify([*HONEST[:index], b"hello\n", *HONEST[index:]])
        assert (index + 1) in [line for _, line, _ in found(report)]
        replaced = verify([*HONEST[:index], b"hello\n", *HONEST[index + 1 :]], trust=SEALED)
        assert (index + 1) in [line for _, line, _ in found(replaced)]


def test_a_number_that_is_changed_is_named() -> None:
    for index in range(1, COUNT - 1):
        changed = HONEST[index].replace(b'"seq":%d,' % (index + 1), b'"seq":77,')
        report = verify([*HONEST[:index], changed, *HONEST[index + 1 :]])
        assert found(report) == [(Kind.CHANGED, index + 1, index + 1)]
        assert "calls itself record 77" in report.findings[0].text


def test_cut_at_every_byte() -> None:
    whole = b"".join(HONEST)
    for length in range(len(whole)):
        data = whole[:length]
        # Where the gateway had stopped once, a signed head stands: the next test.
        assert verify(data, trust=SEALED).is_intact == (data == b"".join(HONEST[:6]))
        if data and not data.endswith(b"\n"):
            (finding,) = verify(data).findings
            assert finding.kind is Kind.TRUNCATED
            assert finding.place.line == data.count(b"\n") + 1


def test_a_copy_of_the_head_file_finds_what_is_cut_at_a_signed_head(tmp_path: Path) -> None:
    keeper = HeadKeeper(tmp_path)
    keeper.note(Head(COUNT, digest_of(HONEST[-1])))
    position = parse_position((tmp_path / "audit.head").read_bytes())
    trust = Trust(position=position)
    report = verify(HONEST, trust=trust)
    assert report.is_intact and report.signed_seq == COUNT
    for length in range(COUNT):
        report = verify(HONEST[:length], trust=trust)
        assert (Kind.TRUNCATED, length + 1, length + 1) in found(report)
    changed, _ = chain([CHAIN_OPENED, *["flow_allowed"] * (COUNT - 1)])
    (finding,) = verify(changed, trust=trust).findings
    assert (finding.kind, finding.seq) == (Kind.CHANGED, COUNT)


def test_a_head_files_line_closes_no_log(tmp_path: Path) -> None:
    keeper = HeadKeeper(tmp_path)
    keeper.note(Head(3, digest_of(HONEST[2])))
    position = (tmp_path / "audit.head").read_bytes()
    for trust in (Trust(), Trust(sealed=True)):
        assert (Kind.INSERTED, 4, 4) in found(verify([*HONEST[:3], position], trust=trust))


def test_a_chain_written_anew_lacks_the_key() -> None:
    events = [CHAIN_OPENED, *["flow_allowed"] * 9, "head"]
    forged, _ = chain(events, key=OTHER)
    assert verify(forged, trust=Trust()).is_intact  # nobody said which key
    report = verify(forged, trust=TRUST)
    assert found(report) == [(Kind.FORGED, 11, 11)] and report.signed_heads == 0
    unsigned, _ = chain(events[:-1])
    assert verify(unsigned, trust=TRUST).signed_seq == 0
    assert found(verify(unsigned, trust=SEALED)) == [(Kind.TRUNCATED, 11, 11)]


def test_files_are_one_chain() -> None:
    first, head = chain([CHAIN_OPENED, "a", "head"])
    second, head = chain([CHAIN_OPENED, "b", "head"], head)
    third, _ = chain([CHAIN_OPENED, "c"], head)
    assert verify(first, second, third).is_intact
    report = verify(second, third)
    assert report.is_intact and report.notes == ["records 1 to 3 are not in these files"]
    (missing,) = verify(first, third).findings
    assert (missing.kind, str(missing.place)) == (Kind.REMOVED, "f1:1")
    assert "records 4 to 6 are missing" in missing.text
    for cut in range(1, len(b"".join(first))):
        report = verify(b"".join(first)[:-cut], second, third)
        assert not report.is_intact
    assert found(verify(second[1:], third)) == [(Kind.REMOVED, 1, 5)]


def test_a_bridge_over_a_removed_record_needs_the_records_after_it() -> None:
    """Numbers and links made to fit again: every later record has to change, up to a signature."""
    head = Head(2, digest_of(HONEST[1]))
    lines = HONEST[:2]
    for line in HONEST[3:]:
        record = parse_record(line)
        assert record is not None
        text = b"{" + line[line.index(b'"ts"') : -1]
        lines.append(next_line(head, text))
        head = Head(head.seq + 1, digest_of(lines[-1]))
    kinds = {(one.kind, one.seq) for one in verify(lines).findings}
    assert (Kind.CHANGED, 5) in kinds  # where the signed head stands now


def test_findings_are_bounded() -> None:
    line = HONEST[1]
    report = verify([HONEST[0], *[line] * (MAX_FINDINGS + 50), *HONEST[1:]])
    assert len(report.findings) == MAX_FINDINGS and report.findings_left_out > 0
    assert any("more findings" in text for text in lines_of(report))


def test_memory_does_not_grow() -> None:
    def stream(count: int) -> Iterator[bytes]:
        head = GENESIS
        for number in range(count):
            line = next_line(head, body("flow_allowed" if number else CHAIN_OPENED))
            head = Head(head.seq + 1, digest_of(line))
            yield line

    class Lines:
        def __init__(self, count: int) -> None:
            self._lines = stream(count)

        def readline(self, _limit: int, /) -> bytes:
            return next(self._lines, b"")

    def peak_of(count: int) -> int:
        tracemalloc.start()
        verifier = Verifier(Trust())
        verifier.read("f", Lines(count))
        assert verifier.finish().records == count
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_of(100)
    assert peak_of(5000) < peak_of(500) + 20_000


# --- any tampering --------------------------------------------------------------------------------

ANY = settings(max_examples=400, deadline=None)
TWO = (
    chain([CHAIN_OPENED, *["flow_allowed"] * 5, "head"])[0],
    chain(
        [CHAIN_OPENED, *["flow_denied"] * 4, "head"],
        chain([CHAIN_OPENED, *["flow_allowed"] * 5, "head"])[1],
    )[0],
)


@ANY
@given(st.integers(0, len(b"".join(HONEST)) - 1), st.integers(1, 255))
@example(len(b"".join(HONEST)) - 1, 1)
def test_any_byte_that_is_changed_is_found(index: int, mask: int) -> None:
    data = bytearray(b"".join(HONEST))
    data[index] ^= mask
    report = verify(bytes(data))
    line = bytes(b"".join(HONEST))[:index].count(b"\n") + 1
    assert not report.is_intact
    # A first record with another number makes the second one look like the intruder.
    assert any(abs(one.place.line - line) <= 1 for one in report.findings)


@ANY
@given(st.data())
def test_any_lines_that_are_taken_repeated_or_moved_are_found(data: Any) -> None:
    files = [list(file) for file in TWO]
    file = data.draw(st.sampled_from(files))
    index = data.draw(st.integers(0, len(file) - 1))
    match data.draw(st.sampled_from(["take", "repeat", "move", "swap", "invent"])):
        case "take":
            del file[index : index + data.draw(st.integers(1, 3))]
        case "repeat":
            file.insert(data.draw(st.integers(0, len(file))), file[index])
        case "move":
            line = file.pop(index)
            file.insert(data.draw(st.integers(0, len(file)).filter(lambda to: to != index)), line)
        case "swap":
            other = data.draw(st.integers(0, len(file) - 1).filter(lambda to: to != index))
            file[index], file[other] = file[other], file[index]
        case "invent":
            seq = data.draw(st.integers(1, 20))
            file.insert(index, next_line(Head(seq - 1, "ab" * 32), body("flow_allowed")))
    assert not verify(*files, trust=SEALED).is_intact


@ANY
@given(st.lists(st.sampled_from(HONEST), max_size=COUNT + 2))
def test_any_other_sequence_of_the_lines_is_found(lines: list[bytes]) -> None:
    report = verify(lines, trust=SEALED)
    assert report.is_intact == (lines in (HONEST, HONEST[:6]))


@ANY
@given(st.lists(st.binary(max_size=80) | st.sampled_from(HONEST), max_size=8))
def test_any_bytes_are_an_answer(parts: list[bytes]) -> None:
    report = verify(*parts)
    assert list(lines_of(report)) == list(lines_of(verify(*parts)))
    assert report.as_dict()["intact"] == report.is_intact


# --- whatever a gateway writes --------------------------------------------------------------------


class Machine:
    """A gateway's disk: full at times, cut by the power, and a gateway that starts again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "audit.jsonl"
        self.keeper = HeadKeeper(folder)
        self.room: int | None = None
        self.number = 0
        #: The file was put aside with a torn end, and the first record of the next one may be torn,
        #: too, before anybody could tell: only the process knows of both.
        self.is_fragile = False
        self._write = os.write
        self.start()

    def start(self) -> None:
        self.log = AuditLog(self.path, keeper=self.keeper, max_bytes=3000)

    def write_some(self, fd: int, data: bytes) -> int:
        """``os.write`` of a disk with so much room."""
        if self.room is None:
            return self._write(fd, data)
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = self._write(fd, data[: self.room])
        self.room -= count
        return count

    def records(self, count: int) -> None:
        for _ in range(count % 40):
            self.log.events_lost(count=1)

    def stop(self, _: int) -> None:
        if self.is_fragile:
            return
        self.log.close()
        self.start()

    def kill(self, _: int) -> None:
        if self.is_fragile:
            return
        self._drop()
        self.start()

    def cut_power(self, lost_bytes: int) -> None:
        """What was not synced may be gone, from the end on."""
        if self.is_fragile:
            return
        size = self.path.stat().st_size
        last = self.path.read_bytes().rfind(b"\n", 0, max(0, size - 1)) + 1
        self._drop()
        noted = self.keeper.noted()
        keep = max(last, size - lost_bytes)
        if noted is None or self.log.head.seq > noted.seq:
            os.truncate(self.path, keep)
        self.start()

    def _drop(self) -> None:
        assert self.log._file is not None
        for fd in [self.log._file.fd, *self.log._retired]:
            os.close(fd)

    def rotate(self, _: int) -> None:
        assert self.log._file is not None
        if not self.log._file.has_records:
            return  # a torn record alone in its file does not say where it belongs
        self.number += 1
        self.path.rename(self.folder / f"audit.jsonl-{self.number}")
        self.log.reopen()
        self.is_fragile = self.log._file.debris is not None

    def fill_disk(self, room: int) -> None:
        self.room = room

    def free_disk(self, _: int) -> None:
        self.room = None
        self.log.events_lost(count=1)
        self.is_fragile = False

    def sync(self, _: int) -> None:
        self.log.sync()

    def hangup(self, _: int) -> None:
        self.log.reopen()


STEPS = [
    *(Machine.records, Machine.stop, Machine.kill, Machine.cut_power, Machine.rotate),
    *(Machine.fill_disk, Machine.free_disk, Machine.sync, Machine.hangup),
]


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 400)), max_size=14))
def test_whatever_a_gateway_writes_is_accepted(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    steps: list[tuple[Callable[[Machine, int], None], int]],
) -> None:
    folder = tmp_path_factory.mktemp("audit")
    machine = Machine(folder)
    with monkeypatch.context() as patch:
        patch.setattr(audit_file.os, "write", machine.write_some)
        for step, argument in steps:
            step(machine, argument % 17 if step is Machine.records else argument)
            machine.records(1)
    machine.room = None
    machine.records(1)
    machine.log.close()
    keys = frozenset({machine.keeper.public_key})
    position = parse_position((folder / "audit.head").read_bytes())
    report = verify_files([*folder.glob("audit.jsonl*")], Trust(keys, position, sealed=True))
    assert report.is_intact, list(lines_of(report))
    assert report.first_seq == 1 and report.signed_seq == report.last.seq


# --- files ----------------------------------------------------------------------------------------


def test_files_in_any_order_compressed_or_not(tmp_path: Path) -> None:
    head, paths = GENESIS, []
    for number in range(12):
        lines, head = chain([CHAIN_OPENED, "a", "head"], head)
        path = tmp_path / f"audit.jsonl.{number}"
        data = b"".join(lines)
        path.write_bytes(gzip.compress(data) if number % 2 else data)
        paths.append(path)
    empty = tmp_path / "audit.jsonl"
    empty.touch()
    report = verify_files([empty, *reversed(paths), paths[3]], SEALED)
    assert report.is_intact and report.records == 36
    assert report.files == [str(path) for path in [*paths, empty]]


def test_a_log_that_is_just_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.jsonl"
    data = b"".join(HONEST)
    path.write_bytes(data[:-100])

    def write_the_rest(_seconds: float) -> None:
        path.write_bytes(data)

    monkeypatch.setattr(audit_verify.time, "sleep", write_the_rest)
    assert verify_files([path], SEALED).is_intact


def test_what_cannot_be_read(tmp_path: Path) -> None:
    for path, words in [
        (tmp_path / "nothing", "No such file"),
        (tmp_path, "Is a directory"),
    ]:
        with pytest.raises(Unreadable, match=words):
            verify_files([path])
    broken = tmp_path / "broken.gz"
    packed = gzip.compress(b"".join(HONEST))
    broken.write_bytes(packed[:-30])
    with pytest.raises(Unreadable, match=r"broken\.gz"):
        verify_files([broken])
    broken.write_bytes(packed[:40] + b"\0" * 40 + packed[80:])
    with pytest.raises(Unreadable, match=r"broken\.gz"):
        verify_files([broken])


def test_no_record_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    report = verify_files([tmp_path / "empty"])
    assert report.is_intact and report.notes == ["there is no record"]


def test_an_overlong_line_is_no_record_and_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(HONEST[0] + b"x" * (5 << 20) + b"\n" + b"".join(HONEST[1:]))
    tracemalloc.start()
    report = verify_files([path])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found(report) == [(Kind.INSERTED, 2, None)]
    assert peak < 4 << 20


def test_a_record_tells_what_it_says() -> None:
    record = parse_record(HONEST[1])
    assert isinstance(record, Record)
    assert record.fields["client"] == "c1"
