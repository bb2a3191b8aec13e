"""The audit log: one record per line, and a full disk costs records, not the gateway."""

import asyncio
import json
import logging
import os
import resource
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_gateway.audit import AuditError, AuditEvent, AuditLog, Flow

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
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


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
    assert audit.written == 12 and audit.lost == 0


@given(st.text(), st.text())
def test_no_text_breaks_the_line(
    tmp_path_factory: pytest.TempPathFactory, client: str, text: str
) -> None:
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    log = AuditLog(path)
    log.session_refused(peer="p", reason="r", text=text, client=client)
    log.close()
    (record,) = path.read_bytes().splitlines()
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
    torn, *rest = path.read_text().splitlines()
    assert torn == '{"ts":"2026-'
    assert [json.loads(line)["count"] for line in rest] == [1, 2]


def test_a_full_disk_is_counted_reported_and_survived(
    audit: AuditLog, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audit.events_lost(count=1)
    size = path.stat().st_size
    with caplog.at_level(logging.WARNING), file_size_limit(size + 30):
        for _ in range(5):
            audit.events_lost(count=2)
        assert audit.lost == 5 and audit.written == 1
        assert audit.last_error is not None
    assert len(caplog.records) == 1
    audit.events_lost(count=3)
    audit.events_lost(count=4)
    lines = path.read_text().splitlines()
    assert len(lines[1]) == 30  # what fitted of the first record that was lost
    del lines[1]
    found = [json.loads(line) for line in lines]
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
    assert len(records(path)) == audit.written == 800


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
    assert audit.last_error == "Input/output error"


def test_after_close_records_are_lost_and_counted(audit: AuditLog) -> None:
    audit.close()
    audit.events_lost(count=1)
    audit.close()
    assert audit.lost == 1
