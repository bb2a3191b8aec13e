"""Sessions as administrators ask for them: some of thousands, sorted, with their numbers.

What a question does not need is not read: a worker that carries packets is asked for the sessions
of the answer alone, unless the order depends on what it alone knows (idle time, RTT), and the
kernel's counters are read for all only if the order depends on them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zgate_bpf.kernel_policy import ClientCounters

from zgate_gateway.api import schemas
from zgate_gateway.api.facade import UnknownClient
from zgate_gateway.api.schemas import SessionSort
from zgate_gateway.registry import SessionRecord

if TYPE_CHECKING:
    from zgate_gateway.daemon import Gateway

#: Rates over less than this say more of packet sizes than of traffic.
_MIN_INTERVAL_S = 0.8
#: Nobody wants a rate over so long a time: the first answer after it has none.
_MAX_INTERVAL_S = 15.0
PING_TIMEOUT_S = 3.0
_BY_COUNTERS = frozenset({SessionSort.RATE, SessionSort.BYTES, SessionSort.DROPS})
_BY_REPORTS = frozenset({SessionSort.IDLE, SessionSort.RTT})


def counters_in(counted: ClientCounters | None) -> schemas.Counters | None:
    """A client's counters in the API's words."""
    if counted is None:
        return None
    return schemas.Counters(
        up_packets=counted.up_packets,
        up_bytes=counted.up_bytes,
        down_packets=counted.down_packets,
        down_bytes=counted.down_bytes,
        dropped_packets=counted.dropped_packets,
    )


@dataclass(frozen=True, slots=True)
class Rates:
    """Bits per second, from and to a client."""

    up: float
    down: float


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters of all sessions at one time, and the rates since the sample before."""

    at_s: float
    counters: dict[str, ClientCounters]
    rates: dict[str, Rates]


def next_sample(before: Sample | None, counters: dict[str, ClientCounters], at_s: float) -> Sample:
    """What has come since the sample before, per second. By session ID."""
    if before is None or not 0 < at_s - before.at_s <= _MAX_INTERVAL_S:
        return Sample(at_s, counters, {})
    per_s = 8 / (at_s - before.at_s)
    rates = {}
    for session_id, now in counters.items():
        then = before.counters.get(session_id)
        if then is not None:
            rates[session_id] = Rates(
                max(0, now.up_bytes - then.up_bytes) * per_s,
                max(0, now.down_bytes - then.down_bytes) * per_s,
            )
    return Sample(at_s, counters, rates)


