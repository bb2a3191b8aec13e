"""A wall clock of its own for one program and its children: it can be set, ahead and back.

A small library is put before libc (LD_PRELOAD): CLOCK_REALTIME is as far ahead as a file says, and
all other clocks are what they are. The file is read at each call, so a change counts at once.
(libfaketime shifts the time at which sleeps end as well, and Python's `time.sleep` then fails.)
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

VARIABLE = "ZGATE_LAB_CLOCK"

_SOURCE = f"""\
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long ahead_s(void)
{{
    char text[32];
    const char *path = getenv("{VARIABLE}");
    int file = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    ssize_t count = file < 0 ? 0 : read(file, text, sizeof text - 1);
    if (file >= 0)
        close(file);
    text[count > 0 ? count : 0] = 0;
    return atol(text);
}}

int clock_gettime(clockid_t clock, struct timespec *now)
{{
    static int (*real)(clockid_t, struct timespec *);
    if (real == NULL)
        real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, now);
    if (status == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += ahead_s();
    return status;
}}

time_t time(time_t *kept)
{{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (kept != NULL)
        *kept = now.tv_sec;
    return now.tv_sec;
}}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{{
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}}
"""


def build_library(directory: Path) -> Path:
    """Compile it into a directory."""
    library = directory / "libzgatelabclock.so"
    subprocess.run(
        ["gcc", "-O2", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"],
        input=_SOURCE,
        text=True,
        check=True,
    )
    return library


class WallClock:
    """The clock of the programs that are started with its `environment`."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "wall-clock"
        self._library = build_library(directory)
        self.set(timedelta(0))

    @property
    def environment(self) -> Mapping[str, str]:
        """For the program that is to have it."""
        return {"LD_PRELOAD": str(self._library), VARIABLE: str(self._file)}

    def set(self, ahead: timedelta) -> None:
        """From now on it is so far ahead of the host's (or behind), in whole seconds."""
        draft = self._file.with_suffix(".new")
        draft.write_text(f"{ahead.total_seconds():.0f}\n")
        draft.rename(self._file)

    @contextmanager
    def being_set(self, ahead: timedelta) -> Iterator[None]:
        """It is wrong, and right again after the block."""
        self.set(ahead)
        try:
            yield
        finally:
            self.set(timedelta(0))
