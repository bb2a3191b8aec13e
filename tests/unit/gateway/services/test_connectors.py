"""Registration, health, silence, drain and the end of connectors that offer services."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from zgate_control.store import StoreError
from zgate_gateway.services import connectors as connectors_module
from zgate_protocol.service_capsule import Health, OfferedService

from .conftest import TCP, FakePolicy, World


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.005)


async def test_an_offer_is_accepted_with_its_addresses(world: World) -> None:
    session = world.session(worker=1)
    assert world.offer(session, "pacs", revision=3) == {"pacs": "ACCEPTED"}
    (answer,) = world.answers(session)
    assert [str(one) for one in answer.service_addresses] == ["10.101.0.1", "fd7a:7a67:6174:66::1"]
    offer_addresses = tuple(map(str, answer.offer_addresses))
    assert offer_addresses[0] == "10.101.0.254"
    assert world.granted(session) == (offer_addresses, ())
    assert world.workers[1].answers[-1][:2] == (session.session_id, 3)
    assert world.owners.owners == dict.fromkeys(offer_addresses, 1)
    (entry,) = world.tables.offers.values()
    assert (entry["client_index"], entry["service"]) == (11, 0)
    assert tuple(map(str, entry["addresses"])) == offer_addresses
    assert world.told.words == [("a", "pacs", "ACCEPTED")]


async def test_the_kernel_knows_the_service_first_and_the_session_is_told_last(
    world: World,
) -> None:
    world.offer(world.session(), "pacs")
    kinds = [line.split()[0] for line in world.log]
    assert kinds == [
        "set_service", "assign", "assign", "set_offer", "use_offer", "grant", "answer",
    ]  # fmt: skip


async def test_new_flows_come_when_the_connector_says_that_it_is_healthy(world: World) -> None:
    session = world.session()
    world.offer(session, "pacs", "echo")
    assert world.uses(session) == {"pacs": "KEEP", "echo": "KEEP"}
    world.state(session, "pacs", open_flows=5)
    assert world.uses(session) == {"pacs": "UP", "echo": "KEEP"}
    offer = world.connectors.by_session[session.session_id].offers["pacs"]
    assert world.tables.offers[offer.number]["open_flows"] == 5
    world.state(session, "pacs", Health.DOWN, reason="refused")
    assert world.uses(session)["pacs"] == "KEEP"
    assert (offer.health, offer.reason) == (Health.DOWN, "refused")
    world.state(session, "unknown")
    assert ("a", "pacs", "DOWN", "refused") in world.told.words
    assert [words for words in world.told.words if "unknown" in words] == []


async def test_health_is_told_when_it_changes(world: World) -> None:
    session = world.session()
    world.offer(session, "pacs")
    for health in (Health.UP, Health.UP, Health.DOWN, Health.DOWN, Health.UP):
        world.state(session, "pacs", health)
    assert [words[2] for words in world.told.words if len(words) == 4] == ["UP", "DOWN", "UP"]


async def test_who_may_offer_what(world: World) -> None:
    world.policy = FakePolicy(b=(["echo-*"], []))
    by_certificate = world.session("a", offers=("pacs",))
    assert world.offer(by_certificate, "pacs", "echo-1") == {
        "pacs": "ACCEPTED",
        "echo-1": "NOT_AUTHORIZED",
    }
    assert "certificate of a" in world.answers(by_certificate)[1].text
    by_policy = world.session("b", offers=("pacs",))
    assert world.offer(by_policy, "pacs", "echo-1", "ech") == {
        "pacs": "ACCEPTED",
        "echo-1": "ACCEPTED",
        "ech": "NOT_AUTHORIZED",
    }
    everything = world.session("c", offers=("*",))
    assert world.offer(everything, "anything") == {"anything": "ACCEPTED"}
    assert world.connectors.refused == {"not_authorized": 2}
    assert world.directory.addresses_of("ech") is None  # who may not offer makes no names


@pytest.mark.parametrize("name", ["echo-*", "a\x00b", "", "x" * 256])
async def test_what_is_no_name_is_refused(world: World, name: str) -> None:
    assert world.offer(world.session(offers=("*",)), name) == {name: "INVALID"}


async def test_a_name_that_is_listed_twice_is_nobodys(world: World) -> None:
    session = world.session()
    world.offer(session, "pacs")
    assert world.offer(session, "pacs", "echo", "pacs", revision=2) == {
        "pacs": "INVALID",
        "echo": "ACCEPTED",
    }
    assert list(world.uses(session)) == ["echo"]


async def test_the_newest_list_replaces_the_earlier(world: World) -> None:
    session = world.session()
    world.offer(session, "pacs", "echo")
    world.state(session, "pacs")
    kept = world.answers(session)[0].offer_addresses
    dropped = world.answers(session)[1].offer_addresses
    world.log.clear()
    assert world.offer(session, "pacs", "ris", revision=2) == {
        "pacs": "ACCEPTED",
        "ris": "ACCEPTED",
    }
    assert world.answers(session)[0].offer_addresses == kept
    assert world.uses(session) == {"pacs": "UP", "ris": "KEEP"}
    assert world.log[0] == "remove_offer 1"
    assert not set(map(str, dropped)) & set(world.owners.owners)
    assert ("a", "SERVICE", "echo", "withdrawn") in world.told.words
    assert world.offer(session, revision=3) == {}
    assert world.granted(session) == ((), ())
    assert (world.tables.offers, world.owners.owners) == ({}, {})


async def test_two_connectors_offer_one_service(world: World) -> None:
    one, other = world.session("a"), world.session("b", worker=1)
    world.offer(one, "pacs")
    world.offer(other, "pacs")
    first, second = world.answers(one)[0], world.answers(other)[0]
    assert first.service_addresses == second.service_addresses
    assert not set(first.offer_addresses) & set(second.offer_addresses)
    assert {entry["service"] for entry in world.tables.offers.values()} == {0}
    assert [entry["client_index"] for entry in world.tables.offers.values()] == [11, 12]
    world.connectors.ended(one, "kicked")
    assert [entry["client_index"] for entry in world.tables.offers.values()] == [12]


async def test_at_the_end_the_kernel_is_first(world: World) -> None:
    session = world.session()
    world.offer(session, "pacs")
    world.state(session, "pacs")
    world.log.clear()
    world.connectors.ended(session, "closed by the client")
    assert world.log[0] == "remove_offer 0"
    assert [line.split()[0] for line in world.log[1:]] == ["release", "release"]
    assert (world.tables.offers, world.owners.owners) == ({}, {})
    assert world.told.words[-2:] == [
        ("a", "SERVICE", "pacs", "closed by the client"),
        ("a", "ended"),
    ]
    world.connectors.ended(session, "twice")
    world.state(session, "pacs")
    world.connectors.silent(session, True)
    assert world.told.words[-1] == ("a", "ended")


async def test_numbers_and_addresses_rest_before_they_are_used_again(world: World) -> None:
    session = world.session()
    first = world.offer(session, "pacs") and world.answers(session)[0].offer_addresses
    world.offer(session, revision=2)
    world.offer(session, "pacs", revision=3)
    assert world.answers(session)[0].offer_addresses != first
    assert list(world.tables.offers) == [1]


async def test_a_silent_connector_gets_nothing_until_it_is_heard(world: World) -> None:
    session = world.session()
    world.offer(session, "pacs")
    world.state(session, "pacs")
    world.connectors.silent(session, True)
    assert world.uses(session) == {"pacs": "GONE"}
    world.state(session, "pacs")
    assert world.uses(session) == {"pacs": "GONE"}
    world.connectors.silent(session, True)
    world.connectors.silent(session, False)
    assert world.uses(session) == {"pacs": "UP"}
    assert [words[1] for words in world.told.words if len(words) == 2] == ["silent", "heard"]


async def test_a_drained_connector_keeps_its_flows_until_the_deadline(world: World) -> None:
    session = world.session()
    world.offer(session, "pacs")
    world.state(session, "pacs", open_flows=2)
    drain = world.connectors.drain("a", 0.05)
    assert drain.deadline_at is not None
    assert world.uses(session) == {"pacs": "KEEP"}
    ((to, deadline_ms),) = world.workers[0].drained
    assert to == session.session_id and 0 < deadline_ms <= 50
    await until(lambda: world.uses(session) == {"pacs": "GONE"})
    assert world.connectors.drains["a"].is_over
    world.state(session, "pacs")
    assert world.uses(session) == {"pacs": "GONE"}
    assert world.connectors.undrain("a")
    assert world.log[-1].startswith(f"close_session {session.session_id}")
    assert world.tables.offers == {}
    again = world.session()
    world.offer(again, "pacs")
    world.state(again, "pacs")
    assert world.uses(again) == {"pacs": "UP"}
    assert not world.connectors.undrain("a")
    assert [words for words in world.told.words if "drained" in words or "undrained" in words] == [
        ("a", "drained", 0.05),
        ("a", "undrained", None),
    ]


async def test_a_drain_is_by_name_and_outlives_the_session(world: World) -> None:
    first = world.session()
    world.offer(first, "pacs")
    world.connectors.drain("a", None)
    assert world.workers[0].drained == [(first.session_id, 0)]
    world.connectors.ended(first, "closed by the client")
    again = world.session()
    world.offer(again, "pacs")
    world.state(again, "pacs")
    assert world.uses(again) == {"pacs": "KEEP"}
    assert world.workers[0].drained[-1] == (again.session_id, 0)
    world.offer(again, "pacs", "echo", revision=2)
    assert len(world.workers[0].drained) == 2  # told once


async def test_a_new_deadline_replaces_the_earlier_one(world: World) -> None:
    session = world.session()
    world.offer(session, "pacs")
    world.connectors.drain("a", 0.02)
    world.connectors.drain("a", 60)
    await asyncio.sleep(0.05)  # long enough for the first one to be over
    assert world.uses(session) == {"pacs": "KEEP"}
    world.connectors.undrain("a")


async def test_what_the_policy_takes_is_gone_and_what_it_gives_is_there(world: World) -> None:
    session = world.session()
    world.offer(session, "pacs", "echo")
    world.connectors.upkeep()
    told = len(world.workers[0].answers)
    world.connectors.upkeep()
    assert len(world.workers[0].answers) == told  # nothing is new, nothing is said
    world.policy = FakePolicy(a=(["echo"], []))
    world.connectors.upkeep()
    assert world.codes(session) == {"pacs": "NOT_AUTHORIZED", "echo": "ACCEPTED"}
    assert list(world.uses(session)) == ["echo"]
    assert world.granted(session)[0] == tuple(map(str, world.answers(session)[1].offer_addresses))
    world.policy = FakePolicy(a=(["*"], []))
    world.connectors.upkeep()
    assert world.codes(session) == {"pacs": "ACCEPTED", "echo": "ACCEPTED"}


async def test_what_raises_costs_that_connector_and_no_others_rights(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = world.session("a"), world.session("b")
    for session in (bad, good):
        world.offer(session, "pacs")
    settle = world.connectors._registration.settle

    def raises(connector: Any, policy: Any) -> Any:
        if connector.session is bad:
            raise KeyError("a bug")
        return settle(connector, policy)

    monkeypatch.setattr(world.connectors._registration, "settle", raises)
    world.policy = FakePolicy()
    world.connectors.upkeep()
    assert f"close_session {bad.session_id} internal error" in world.log
    assert list(world.connectors.by_session) == [good.session_id]
    assert world.codes(good) == {"pacs": "NOT_AUTHORIZED"}
    assert world.tables.offers == {}


async def test_a_store_that_fails_costs_that_entry_and_is_asked_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connectors_module, "_RETRY_S", 0.01)
    world.directory.ensure("echo")

    def fails(*_: object) -> None:
        raise StoreError("zgate.db", "the disk is full", "free some space")

    session = world.session()
    with monkeypatch.context() as patch:
        patch.setattr(world.store, "add_service", fails)
        assert world.offer(session, "pacs", "echo") == {"pacs": "INTERNAL", "echo": "ACCEPTED"}
        assert len(world.tables.offers) == 1
        assert len(world.owners.owners) == 2
    await until(lambda: world.codes(session) == {"pacs": "ACCEPTED", "echo": "ACCEPTED"})
    assert world.connectors.refused == {"internal": 1}


@pytest.mark.parametrize("step", ["set_service", "assign", "set_offer", "use_offer"])
async def test_a_kernel_that_refuses_leaves_nothing_half_done(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(connectors_module, "_RETRY_S", 0.01)
    session = world.session()
    world.tables.fails, world.owners.fails = {step}, step == "assign"
    assert world.offer(session, "pacs") == {"pacs": "INTERNAL"}
    assert (world.tables.offers, world.owners.owners) == ({}, {})
    assert world.granted(session) == ((), ())
    world.tables.fails, world.owners.fails = set(), False
    await until(lambda: world.codes(session) == {"pacs": "ACCEPTED"})
    assert len(world.tables.offers) == 1


async def test_an_offer_whose_use_the_kernel_refuses_is_none_any_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connectors_module, "_RETRY_S", 0.01)
    session = world.session()
    world.offer(session, "pacs")
    world.tables.fails = {"use_offer"}
    world.state(session, "pacs", Health.DOWN)
    assert (world.tables.offers, world.owners.owners) == ({}, {})
    world.tables.fails = set()
    await until(lambda: world.uses(session) == {"pacs": "KEEP"})


async def test_what_cannot_be_taken_back_is_not_given_again(world: World) -> None:
    session = world.session()
    world.offer(session, "pacs")
    before = world.answers(session)[0].offer_addresses
    world.tables.fails = {"remove_offer"}
    world.connectors.ended(session, "kicked")
    world.tables.fails = set()
    again = world.session()
    world.offer(again, "pacs")
    assert not set(before) & set(world.answers(again)[0].offer_addresses)
    assert list(world.tables.offers) == [0, 1]


async def test_what_is_full_is_said_so(world: World) -> None:
    sessions = [world.session(name) for name in ("a", "b")]
    for session in sessions:
        world.offer(session, "pacs")
    third = world.session("c", offers=("*",))
    assert world.offer(third, "pacs", "echo") == {"pacs": "LIMIT", "echo": "ACCEPTED"}


async def test_a_pool_without_an_address_is_said_so(world: World) -> None:
    while True:
        try:
            world.directory.take_offer_addresses()
        except Exception:
            break
    assert world.offer(world.session(), "pacs") == {"pacs": "NO_ADDRESS"}


async def test_a_connector_that_says_too_much_is_heard_a_little_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connectors_module, "_LATER_S", 0.02)
    session = world.session()
    for revision in range(1, 101):
        world.connectors.offered(session, revision, [OfferedService(f"s{revision}", TCP)])
    assert len(world.workers[0].answers) <= 15
    await until(lambda: world.codes(session) == {"s100": "ACCEPTED"})
    assert len(world.directory.names()) <= 16
    assert world.workers[0].answers[-1][1] == 100


async def test_a_list_that_waits_ends_with_the_session(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connectors_module, "_LATER_S", 0.01)
    session = world.session()
    for revision in range(1, 31):
        world.connectors.offered(session, revision, [OfferedService(f"s{revision}", TCP)])
    world.connectors.ended(session, "kicked")
    await asyncio.sleep(0.05)  # longer than it would have waited
    assert (world.tables.offers, world.connectors.by_session) == ({}, {})


async def test_names_of_the_policy_are_known_to_the_kernel_without_an_offer(world: World) -> None:
    world.directory.ensure_all(["pacs", "echo"])
    world.tables.fails = {"set_service"}
    world.connectors.know_services()
    assert world.tables.services == {}
    world.tables.fails = set()
    world.connectors.know_services()
    assert len(world.tables.services) == 2
    world.log.clear()
    world.connectors.know_services()
    assert world.log == []
