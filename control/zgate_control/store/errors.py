"""What can go wrong with the store, said so that an operator can act on it."""

from __future__ import annotations

import sqlite3

from sqlalchemy import exc

_DAMAGED_CURE = "move it away and start again (leases are given anew), or restore a backup"

#: How SQLite says it, and what that means to an operator: (words in the message, cause, cure).
_SQLITE_CAUSES = (
    (
        "file is not a database",
        "the file is no SQLite database, or its header is damaged",
        _DAMAGED_CURE,
    ),
    (
        "malformed",
        "the database is damaged",
        _DAMAGED_CURE,
    ),
    ("no such table", "the database is not one of zgate's, or is damaged", _DAMAGED_CURE),
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
    """The store cannot do what was asked. ``cause`` is what is wrong, ``cure`` what helps.

    :ivar is_damage: what is stored cannot be read; waiting does not help.
    """

    def __init__(self, target: str, cause: str, cure: str) -> None:
        super().__init__(f"store {target}: {cause}; {cure}")
        self.target = target
        self.cause = cause
        self.cure = cure
        self.is_damage = cure == _DAMAGED_CURE


class StoreLost(StoreError):
    """The store was found lost before: nothing was tried now."""

    def __init__(self, because: StoreError) -> None:
        super().__init__(because.target, because.cause, because.cure)


class LeaseConflict(Exception):
    """The client has a lease of this family already, or somebody else has this address."""


class ServiceConflict(Exception):
    """The service has an address of such a family already, or another service has this one."""


def damaged(target: str, found: str) -> StoreError:
    """Return the error for what SQLite's own check has found."""
    return StoreError(target, f"the database is damaged ({' '.join(found.split())})", _DAMAGED_CURE)


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