class Known:
    """What people know sessions by, as one text for each: thousands are looked through at once."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def fits(self, session: SessionRecord, part: str) -> bool:
        """Whether a session has the text, in lower case, in its name, groups or addresses."""
        text = self._texts.get(session.session_id)
        if text is None:
            words = (session.client, *session.identity.groups, *map(str, session.addresses))
            text = self._texts[session.session_id] = "\n".join(words).casefold()
        return part in text or part in session.peer.casefold()  # which moves

    def forget_all_but(self, sessions: int) -> None:
        """Those of sessions that are over are not kept for ever."""
        if len(self._texts) > 2 * sessions + 100:
            self._texts.clear()


def ordered(
    sessions: Iterable[SessionRecord], key: Callable[[SessionRecord], Any], *, is_descending: bool
) -> list[SessionRecord]:
    """By the key, then by name, whichever way the key goes."""
    by_name = sorted(sessions, key=lambda one: (one.client, one.established_s))
    return sorted(by_name, key=key, reverse=is_descending)


class SessionLists:
    """Answers questions about the sessions of a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._sample: Sample | None = None
        self._sampling = asyncio.Lock()
        self._known = Known()

    async def list(self, query: schemas.SessionQuery) -> schemas.SessionList:
        """See `GatewayFacade.sessions`."""
        gateway = self._gateway
        part = query.filter.casefold()
        found = list(gateway.sessions.by_client.values())
        if part:
            self._known.forget_all_but(len(found))
            found = [one for one in found if self._known.fits(one, part)]
        wants_counters = query.rates or query.sort in _BY_COUNTERS
        sample = await self._take_sample() if wants_counters else None
        if query.sort in _BY_REPORTS:
            await gateway.crew.refresh()
        key = self._key(query.sort, sample)
        is_by_name = query.sort in {SessionSort.CLIENT, SessionSort.PEER}
        found = ordered(found, key, is_descending=query.reverse == is_by_name)
        end = None if query.limit is None else query.offset + query.limit
        shown = found[query.offset : end]
        if query.sort not in _BY_REPORTS:
            await self._ask_about(shown)
        rates = list(sample.rates.values()) if sample is not None else []
        return schemas.SessionList(
            sessions=[self._describe(one, sample) for one in shown],
            total=len(gateway.sessions.by_client),
            matched=len(found),
            up_bit_per_s=sum(one.up for one in rates) if rates else None,
            down_bit_per_s=sum(one.down for one in rates) if rates else None,
        )

    async def ping(self, client: str) -> schemas.Ping:
        """See `GatewayFacade.ping`."""
        gateway = self._gateway
        session = gateway.sessions.by_client.get(client)
        if session is None:
            raise UnknownClient(
                f"{client} has no session", "zgatectl sessions lists those that are up"
            )
        rtt_s = await gateway.crew.ping(session.session_id, session.worker.index, PING_TIMEOUT_S)
        return schemas.Ping(
            client=client,
            session_id=session.session_id,
            peer=session.peer,
            addresses=[str(one) for one in session.addresses],
            rtt_ms=None if rtt_s is None else rtt_s * 1000,
            timeout_s=PING_TIMEOUT_S,
        )

    async def _ask_about(self, shown: Sequence[SessionRecord]) -> None:
        by_worker: dict[int, list[str]] = {}
        for one in shown:
            by_worker.setdefault(one.worker.index, []).append(one.session_id)
        await self._gateway.crew.refresh(by_worker)

    async def _take_sample(self) -> Sample:
        """All counters, not older than a moment; several askers share them."""
        gateway = self._gateway
        clock = gateway.sessions.loop.time
        async with self._sampling:
            before = self._sample
            if before is not None and clock() - before.at_s < _MIN_INTERVAL_S:
                return before
            at_s = clock()
            kernel = gateway.kernel
            numbers = kernel.numbers()
            wanted = {
                one.session_id: numbers[one.client]
                for one in gateway.sessions.by_client.values()
                if one.client in numbers
            }
            # Thousands: not in the event loop.
            found = await asyncio.to_thread(kernel.programs.counters_of, list(wanted.values()))
            counters = {
                session_id: ClientCounters(*found[number])
                for session_id, number in wanted.items()
                if number in found
            }
            self._sample = next_sample(before, counters, at_s)
            return self._sample

    def _key(self, sort: SessionSort, sample: Sample | None) -> Callable[[SessionRecord], Any]:
        crew = self._gateway.crew

        def reported(session: SessionRecord) -> tuple[float, float]:
            """When its last packet came, and its RTT."""
            report = crew.session(session.session_id, session.worker.index)
            return (report.last_packet_s, report.rtt_s) if report else (0.0, 0.0)

        def counted(session: SessionRecord) -> tuple[float, int, int]:
            """Its rate, bytes and drops; nothing for one that came after the sample."""
            counters = sample.counters.get(session.session_id) if sample else None
            if sample is None or counters is None:
                return 0.0, 0, 0
            rates = sample.rates.get(session.session_id, Rates(0, 0))
            total = counters.up_bytes + counters.down_bytes
            return rates.up + rates.down, total, counters.dropped_packets

        keys: dict[SessionSort, Callable[[SessionRecord], Any]] = {
            SessionSort.CLIENT: lambda one: one.client,
            SessionSort.PEER: lambda one: (one.path.host, one.path.port),
            SessionSort.AGE: lambda one: -one.established_s,
            SessionSort.IDLE: lambda one: -reported(one)[0],
            SessionSort.RTT: lambda one: reported(one)[1],
            SessionSort.RATE: lambda one: counted(one)[:2],
            SessionSort.BYTES: lambda one: counted(one)[1],
            SessionSort.DROPS: lambda one: counted(one)[2],
        }
        return keys[sort]

    def _describe(self, session: SessionRecord, sample: Sample | None) -> schemas.Session:
        gateway = self._gateway
        now_s = gateway.sessions.loop.time()
        identity = session.identity
        report = gateway.crew.session(session.session_id, session.worker.index)
        rates = sample.rates.get(session.session_id) if sample is not None else None
        counted = gateway.kernel.counters(session.client)
        return schemas.Session(
            client=session.client,
            groups=list(identity.groups),
            session_id=session.session_id,
            peer=session.peer,
            worker=session.worker.index,
            addresses=[f"{a}/{a.max_prefixlen}" for a in session.addresses],
            established_at=session.established_at,
            age_s=now_s - session.established_s,
            idle_s=max(0.0, now_s - report.last_packet_s) if report else None,
            rtt_ms=(report.rtt_s * 1000 or None) if report else None,
            mtu_bytes=report.mtu_bytes if report else 0,
            scope_target=session.target,
            scope_protocol=session.ip_protocol,
            certificate_serial=f"{identity.serial:040x}",
            certificate_not_after=identity.not_after,
            counters=counters_in(counted) or schemas.Counters(),
            drops=report.drops if report else {},
            up_bit_per_s=rates.up if rates is not None else None,
            down_bit_per_s=rates.down if rates is not None else None,
        )
