"""The store on SQLite, and on PostgreSQL too when ZGATE_TEST_POSTGRESQL_URL names an empty one."""

import os
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import IntegrityError
from zgate_control.store import (
    ClientRecord,
    Lease,
    LeaseConflict,
    ServiceConflict,
    Store,
    StoreError,
)
from zgate_control.store import store as store_module
from zgate_control.store.schema import metadata

NOW = datetime(2026, 3, 1, 12, 0, 0, 250, tzinfo=UTC)
POSTGRESQL = os.environ.get("ZGATE_TEST_POSTGRESQL_URL")


@pytest.fixture(params=["sqlite", *(["postgresql"] if POSTGRESQL else [])])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield str(tmp_path / "zgate.db")
        return
    assert POSTGRESQL is not None
    yield POSTGRESQL
    engine = create_engine(POSTGRESQL)
    with engine.begin() as connection:
        metadata.drop_all(connection)
        connection.execute(text("DROP TABLE IF EXISTS alembic_version"))
    engine.dispose()


def lease(client: str, address: str, seen: datetime = NOW) -> Lease:
    return Lease(client, ip_address(address), created_at=NOW, last_seen_at=seen)


def test_leases_survive_a_restart_longest_unused_first(target: str) -> None:
    old = lease("b", "10.0.0.2", NOW - timedelta(days=1))
    with Store(target) as store:
        store.add_lease(lease("a", "10.0.0.3"))
        store.add_lease(old)
        store.add_lease(lease("a", "fd00::2"))
    with Store(target) as store:
        assert store.leases(4) == [old, lease("a", "10.0.0.3")]
        assert store.leases(6) == [lease("a", "fd00::2")]
        assert store.lease_of("a", 6) == lease("a", "fd00::2")
        assert store.lease_of("nobody", 4) is None
        assert store.leases(4)[0].family == 4


@pytest.mark.parametrize("other", [lease("a", "10.0.0.9"), lease("b", "10.0.0.2")])
def test_one_lease_per_client_and_family_one_client_per_address(target: str, other: Lease) -> None:
    with Store(target) as store:
        store.add_lease(lease("a", "10.0.0.2"))
        with pytest.raises(LeaseConflict):
            store.add_lease(other)
        assert store.leases(4) == [lease("a", "10.0.0.2")]


def test_renew_says_whether_client_and_address_still_belong_together(target: str) -> None:
    later = NOW + timedelta(hours=1)
    with Store(target) as store:
        store.add_lease(lease("a", "10.0.0.2"))
        assert store.renew_lease(lease("a", "10.0.0.2", later))
        assert not store.renew_lease(lease("a", "10.0.0.3", later))
        assert not store.renew_lease(lease("b", "10.0.0.2", later))
        assert store.leases(4) == [lease("a", "10.0.0.2", later)]


def test_touch_reaches_one_family_and_any_number_of_clients(target: str) -> None:
    later = NOW + timedelta(hours=1)
    with Store(target) as store:
        for number in range(5):
            store.add_lease(lease(f"c{number}", f"10.0.0.{number + 2}"))
        store.add_lease(lease("c0", "fd00::2"))
        store.touch_leases(4, [f"c{number}" for number in range(2500) if number != 3], later)
        seen = {found.client: found.last_seen_at for found in store.leases(4)}
        assert seen == {"c0": later, "c1": later, "c2": later, "c3": NOW, "c4": later}
        assert store.leases(6)[0].last_seen_at == NOW


def test_remove_lease_only_if_unseen(target: str) -> None:
    with Store(target) as store:
        store.add_lease(lease("a", "10.0.0.2"))
        assert not store.remove_lease("a", 4, unseen_since=NOW - timedelta(seconds=1))
        assert store.remove_lease("a", 4, unseen_since=NOW)
        assert not store.remove_lease("a", 4)
        assert store.leases(4) == []


def test_clients_keep_their_last_certificate(target: str) -> None:
    with Store(target) as store:
        for groups, serial, now in ((("x",), "01", NOW), (("y", "z"), "02", NOW + timedelta(1))):
            store.note_clients([ClientRecord("a", groups, serial, NOW, now, now)])
        (found,) = store.clients()
        assert found == store.client("a")
        assert (found.groups, found.certificate_serial) == (("y", "z"), "02")
        assert (found.created_at, found.last_seen_at) == (NOW, NOW + timedelta(1))
        assert store.client("b") is None


def test_many_clients_are_noted_together(target: str) -> None:
    def noted(name: str, now: datetime) -> ClientRecord:
        return ClientRecord(name, (), "01", NOW, now, now)

    later = NOW + timedelta(1)
    with Store(target) as store:
        store.note_clients([])
        store.note_clients([noted("a", NOW), noted("b", NOW)])
        store.note_clients([noted("b", later), noted("c", later)])
        found = {one.name: (one.created_at, one.last_seen_at) for one in store.clients()}
        assert found == {"a": (NOW, NOW), "b": (NOW, later), "c": (later, later)}


