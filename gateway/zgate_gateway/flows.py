"""Flows as administrators see them: those that are open, and news of new ones and of denials.

News goes from the kernel's ring buffer to whoever follows it (:class:`FlowFeed`). Every reader has
a queue of its own with a bound; one that does not read loses news, is told how much, and costs the
daemon nothing more.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import UTC, datetime
from ipaddress import ip_address
from itertools import chain, islice
from typing import Protocol

from zgate_bpf.kernel_policy import Direction, EventKind, FlowState, KernelEvent
from zgate_bpf.kernel_policy import Flow as KernelFlow
from zgate_protocol.drop_reason import DropReason

from zgate_gateway.api import schemas
from zgate_gateway.api.facade import NotReady, OperationFailed, TooManyReaders
from zgate_gateway.audit import Flow
from zgate_gateway.kernel import FlowEvent, IpAddress
from zgate_gateway.policy.rules import Rule

#: About a megabyte for a reader that hangs.
QUEUE_EVENTS = 1024
MAX_READERS = 16
DENIALS_KEPT = 1000
#: An empty line goes out after so much silence: a reader knows that the gateway is there.
HEARTBEAT_S = 5.0
#: So much is turned into text, or read from the flow table, before other work has its turn.
_BATCH_EVENTS = 64
_BATCH_FLOWS = 256

_ICMP, _TCP, _UDP, _ICMPV6 = 1, 6, 17, 58
_NS = 1_000_000_000
# How long the program believes in a flow (programs/policy/flow.h); a test compares them.
_TCP_ANSWERED_S, _TCP_UNANSWERED_S, _TCP_CLOSED_S = 24 * 3600, 120, 30
_UDP_S, _ICMP_S, _OTHER_S = 180, 30, 600


# --- news -----------------------------------------------------------------------------------------


class FlowFeed:
    """Hands out the kernel's events. All of it runs in the daemon's loop."""

    def __init__(self) -> None:
        self._readers: set[_Reader] = set()
        self._denials: deque[FlowEvent] = deque(maxlen=DENIALS_KEPT)
        self._is_closed = False

    @property
    def readers(self) -> int:
        """How many follow now."""
        return len(self._readers)

    def publish(self, named: FlowEvent) -> None:
        """Tell everybody who wants to know. Never waits."""
        if named.event.kind is EventKind.DENIED:
            self._denials.append(named)
        for reader in self._readers:
            reader.offer(named)

    def denials(self, client: str | None, limit: int) -> list[schemas.FlowNews]:
        """Return the last denials, the newest first."""
        wanted = (one for one in reversed(self._denials) if client in (None, one.client))
        return [news_of(one) for one in islice(wanted, limit)]

    def follow(self, query: schemas.FlowEventQuery) -> AsyncIterator[list[schemas.FlowNews]]:
        """Return what happens from now on, in small lists; an empty one: nothing has happened.

        Raises :class:`TooManyReaders`, :class:`NotReady`.
        """
        if self._is_closed:
            raise NotReady("the gateway is stopping", "try again when it is back")
        if len(self._readers) >= MAX_READERS:
            raise TooManyReaders(
                f"{MAX_READERS} readers follow already", "end one of the zgatectl flows --follow"
            )
        return self._stream(_Reader(query))

    async def _stream(self, reader: _Reader) -> AsyncIterator[list[schemas.FlowNews]]:
        self._readers.add(reader)
        try:
            yield []  # the answer begins, and the reader knows that it follows
            while not self._is_closed:
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        await reader.has_news.wait()
                except TimeoutError:
                    yield []
                    continue
                yield reader.take()
        finally:
            self._readers.discard(reader)

    def close(self) -> None:
        """End every stream."""
        self._is_closed = True
        for reader in self._readers:
            reader.has_news.set()


class _Reader:
    """One subscriber and what waits for it."""

    def __init__(self, query: schemas.FlowEventQuery) -> None:
        self.has_news = asyncio.Event()
        self._query = query
        self._queue: deque[FlowEvent] = deque()
        self._lost = 0

    def offer(self, named: FlowEvent) -> None:
        if self._query.denied and named.event.kind is not EventKind.DENIED:
            return
        if self._query.client not in (None, named.client):
            return
        # Once something is lost, all is, until the reader has been told: so that it knows where.
        if self._lost or len(self._queue) >= QUEUE_EVENTS:
            self._lost += 1
        else:
            self._queue.append(named)
        self.has_news.set()

    def take(self) -> list[schemas.FlowNews]:
        count = min(len(self._queue), _BATCH_EVENTS)
        news = [news_of(self._queue.popleft()) for _ in range(count)]
        if not self._queue:
            if self._lost:
                kind = schemas.FlowNewsKind.LOST
                news.append(schemas.FlowNews(kind=kind, ts=datetime.now(UTC), lost=self._lost))
                self._lost = 0
            self.has_news.clear()
        return news


def news_of(named: FlowEvent) -> schemas.FlowNews:
    """Return an event in the API's words."""
    event = named.event
    is_denial = event.kind is EventKind.DENIED
    flow = flow_of(event)
    return schemas.FlowNews(
        kind=schemas.FlowNewsKind.DENIED if is_denial else schemas.FlowNewsKind.ALLOWED,
        ts=_wall_clock(event.time_ns),
        client=named.client,
        direction=flow.direction,
        source=str(flow.source),
        destination=str(flow.destination),
        protocol=flow.protocol,
        source_port=flow.source_port,
        destination_port=flow.destination_port,
        icmp_type=flow.icmp_type,
        icmp_code=flow.icmp_code,
        reason=DropReason(event.reason).name if is_denial else None,
        rule_id=named.rule_id,
        rule_line=named.rule.line if named.rule is not None else None,
        revision=named.revision,
        suppressed=event.suppressed,
    )


