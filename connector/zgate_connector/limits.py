"""What clients may use, counted: flows open for each client and in total, and what was refused."""

from __future__ import annotations

import resource
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

#: Two sockets, and two ends of a pipe for each direction whose reader is slow.
_DESCRIPTORS_PER_FLOW = 6
_OTHER_DESCRIPTORS = 1024


class Refusal(StrEnum):
    """Why a new flow was refused, or one was ended."""

    CLIENT_LIMIT = "flows_refused_client"
    """The client has as many open as it may."""
    TOTAL_LIMIT = "flows_refused_total"
    """All clients together have."""
    NO_RESOURCES = "flows_refused_resources"
    """The system gave no descriptor or no memory."""
    BACKEND = "flows_refused_backend"
    """The backend refused, could not be reached, or did not answer in time."""


@dataclass(slots=True)
class ServiceCounters:
    """What one service has carried since the session began."""

    open_flows: int = 0
    total_flows: int = 0
    bytes_up: int = 0
    """From agents to the backend."""
    bytes_down: int = 0


class FlowLedger:
    """Who has how many flows open, of all services together.

    Attributes:
        refused: how often a flow was refused, by reason.
    """

    def __init__(self, *, per_client: int, total: int) -> None:
        self._per_client = per_client
        self._total = total
        self._open: Counter[str] = Counter()
        self.open_flows = 0
        self.refused: Counter[Refusal] = Counter()

    def limit_of(self, client: str) -> Refusal | None:
        """The limit that keeps this client from another flow; None: it may open one."""
        if self._open[client] >= self._per_client:
            return Refusal.CLIENT_LIMIT
        return Refusal.TOTAL_LIMIT if self.open_flows >= self._total else None

    def open(self, client: str) -> bool:
        """Count a new flow; False, and counted as refused, when a limit is reached."""
        refusal = self.limit_of(client)
        if refusal is not None:
            self.refused[refusal] += 1
            return False
        self._open[client] += 1
        self.open_flows += 1
        return True

    def close(self, client: str) -> None:
        """A flow that was counted is over."""
        self._open[client] -= 1
        self.open_flows -= 1
        if not self._open[client]:
            del self._open[client]

    def open_of(self, client: str) -> int:
        """How many this client has open."""
        return self._open.get(client, 0)


def allow_descriptors(max_flows: int) -> int:
    """Let this process open as many files as `max_flows` flows need; how many flows fit.

    The soft limit is raised as far as the hard one lets it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_flows * _DESCRIPTORS_PER_FLOW + _OTHER_DESCRIPTORS
    if soft < wanted and soft != resource.RLIM_INFINITY:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return max_flows
    return min(max_flows, max(1, (soft - _OTHER_DESCRIPTORS) // _DESCRIPTORS_PER_FLOW))
