"""What the kernel tells goes to the audit log and to whoever follows."""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from zgate_bpf.kernel_policy import Direction, EventKind, KernelEvent
from zgate_control.store import ClientRecord, StoreError, StoreLost
from zgate_gateway.api.schemas import FlowEventQuery
from zgate_gateway.audit import AuditLog
from zgate_gateway.journal import Journal
from zgate_gateway.kernel import FlowEvent
from zgate_gateway.policy.policy_set import PolicySet
from zgate_protocol.drop_reason import DropReason

RULE = PolicySet.parse(
    'version: "1.0"\nclients: {alice: {rules: [{id: web, type: default, action: allow}]}}'
).rules_for("alice")[0]


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[AuditLog]:
    log = AuditLog(tmp_path / "audit.jsonl")
    yield log
    log.close()


@pytest.fixture
def journal(audit: AuditLog) -> Journal:
    nothing: Any = SimpleNamespace()
    return Journal(audit, nothing, nothing, nothing)


def named(kind: EventKind, **changes: Any) -> FlowEvent:
    values: dict[str, Any] = {
        "kind": kind,
        "time_ns": 0,
        "client_index": 3,
        "rule": 0,
        "revision": 7,
        "reason": DropReason.NONE if kind is EventKind.FLOW_ALLOWED else DropReason.POLICY_RULE,
        "direction": Direction.UP,
        "source": "10.100.0.2",
        "destination": "10.20.0.5",
        "protocol": 6,
        "source_port": 40000,
        "destination_port": 443,
        "length_bytes": 60,
        "suppressed": 0,
    }
    return FlowEvent(KernelEvent(**{**values, **changes}), "alice", RULE, revision=4)


def records(audit: AuditLog) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in audit.path.read_text().splitlines()]
    return [record for record in found if record["event"] != "chain_opened"]


async def test_events_are_recorded_and_told(journal: Journal, audit: AuditLog) -> None:
    stream = journal.feed.follow(FlowEventQuery())
    await anext(stream)
    journal.flow(named(EventKind.FLOW_ALLOWED))
    journal.flow(named(EventKind.DENIED, protocol=1, destination_port=0x0800, suppressed=5))
    allowed, denied, limited = records(audit)
    assert (allowed["event"], allowed["client"], allowed["rule"]) == (
        "flow_allowed",
        "alice",
        "web",
    )
    assert (allowed["revision"], denied["revision"]) == (4, 4)  # not the kernel's number
    assert (allowed["source_port"], allowed["destination_port"]) == (40000, 443)
    assert (denied["reason"], denied["icmp_type"], denied["icmp_code"]) == ("POLICY_RULE", 8, 0)
    assert "destination_port" not in denied
    assert (limited["event"], limited["suppressed"]) == ("rate_limited", 5)
    assert [news.kind for news in await anext(stream)] == ["allowed", "denied"]
    assert [news.suppressed for news in journal.feed.denials("alice", 9)] == [5]
    assert journal.events_received == 2


class NotedStore:
    """What a store was told of clients."""

    def __init__(self) -> None:
        self.told: list[list[tuple[str, str]]] = []
        self.failure: StoreError | None = None

    def note_clients(self, records: Sequence[ClientRecord]) -> None:
        if self.failure is not None:
            raise self.failure
        self.told.append([(one.name, f"{one.last_seen_at:%M}") for one in records])


@pytest.fixture
def noted(audit: AuditLog) -> tuple[Journal, NotedStore]:
    store, nothing = NotedStore(), SimpleNamespace()
    return Journal(audit, store, nothing, nothing), store  # type: ignore[arg-type]


def session(name: str, minute: int, serial: int = 1, groups: tuple[str, ...] = ()) -> Any:
    not_after = datetime(2027, 1, 1, tzinfo=UTC)
    return SimpleNamespace(
        client=name,
        session_id="s1",
        peer="192.0.2.1 port 5",
        addresses=(),
        identity=SimpleNamespace(name=name, groups=groups, serial=serial, not_after=not_after),
        established_at=datetime(2026, 3, 1, 12, minute, tzinfo=UTC),
    )


def test_a_client_is_noted_at_once_and_its_return_now_and_then(
    noted: tuple[Journal, NotedStore],
) -> None:
    journal, store = noted
    for minute in range(3):
        journal.session_up(session("alice", minute))
    journal.session_up(session("bob", 3))
    journal.session_up(session("bob", 4))
    assert store.told == [[("alice", "00")], [("bob", "03")]]
    for _ in range(2):
        journal.write_seen()
    assert store.told[2:] == [[("alice", "02"), ("bob", "04")]]


@pytest.mark.parametrize("change", [{"serial": 2}, {"groups": ("admins",)}])
def test_another_certificate_is_noted_at_once(
    noted: tuple[Journal, NotedStore], change: dict[str, Any]
) -> None:
    journal, store = noted
    journal.session_up(session("alice", 0))
    journal.session_up(session("alice", 1))
    journal.session_up(session("alice", 2, **change))
    journal.write_seen()
    assert store.told == [[("alice", "00")], [("alice", "02")]]


def test_a_store_that_fails_is_told_later(
    noted: tuple[Journal, NotedStore], caplog: pytest.LogCaptureFixture
) -> None:
    journal, store = noted
    journal.session_up(session("alice", 0))
    journal.session_up(session("alice", 1))
    store.failure = StoreError("zgate.db", "the disk is full", "free some space")
    journal.write_seen()
    journal.session_up(session("bob", 2))
    assert caplog.text.count("disk is full") == 2
    store.failure = StoreLost(store.failure)
    journal.write_seen()
    assert caplog.text.count("disk is full") == 2
    store.failure = None
    journal.session_up(session("bob", 3))
    journal.write_seen()
    assert store.told == [[("alice", "00")], [("bob", "03")], [("alice", "01")]]
