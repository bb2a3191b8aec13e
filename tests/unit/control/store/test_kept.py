"""A store that is lost under a running gateway, in every way, and comes back: real files."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from zgate_control.store import (
    ClientRecord,
    KeptStore,
    Lease,
    Memory,
    PolicyRevision,
    Store,
    StoreError,
    StoreLost,
)

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
ALICE = Lease("alice", ip_address("10.100.0.2"), NOW, NOW)
BOB = Lease("bob", ip_address("10.100.0.3"), NOW, NOW)
POLICY = PolicyRevision(7, "ab" * 32, "policy.yaml", NOW, 1, 0, 3, "apply")
MEMORY = Memory(
    leases=[ALICE, BOB],
    services={"pacs": [ip_address("10.101.0.1"), ip_address("fd7a::1")]},
    clients=[ClientRecord("alice", ("staff",), "01", NOW + timedelta(days=1), NOW, NOW)],
    policies=[(POLICY, b"rules")],
)
NOTHING = Memory()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "zgate.db"


@pytest.fixture
def store(path: Path) -> Iterator[KeptStore]:
    with KeptStore(path, lock_timeout_s=0.05) as opened:
        yield opened


def what_is_known(store: Store) -> tuple[object, ...]:
    return (
        store.leases(4),
        [(one.service, one.address) for one in store.service_addresses()],
        store.clients(),
        store.policies(10),
        store.policy_text(POLICY.sha256),
    )


def mend(store: KeptStore, memory: Memory = MEMORY) -> None:
    store.look(thoroughly=True)
    store.mend(memory, NOW)


def empty_the_log(path: Path) -> None:
    """Everything is in the database's own file, then."""
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def test_nothing_is_wrong_with_a_store_in_order(store: KeptStore) -> None:
    store.add_lease(ALICE)
    store.look(thoroughly=True)
    assert store.lost is None


def test_all_that_memory_knows_is_written(store: KeptStore, path: Path) -> None:
    store.add_lease(Lease("carol", BOB.address, NOW, NOW))  # in doubt the memory is right
    store.remember(MEMORY, NOW)
    store.remember(MEMORY, NOW)
    store.close()
    with Store(path) as read:
        leases, services, clients, policies, text = what_is_known(read)
        newer = read.record_policy(
            sha256="cd" * 32, source="p", clients=0, groups=0, rules=0, now=NOW
        )
    assert leases == [ALICE, BOB] and len(services) == 2
    assert clients == list(MEMORY.clients)
    assert (policies, text) == ([POLICY], b"rules")
    assert newer.revision == POLICY.revision + 1


def test_a_deleted_file_is_found_and_all_of_it_written_again(store: KeptStore, path: Path) -> None:
    store.remember(MEMORY, NOW)
    path.unlink()
    store.touch_leases(4, ["alice"], NOW + timedelta(hours=1))  # into the file without a name
    before = what_is_known(store)
    store.look()
    assert store.lost is not None and "was deleted" in store.lost.cause
    with pytest.raises(StoreLost):
        store.add_lease(BOB)
    store.mend(NOTHING, NOW)
    assert store.lost is None and what_is_known(store) == before
    store.close()
    with Store(path) as read:
        assert what_is_known(read) == before
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_whole_directory_gone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "zgate.db"
    path.parent.mkdir()
    with KeptStore(path) as store:
        store.add_lease(ALICE)
        subprocess.run(["rm", "-rf", path.parent], check=True)
        mend(store, NOTHING)
        assert store.lost is None and store.leases(4) == [ALICE]
    assert path.exists()


def test_another_file_in_its_place_is_put_aside(store: KeptStore, path: Path) -> None:
    store.add_lease(ALICE)
    other = path.with_name("other.db")
    with Store(other) as foreign:
        foreign.add_lease(BOB)
    other.rename(path)
    mend(store, NOTHING)
    assert store.lost is None and store.leases(4) == [ALICE]
    (aside,) = path.parent.glob("zgate.db.put-aside-????????T??????")
    with Store(aside) as kept:
        assert kept.leases(4) == [BOB]


@pytest.mark.parametrize("how", ["zeros", "truncated", "text"])
def test_a_damaged_file_is_written_anew_from_memory(store: KeptStore, path: Path, how: str) -> None:
    store.remember(MEMORY, NOW)
    empty_the_log(path)
    size = path.stat().st_size
    with path.open("r+b") as file:
        if how == "zeros":
            file.write(bytes(size))
        elif how == "truncated":
            file.truncate(0)
        else:
            file.write(b"this is no database " * (size // 20))
    store.look(thoroughly=True)
    assert store.lost is not None, how
    store.mend(MEMORY, NOW)
    assert store.lost is None
    assert what_is_known(store)[0] == [ALICE, BOB]
    assert list(path.parent.glob("zgate.db.put-aside-*"))


def test_only_the_newest_few_are_kept_aside(store: KeptStore, path: Path) -> None:
    for number in range(7):
        empty_the_log(path)
        path.write_bytes(b"no database " * 500)
        mend_at = NOW + timedelta(seconds=number)
        store.look(thoroughly=True)
        store.mend(MEMORY, mend_at)
        assert store.lost is None
    names = sorted(one.name for one in path.parent.glob("zgate.db.put-aside-*"))
    bases = [name for name in names if not name.endswith("-wal")]
    assert [name[-2:] for name in bases] == ["02", "03", "04", "05", "06"]
    assert {name.removesuffix("-wal") for name in names} == set(bases)


def test_a_locked_store_holds_up_the_first_who_asks_and_nobody_else(
    store: KeptStore, path: Path
) -> None:
    store.add_lease(ALICE)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="write lock"):
        store.add_lease(BOB)
    with pytest.raises(StoreLost, match="write lock"):
        store.leases(4)
    mend(store)
    assert store.lost is not None
    other.execute("ROLLBACK")
    other.close()
    mend(store)
    assert store.lost is None and store.leases(4) == [ALICE, BOB]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
    try:
        with KeptStore(disk / "zgate.db", lock_timeout_s=0.05) as store:
            store.add_lease(ALICE)
            fill = disk / "fill"
            with pytest.raises(OSError, match="No space"), fill.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            many = Memory(
                leases=[
                    Lease(f"client{n}", ip_address("10.100.1.0") + n, NOW, NOW) for n in range(5000)
                ]
            )
            store.mend(many, NOW)
            assert store.lost is not None and "disk is full" in store.lost.cause
            fill.unlink()
            subprocess.run(["mount", "-o", "remount,size=32m", disk], check=True)
            store.mend(many, NOW)
            assert store.lost is None and len(store.leases(4)) == 5001
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
