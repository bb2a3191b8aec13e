"""The supervisor: one session for each identity over all workers, and nothing left behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from zgate_gateway import registry as registry_module
from zgate_gateway.admission import Applicant, PeerPath, Refusal
from zgate_gateway.registry import Registry, RegistrySettings, SessionRecord
from zgate_identity.refusal import CertificateRefused, RefusalReason
from zgate_identity.revocation import PathStep
from zgate_identity.verifier import PeerIdentity
from zgate_protocol import goodbye

from ...loopback import (  # noqa: TID252
    POOLS,
    FakeKernel,
    FakePool,
    FakeSteering,
    Record,
    eventually,
)

V4, V6 = ip_address("10.100.0.2"), ip_address("fd7a:7a67:6174:65::2")


class FakeWorker:
    """A worker that only notes what it is told."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.told: list[tuple[str, str]] = []

    def close_session(self, session_id: str, cause: str) -> None:
        self.told.append((session_id, cause))


def applicant(name: str = "alice", port: int = 4711) -> Applicant:
    identity = PeerIdentity(
        name=name,
        groups=("staff",),
        serial=7,
        not_after=datetime.now(UTC) + timedelta(days=1),
        fingerprint="00" * 32,
        path=(PathStep(7, b"issuer"),),
        reaches=("pacs",),
    )
    return Applicant(identity, PeerPath("::ffff:192.0.2.1", port, b"12345678"))


class World:
    """A registry, two workers, and all that a registry changes."""

    def __init__(self, *, newest_wins: bool = True, max_sessions: int = 100) -> None:
        self.kernel, self.steering, self.record = FakeKernel(), FakeSteering(), Record()
        self.pools = [FakePool(network) for network in POOLS]
        self.workers = FakeWorker(0), FakeWorker(1)
        self.refuse: Callable[[], None] = lambda: None
        self.registry = Registry(
            RegistrySettings(newest_wins, max_sessions),
            pools=self.pools,  # type: ignore[arg-type]
            kernel=self.kernel,
            steering=self.steering,
            listener=self.record,
            recheck=lambda identity, now: self.refuse(),
            loop=asyncio.get_running_loop(),
        )

    def admit(self, name: str = "alice", worker: int = 0) -> SessionRecord:
        return self.registry.admit(applicant(name), self.workers[worker])

    def assert_holds_nothing(self) -> None:
        assert not self.registry.by_client and not self.registry.by_id
        assert not self.registry.by_address
        assert not self.kernel.clients and not self.steering.owners
        assert [pool.held for pool in self.pools] == [[], []]


async def test_everything_points_to_the_worker_that_asked() -> None:
    world = World()
    session = world.admit(worker=1)
    assert session.addresses == (V4, V6)
    assert world.steering.owners == {V4.packed: 1, V6.packed: 1}
    assert world.kernel.clients == {"alice": (V4, V6)}
    assert world.kernel.groups == {"alice": ("staff",)}
    assert world.kernel.reaches == {"alice": ("pacs",)}
    assert world.registry.by_address == {V4: session, V6: session}
    assert session.peer == "192.0.2.1:4711"
    assert world.record.up == ["alice"]
    assert world.registry.established_total == 1


async def test_who_comes_again_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    first = world.admit()
    assert world.registry.reconnects == {}
    world.admit()
    assert world.registry.reconnects == {"up": 1}
    world.registry.close(first, "gone")
    for session in list(world.registry.by_id.values()):
        world.registry.close(session, "gone")
    world.admit()
    assert world.registry.reconnects == {"up": 1, "ended": 1}
    world.admit("bob")
    assert world.registry.reconnects == {"up": 1, "ended": 1}
    monkeypatch.setattr(registry_module, "_LATELY_S", 1e-9)
    for name in ("alice", "bob"):
        world.registry.close(world.registry.by_client[name], "gone")
        world.admit(name)
    assert world.registry.reconnects == {"up": 1, "ended": 1}, "too long ago"
    assert len(world.registry._ended_s) <= 1, "and forgotten"


