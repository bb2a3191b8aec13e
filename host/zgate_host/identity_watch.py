"""Telling when the files by which a client proves itself have been replaced.

They are looked at by `stat`, so it does not matter who writes them, and how: in place, by renaming,
by turning a symbolic link. Three files are not replaced in one moment: what has changed must have
settled, and certificate and key must belong together, before anybody is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from zgate_identity.files import FileVersion, IdentityError, version_of
from zgate_identity.tls_files import check_ca_file, check_client_files

LOOK_INTERVAL_S = 0.5
#: How long files that do not fit together may take to, before that is told as a problem.
PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class IdentityFiles:
    """Authorities, own certificate, own key: PEM."""

    ca: Path
    certificate: Path
    key: Path

    def problem(self) -> str:
        """Why these cannot be used now; empty if they can."""
        now = datetime.now(UTC)
        try:
            check_ca_file(self.ca, now)
            check_client_files(self.certificate, self.key, now)
        except (IdentityError, OSError, ValueError) as error:
            return str(error)
        return ""

    def versions(self) -> tuple[FileVersion, ...]:
        """What is another one when a file is."""
        return tuple(version_of(one) for one in (self.ca, self.certificate, self.key))


async def watch_identity(
    files: IdentityFiles,
    on_change: Callable[[str], None],
    *,
    interval_s: float = LOOK_INTERVAL_S,
    patience_s: float = PATIENCE_S,
) -> None:
    """Call `on_change("")` after each change to files that can be used; forever.

    With a problem's text instead if they have changed, and cannot be used for so long; once for
    each text. The files of before are then nobody's: who has read them goes on with them.
    """
    clock = asyncio.get_running_loop().time
    used = last = files.versions()
    changed_s, told = 0.0, ""
    while True:
        await asyncio.sleep(interval_s)
        now = files.versions()
        if now != last:
            last, changed_s = now, clock()
            continue
        if now == used and not told:
            continue  # else what was told of is over: they are as they were
        problem = files.problem()
        if not problem:
            used, told = now, ""
            on_change("")
        elif problem != told and clock() - changed_s >= patience_s:
            told = problem
            on_change(problem)
