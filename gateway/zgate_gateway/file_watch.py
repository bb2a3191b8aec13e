"""Telling when a file has changed, however it was changed.

inotify only wakes; what counts is what ``stat`` says of the path. So it does not matter whether an
editor writes in place, renames a new file over the old one, or a symbolic link is turned (as
configuration management and Kubernetes do). The path is looked at every few seconds as well: not
every file system tells.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType

from pyroute2.inotify.inotify_fd import Inotify
from zgate_identity.files import FileVersion, version_of

logger = logging.getLogger(__name__)

DEBOUNCE_S = 0.3
_LONGEST_DEBOUNCE_S = 3.0
_LOOK_INTERVAL_S = 5.0
_LOOK_INTERVAL_WITHOUT_INOTIFY_S = 1.0

_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
_EVENTS = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
_READ_BYTES = 64 * 1024


async def watch_file(
    path: Path,
    on_change: Callable[[], Awaitable[object]],
    *,
    seen: FileVersion,
    debounce_s: float = DEBOUNCE_S,
    look_interval_s: float = _LOOK_INTERVAL_S,
) -> None:
    """Await ``on_change()`` after each change of the file that ``seen`` does not know; forever."""
    wake = asyncio.Event()
    with _Notifier(path, wake) as notifier:
        if not notifier.works:
            look_interval_s = min(look_interval_s, _LOOK_INTERVAL_WITHOUT_INOTIFY_S)
        while True:
            wake.clear()
            if version_of(path) != seen:
                seen = await _settled(path, wake, debounce_s)
                notifier.follow(path)
                await on_change()
                continue
            await _sleep(wake, look_interval_s)


async def _sleep(wake: asyncio.Event, longest_s: float) -> bool:
    """Sleep; whether something woke us before the time was over."""
    try:
        async with asyncio.timeout(longest_s):
            await wake.wait()
    except TimeoutError:
        return False
    return True


async def _settled(path: Path, wake: asyncio.Event, debounce_s: float) -> FileVersion:
    """Wait until nothing has happened to the file for a moment, and return its version."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + _LONGEST_DEBOUNCE_S
    last = version_of(path)
    while True:
        wake.clear()
        await _sleep(wake, debounce_s)
        now = version_of(path)
        if now == last or loop.time() >= deadline_s:
            return now
        last = now


class _Notifier:
    """inotify on the directories in which the path, and the file that it means, have a name."""

    def __init__(self, path: Path, wake: asyncio.Event) -> None:
        self._wake = wake
        # Given a library, Inotify starts no subprocess to find one.
        self._inotify = Inotify(libc=ctypes.CDLL(None, use_errno=True), path=[])
        self._inotify.bind()
        self.works = self._inotify.fd >= 0
        if self.works:
            os.set_blocking(self._inotify.fd, False)
            os.set_inheritable(self._inotify.fd, False)
            self.follow(path)
        else:
            logger.warning(
                "no inotify (fs.inotify.max_user_instances?): looking every second",
                {"event": "file_watch_slow"},
            )

    def __enter__(self) -> _Notifier:
        if self.works:
            asyncio.get_running_loop().add_reader(self._inotify.fd, self._read)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.works:
            asyncio.get_running_loop().remove_reader(self._inotify.fd)
        self._inotify.close()

    def follow(self, path: Path) -> None:
        """Watch where the path leads now. A directory that is not there is looked at by time."""
        if not self.works:
            return
        for directory in {path.absolute().parent, path.resolve().parent}:
            try:
                self._inotify.register_path(str(directory), _EVENTS)
            except OSError as error:
                logger.warning(
                    "%(directory)s is not watched: %(error)s",
                    {
                        "event": "directory_not_watched",
                        "directory": directory,
                        "error": error.strerror,
                    },
                )

    def _read(self) -> None:
        try:
            os.read(self._inotify.fd, _READ_BYTES)
        except BlockingIOError:
            return
        self._wake.set()
