"""Tasks that go on for as long as the gateway does, whatever happens to one of them.

What raises out of one is a fault of ours. It is logged with its place, and the task begins anew: a
gateway that carries packets does not end for it, nor does it go on without its audit log or its
revocations because nobody looked at a task's result. What fails in the same way again and again is
logged once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

_PAUSE_S = 1.0
#: What has worked for so long before it fails in the same way again is worth another line.
_WORKED_S = 60.0


async def keep_going(what: str, work: Callable[[], Awaitable[object]]) -> None:
    """Run ``work`` until it ends by itself, or is cancelled; begin anew when it fails."""
    told, clock = "", asyncio.get_running_loop().time
    while True:
        began_s = clock()
        try:
            await work()
        except Exception as error:
            if repr(error) != told or clock() - began_s >= _WORKED_S:
                logger.exception(
                    "%(what)s failed, and begins anew", {"event": "task_fault", "what": what}
                )
            told = repr(error)
            await asyncio.sleep(_PAUSE_S)
        else:
            return
