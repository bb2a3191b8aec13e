"""Reading and writing the files that hold certificates and keys."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o644
MAX_FILE_BYTES = 16 * 1024 * 1024
"""A revocation list of 400,000 entries; nobody's certificate file is larger."""


FileVersion = tuple[int, int, int, int] | None


class IdentityError(Exception):
    """What this package cannot do for its operator; ``str()`` is one line with the cause."""


class IdentityFileError(IdentityError):
    """A file that holds an identity cannot be used; ``str()`` is one line.

    Attributes:
        file: the file, or the directory, it is about.
        problem: what is wrong with it.
        cure: what to do about it; may be empty.
    """

    def __init__(self, file: Path, problem: str, cure: str = "") -> None:
        self.file = file
        self.problem = problem
        self.cure = cure
        super().__init__(f"{file}: {problem}" + (f"; {cure}" if cure else ""))


def version_of(file: Path) -> FileVersion:
    """What is another one when the file is, however it was changed; None while it is not found."""
    try:
        found = file.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def read_file(file: Path) -> bytes:
    """The content of `file`.

    Raises:
        IdentityFileError: it is missing, unreadable, no file, or absurdly large.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise IdentityFileError(file, "does not exist", "check the path") from None
    except OSError as error:
        raise IdentityFileError(file, f"cannot be read ({error.strerror})") from error
    if len(data) > MAX_FILE_BYTES:
        raise IdentityFileError(file, f"is larger than {MAX_FILE_BYTES} bytes")
    return data


def write_file(file: Path, data: bytes, mode: int = PUBLIC_MODE) -> None:
    """Write `file` so that a reader, or a power cut, sees the old content or the new one.

    The mode holds from the first byte on, whatever the umask is.

    Raises:
        IdentityFileError: the directory is missing, not writable, or full.
    """
    try:
        _replace(file, data, mode)
    except OSError as error:
        raise IdentityFileError(file, f"cannot be written ({error.strerror})") from error


def _replace(file: Path, data: bytes, mode: int) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            give_to_owner_of(file.parent, stream.fileno())
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(file.parent)


def give_to_owner_of(folder: Path, made: int | Path) -> None:
    """Let what root has made in a folder, or its descriptor, belong to whom the folder belongs.

    A gateway that runs as a user of its own then reads and renews what root has made beside it.
    For everybody else it is a no-op.

    Raises:
        OSError: the folder is gone.
    """
    if os.geteuid() == 0:
        owner = folder.stat()
        os.chown(made, owner.st_uid, owner.st_gid)


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable.

    Raises:
        OSError: it cannot be opened or synced.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked_directory(directory: Path) -> Iterator[None]:
    """Hold the one lock of `directory`; a second process waits.

    The lock sits on the directory itself, so that it leaves no file and dies with its process.

    Raises:
        IdentityFileError: the directory cannot be opened.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise IdentityFileError(directory, f"cannot be opened ({error.strerror})") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
