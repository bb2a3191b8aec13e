"""Who looks after the store: what it says, when, and what it writes then."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
from zgate_control.store import KeptStore, Lease, Memory
from zgate_gateway.problems import Problems
from zgate_gateway.store_keeper import StoreKeeper

NOW = datetime.now(UTC)
MEMORY = Memory(leases=[Lease("alice", ip_address("10.100.0.2"), NOW, NOW)])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KeptStore]:
    with KeptStore(tmp_path / "zgate.db", lock_timeout_s=0.05) as opened:
        yield opened


@pytest.fixture
def problems() -> Problems:
    return Problems()


@pytest.fixture
def mended() -> list[Memory]:
    return []


@pytest.fixture
def keeper(store: KeptStore, problems: Problems, mended: list[Memory]) -> StoreKeeper:
    return StoreKeeper(store, problems, memory=lambda: MEMORY, mended=mended.append)


async def test_a_store_in_order_is_left_alone(
    keeper: StoreKeeper, problems: Problems, mended: list[Memory], store: KeptStore
) -> None:
    for _ in range(11):  # one of them reads all of it
        await keeper.look()
    assert (problems.active(), mended, store.leases(4)) == ([], [], [])


async def test_a_loss_is_told_mended_and_told_again(
    keeper: StoreKeeper,
    problems: Problems,
    mended: list[Memory],
    store: KeptStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "zgate.db").unlink()
    await keeper.look()
    assert problems.active() == [] and mended == [MEMORY]
    assert store.leases(4) == list(MEMORY.leases)
    begins, ends = (record.getMessage() for record in caplog.records)
    assert "store_unavailable begins" in begins and "its file was deleted" in begins
    assert ends == "alert store_unavailable ends: what was known has been written"


async def test_it_lasts_as_long_as_the_cause(
    keeper: StoreKeeper, problems: Problems, store: KeptStore, tmp_path: Path
) -> None:
    other = sqlite3.connect(tmp_path / "zgate.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store.mend(MEMORY, NOW)  # somebody has found it lost
    await keeper.look()
    (problem,) = problems.active()
    assert problem.is_blocking and "write lock" in problem.text
    other.execute("ROLLBACK")
    other.close()
    await keeper.look()
    assert problems.active() == [] and store.leases(4) == list(MEMORY.leases)