async def test_the_newer_session_wins_over_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "GRACE_S", 0.01)
    world = World()
    world.kernel.counted["alice"] = (10, 20)
    old = world.admit(worker=0)
    new = world.admit(worker=1)
    # Until its worker has it, nothing is another one's.
    assert world.registry.by_client == {"alice": old}
    assert world.steering.owners == {V4.packed: 0, V6.packed: 0}
    assert new.addresses == old.addresses
    world.registry.established(new.session_id, world.workers[0])
    assert world.registry.by_client == {"alice": old}, "that worker has it not"
    world.registry.established(new.session_id, world.workers[1])
    assert world.registry.by_client == {"alice": new}
    assert world.registry.by_address == {V4: new, V6: new}
    assert world.steering.owners == {V4.packed: 1, V6.packed: 1}
    assert world.kernel.calls == ["add alice"], "the kernel's entry is the same: flows go on"
    assert (old.bytes_until, new.bytes_before) == ((10, 20), (10, 20))
    assert world.workers[0].told == [], "what it still sends passes for a moment"
    await eventually(lambda: world.workers[0].told)
    assert world.workers[0].told == [(old.session_id, goodbye.REPLACED)]
    assert world.workers[1].told == []
    assert world.steering.owners == {V4.packed: 1, V6.packed: 1}
    # What the old worker says late is about nothing of the new one.
    world.registry.ended(old.session_id, world.workers[0], "closed by the client")
    world.registry.ended(new.session_id, world.workers[0], "not its own")
    assert world.kernel.clients == {"alice": (V4, V6)}
    assert world.record.down == [("alice", goodbye.REPLACED)]
    assert [len(pool.held) for pool in world.pools] == [1, 1]
    world.registry.close(new, "kicked")
    world.assert_holds_nothing()


async def test_a_newer_session_in_the_same_worker() -> None:
    world = World()
    old, new = world.admit(worker=1), world.admit(worker=1)
    world.registry.established(new.session_id, world.workers[1])
    world.registry.ended(old.session_id, world.workers[1], "closed by the client")
    assert world.steering.owners == {V4.packed: 1, V6.packed: 1}
    assert world.registry.by_client == {"alice": new}
    assert world.kernel.clients == {"alice": (V4, V6)}


async def test_a_newer_session_that_never_comes_about_leaves_the_older_alone() -> None:
    world = World()
    old, new = world.admit(worker=0), world.admit(worker=0)
    world.registry.ended(new.session_id, world.workers[0], "closed by the client")
    assert world.registry.by_client == {"alice": old}
    assert world.registry.by_address == {V4: old, V6: old}
    assert world.steering.owners == {V4.packed: 0, V6.packed: 0}
    assert world.kernel.calls == ["add alice"]
    world.registry.close(old, "kicked")
    world.assert_holds_nothing()


async def test_a_newer_session_with_other_rights_has_an_entry_of_its_own() -> None:
    world = World()
    old = world.admit(worker=0)
    other = replace(applicant(), identity=replace(applicant().identity, groups=("guests",)))
    new = world.registry.admit(other, world.workers[1])
    assert world.kernel.groups == {"alice": ("staff",)}
    world.registry.established(new.session_id, world.workers[1])
    assert world.kernel.groups == {"alice": ("guests",)}
    assert world.kernel.calls == ["add alice", "add alice"], "never nobody between"
    assert (old.bytes_until, new.bytes_before) == ((0, 0), (0, 0))


async def test_of_two_newer_sessions_the_one_that_is_established_last_wins() -> None:
    world = World()
    old, one, two = world.admit(worker=0), world.admit(worker=1), world.admit(worker=0)
    world.registry.established(two.session_id, world.workers[0])
    world.registry.established(one.session_id, world.workers[1])
    assert world.registry.by_client == {"alice": one}
    assert set(world.steering.owners.values()) == {1}
    for session in (old, two):
        world.registry.close(session, "in a moment")
    assert world.kernel.clients == {"alice": (V4, V6)}
    assert set(world.steering.owners.values()) == {1}


async def test_a_client_that_was_kicked_between_is_let_in_anew() -> None:
    world = World()
    old, new = world.admit(worker=0), world.admit(worker=1)
    world.registry.close(old, "kicked")
    assert not world.kernel.clients
    world.registry.established(new.session_id, world.workers[1])
    assert world.registry.by_client == {"alice": new}
    assert world.kernel.clients == {"alice": (V4, V6)}
    assert world.steering.owners == {V4.packed: 1, V6.packed: 1}


async def test_a_newer_session_that_the_kernel_refuses_ends_both() -> None:
    world = World()
    world.admit(worker=0)
    other = replace(applicant(), identity=replace(applicant().identity, groups=("guests",)))
    new = world.registry.admit(other, world.workers[1])
    world.kernel.fails = OSError("no")
    world.registry.established(new.session_id, world.workers[1])
    world.assert_holds_nothing()


