"""What systemd is told of the gateway: that it is ready, what it does, that packets are carried.

The watchdog is fed by workers: by each answer that a worker gives from the loop that carries its
packets. While none answers, or while nobody here takes the answers in, nothing is fed, and
systemd ends the gateway and starts it anew. A single worker that does not answer is the crew's
matter (`zgate_gateway.worker.crew`), which kills it in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from zgate_host import systemd

_STATUS_INTERVAL_S = 1.0
#: A database of years may have to be brought to a new schema, on a slow disk.
_STATE_TIMEOUT_S = 300.0
#: What is not in the cache yet is compiled and verified: three minutes on an emulated processor.
_KERNEL_TIMEOUT_S = 900.0
#: The last program is the edge's, and it may have to be compiled, too.
_WORKERS_TIMEOUT_S = 300.0


class ServiceManager:
    """The gateway's words to its service manager; without one, they are said to nobody.

    `describe` is what `systemctl status` shows.
    """

    def __init__(self, describe: Callable[[], str]) -> None:
        self._describe = describe
        self._told = ""

    def opening_state(self) -> None:
        """The database and the audit log are opened now."""
        self._starting("opening the database and the audit log", _STATE_TIMEOUT_S)

    def loading_programs(self) -> None:
        """The kernel's programs are loaded now."""
        self._starting("loading the kernel's programs", _KERNEL_TIMEOUT_S)

    def starting_workers(self) -> None:
        """The workers begin, and what stands before the port."""
        self._starting("starting the workers", _WORKERS_TIMEOUT_S)

    def _starting(self, what: str, timeout_s: float) -> None:
        systemd.notify(status=f"starting: {what}", extend_timeout_s=timeout_s)

    def ready(self) -> None:
        """The start, or a reload, is done."""
        self._told = self._describe()
        systemd.notify(ready=True, watchdog=True, status=self._told)

    def reloading(self) -> None:
        """Files are read again; `ready` follows."""
        systemd.notify(reloading=True)

    def stopping(self, cause: str) -> None:
        """The end has begun."""
        systemd.notify(stopping=True, status=f"stopping: {cause}")

    def alive(self) -> None:
        """A worker has answered."""
        if systemd.watchdog_interval_s() is not None:
            systemd.notify(watchdog=True)

    async def keep(self) -> None:
        """Tell what has changed, for as long as this runs."""
        while systemd.is_watched():
            await asyncio.sleep(_STATUS_INTERVAL_S)
            now = self._describe()
            if now != self._told:
                self._told = now
                systemd.notify(status=now)


def describe(*, state: str, sessions: int, revision: int, problems: Sequence[str]) -> str:
    """One line on a gateway, with what is wrong last: `systemctl status` cuts long ones."""
    noun = "session" if sessions == 1 else "sessions"
    text = f"{sessions} {noun}, policy revision {revision}"
    if state != "ready":
        text = f"{state}: {text}"
    return f"{text}; look at: {', '.join(problems)}" if problems else text