def flow_of(event: KernelEvent) -> Flow:
    """Return the packet that an event is about."""
    is_icmp = event.protocol in (_ICMP, _ICMPV6)
    return Flow(
        direction="up" if event.direction is Direction.UP else "down",
        source=ip_address(event.source),
        destination=ip_address(event.destination),
        protocol=event.protocol,
        source_port=None if is_icmp else event.source_port,
        destination_port=None if is_icmp else event.destination_port,
        icmp_type=event.destination_port >> 8 if is_icmp else None,
        icmp_code=event.destination_port & 0xFF if is_icmp else None,
    )


def _wall_clock(monotonic_ns: int) -> datetime:
    age_ns = time.monotonic_ns() - monotonic_ns
    return datetime.fromtimestamp((time.time_ns() - age_ns) / _NS, UTC)


# --- open flows -----------------------------------------------------------------------------------


class FlowTable(Protocol):
    """What the loaded programs offer (`zgate_bpf.kernel_policy.KernelPolicy`)."""

    def flows(self) -> Iterable[KernelFlow]:
        """Return the entries of the flow table."""


class FlowRules(Protocol):
    """Names of rules (`zgate_gateway.kernel.Kernel`)."""

    def rule(self, client_name: str, generation: int, global_rule: int) -> Rule | None:
        """Return the rule behind a number of the kernel's."""

    def revision_of(self, generation: int) -> int:
        """Return the policy revision behind a number of the kernel's."""


async def open_flows(
    table: FlowTable,
    rules: FlowRules,
    holders: Mapping[IpAddress, str],
    query: schemas.FlowQuery,
) -> schemas.FlowList:
    """Read the flow table, the most recently used flows first. Raises :class:`OperationFailed`.

    The table may be large: between small parts of it the loop does its other work, so the answer is
    no snapshot. ``holders`` says whose an address is.
    """
    now_ns = time.monotonic_ns()
    newest: list[KernelFlow] = []
    total = 0
    entries = iter(table.flows())
    try:
        while part := list(islice(entries, _BATCH_FLOWS)):
            wanted = [
                flow
                for flow in part
                if query.client in (None, holders.get(flow.client)) and is_open(flow, now_ns)
            ]
            total += len(wanted)
            newest = heapq.nlargest(query.limit, chain(newest, wanted), key=_seen)
            await asyncio.sleep(0)
    except OSError as error:
        raise OperationFailed(
            f"the flow table could not be read: {error.strerror}", "see the gateway's log"
        ) from error
    views = [_view(flow, holders.get(flow.client), rules, now_ns) for flow in newest]
    return schemas.FlowList(flows=views, total=total)


def _seen(flow: KernelFlow) -> int:
    return flow.seen_ns


def is_open(flow: KernelFlow, now_ns: int) -> bool:
    """Whether the program still believes in a flow; the table keeps those that have ended, too."""
    return now_ns - flow.seen_ns <= _idle_limit_s(flow) * _NS


def _idle_limit_s(flow: KernelFlow) -> int:
    if flow.protocol == _TCP:
        if _is_closed(flow.state):
            return _TCP_CLOSED_S
        return _TCP_ANSWERED_S if flow.state & FlowState.ANSWERED else _TCP_UNANSWERED_S
    if flow.protocol == _UDP:
        return _UDP_S
    return _ICMP_S if flow.protocol in (_ICMP, _ICMPV6) else _OTHER_S


def _is_closed(state: FlowState) -> bool:
    both = FlowState.CLIENT_FIN | FlowState.REMOTE_FIN
    return bool(state & FlowState.RESET) or state & both == both


def _state(state: FlowState) -> schemas.FlowStage:
    if _is_closed(state):
        return schemas.FlowStage.CLOSED
    answered = state & FlowState.ANSWERED
    return schemas.FlowStage.ANSWERED if answered else schemas.FlowStage.UNANSWERED


def _view(flow: KernelFlow, client: str | None, rules: FlowRules, now_ns: int) -> schemas.FlowView:
    has_ports = flow.protocol not in (_ICMP, _ICMPV6)
    rule = rules.rule(client, flow.revision, flow.rule) if client is not None else None
    return schemas.FlowView(
        client=client,
        protocol=flow.protocol,
        client_address=str(flow.client),
        client_port=flow.client_port if has_ports else None,
        remote_address=str(flow.remote),
        remote_port=flow.remote_port if has_ports else None,
        stage=_state(flow.state),
        idle_s=max(0.0, (now_ns - flow.seen_ns) / _NS),
        rule_id=rule.id if rule is not None else None,
        rule_line=rule.line if rule is not None else None,
        revision=rules.revision_of(flow.revision),
    )
