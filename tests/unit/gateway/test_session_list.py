"""Which sessions an administrator sees, in which order, and what is read for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from datetime import UTC, datetime
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest
from zgate_bpf.kernel_policy import ClientCounters
from zgate_gateway.admission import PeerPath
from zgate_gateway.api import schemas
from zgate_gateway.api.facade import UnknownClient
from zgate_gateway.api.schemas import SessionSort
from zgate_gateway.session_list import Rates, Sample, SessionLists, next_sample
from zgate_gateway.worker.messages import SessionReport

NOW = datetime.now(UTC)
NAMES = ["dora", "anna", "carl", "bert"]


def counters(up: int, down: int = 0, dropped: int = 0) -> ClientCounters:
    return ClientCounters(1, up, 1, down, dropped, 0, 0)


class Gateway:
    """What `SessionLists` needs of one: registry, kernel, crew. Every fourth session idles."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.asked: list[Mapping[int, Sequence[str]] | None] = []
        self.counted: dict[str, ClientCounters] = {}
        self.rtt_s: float | None = 0.025
        self.sessions: Any = SimpleNamespace(
            by_client={name: self._session(n, name) for n, name in enumerate(NAMES)},
            loop=SimpleNamespace(time=lambda: self.now_s),
        )
        self.kernel = SimpleNamespace(
            counters=self.counted.get,
            numbers=lambda: {name: NAMES.index(name) for name in self.counted},
            programs=SimpleNamespace(
                counters_of=lambda numbers: {n: astuple(self.counted[NAMES[n]]) for n in numbers}
            ),
        )
        self.crew = self

    def _session(self, number: int, name: str) -> Any:
        return SimpleNamespace(
            client=name,
            session_id=f"s-{name}",
            identity=SimpleNamespace(
                groups=["Radiology"] if number % 2 else [], serial=number, not_after=NOW
            ),
            worker=SimpleNamespace(index=number % 2),
            path=PeerPath(f"192.0.2.{number}", 1000, b""),
            peer=f"192.0.2.{number}:1000",
            addresses=(ip_address(f"10.100.0.{number}"),),
            target="*",
            ip_protocol=None,
            established_at=NOW,
            established_s=900.0 + number,
        )

    async def refresh(self, only: Mapping[int, Sequence[str]] | None = None) -> None:
        self.asked.append(only)

    def session(self, session_id: str, worker: int) -> SessionReport | None:
        number = NAMES.index(session_id[2:])
        assert worker == number % 2
        return SessionReport(session_id, 0.01 * number, 1400, 990.0 + number, {"TOO_BIG": 1})

    async def ping(self, session_id: str, worker: int, timeout_s: float) -> float | None:
        return self.rtt_s


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


async def names(gateway: Gateway, **query: Any) -> str:
    found = await SessionLists(gateway).list(schemas.SessionQuery(**query))  # type: ignore[arg-type]
    return " ".join(one.client for one in found.sessions)


@pytest.mark.parametrize(
    ("sort", "first"),
    [
        (SessionSort.CLIENT, "anna bert carl dora"),
        (SessionSort.PEER, "dora anna carl bert"),
        (SessionSort.AGE, "dora anna carl bert"),  # the eldest first
        (SessionSort.IDLE, "dora anna carl bert"),
        (SessionSort.RTT, "bert carl anna dora"),
        (SessionSort.BYTES, "carl anna bert dora"),
        (SessionSort.DROPS, "dora anna bert carl"),
        (SessionSort.RATE, "carl anna bert dora"),
    ],
)
async def test_orders(gateway: Gateway, sort: SessionSort, first: str) -> None:
    gateway.counted |= {
        "dora": counters(0, 0, 9),
        "anna": counters(5, 5),
        "carl": counters(20),
        "bert": counters(5),
    }
    assert await names(gateway, sort=sort) == first
    if sort is not SessionSort.DROPS:  # equal ones go by name, either way round
        assert await names(gateway, sort=sort, reverse=True) == " ".join(first.split()[::-1])
    assert await names(gateway, sort=sort, offset=1, limit=2) == " ".join(first.split()[1:3])


@pytest.mark.parametrize(
    ("part", "found"),
    [("AR", "carl"), ("radio", "anna bert"), ("10.100.0.2", "carl"), ("192.0.2.3:", "bert")],
)
async def test_filter(gateway: Gateway, part: str, found: str) -> None:
    assert await names(gateway, filter=part) == found


async def test_totals(gateway: Gateway) -> None:
    query = schemas.SessionQuery(filter="radio", limit=1)
    found = await SessionLists(gateway).list(query)  # type: ignore[arg-type]
    assert (found.total, found.matched, len(found.sessions)) == (4, 2, 1)


async def test_workers_are_asked_for_what_is_shown_only(gateway: Gateway) -> None:
    assert await names(gateway, limit=3) == "anna bert carl"
    assert gateway.asked == [{1: ["s-anna", "s-bert"], 0: ["s-carl"]}]
    gateway.asked.clear()
    await names(gateway, sort="rtt", limit=1)
    assert gateway.asked == [None]


async def test_rates_are_of_the_time_between_two_questions(gateway: Gateway) -> None:
    lists = SessionLists(gateway)  # type: ignore[arg-type]
    query = schemas.SessionQuery(sort=SessionSort.RATE, limit=1)
    gateway.counted |= {"anna": counters(1000), "carl": counters(5000)}
    (first,) = (await lists.list(query)).sessions
    assert (first.client, first.up_bit_per_s, first.down_bit_per_s) == ("carl", None, None)
    gateway.counted["anna"] = counters(2000, 500)
    gateway.now_s += 0.1  # too soon to say anything new
    assert (await lists.list(query)).sessions[0].client == "carl"
    gateway.now_s += 1.9
    (busiest,) = (await lists.list(query)).sessions
    assert (busiest.client, busiest.up_bit_per_s, busiest.down_bit_per_s) == ("anna", 4000, 2000)


def test_a_sample_of_long_ago_gives_no_rate() -> None:
    before = Sample(10.0, {"s": counters(0)}, {})
    assert next_sample(before, {"s": counters(10), "new": counters(9)}, 12.0).rates == {
        "s": Rates(40.0, 0.0)
    }
    assert next_sample(before, {"s": counters(10)}, 60.0).rates == {}
    assert next_sample(before, {"s": counters(10)}, 10.0).rates == {}


async def test_ping(gateway: Gateway) -> None:
    lists = SessionLists(gateway)  # type: ignore[arg-type]
    answer = await lists.ping("anna")
    assert (answer.client, answer.peer, answer.rtt_ms) == ("anna", "192.0.2.1:1000", 25.0)
    gateway.rtt_s = None
    assert (await lists.ping("anna")).rtt_ms is None
    with pytest.raises(UnknownClient):
        await lists.ping("nobody")
