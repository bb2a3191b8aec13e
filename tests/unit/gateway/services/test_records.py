"""What the audit log says of connectors, and how much of it."""

from __future__ import annotations

import asyncio
import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from zgate_gateway.audit import AuditLog
from zgate_gateway.services import records as records_module
from zgate_gateway.services.records import ConnectorRecords
from zgate_gateway.services.routes import Handover, Holder
from zgate_protocol.service_capsule import (
    Health,
    OfferKind,
    RegistrationAnswer,
    RegistrationCode,
)

from .conftest import World


class Log:
    """A real audit log; `lines` are its records without what every record has."""

    def __init__(self, path: Path) -> None:
        self.audit = AuditLog(path)
        self.records = ConnectorRecords(self.audit, asyncio.get_running_loop())

    def lines(self) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.audit.path.read_text().splitlines()]
        common = {"seq", "prev", "ts"}
        return [
            {key: value for key, value in line.items() if key not in common}
            for line in found
            if line["event"] != "chain_opened"
        ]


@pytest.fixture
async def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "audit.jsonl")


async def test_every_record(world: World, log: Log) -> None:
    session, records = world.session("a"), log.records
    accepted = RegistrationAnswer(
        OfferKind.SERVICE, "pacs", RegistrationCode.ACCEPTED, "", (ip_address("10.101.0.1"),)
    )
    refused = RegistrationAnswer(OfferKind.ROUTE, "10.9.0.0/16", RegistrationCode.OVERLAP, "why")
    records.answered(session, accepted)
    records.answered(session, refused)
    records.withdrawn(session, OfferKind.SERVICE, "pacs", "kicked")
    records.health(session, "pacs", Health.DOWN, "refused")
    records.silent(session, True)
    records.silent(session, False)
    records.drained("a", 3.5, is_undone=False)
    records.drained("a", None, is_undone=True)
    holder = Holder(session.identity, 11, 0)
    records.handed_over(Handover(ip_network("10.20.0.0/16"), None, holder))
    records.ended(session)
    who = {"client": "a", "session": session.session_id}
    assert log.lines() == [
        {"event": "offer_accepted", **who, "kind": "service", "offer": "pacs",
         "addresses": ["10.101.0.1"]},
        {"event": "offer_refused", **who, "kind": "route", "offer": "10.9.0.0/16",
         "code": "overlap", "text": "why"},
        {"event": "offer_withdrawn", **who, "kind": "service", "offer": "pacs", "cause": "kicked"},
        {"event": "offer_health", **who, "offer": "pacs", "health": "down", "reason": "refused"},
        {"event": "connector_silent", **who},
        {"event": "connector_heard", **who},
        {"event": "connector_drained", "client": "a", "deadline_s": 3.5},
        {"event": "connector_undrained", "client": "a"},
        {"event": "route_handed_over", "network": "10.20.0.0/16", "client": "a", "before": None},
    ]  # fmt: skip


async def test_what_a_connector_can_cause_is_bounded_and_counted(
    world: World, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_module, "_RECORDS_BURST", 3)
    monkeypatch.setattr(records_module, "_RECORDS_PER_S", 0.001)
    session, other = world.session("a"), world.session("b")
    for number in range(10):
        log.records.health(session, "pacs", Health(number % 2), "")
    log.records.health(other, "pacs", Health.UP, "")
    log.records.ended(session)
    log.records.ended(other)
    lines = log.lines()
    assert [line["client"] for line in lines] == ["a", "a", "a", "b", "a"]
    assert lines[-1] == {"event": "rate_limited", "client": "a", "suppressed": 7}
