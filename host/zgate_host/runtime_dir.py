"""The folder of what lives as long as a daemon runs: a lock, its status socket, its leftovers."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LEFTOVERS_FILE = "network.json"


def service_runtime_dir() -> Path | None:
    """Return the folder that a service manager has made for this process (RuntimeDirectory=)."""
    given = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return Path(given) if given else None


class AlreadyRunning(Exception):
    """Another one uses the folder."""


class SeveralRunning(Exception):
    """It is not clear which one is meant; the text names them, and the cure."""


@dataclass(frozen=True, slots=True)
class RuntimeDir:
    """Names of the files in it.

    Attributes:
        role: `agent` or `connector`; the lock and the socket are called after it.
    """

    path: Path
    role: str

    @property
    def lock_file(self) -> Path:
        """Locked while somebody owns the folder."""
        return self.path / f"{self.role}.lock"

    @property
    def socket_file(self) -> Path:
        """The status socket."""
        return self.path / f"{self.role}.sock"

    @property
    def leftovers_file(self) -> Path:
        """What is programmed into the host's network now."""
        return self.path / LEFTOVERS_FILE

    def running(self) -> list[RuntimeDir]:
        """Where daemons of this role answer: here or, where they are units, in folders in here."""
        sockets = [self.socket_file, *sorted(self.path.glob(f"*/{self.role}.sock"))]
        return [RuntimeDir(one.parent, self.role) for one in sockets if _is_socket(one)]

    def only_running(self) -> RuntimeDir:
        """The one of `running` whom a question is for; this folder if there is none.

        Raises:
            SeveralRunning: there is more than one, and none here itself.
        """
        found = self.running()
        if len(found) > 1 and found[0] != self:
            names = ", ".join(str(one.path) for one in found)
            raise SeveralRunning(
                f"several {self.role}s run here: name one with --runtime-dir: {names}"
            )
        return found[0] if found else self

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and own it. The kernel unlocks it however the process ends.

        Raises:
            AlreadyRunning: somebody else owns it.
            OSError: it cannot be made or written to.
        """
        self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
        whose = self.path.stat().st_uid
        if whose not in (0, os.geteuid()):
            raise PermissionError(errno.EACCES, f"the folder is user {whose}'s")
        lock = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
                raise AlreadyRunning(
                    f"another zgate-{self.role} (pid {owner}) uses {self.path}:"
                    " stop it, or give this one a runtime_dir and a tun of its own"
                ) from None
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(lock)


def _is_socket(path: Path) -> bool:
    try:
        return path.is_socket()
    except OSError:
        return False  # not for us to see
