"""The audit log: one record per line, and a full disk costs records, not the gateway."""

import asyncio
import json
import logging
import os
import resource
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_gateway.audit import AuditError, AuditEvent, AuditLog, Flow
from zgate_gateway.audit_chain import GENESIS, Head, digest_of, next_line, parse_record
from zgate_gateway.audit_head import HeadKeeper, is_signed
from zgate_gateway.audit_verify import verify_files

NOW = datetime(2026, 3, 1, 12, 30, 15, 250, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def audit(path: Path) -> Iterator[AuditLog]:
    log = AuditLog(path, clock=lambda: NOW)
    yield log
    log.close()


def records(path: Path) -> list[dict[str, Any]]:
    """What happened: the chain's own records are the matter of test_audit_chain."""
    found = [json.loads(line) for line in path.read_text("ascii").splitlines()]
    return [record for record in found if not record["event"].startswith("chain_")]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel refuses to let files grow beyond ``size``: what a full disk looks like."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_every_event_has_its_fields(audit: AuditLog, path: Path) -> None:
    flow = Flow("up", ip_address("10.100.0.2"), ip_address("10.20.0.5"), 6, 40000, 443)
    ping = Flow("up", "fd00::2", "fd01::5", 58, icmp_type=128, icmp_code=0)
    held = [ip_address("10.100.0.2"), ip_address("fd00::2")]
    audit.gateway_started(version="0.1", pid=7, listen=["[::]:443"])
    audit.session_up(
        client="c", groups=["g"], session="s", peer="p:1", addresses=held, certificate_serial="0a"
    )
    audit.session_down(
        client="c", session="s", peer="p:1", addresses=held, cause="idle", duration_s=1.23456
    )
    audit.session_refused(peer="p:1", reason="EXPIRED", text="expired yesterday")
    audit.client_kicked(client="c", sessions=1, reason="lost laptop")
    audit.policy_loaded(revision=3, source="p.yaml", sha256="ab", clients=1, groups=2, rules=9)
    audit.policy_refused(source="p.yaml", text="p.yaml:3: ...", revision=3)
    audit.flow_allowed(client="c", flow=flow, rule="allow-https", revision=3)
    audit.flow_denied(client="c", flow=ping, reason="POLICY_DEFAULT", rule=None, revision=3)
    audit.rate_limited(client="c", suppressed=12)
    audit.events_lost(count=4)
    audit.gateway_stopped(cause="SIGTERM")
    found = {record["event"]: record for record in records(path)}
    assert all(record["ts"] == "2026-03-01T12:30:15.000250Z" for record in found.values())
    assert [record["event"] for record in records(path)] == [
        event.value
        for event in (
            AuditEvent.GATEWAY_STARTED,
            AuditEvent.SESSION_UP,
            AuditEvent.SESSION_DOWN,
            AuditEvent.SESSION_REFUSED,
            AuditEvent.CLIENT_KICKED,
            AuditEvent.POLICY_LOADED,
            AuditEvent.POLICY_REFUSED,
            AuditEvent.FLOW_ALLOWED,
            AuditEvent.FLOW_DENIED,
            AuditEvent.RATE_LIMITED,
            AuditEvent.EVENTS_LOST,
            AuditEvent.GATEWAY_STOPPED,
        )
    ]
    assert found["session_up"]["addresses"] == ["10.100.0.2", "fd00::2"]
    assert (found["session_down"]["cause"], found["session_down"]["duration_s"]) == ("idle", 1.235)
    assert found["session_refused"]["client"] is None
    assert found["policy_loaded"]["rules"] == 9
    assert found["rate_limited"]["suppressed"] == 12
    allowed = found["flow_allowed"]
    assert (allowed["rule"], allowed["revision"]) == ("allow-https", 3)
    assert (allowed["destination"], allowed["destination_port"]) == ("10.20.0.5", 443)
    assert "icmp_type" not in allowed
    denied = found["flow_denied"]
    assert (denied["reason"], denied["rule"], denied["icmp_type"]) == ("POLICY_DEFAULT", None, 128)
    assert "source_port" not in denied
    assert audit.written == 13 and audit.lost == 0  # and chain_opened


@given(st.text(), st.text())
def test_no_text_breaks_the_line(
    tmp_path_factory: pytest.TempPathFactory, client: str, text: str
) -> None:
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    log = AuditLog(path)
    log.session_refused(peer="p", reason="r", text=text, client=client)
    log.close()
    _opened, record = path.read_bytes().splitlines()
    assert json.loads(record)["text"] == text
    assert all(byte >= 0x20 for byte in record)


def test_it_appends_and_is_not_for_everybody(path: Path) -> None:
    for _ in range(2):
        log = AuditLog(path)
        log.events_lost(count=1)
        log.close()
    assert len(records(path)) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_line_that_a_power_cut_tore_does_not_swallow_the_next(path: Path) -> None:
    path.write_bytes(b'{"ts":"2026-')
    log = AuditLog(path)
    log.events_lost(count=1)
    log.events_lost(count=2)
    log.close()
    torn, opened, *rest = path.read_text().splitlines()
    assert torn == '{"ts":"2026-'
    assert json.loads(opened)["event"] == "chain_opened"
    assert [json.loads(line)["count"] for line in rest] == [1, 2]


def test_a_full_disk_is_counted_reported_and_survived(
    audit: AuditLog, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audit.events_lost(count=1)
    size = path.stat().st_size
    with caplog.at_level(logging.WARNING), file_size_limit(size + 30):
        for _ in range(5):
            audit.events_lost(count=2)
        assert audit.lost == 5 and audit.written == 2
        assert audit.last_error is not None
    assert len(caplog.records) == 1
    audit.events_lost(count=3)
    audit.events_lost(count=4)
    lines = path.read_text().splitlines()
    assert len(lines[2]) == 30  # what fitted of the first record that was lost
    del lines[2]
    found = [json.loads(line) for line in lines]
    assert [found.pop(0)["event"], found.pop(1)["event"]] == ["chain_opened", "chain_repaired"]
    assert [(record["event"], record["count"]) for record in found] == [
        ("events_lost", 1),
        ("audit_lost", 5),
        ("events_lost", 3),
        ("events_lost", 4),
    ]
    assert audit.last_error is None and audit.lost == 5


def test_a_device_that_is_always_full() -> None:
    log = AuditLog(Path("/dev/full"))
    log.events_lost(count=1)
    assert (log.lost, log.last_error) == (1, "No space left on device")
    log.close()


def test_reopen_follows_a_rotation(audit: AuditLog, path: Path) -> None:
    audit.events_lost(count=1)
    rotated = path.with_suffix(".1")
    path.rename(rotated)
    audit.events_lost(count=2)
    audit.reopen()
    audit.events_lost(count=3)
    assert [record["count"] for record in records(rotated)] == [1, 2]
    assert [record["count"] for record in records(path)] == [3]


def test_reopen_that_fails_keeps_the_old_file(
    audit: AuditLog, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rotated = path.with_suffix(".1")
    path.rename(rotated)
    path.mkdir()
    audit.reopen()
    assert "the old file stays in use" in caplog.text
    audit.events_lost(count=1)
    assert len(records(rotated)) == 1


@pytest.mark.parametrize("name", ["nowhere/audit.jsonl", "."])
def test_a_file_that_cannot_be_opened_is_an_error_at_start(tmp_path: Path, name: str) -> None:
    with pytest.raises(AuditError, match=r"audit log .*; create its directory"):
        AuditLog(tmp_path / name)


def test_a_symbolic_link_is_not_followed(tmp_path: Path, path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AuditError):
        AuditLog(path)


def test_records_of_many_threads_stay_whole(audit: AuditLog, path: Path) -> None:
    def work() -> None:
        for number in range(200):
            audit.write(AuditEvent.RATE_LIMITED, client="x" * 500, suppressed=number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(records(path)) == audit.written - 1 == 800


async def test_run_syncs_what_was_written(audit: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    seen = asyncio.Event()
    loop = asyncio.get_running_loop()

    def fdatasync(fd: int) -> None:
        synced.append(fd)
        loop.call_soon_threadsafe(seen.set)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    task = asyncio.create_task(audit.run(0.001))
    audit.events_lost(count=1)
    await asyncio.wait_for(seen.wait(), 5)
    audit.events_lost(count=2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        while len(synced) < 2:  # the second on the way out, or just before by the loop
            await asyncio.sleep(0)
    audit.sync()
    assert len(synced) == 2  # none without a record


def test_a_failing_sync_is_reported(audit: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    audit.events_lost(count=1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        audit.sync()
    assert audit.last_error == "not brought to the disk: Input/output error"


def test_what_was_not_brought_to_the_disk_is_brought_there_before_all_is_well(
    audit: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def fail_twice(fd: int) -> None:
        tries.append(fd)
        if len(tries) < 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", fail_twice)
    audit.events_lost(count=1)
    for _ in range(2):
        audit.sync()
        assert audit.last_error is not None
    audit.sync()
    assert audit.last_error is None and len(tries) == 3


def test_after_close_records_are_lost_and_counted(audit: AuditLog) -> None:
    audit.close()
    audit.events_lost(count=1)
    audit.close()
    assert audit.lost == 1


# --- the chain over files and restarts ------------------------------------------------------------


def chained(path: Path) -> list[dict[str, Any]]:
    """Every record of a file, whose links are right."""
    found, before = [], None
    for line in path.read_bytes().splitlines(keepends=True):
        record = json.loads(line)
        if before is not None:
            assert record["prev"] == sha256(before).hexdigest()
            assert record["seq"] == found[-1]["seq"] + 1
        found.append(record)
        before = line
    return found


def test_a_chain_begins_with_its_first_record(audit: AuditLog, path: Path) -> None:
    audit.events_lost(count=1)
    first, second = chained(path)
    assert (first["seq"], first["prev"], first["event"]) == (1, "0" * 64, "chain_opened")
    assert list(second)[:4] == ["seq", "prev", "ts", "event"]
    assert audit.head == Head(2, sha256(path.read_bytes().splitlines(True)[1]).hexdigest())


def test_the_chain_survives_restarts(path: Path) -> None:
    for number in range(4):
        log = AuditLog(path)
        log.events_lost(count=number)
        log.close()
    assert [record["seq"] for record in chained(path)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("cut", range(1, 140))
def test_a_torn_record_is_repaired_by_one_that_says_so(path: Path, cut: int) -> None:
    log = AuditLog(path, clock=lambda: NOW)
    log.events_lost(count=1)
    log.events_lost(count=2)
    log.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines)[:-cut])
    log = AuditLog(path, clock=lambda: NOW)
    log.events_lost(count=3)
    log.close()
    found = path.read_bytes().splitlines(keepends=True)
    *_, repaired, last = (json.loads(line) for line in found[-2:])
    is_whole = cut == 1  # only the newline was missing
    torn = b"" if is_whole else lines[2][:-cut]
    assert repaired["event"] == "chain_repaired"
    assert (repaired["lost_bytes"], repaired["lost_sha256"]) == (
        len(torn),
        sha256(torn).hexdigest(),
    )
    assert repaired["seq"] == (4 if is_whole else 3)
    assert repaired["prev"] == sha256(lines[2] if is_whole else lines[1]).hexdigest()
    assert last["prev"] == sha256(found[-2]).hexdigest() and last["count"] == 3


def test_an_end_far_behind_the_last_record_is_found(path: Path) -> None:
    log = AuditLog(path)
    log.events_lost(count=1)
    log.close()
    with path.open("ab") as stream:
        stream.write(b"x" * 3_000_000)
    log = AuditLog(path)
    log.events_lost(count=2)
    log.close()
    lines = path.read_bytes().splitlines()
    assert json.loads(lines[3])["seq"] == 3
    assert json.loads(lines[3])["lost_bytes"] == 3_000_000


def test_one_writer_only(audit: AuditLog, path: Path) -> None:
    with pytest.raises(AuditError, match="another process writes it"):
        AuditLog(path)


def signed_log(path: Path, **options: Any) -> AuditLog:
    return AuditLog(path, keeper=HeadKeeper(path.parent), **options)


def test_a_clean_stop_signs_the_head(path: Path) -> None:
    log = signed_log(path)
    log.events_lost(count=1)
    log.close()
    last = chained(path)[-1]
    assert (last["event"], last["cause"]) == ("chain_head", "stop")
    line = path.read_bytes().splitlines(keepends=True)[-1]
    record = parse_record(line)
    assert record is not None and is_signed(record, {HeadKeeper(path.parent).public_key})
    signed_log(path).close()  # nothing happened: nothing to sign
    assert len(chained(path)) == 3


def test_a_rotation_signs_the_head_and_goes_on_in_the_next_file(path: Path) -> None:
    log = signed_log(path)
    log.reopen()  # SIGHUP without a rotation
    rotated = path.with_name("audit.jsonl.1")
    path.rename(rotated)
    log.reopen()
    log.events_lost(count=1)
    log.close()
    *_, head = chained(rotated)
    opened, *_ = chained(path)
    assert (head["event"], head["cause"]) == ("chain_head", "rotation")
    assert (opened["event"], opened["seq"]) == ("chain_opened", head["seq"] + 1)
    assert opened["prev"] == sha256(rotated.read_bytes().splitlines(True)[-1]).hexdigest()


def test_rotation_by_size(path: Path) -> None:
    log = signed_log(path, max_bytes=2000)
    for number in range(60):
        log.events_lost(count=number)
    log.close()
    files = sorted(path.parent.glob("audit.jsonl.*"))
    assert len(files) > 3
    assert all(file.stat().st_size < 2600 for file in files)
    events, seq = [], 0
    for file in [*files, path]:
        found = chained(file)
        assert (found[0]["event"], found[0]["seq"]) == ("chain_opened", seq + 1)
        assert found[-1]["event"] == "chain_head"
        assert file == path or file.name == f"audit.jsonl.{found[-1]['seq']:012}"
        events += [record["count"] for record in found if record["event"] == "events_lost"]
        seq = found[-1]["seq"]
    assert events == list(range(60))


def test_a_rotation_that_fails_keeps_the_file_and_every_record(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    log = AuditLog(path, max_bytes=1000)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        for number in range(10):
            log.events_lost(count=number)
        assert "not rotated: [Errno 30] Read-only file system" in caplog.text
        assert len(chained(path)) == 11
    for number in range(10):
        log.events_lost(count=number)
    log.close()
    assert list(path.parent.glob("audit.jsonl.*")) and log.lost == 0


def test_a_file_that_was_rotated_while_no_gateway_ran(path: Path) -> None:
    log = signed_log(path)
    log.events_lost(count=1)
    log.close()
    last = chained(path)[-1]
    for rotated in (path.with_name("audit.jsonl.1"), path.parent / "elsewhere"):
        path.rename(rotated)
        signed_log(path).close()
        assert chained(path)[0]["seq"] == last["seq"] + 1
        last = chained(path)[-1]


def test_a_log_that_was_shortened_meanwhile_keeps_the_gap(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = signed_log(path)
    for number in range(5):
        log.events_lost(count=number)
    log.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]))
    log = signed_log(path)
    log.events_lost(count=9)
    log.close()
    assert "ends at record 4, but had come to 7" in caplog.text
    (finding,) = verify_files([path]).findings
    assert "records 5 to 7 are missing" in finding.text


def test_a_record_costs_little() -> None:
    """The chain's part, without the write: a number, a hash and a line."""
    body = json.dumps({"ts": "2026-03-01T12:30:15.000250Z", "event": "x", "a": "b" * 300}).encode()
    best_s, rounds, head = 1.0, 500, GENESIS
    for _ in range(10):
        began_s = time.thread_time()
        for _ in range(rounds):
            head = Head(head.seq + 1, digest_of(next_line(head, body)))
        best_s = min(best_s, (time.thread_time() - began_s) / rounds)
    assert best_s < 10e-6
