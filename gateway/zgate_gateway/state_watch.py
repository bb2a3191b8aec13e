"""Whether the gateway's directories can be written, found out before something has to be.

Each look makes a file without a name (O_TMPFILE) and writes a block into it: permissions, read-only
file systems, quotas and full disks all show themselves, and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from zgate_gateway.problems import Problems

_INTERVAL_S = 2.0
_BLOCK = bytes(4096)
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
#: File systems that know no O_TMPFILE say one of these.
_NO_NAMELESS = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL})
#: Less room than both is nearly none.
_LITTLE_BYTES = 64 << 20
_LITTLE_SHARE = 0.05
#: An alert ends when there is so much more than that.
_RELIEF = 1.5


@dataclass(frozen=True, slots=True)
class Room:
    """What one look at a directory found.

    :ivar error: why nothing can be written; 0: something can.
    """

    directory: Path
    error: int
    free_bytes: int
    size_bytes: int

    @classmethod
    def of(cls, directory: Path) -> Room:
        """Look. Blocks as long as the disk does."""
        error = _try_to_write(directory)
        try:
            found = os.statvfs(directory)
        except OSError as failed:
            return cls(directory, error or failed.errno or errno.EIO, 0, 0)
        unit = found.f_frsize
        return cls(directory, error, found.f_bavail * unit, found.f_blocks * unit)

    @property
    def is_full(self) -> bool:
        """Whether nothing fits any more."""
        return self.error in _NO_ROOM

    def is_nearly_full(self, *, was: bool) -> bool:
        """Whether there is little room, or not much more if there ``was``."""
        limit = min(_LITTLE_BYTES, self.size_bytes * _LITTLE_SHARE) * (_RELIEF if was else 1)
        return self.error == 0 and self.free_bytes < limit

    @property
    def text(self) -> str:
        """What an operator reads."""
        if self.is_full or self.error == 0:
            free, size = self.free_bytes / (1 << 20), self.size_bytes / (1 << 20)
            return f"{self.directory}: {free:.1f} of {size:.0f} MiB are free"
        return f"{self.directory}: {os.strerror(self.error)}"


def _try_to_write(directory: Path) -> int:
    """The error's number; 0: it can be written."""
    try:
        descriptor = os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in _NO_NAMELESS:
            return 0 if os.access(directory, os.W_OK | os.X_OK) else errno.EACCES
        return error.errno or errno.EIO
    try:
        return 0 if os.write(descriptor, _BLOCK) == len(_BLOCK) else errno.ENOSPC
    except OSError as error:
        return error.errno or errno.EIO
    finally:
        os.close(descriptor)


class StateWatch:
    """Watches some directories: ``disk_full`` and ``state_not_writable``."""

    def __init__(self, directories: Iterable[Path], problems: Problems) -> None:
        self._directories = tuple(dict.fromkeys(directories))
        self._problems = problems

    async def keep(self, interval_s: float = _INTERVAL_S) -> None:
        """Look now and then; forever."""
        while True:
            self.update(await asyncio.to_thread(lambda: [Room.of(d) for d in self._directories]))
            await asyncio.sleep(interval_s)

    def update(self, rooms: Iterable[Room]) -> None:
        """Begin and end the problems by what was found."""
        rooms = list(rooms)
        was = "disk_full" in self._problems
        full = [one for one in rooms if one.is_full or one.is_nearly_full(was=was)]
        closed = [one for one in rooms if one.error and not one.is_full]
        self._problems.set("disk_full", _told(full, "free some space; sessions go on meanwhile"))
        cure = "make it writable for the gateway; sessions go on meanwhile"
        self._problems.set("state_not_writable", _told(closed, cure))


def _told(rooms: list[Room], cure: str) -> str | None:
    return f"{'; '.join(one.text for one in rooms)}; {cure}" if rooms else None
