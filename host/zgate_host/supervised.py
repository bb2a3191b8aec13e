"""A daemon of one process under a service manager: ready, status, watchdog (`zgate_host.systemd`).

All of it is done on the event loop that carries the packets, between them: while that loop does
not turn, the watchdog gets nothing, and the manager ends the process and starts it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from zgate_host import systemd

_STATUS_INTERVAL_S = 1.0
#: So many looks in the time after which the manager loses patience.
_LOOKS_PER_WATCHDOG = 4


@contextlib.asynccontextmanager
async def supervised(describe: Callable[[], str]) -> AsyncIterator[None]:
    """Tell the manager that all is set up, and how it is, until the block ends.

    Whether there is a session is the status's matter: a daemon that waits for its gateway does
    what it is for. `describe` is what `systemctl status` shows.
    """
    if not systemd.is_watched():
        yield
        return
    systemd.notify(ready=True, status=describe())
    task = asyncio.create_task(_keep(describe))
    try:
        yield
    finally:
        task.cancel()
        systemd.notify(stopping=True, status="stopping")


async def _keep(describe: Callable[[], str]) -> None:
    watchdog_s = systemd.watchdog_interval_s()
    interval_s = _STATUS_INTERVAL_S
    if watchdog_s is not None:
        interval_s = min(interval_s, watchdog_s / _LOOKS_PER_WATCHDOG)
    told = ""
    while True:
        now = describe()
        status = now if now != told else None
        systemd.notify(watchdog=watchdog_s is not None, status=status)
        told = now
        await asyncio.sleep(interval_s)
