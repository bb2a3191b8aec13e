"""What clients had open before: known again when they are back.

The policy program lets nothing to a client that is not the answer to an allowed flow, and its flows
end with the client's session, all of them with the gateway. A download would then wait for ever:
the server's packets are dropped, and the client, who has nothing to say, says nothing. So when a
client comes, its connections are looked up in the kernel's own record (`net.conntrack`). That
passes nothing by itself: each flow's next packet is judged by the policy in force.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Protocol

from zgate_gateway.admission import IpAddress
from zgate_gateway.net.conntrack import Connection, connections_from
from zgate_gateway.net.errors import NetError

logger = logging.getLogger(__name__)

IpNetwork = IPv4Network | IPv6Network
#: So many addresses are asked for one by one; for more the whole record is read once.
_FEW_ADDRESSES = 8
#: After a reading: the kernel goes through its whole table for each, and after a restart of the
#: gateway clients come by the hundred.
_PAUSE_S = 0.05
#: Of one client: its flow table is not to be filled by what it once had.
MAX_PER_ADDRESS = 4096


class FlowTable(Protocol):
    """The kernel's flow table: `zgate_bpf.kernel_policy.KernelPolicy`."""

    def restore_flow(
        self, client: IpAddress, remote: IpAddress, protocol: int, ports: tuple[int, int]
    ) -> bool:
        """Know a flow that was allowed before."""


class FlowMemory:
    """See the module's text. `recall` may be called often: what comes together is read at once.

    Attributes:
        restored: flows that are known again, since start.
    """

    def __init__(
        self,
        flows: FlowTable,
        pools: Sequence[IpNetwork],
        *,
        read: Callable[[Sequence[IpNetwork | IpAddress]], Iterable[Connection]] = connections_from,
    ) -> None:
        self.restored = 0
        self._flows = flows
        self._pools = pools
        self._read = read
        self._waiting: set[IpAddress] = set()
        self._task: asyncio.Task[None] | None = None
        self._problem = ""

    def recall(self, addresses: Sequence[IpAddress]) -> None:
        """A client is there, with these addresses."""
        self._waiting.update(addresses)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        while self._waiting:
            addresses, self._waiting = self._waiting, set()
            few = len(addresses) <= _FEW_ADDRESSES
            asked = sorted(addresses, key=str) if few else self._pools
            try:
                found = await asyncio.to_thread(lambda: list(self._read(asked)))  # noqa: B023
            except NetError as error:
                self._told(str(error))
                return
            self._restore(addresses, found)
            await asyncio.sleep(_PAUSE_S)

    def _restore(self, addresses: set[IpAddress], found: Iterable[Connection]) -> None:
        counts = dict.fromkeys(addresses, 0)
        for one in found:
            if counts.get(one.client, MAX_PER_ADDRESS) >= MAX_PER_ADDRESS:
                continue
            counts[one.client] += 1
            ports = one.client_port, one.remote_port
            try:
                known = self._flows.restore_flow(one.client, one.remote, one.protocol, ports)
            except (OSError, RuntimeError) as error:
                self._told(f"flows of before are not known: {error}")
                return
            self.restored += known
        self._problem = ""

    def _told(self, problem: str) -> None:
        """Once, until all is well again: whoever sends next opens the flow again."""
        if problem != self._problem:
            self._problem = problem
            logger.warning(
                "%(problem)s: downloads that were open wait for their client",
                {"event": "flow_memory_off", "problem": problem},
            )

    async def close(self) -> None:
        """Stop reading."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