def test_clients_that_another_gateway_notes_at_the_same_moment(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(target) as here, Store(target) as there:
        mine, theirs = (ClientRecord(name, (), "01", NOW, NOW, NOW) for name in ("a", "b"))
        note = store_module._note

        def too_late(connection: Connection, records: list[ClientRecord]) -> None:
            monkeypatch.setattr(store_module, "_note", note)
            raise IntegrityError("INSERT", {}, Exception("UNIQUE"))

        there.note_clients([theirs])
        monkeypatch.setattr(store_module, "_note", too_late)
        here.note_clients([mine, theirs])
        assert [one.name for one in here.clients()] == ["a", "b"]


def test_leases_are_seen_each_at_its_time_and_never_earlier(target: str) -> None:
    with Store(target) as store:
        for number, name in enumerate("abc", 2):
            store.add_lease(lease(name, f"10.0.0.{number}"))
        store.add_lease(lease("a", "fd00::2"))
        second = timedelta(seconds=1)
        store.note_leases_seen(4, {})
        store.note_leases_seen(4, {"a": NOW + second, "b": NOW - second, "nobody": NOW + second})
        assert {one.client: one.last_seen_at - NOW for one in store.leases(4)} == {
            "a": second,
            "b": timedelta(),
            "c": timedelta(),
        }
        assert store.leases(6)[0].last_seen_at == NOW


def test_policy_numbers_grow_and_an_unchanged_policy_keeps_its_number(target: str) -> None:
    def record(store: Store, sha256: str) -> int:
        return store.record_policy(
            sha256=sha256, source="p.yaml", clients=1, groups=0, rules=2, now=NOW
        ).revision

    with Store(target) as store:
        assert store.newest_policy() is None
        numbers = [record(store, sha256) for sha256 in ("a", "a", "b", "a")]
    with Store(target) as store:
        numbers.append(record(store, "a"))
        newest = store.newest_policy()
        assert newest is not None and (newest.sha256, newest.rules) == ("a", 2)
    assert numbers == [1, 1, 2, 3, 3]


def record(store: Store, text: bytes, origin: str = "apply") -> int:
    return store.record_policy(
        sha256=text.hex(),
        source="p.yaml",
        clients=1,
        groups=0,
        rules=2,
        now=NOW,
        origin=origin,
        text=text,
    ).revision


def test_policy_history_newest_first_with_texts(target: str) -> None:
    with Store(target) as store:
        first, second = record(store, b"a", "start"), record(store, b"b")
        third = record(store, b"a", "rollback")
    with Store(target) as store:
        assert [(one.revision, one.origin) for one in store.policies(10)] == [
            (third, "rollback"),
            (second, "apply"),
            (first, "start"),
        ]
        assert len(store.policies(2)) == 2
        found = store.policy(second)
        assert found is not None and store.policy_text(found.sha256) == b"b"
        assert store.policy(99) is None and store.policy_text("99") is None
        assert store.kept_policy_texts() == {b"a".hex(), b"b".hex()}


def test_a_revision_that_never_came_into_force_leaves_a_gap(target: str) -> None:
    with Store(target) as store:
        first = record(store, b"a")
        failed = record(store, b"b")
        store.forget_policy(failed)
        assert [one.revision for one in store.policies(10)] == [first]
        assert record(store, b"b") > failed


def test_only_the_newest_texts_are_kept(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zgate_control.store.store.KEPT_POLICY_TEXTS", 2)
    with Store(target) as store:
        for text in (b"a", b"b", b"c"):
            record(store, text)
        assert store.kept_policy_texts() == {b"b".hex(), b"c".hex()}
        assert len(store.policies(10)) == 3


def test_times_come_back_in_utc_and_naive_ones_are_refused(target: str) -> None:
    abroad = NOW.astimezone(timezone(timedelta(hours=5)))
    with Store(target) as store:
        store.add_lease(lease("a", "10.0.0.2", abroad))
        found = store.leases(4)[0].last_seen_at
        assert found == NOW and found.utcoffset() == timedelta(0)
        with pytest.raises(StoreError, match="without an offset"):
            store.add_lease(lease("b", "10.0.0.3", NOW.replace(tzinfo=None)))


def test_any_thread_may_call(target: str) -> None:
    with Store(target) as store:
        errors: list[Exception] = []

        def work(number: int) -> None:
            try:
                for step in range(10):
                    store.add_lease(lease(f"c{number}-{step}", f"10.0.{number}.{step}"))
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(store.leases(4)) == 40


def test_sqlite_files_are_private(tmp_path: Path) -> None:
    path = tmp_path / "zgate.db"
    with Store(path) as store:
        store.add_lease(lease("a", "10.0.0.2"))
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert modes["zgate.db-wal"] == 0o600
    assert set(modes.values()) == {0o600}


def test_a_service_keeps_its_addresses(target: str) -> None:
    addresses = [ip_address("10.101.0.1"), ip_address("fd00::1")]
    with Store(target) as store:
        assert store.service_addresses() == []
        store.add_service("räume", addresses, NOW)
        store.add_service("echo", [ip_address("10.101.0.2")], NOW)
    with Store(target) as store:
        kept = store.service_addresses()
        assert [(one.service, one.family, str(one.address)) for one in kept] == [
            ("echo", 4, "10.101.0.2"),
            ("räume", 4, "10.101.0.1"),
            ("räume", 6, "fd00::1"),
        ]
        assert kept[0].created_at == NOW


@pytest.mark.parametrize(("service", "address"), [("pacs", "10.101.0.9"), ("other", "10.101.0.1")])
def test_a_service_conflict_leaves_nothing_behind(target: str, service: str, address: str) -> None:
    with Store(target) as store:
        store.add_service("pacs", [ip_address("10.101.0.1")], NOW)
        with pytest.raises(ServiceConflict, match=service):
            store.add_service(service, [ip_address("fd00::9"), ip_address(address)], NOW)
        assert [str(one.address) for one in store.service_addresses()] == ["10.101.0.1"]


def test_a_service_is_forgotten_by_name_and_address(target: str) -> None:
    here, elsewhere = ip_address("10.101.0.1"), ip_address("10.101.0.2")
    with Store(target) as store:
        store.add_service("pacs", [here], NOW)
        assert not store.remove_service("pacs", [elsewhere])
        assert not store.remove_service("echo", [here])
        assert store.remove_service("pacs", [here, elsewhere])
        assert store.service_addresses() == []
