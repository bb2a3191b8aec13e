"""Opening a database: SQLite in a file of its own, or PostgreSQL by URL; then its migrations."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, inspect, make_url

from .errors import StoreError, damaged, explain
from .schema import REVISION

#: Execution option of a transaction that will write: SQLite then takes its write lock at BEGIN.
WRITE = "zgate_write"


def open_engine(target: str | Path, *, lock_timeout_s: float) -> Engine:
    """Return an engine for ``target`` (a file's path, or an SQLAlchemy URL).

    The schema is brought up to date, so the engine is ready to use. Raises :class:`StoreError`.
    """
    url = _url(target)
    name = describe(url)
    try:
        engine = _sqlite(url, lock_timeout_s) if _is_sqlite(url) else create_engine(url)
    except (exc.ArgumentError, ImportError) as error:
        raise StoreError(
            name, f"no driver for it: {error}", "install psycopg for PostgreSQL, or use a file"
        ) from error
    try:
        with translated(name):
            if _is_sqlite(url):
                _check_sqlite(engine, name)
            if _revision(engine) != REVISION:
                from .migrate import migrate  # and with it Alembic, which takes its time to load

                migrate(engine, name)
    except BaseException:
        engine.dispose()
        raise
    return engine


def describe(url: URL) -> str:
    """Name a database for messages: a path, or a URL without its password."""
    if _is_sqlite(url):
        return url.database or "(memory)"
    return url.render_as_string(hide_password=True)


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Turn the database's own errors into :class:`StoreError`."""
    try:
        yield
    except (exc.SQLAlchemyError, sqlite3.Error) as error:
        raise explain(error, name) from error


def _revision(engine: Engine) -> str | None:
    """The version of the schema; None where there is none, or not one.

    Asked in a transaction that could write: a store that is locked or read-only is found now.
    """
    writing = engine.execution_options(**{WRITE: True})
    with writing.connect() as connection, connection.begin():
        if not inspect(connection).has_table("alembic_version"):
            return None
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars()
        versions = list(found)
    return str(versions[0]) if len(versions) == 1 else None


def _url(target: str | Path) -> URL:
    if isinstance(target, str) and "://" in target:
        try:
            return make_url(target)
        except exc.ArgumentError as error:
            # The text may hold a password: it is not repeated.
            raise StoreError(
                "(URL)", "the URL cannot be read", "write it as postgresql://USER@HOST/NAME"
            ) from error
    return URL.create("sqlite", database=str(Path(target).absolute()))


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _sqlite(url: URL, lock_timeout_s: float) -> Engine:
    path = Path(url.database or "")
    _create_private(path)
    engine = create_engine(url, connect_args={"timeout": lock_timeout_s})
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _create_private(path: Path) -> None:
    """Create the file with mode 0600; SQLite gives its -wal and -shm files the same mode."""
    if not path.parent.is_dir():
        raise StoreError(
            str(path),
            f"the directory {path.parent} does not exist",
            "create it, or correct the path",
        )
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except IsADirectoryError as error:
        raise StoreError(str(path), "it is a directory", "name a file") from error
    except OSError as error:
        raise StoreError(
            str(path),
            f"it cannot be opened for writing ({error.strerror})",
            "make file and directory writable for the user that zgate runs as",
        ) from error


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # The driver's own transaction handling is off: it commits before DDL. _begin_sqlite begins.
    connection.isolation_level = None
    cursor = connection.cursor()
    # WAL with NORMAL: a commit is an append without an fsync, so a caller in an event loop is not
    # held up by the disk. A crash of the process loses nothing, a power cut at most the newest
    # commits; the file stays sound either way.
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that reads first and writes later fails at once if another process
    # wrote in between; with IMMEDIATE it waits its turn instead.
    writes = connection.get_execution_options().get(WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _check_sqlite(engine: Engine, name: str) -> None:
    with engine.connect() as connection:
        found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    if found != "ok":
        raise damaged(name, str(found))
