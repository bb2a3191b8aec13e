"""A store that cannot work says why, and what helps."""

import os
import sqlite3
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError
from zgate_control.store import Lease, Store, StoreError
from zgate_control.store.errors import explain

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LEASE = Lease("a", ip_address("10.0.0.2"), NOW, NOW)


def refused(target: str | Path, **options: float) -> StoreError:
    with pytest.raises(StoreError) as caught:
        Store(target, **options)
    error = caught.value
    assert error.cause and error.cure
    assert "\n" not in str(error)
    assert str(target) in str(error) or "://" in str(target)
    return error


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "zgate.db"
    path.write_bytes(b"this is a text, and longer than one page" * 200)
    assert "no SQLite database" in refused(path).cause


def test_a_damaged_database(tmp_path: Path) -> None:
    path = tmp_path / "zgate.db"
    with Store(path) as store:
        for number in range(2000):
            store.add_lease(Lease(f"c{number}", ip_address(0x0A000000 + number), NOW, NOW))
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)
    assert "damaged" in refused(path).cause


def test_a_truncated_database_is_refused_or_complete(tmp_path: Path) -> None:
    path = tmp_path / "zgate.db"
    with Store(path) as store:
        store.add_lease(LEASE)
    data = path.read_bytes()
    sizes = [*range(2, 110), *range(110, len(data), 997)]
    refusals = 0
    for size in sizes:
        path.write_bytes(data[:size])
        try:
            with Store(path) as store:
                assert store.leases(4) == [LEASE]  # cut inside the last page, which was empty
        except StoreError:
            refusals += 1
    assert refusals > len(sizes) * 0.9


def test_locked_by_another_process(tmp_path: Path) -> None:
    path = tmp_path / "zgate.db"
    with Store(path, lock_timeout_s=0.05) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="write lock") as caught:
            store.add_lease(LEASE)
        assert "only one gateway" in caught.value.cure
        refused(path, lock_timeout_s=0.05)
        other.execute("ROLLBACK")
        other.close()
        store.add_lease(LEASE)


def test_missing_directory(tmp_path: Path) -> None:
    error = refused(tmp_path / "nowhere" / "zgate.db")
    assert "does not exist" in error.cause


def test_a_directory_instead_of_a_file(tmp_path: Path) -> None:
    assert "directory" in refused(tmp_path).cause


def test_a_read_only_database(tmp_path: Path) -> None:
    # Root may write anywhere, so the read-only error is provoked inside SQLite.
    path = tmp_path / "zgate.db"
    with Store(path) as store:
        with store._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA query_only = ON")
        with pytest.raises(StoreError, match="read-only"):
            store.add_lease(LEASE)


def test_a_full_disk(tmp_path: Path) -> None:
    with Store(tmp_path / "zgate.db") as store:
        with store._engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match="disk is full"):
            for number in range(5000):
                store.add_lease(Lease(f"c{number}", ip_address(0x0A000000 + number), NOW, NOW))


def test_a_store_of_a_newer_version(tmp_path: Path) -> None:
    path = tmp_path / "zgate.db"
    Store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    error = refused(path)
    assert "newer zgate" in error.cause and "9999" in error.cause


@pytest.mark.parametrize("url", ["nosuchdialect://host/name", "postgresql+nosuch://u@h/n"])
def test_a_url_without_a_driver(url: str) -> None:
    assert "no driver" in refused(url).cause


def test_a_password_is_never_shown() -> None:
    error = refused("postgresql+nosuch://user:secret@host/name")
    assert "secret" not in str(error)
    error = refused("://user:secret@host")
    assert "secret" not in str(error)


def test_an_unreachable_server_and_an_unknown_error() -> None:
    gone = explain(OperationalError("SELECT 1", {}, Exception("connection refused")), "pg")
    assert "connection refused" in gone.cause and "reachable" in gone.cure
    odd = explain(RuntimeError("two\nlines"), "pg")
    assert "two lines" in odd.cause and "\n" not in str(odd)
