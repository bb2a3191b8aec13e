"""Split DNS by resolv.conf(5), where nothing better runs: our server first, and put back after.

The gateway's responder says REFUSED, at once, to every name that is not below its domain; glibc
and musl then ask the next server of the list. So ours goes first, for as long as there is a
session, and the file's own servers stay behind it.

What the file was is kept beside it, as `resolv.conf.zgate-backup`: a file, or the symbolic link
that it was. It lies on disk, as the change does, so that it outlives a reboot. What is not ours any
more, because somebody has replaced the file meanwhile, is left alone; where somebody has edited it
(our first line holds the digest of the rest), only our lines are taken out.

A file that is replaced between our look at it and our change is looked at again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from zgate_protocol.ip_range import IpAddress

MAX_SERVERS = 3
"""More than this glibc does not ask (MAXNS)."""
MAX_OURS = MAX_SERVERS - 1
"""One of the file's own stays in reach."""
_BEGIN = "# zgate-agent: until the next such line; taken out when the agent ends; rest "
_END = "# zgate-agent: end"
_BACKUP_SUFFIX = ".zgate-backup"
_MAX_BYTES = 64 * 1024
_TRIES = 5
# A file that is mounted by itself, as in containers, can only be written where it is.
_NOT_REPLACEABLE = {errno.EBUSY, errno.EXDEV, errno.EPERM, errno.EACCES, errno.EROFS}


class ResolvConfError(OSError):
    """The file could not be changed; the text names the cause."""


class _ChangedMeanwhile(Exception):
    """What was read is not there any more."""


_Stamp = tuple[int, int, int, int] | None
Signature = tuple[_Stamp, ...]
"""Another one when a file is."""


def with_servers(text: str, servers: Sequence[IpAddress]) -> str:
    """The file with our servers first."""
    ours = [f"nameserver {one}" for one in servers]
    rest = without_servers(text)
    return "\n".join([_BEGIN + _digest(rest), *ours, _END, ""]) + rest


def without_servers(text: str) -> str:
    """The file without our lines."""
    kept, is_ours = [], False
    for line in text.splitlines(keepends=True):
        plain = line.rstrip("\n")
        if plain.startswith(_BEGIN):
            is_ours = True
        elif not is_ours:
            kept.append(line)
        elif plain == _END:
            is_ours = False
    return "".join(kept)


def is_ours(text: str) -> bool:
    """Whether our lines are in it."""
    lines = text.splitlines()
    return _END in lines and any(line.startswith(_BEGIN) for line in lines)


def is_edited(text: str) -> bool:
    """Whether somebody has changed the rest since our lines were put in."""
    begin = next((line for line in text.splitlines() if line.startswith(_BEGIN)), "")
    return begin != _BEGIN + _digest(without_servers(text))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def servers_left_out(text: str) -> int:
    """How many of the servers that it names are not asked."""
    named = sum(line.split()[:1] == ["nameserver"] for line in text.splitlines())
    return max(0, named - MAX_SERVERS)


