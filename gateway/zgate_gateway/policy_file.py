"""The file that a policy is read from at the next start: replaced whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from zgate_identity.files import sync_directory

_NEW_MODE = 0o640


class PolicyFileError(Exception):
    """The policy file cannot be written; nothing has changed. ``str()`` is one line."""


class StagedFile:
    """New content beside the old, on the disk already; :meth:`commit` is one rename.

    A context manager: what was not committed is removed. A symbolic link is followed, and mode and
    owner stay as they were.
    """

    def __init__(self, path: Path, data: bytes) -> None:
        """Write the content beside ``path``. Raises :class:`PolicyFileError`."""
        self._path = path.resolve()
        try:
            self._temporary: Path | None = _write_beside(self._path, data)
        except OSError as error:
            raise PolicyFileError(
                f"{path}: cannot be written ({error.strerror}); "
                "make its directory writable for the gateway, or change the file and reload"
            ) from error

    def __enter__(self) -> StagedFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)

    def commit(self) -> None:
        """Put it in its place. Raises :class:`PolicyFileError`."""
        assert self._temporary is not None, "committed already"
        try:
            self._temporary.replace(self._path)
            self._temporary = None
            sync_directory(self._path.parent)
        except OSError as error:
            raise PolicyFileError(f"{self._path}: cannot be replaced ({error.strerror})") from error


def keep_aside(path: Path) -> Path:
    """Copy the file as it is to ``NAME.replaced`` beside it. Raises :class:`PolicyFileError`."""
    aside = path.with_name(f"{path.name}.replaced")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PolicyFileError(f"{path}: cannot be read ({error.strerror})") from error
    with StagedFile(aside, data) as staged:
        staged.commit()
    return aside


def _write_beside(path: Path, data: bytes) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            _copy_owner_and_mode(path, stream.fileno())
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _copy_owner_and_mode(path: Path, descriptor: int) -> None:
    try:
        old = path.stat()
    except FileNotFoundError:
        os.fchmod(descriptor, _NEW_MODE)
        return
    with contextlib.suppress(PermissionError):  # not root: the owner is who we are
        os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, old.st_mode & 0o7777)
