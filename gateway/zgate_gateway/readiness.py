"""What new sessions need, and whether it is there: ``GET /ready``.

    state    the gateway has started, and is neither draining nor stopping
    bpf      our programs decide at both ends of the TUN, and nothing decides before them
    policy   a policy is in force
    store    leases can be read
    problems none lasts that keeps new sessions out (`zgate_gateway.problems`)

Kernel and store are asked in a thread: what hangs there must not hang the event loop, nor whoever
asks. One look serves all who ask within a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from zgate_control.store import StoreError

from zgate_gateway.net.errors import NetError

if TYPE_CHECKING:
    from zgate_gateway.daemon import Gateway

CHECKS = ("state", "bpf", "policy", "store", "problems")
_FRESH_S = 1.0
_PATIENCE_S = 2.0

Objections = dict[str, str]


class Readiness:
    """See the module's text."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._looking: asyncio.Task[Objections] | None = None
        self._found: Objections = {}
        self._found_s = -_FRESH_S

    async def objections(self) -> Objections:
        """What is missing, in words, by check; empty: ready."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._found_s >= _FRESH_S:
            await self._look(loop)
        return {**self._own_objections(), **self._found}

    def _own_objections(self) -> Objections:
        gateway = self._gateway
        found = {}
        if gateway.state != "ready":
            found["state"] = f"the gateway is {gateway.state}"
        if not gateway.kernel.revision:
            found["policy"] = "no policy is in force"
        if blocking := gateway.problems.blocking():
            found["problems"] = "; ".join(blocking)
        return found

    async def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._looking is None:
            self._looking = loop.create_task(asyncio.to_thread(self._ask))
        looking = self._looking
        done, _ = await asyncio.wait([looking], timeout=_PATIENCE_S)
        if not done:
            self._found = {"store": f"no answer for {_PATIENCE_S:g} s"}
            return  # the one question that hangs stays the only one
        if self._looking is looking:
            self._looking = None
        self._found, self._found_s = looking.result(), loop.time()

    def _ask(self) -> Objections:
        steps: dict[str, Callable[[], None]] = {
            "bpf": self._gateway.network.verify_programs,
            "store": self._gateway.store.check,
        }
        found = {}
        for name, step in steps.items():
            try:
                step()
            except (NetError, StoreError, OSError) as error:
                found[name] = str(error)
        return found
