"""Keep a gateway's store before an upgrade, or put it back: snapshot.py save|restore STORE COPY"""

import os
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path


def save(store: Path, copy: Path) -> None:
    """Write one moment of the store to `copy`, while others use it. No store: no copy."""
    copy.unlink(missing_ok=True)
    if not store.exists():
        return
    unfinished = copy.with_suffix(".unfinished")
    unfinished.unlink(missing_ok=True)
    os.close(os.open(unfinished, os.O_CREAT | os.O_WRONLY, 0o600))
    with closing(sqlite3.connect(store)) as source, closing(sqlite3.connect(unfinished)) as target:
        source.backup(target)
    unfinished.rename(copy)


def restore(store: Path, copy: Path) -> None:
    """Put `copy` in the store's place, which nobody uses now; without a copy, as it was: none."""
    # What is folded into a database of another content destroys it.
    for name in (f"{store}-wal", f"{store}-shm"):
        Path(name).unlink(missing_ok=True)
    if not copy.exists():
        store.unlink(missing_ok=True)
        return
    beside = store.with_suffix(".restored")
    shutil.copyfile(copy, beside)
    beside.chmod(0o600)
    owner = store.parent.stat()
    os.chown(beside, owner.st_uid, owner.st_gid)
    beside.rename(store)


if __name__ == "__main__":
    {"save": save, "restore": restore}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
