"""What can go wrong with the store, said so that an operator can act on it."""

from __future__ import annotations

import sqlite3

from sqlalchemy import exc

#: How SQLite says it, and what that means to an operator: (words in the message, cause, cure).
_SQLITE_CAUSES = (
    (
        "file is not a database",
        "the file is no SQLite database, or its header is damaged",
        "move it away and start again (leases are given anew), or restore a backup",
    ),
    (
        "malformed",
        "the database is damaged",
        "move it away and start again (leases are given anew), or restore a backup",
    ),
    (
        "database is locked",
        "another process holds the database's write lock",
        "stop the other process (fuser -v FILE shows it); only one gateway may use an SQLite store",
    ),
    (
        "readonly database",
        "the file or its directory is read-only",
        "make both writable for the user that zgate runs as, and check that the disk is not "
        "mounted read-only",
    ),
    (
        "database or disk is full",
        "the disk is full",
        "free some space; leases that exist go on working meanwhile",
    ),
    (
        "unable to open database file",
        "the file cannot be opened",
        "check that its directory exists and that zgate may write there",
    ),
    ("disk i/o error", "the disk failed to read or write", "check the disk and the kernel's log"),
)


class StoreError(Exception):
    """The store cannot do what was asked. ``cause`` is what is wrong, ``cure`` what helps."""

    def __init__(self, target: str, cause: str, cure: str) -> None:
        super().__init__(f"store {target}: {cause}; {cure}")
        self.target = target
        self.cause = cause
        self.cure = cure


class LeaseConflict(Exception):
    """The client has a lease of this family already, or somebody else has this address."""


class ServiceConflict(Exception):
    """The service has an address of such a family already, or another service has this one."""


def explain(error: Exception, target: str) -> StoreError:
    """Return the :class:`StoreError` that tells an operator what ``error`` means."""
    original = error.orig if isinstance(error, exc.DBAPIError) and error.orig else error
    text = " ".join(str(original).split())
    if isinstance(original, sqlite3.Error):
        for words, cause, cure in _SQLITE_CAUSES:
            if words in text.lower():
                return StoreError(target, cause, cure)
    if isinstance(error, exc.OperationalError | exc.InterfaceError):
        return StoreError(
            target, text, "check that the database runs, is reachable, and accepts this user"
        )
    return StoreError(target, text, "this is unexpected; please report it with the log")
