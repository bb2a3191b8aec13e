"""A store in a file that may get lost while its gateway runs, and comes back.

The gateway's memory is the truth while it runs: the store is what the next start will know. So a
store that is lost (deleted, replaced, damaged, locked, on a full or read-only disk) stops nobody
who is known, and holds nobody up: once it was found lost, every call ends at once with
:class:`StoreLost`, until :meth:`KeptStore.mend` has succeeded.

    locked, full, read-only       tried again; what was not written meanwhile is written then
    deleted, or replaced          SQLite goes on in the file that has no name any more: all of it
                                  is copied out into a new one
    damaged                       a new one is written from the gateway's memory; what only the
                                  file knew is gone: clients that are not connected, and earlier
                                  policy revisions

What stood in its place is put aside; the newest few of these are kept.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection

from .engine import open_engine, translated
from .errors import StoreError, StoreLost, damaged
from .records import Memory
from .store import Store

_SIDE_FILES = ("-wal", "-shm")
_COPY_PAGES = 256
_KEPT_ASIDE = 5


class KeptStore(Store):
    """See the module's text. Calls are made one after the other.

    :ivar lost: why it is; None: it is not.
    """

    def __init__(self, path: Path, *, lock_timeout_s: float = 0.5) -> None:
        """Open or create it. Raises :class:`StoreError`."""
        super().__init__(path, lock_timeout_s=lock_timeout_s)
        self.lost: StoreError | None = None
        self._path = path.absolute()
        self._lock_timeout_s = lock_timeout_s
        self._lock = threading.RLock()
        self._mender: int | None = None
        self._anchor: sqlite3.Connection | None = None
        self._hold()

    def close(self) -> None:
        """See `Store.close`."""
        self._let_go()
        super().close()

    # Looking. Slow: in a thread.

    def look(self, *, thoroughly: bool = False) -> None:
        """See whether the file is still there and, ``thoroughly``, all of it can be read."""
        try:
            with self._lock:
                if self._identity() != self._held:
                    raise self._gone()
            if thoroughly:
                self._read_all()  # without the lock: nobody waits for a slow disk
        except StoreError as error:
            self.lost = error

    def mend(self, memory: Memory, now: datetime) -> None:
        """Try to write what is known; it is not ``lost`` any more if that was possible."""
        with self._lock:
            self._mender = threading.get_ident()
            try:
                self._mend(memory, now)
                self.lost = None
            except StoreError as error:
                self.lost = error
            finally:
                self._mender = None

    def _read_all(self) -> None:
        """On a connection of its own: what others hold in their caches is not the disk."""
        with translated(self.name):
            timeout_s = self._lock_timeout_s
            source = f"{self._path.as_uri()}?mode=rw"
            with contextlib.closing(sqlite3.connect(source, timeout_s, uri=True)) as connection:
                (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
                connection.execute("SELECT 1 FROM leases LIMIT 1")  # an empty file is in order, too
        if found != "ok":
            raise damaged(self.name, str(found))

    def _mend(self, memory: Memory, now: datetime) -> None:
        if self._identity() != self._held:
            self._make_anew(memory, now, may_copy=True)
        elif self.lost is not None and self.lost.is_damage:
            self._make_anew(memory, now, may_copy=False)
        try:
            self.remember(memory, now)
        except StoreError as error:
            if not error.is_damage:
                raise
            self._make_anew(memory, now, may_copy=False)

    # A new file.

    def _make_anew(self, memory: Memory, now: datetime, *, may_copy: bool) -> None:
        draft = self._path.with_name(f"{self._path.name}.new")
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            _remove(draft)
            if may_copy:
                self._copy_to(draft)
            with Store(draft, lock_timeout_s=self._lock_timeout_s) as made:
                made.remember(memory, now)
            # The last of the old connections removes side files by name: before the new are there.
            self._let_go()
            self._engine.dispose()
            _put_aside(self._path, f"{now:%Y%m%dT%H%M%S}", with_log=not may_copy)
            draft.rename(self._path)
        except OSError as error:
            raise StoreError(
                self.name,
                f"it cannot be written anew ({error.strerror})",
                "make its directory writable, with some room",
            ) from error
        self._engine = open_engine(self._path, lock_timeout_s=self._lock_timeout_s)
        self._hold()

    def _copy_to(self, draft: Path) -> None:
        """What cannot be copied out of the lost file is written from memory."""
        if self._anchor is None:
            return
        os.close(os.open(draft, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        with contextlib.closing(sqlite3.connect(draft)) as target:
            try:
                self._anchor.backup(target, pages=_COPY_PAGES)
                return
            except sqlite3.Error as error:
                cause = error
        _remove(draft)
        if "full" in str(cause) or "readonly" in str(cause):
            with translated(self.name):
                raise cause

    # The file that is held open.

    def _hold(self) -> None:
        """Keep a connection that survives the file's name."""
        with translated(self.name):
            anchor = sqlite3.connect(self._path, check_same_thread=False)
            anchor.execute("PRAGMA schema_version").fetchone()
        self._anchor = anchor
        self._held = self._identity()

    def _let_go(self) -> None:
        if self._anchor is not None:
            self._anchor.close()
            self._anchor = None

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _gone(self) -> StoreError:
        what = "was deleted" if self._identity() is None else "is another one than was opened"
        return StoreError(
            self.name,
            f"its file {what}",
            "it is written anew as soon as that is possible; to restore a backup, stop the "
            "gateway first",
        )

    # Transactions.

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._guarded(), super()._read() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with self._guarded(), super()._write() as connection:
            yield connection

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        lost = self.lost
        if lost is not None and self._mender != threading.get_ident():
            raise StoreLost(lost)
        with self._lock:
            try:
                yield
            except StoreError as error:
                self.lost = error
                raise


def _remove(path: Path) -> None:
    for suffix in ("", *_SIDE_FILES):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _put_aside(path: Path, stamp: str, *, with_log: bool) -> None:
    """Keep what stands there under another name; the write-ahead log too, if it belongs to it."""
    marker = f"{path.name}.put-aside-"
    before = sorted({one.name.removesuffix("-wal") for one in path.parent.glob(f"{marker}*")})
    for name in before[: max(0, len(before) - _KEPT_ASIDE + 1)]:
        _remove(path.with_name(name))  # a disk that damages every new one is not to be filled
    aside = f"{marker}{stamp}"
    for suffix in ("", "-wal") if with_log else ("",):
        old = path.with_name(path.name + suffix)
        if old.exists():
            old.rename(path.with_name(aside + suffix))
    for suffix in _SIDE_FILES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