class ResolvConf:
    """One resolv.conf and its backup. Blocking calls, one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.backup = path.with_name(path.name + _BACKUP_SUFFIX)
        self._seen: Signature = ()

    def signature(self) -> Signature:
        """What is another one when the file is, or what the link led to that it was."""
        return (*self._stamps(), _stamp(self.backup))

    def put(self, servers: Sequence[IpAddress]) -> bool:
        """Put servers first, in the place of ours of before; False if they are there already.

        Raises:
            ResolvConfError: they cannot be, and it is as before.
        """
        return self._tried("change", lambda: self._put(servers))

    def put_back(self) -> bool:
        """Make the file what it was, as far as it is still ours; whether anything was changed.

        Raises:
            ResolvConfError: it cannot be; the next start tries again.
        """
        return self._tried("put back", self._put_back)

    def _tried(self, what: str, change: Callable[[], bool]) -> bool:
        for _ in range(_TRIES):
            try:
                return change()
            except _ChangedMeanwhile:
                continue
            except OSError as error:
                why = error.strerror or error
                raise ResolvConfError(f"cannot {what} {self.path}: {why}") from error
        raise ResolvConfError(f"cannot {what} {self.path}: somebody else writes it all the time")

    def _put(self, servers: Sequence[IpAddress]) -> bool:
        before = self._read()
        after = with_servers(self._rest(before), servers)
        if before == after:
            return False
        if not is_ours(before):
            # What somebody else wrote is the host's own again: an older backup is not.
            self._back_up()
        self._write(after)
        return True

    def _rest(self, text: str) -> str:
        """What stands behind our lines: where the file was a link, what is there now."""
        if is_ours(text) and is_edited(text):
            # The backup is no copy of this file any more.
            self._keep(without_servers(text).encode(errors="surrogateescape"))
        elif is_ours(text) and self.backup.is_symlink():
            with contextlib.suppress(OSError):
                return self._read_file(self.backup)
        return without_servers(text)

    def _put_back(self) -> bool:
        text = self._read()
        if not is_ours(text):
            self._remove_backup()
            return False
        if self.backup.is_symlink() and not is_edited(text):
            self._check_unchanged()
            self.backup.replace(self.path)
        elif without_servers(text) or self.backup.exists() or is_edited(text):
            self._write(without_servers(text))
        else:
            self._check_unchanged()
            self.path.unlink()  # there was none before
        self._remove_backup()
        return True

    def _back_up(self) -> None:
        if self.path.is_symlink():
            self._remove_backup()
            self.backup.symlink_to(self.path.readlink())
        elif self.path.exists():
            self._keep(self.path.read_bytes())
        else:
            self._remove_backup()

    def _keep(self, data: bytes) -> None:
        mode = stat.S_IMODE(self.path.stat().st_mode)
        self._remove_backup()
        # Made anew, never followed: the folder may be somebody's who is not root.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(self.backup, flags, mode), "wb") as file:
            file.write(data)

    def _remove_backup(self) -> None:
        # Looked for first: on a read-only file system even what is not there cannot be unlinked.
        if os.path.lexists(self.backup):
            self.backup.unlink(missing_ok=True)

    def _stamps(self) -> Signature:
        return _stamp(self.path, follow_symlinks=False), _stamp(self.path)

    def _check_unchanged(self) -> None:
        if self._stamps() != self._seen:
            raise _ChangedMeanwhile

    def _read(self) -> str:
        self._seen = self._stamps()
        with contextlib.suppress(FileNotFoundError):
            return self._read_file(self.path)
        return ""

    def _read_file(self, path: Path) -> str:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise OSError(errno.EFBIG, f"it has more than {_MAX_BYTES} bytes")
        return data.decode(errors="surrogateescape")

    def _write(self, text: str) -> None:
        """Replace the file, the link if it is one; or write in place what cannot be replaced."""
        data = text.encode(errors="surrogateescape")
        try:
            mode = stat.S_IMODE(self.path.stat().st_mode)
        except FileNotFoundError:
            mode = 0o644
        try:
            descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=".resolv.conf.")
        except OSError as error:
            if error.errno not in _NOT_REPLACEABLE:
                raise
            self._write_in_place(data)
            return
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), mode)
                # Without it a power failure may leave an empty file, and no names at all.
                os.fsync(file.fileno())
            self._check_unchanged()
            os.replace(name, self.path)  # noqa: PTH105 - a plain name
        except OSError as error:
            Path(name).unlink(missing_ok=True)
            if error.errno not in _NOT_REPLACEABLE:
                raise
            self._write_in_place(data)
        except _ChangedMeanwhile:
            Path(name).unlink(missing_ok=True)
            raise

    def _write_in_place(self, data: bytes) -> None:
        self._check_unchanged()
        with self.path.open("r+b") as file:
            file.write(data)
            file.truncate()


def _stamp(path: Path, *, follow_symlinks: bool = True) -> _Stamp:
    try:
        found = path.stat(follow_symlinks=follow_symlinks)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
