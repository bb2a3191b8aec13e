"""Compiled programs, kept over restarts: a start of the gateway then takes no compiler.

    DIRECTORY/<program>-<key>.bpf

        zgate-bpf 1                       what it is
        <SHA-256 of the rest>             whole, and as it was written
        {"key": ..., "functions": {name: base64}}

What is found goes into the kernel as it is. So it is believed only where nobody but root and this
process's own user can have written it: directory and file are looked at through open descriptors.
The digest finds what a disk or a crash did; it keeps nobody out (docs/adr/0024). Nothing here
raises: where the cache is of no use, a warning says why and the program is compiled.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from zgate_bpf.linking import INSTRUCTION_BYTES

logger = logging.getLogger(__name__)

DEFAULT_DIRECTORY = Path("/var/cache/zgate")
"""Of a gateway that root runs by hand. systemd names its own: ``CacheDirectory=``."""

KEPT_ENTRIES = 32
_MAGIC = b"zgate-bpf 1"
_SUFFIX, _UNFINISHED = ".bpf", ".tmp"
_MAX_ENTRY_BYTES = 4 << 20
_UNFINISHED_AGE_S = 3600.0
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_directory() -> Path | None:
    """Where this process keeps compiled programs; None: it keeps none."""
    given = os.environ.get("CACHE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    return DEFAULT_DIRECTORY if os.geteuid() == 0 else None


class _Unusable(Exception):
    """Not to be believed, or not there for us; the text says why."""


class ProgramCache:
    """The entries in one directory, by an open descriptor of it."""

    def __init__(self, directory: Path, descriptor: int) -> None:
        self._directory = directory
        self._folder = descriptor

    def get(self, program: str, key: str, functions: tuple[str, ...]) -> dict[str, bytes] | None:
        """The instructions of these functions; None if they must be compiled."""
        name = _entry_name(program, key)
        try:
            content = _read(self._folder, name)
            return None if content is None else _unpacked(content, key, functions)
        except (OSError, _Unusable) as error:
            path = self._directory / name
            logger.warning(
                "%(path)s is not used, the program is compiled: %(error)s",
                {"event": "bpf_cache_entry_refused", "path": path, "error": _text(error)},
            )
            return None

    def put(self, program: str, key: str, compiled: Mapping[str, bytes]) -> None:
        """Keep instructions, in the place of what has this key; let go of old entries."""
        name = _entry_name(program, key)
        try:
            _write(self._folder, name, _packed(key, compiled))
            _tidy(self._folder)
        except OSError as error:
            path = self._directory / name
            logger.warning(
                "%(path)s is not kept, the next start compiles: %(error)s",
                {"event": "bpf_cache_entry_not_kept", "path": path, "error": _text(error)},
            )


@contextmanager
def open_cache(directory: Path | None) -> Iterator[ProgramCache | None]:
    """The cache in a directory, which is made, for us alone, where it is missing.

    None without a directory, and where others may write in it.
    """
    if directory is None:
        yield None
        return
    try:
        folder = _open_ours(directory)
    except (OSError, _Unusable) as error:
        logger.warning(
            "compiled programs are not kept in %(directory)s: %(error)s",
            {"event": "bpf_cache_off", "directory": directory, "error": _text(error)},
        )
        yield None
        return
    try:
        yield ProgramCache(directory, folder)
    finally:
        os.close(folder)


def _open_ours(directory: Path) -> int:
    """A descriptor of the directory, if nobody but root and we can write in it."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        folder = os.open(directory, flags)
    except FileNotFoundError:
        directory.mkdir(mode=0o700, exist_ok=True)
        folder = os.open(directory, flags)
    try:
        _check_ours(os.fstat(folder), "it")
    except BaseException:
        os.close(folder)
        raise
    return folder


def _entry_name(program: str, key: str) -> str:
    return f"{program}-{key}{_SUFFIX}"


def _text(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _check_ours(state: os.stat_result, what: str) -> None:
    if state.st_uid not in (0, os.geteuid()):
        raise _Unusable(
            f"{what} belongs to user {state.st_uid}, not to root or this process's user "
            f"{os.geteuid()}: remove it, or set CACHE_DIRECTORY to another one"
        )
    if state.st_mode & _OTHERS_MAY_WRITE:
        raise _Unusable(f"others may write {what}: chmod go-w it")


# Files.


def _read(folder: int, name: str) -> bytes | None:
    # Without waiting: a named pipe would be refused below, but only after somebody wrote to it.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode):
            raise _Unusable("it is no ordinary file")
        _check_ours(state, "it")
        content = file.read(_MAX_ENTRY_BYTES + 1)
        with contextlib.suppress(OSError):  # one of root's, or a read-only disk
            os.utime(fd)  # used: it stays
    return content


def _write(folder: int, name: str, content: bytes) -> None:
    """All of it or nothing. It needs no fsync: what a power cut leaves, the digest refuses."""
    unfinished = f".{name}.{os.urandom(8).hex()}{_UNFINISHED}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(unfinished, flags, 0o600, dir_fd=folder)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
        os.rename(unfinished, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished, dir_fd=folder)
        raise


def _tidy(folder: int) -> None:
    """Remove the entries unused for longest, and what a killed writer left."""
    entries = []
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):  # somebody else tidies
            used_s = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
            if name.endswith(_SUFFIX):
                entries.append((used_s, name))
            elif name.endswith(_UNFINISHED) and time.time() - used_s > _UNFINISHED_AGE_S:
                os.unlink(name, dir_fd=folder)
    for _, name in sorted(entries, reverse=True)[KEPT_ENTRIES:]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)


# Contents.


def _packed(key: str, compiled: Mapping[str, bytes]) -> bytes:
    functions = {name: base64.b64encode(code).decode() for name, code in compiled.items()}
    body = json.dumps({"key": key, "functions": functions}).encode()
    return b"\n".join((_MAGIC, hashlib.sha256(body).hexdigest().encode(), body))


def _unpacked(content: bytes, key: str, functions: tuple[str, ...]) -> dict[str, bytes]:
    magic, digest, body = [*content.split(b"\n", 2), b"", b""][:3]
    if magic != _MAGIC or hashlib.sha256(body).hexdigest().encode() != digest:
        raise _Unusable("it is damaged")
    try:
        found = json.loads(body)
        codes = {name: base64.b64decode(found["functions"][name]) for name in functions}
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise _Unusable("it is not what its name says") from error
    whole = all(code and len(code) % INSTRUCTION_BYTES == 0 for code in codes.values())
    if found["key"] != key or not whole:
        raise _Unusable("it is not what its name says")
    return codes
