"""Migrations: shipped in the package, equal to the tables, and writable for PostgreSQL."""

import io
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import make_url
from zgate_control.store import Store, StoreError
from zgate_control.store.engine import describe
from zgate_control.store.migrate import alembic_config
from zgate_control.store.schema import REVISION, metadata


def test_migrations_give_exactly_the_tables_of_the_schema(tmp_path: Path) -> None:
    with Store(tmp_path / "zgate.db") as store, store._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_the_revision_is_that_of_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_current_head() == REVISION


def test_a_store_that_is_up_to_date_is_opened_without_alembic(tmp_path: Path) -> None:
    opens = (
        "import sys; from zgate_control.store import Store; Store(sys.argv[1]).close();"
        "sys.exit('alembic' in sys.modules)"
    )
    opening = [sys.executable, "-c", opens, tmp_path / "zgate.db"]
    found = [subprocess.run(opening, check=False, timeout=60).returncode for _ in range(2)]
    assert found == [1, 0]


def test_a_store_of_a_newer_version_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "zgate.db"
    with Store(path) as store, store._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="a newer zgate wrote it"):
        Store(path)


def test_every_constraint_has_the_name_of_the_schema(tmp_path: Path) -> None:
    with Store(tmp_path / "zgate.db") as store:
        by_migration = _constraint_names(store)
        with store._engine.begin() as connection:
            metadata.drop_all(connection)
            metadata.create_all(connection)
        assert by_migration == _constraint_names(store)
    assert "uq_leases_address" in by_migration


def test_downgrade_and_upgrade_again(tmp_path: Path) -> None:
    path = tmp_path / "zgate.db"
    with Store(path) as store, store._engine.begin() as connection:
        command.downgrade(alembic_config(connection=connection), "base")
    with sqlite3.connect(path) as raw:
        names = {row[0] for row in raw.execute("SELECT name FROM sqlite_master")}
    raw.close()
    assert "leases" not in names
    with Store(path) as store:
        assert store.leases(4) == []


def test_a_store_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "zgate.db"
    with Store(path) as store, store._engine.begin() as connection:
        command.downgrade(alembic_config(connection=connection), "0001")
        connection.exec_driver_sql(
            "INSERT INTO policy_revisions (sha256, source, loaded_at, clients, groups, rules)"
            " VALUES ('ab', 'p.yaml', '2026-03-01 12:00:00', 1, 0, 2)"
        )
    with Store(path) as store:
        (found,) = store.policies(10)
        assert (found.revision, found.origin) == (1, "reload")
        assert store.policy_text("ab") is None


def test_a_migration_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "zgate.db"
    with sqlite3.connect(path) as raw:  # the second table of the migration is in the way
        raw.execute("CREATE TABLE clients (x INTEGER)")
    raw.close()
    with pytest.raises(Exception, match="already exists"):
        Store(path)
    with sqlite3.connect(path) as raw:
        names = {row[0] for row in raw.execute("SELECT name FROM sqlite_master")}
    raw.close()
    assert names == {"clients"}


def test_the_same_migrations_write_sql_for_postgresql() -> None:
    out = io.StringIO()
    config = alembic_config(dialect="postgresql")
    config.output_buffer = out
    command.upgrade(config, "head", sql=True)
    sql = out.getvalue()
    assert "CREATE TABLE leases" in sql
    assert "last_seen_at TIMESTAMP WITH TIME ZONE NOT NULL" in sql
    assert "revision SERIAL NOT NULL" in sql
    assert "CREATE TABLE service_addresses" in sql


def test_describe_hides_passwords() -> None:
    assert describe(make_url("postgresql://u:secret@h/n")) == "postgresql://u:***@h/n"
    assert describe(make_url("sqlite:////var/lib/zgate/zgate.db")) == "/var/lib/zgate/zgate.db"


def _constraint_names(store: Store) -> set[str]:
    with store._engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"
            " AND name NOT LIKE 'alembic%' AND name NOT LIKE 'sqlite%'"
        )
        words = " ".join(row[0] for row in rows).replace("(", " ").split()
    return {word for word in words if word.startswith(("pk_", "uq_", "ck_", "ix_"))}