async def test_the_older_session_stays_where_that_is_wanted() -> None:
    world = World(newest_wins=False)
    world.admit(worker=0)
    with pytest.raises(Refusal, match="has a session already") as caught:
        world.admit(worker=1)
    assert caught.value.status == 409
    assert world.steering.owners == {V4.packed: 0, V6.packed: 0}
    assert world.registry.refused == {"connection_limit_reached": 1}
    assert [name for name, *_ in world.record.refused] == ["alice"]


@pytest.mark.parametrize("by_worker", [True, False])
async def test_an_end_leaves_nothing(by_worker: bool) -> None:
    world = World()
    session = world.admit()
    if by_worker:
        world.registry.ended(session.session_id, world.workers[0], "closed by the client")
    else:
        world.registry.close(session, "kicked")
    world.assert_holds_nothing()
    assert len(world.workers[0].told) == (0 if by_worker else 1)
    assert len(world.record.down) == 1
    world.registry.close(session, "again")
    assert len(world.record.down) == 1


async def test_a_dead_workers_sessions_are_gone_and_no_others() -> None:
    world = World()
    world.admit("alice", 0)
    world.admit("bob", 1)
    world.admit("carol", 0)
    paths = world.registry.worker_lost(world.workers[0], "its worker process has ended")
    assert [path.connection_id for path in paths] == [b"12345678"] * 2
    assert list(world.registry.by_client) == ["bob"]
    assert list(world.kernel.clients) == ["bob"]
    assert set(world.steering.owners.values()) == {1}
    assert world.workers[0].told == world.workers[1].told == []
    assert world.record.down == [
        ("alice", "its worker process has ended"),
        ("carol", "its worker process has ended"),
    ]


async def test_a_client_that_moves_is_followed() -> None:
    world = World()
    session = world.admit()
    there = PeerPath("2001:db8::1", 9, b"87654321")
    world.registry.moved(session.session_id, world.workers[1], there)
    assert session.peer == "192.0.2.1:4711"
    world.registry.moved(session.session_id, world.workers[0], there)
    assert session.peer == "[2001:db8::1]:9"


async def test_a_worker_with_old_revocation_lists_admits_nobody() -> None:
    world = World()

    def refuse() -> None:
        raise CertificateRefused(RefusalReason.REVOKED, "since a moment ago")

    world.refuse = refuse
    with pytest.raises(Refusal, match="revoked") as caught:
        world.admit()
    assert caught.value.status == 403
    world.assert_holds_nothing()


async def test_no_room_and_no_admission_while_stopping() -> None:
    world = World(max_sessions=1)
    world.admit("alice")
    with pytest.raises(Refusal, match="no room"):
        world.admit("bob", 1)
    world.registry.accepting = False
    with pytest.raises(Refusal, match="shutting down"):
        world.admit("alice")
    assert list(world.registry.by_client) == ["alice"]


@pytest.mark.parametrize("where", ["kernel", "steering"])
async def test_what_fails_halfway_is_taken_back(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    if where == "kernel":
        world.kernel.fails = OSError("no")
    else:
        monkeypatch.setattr(world.steering, "assign", lambda *_: 1 / 0)

        def full(*_: object) -> None:
            raise OSError("the table is full")

        monkeypatch.setattr(world.steering, "assign", full)
    with pytest.raises(Refusal, match="cannot take clients"):
        world.admit()
    world.assert_holds_nothing()


async def test_an_end_is_an_end_whatever_fails(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    session = world.admit()
    world.record.fails, world.kernel.fails = ValueError("disk"), OSError("kernel")

    def refuse(*_: object) -> None:
        raise OSError("map")

    world.steering.release = refuse  # type: ignore[method-assign]
    with caplog.at_level(logging.ERROR):
        world.registry.close(session, "revoked")
    assert world.workers[0].told == [(session.session_id, "revoked")]
    assert not world.registry.by_client
    assert len(caplog.records) == 4


@pytest.mark.parametrize("raises", [False, True])
async def test_what_a_session_offers_ends_before_the_kernel_forgets_its_client(
    raises: bool,
) -> None:
    world = World()
    told: list[tuple[str, str, bool]] = []

    def ending(session: SessionRecord, cause: str) -> None:
        told.append((session.client, cause, "alice" in world.kernel.clients))
        if raises:
            raise RuntimeError("a bug")

    world.registry.on_ending = ending
    session = world.admit()
    world.registry.close(session, "kicked")
    world.registry.close(session, "twice")
    assert told == [("alice", "kicked", True)]
    world.assert_holds_nothing()
