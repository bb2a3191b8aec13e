"""Open flows and news of them: names, bounds, and readers that do not read."""

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from zgate_bpf.kernel_policy import Direction, EventKind, Flow, FlowState, KernelEvent
from zgate_bpf.tables import NO_RULE
from zgate_gateway import flows as flows_module
from zgate_gateway.api import schemas
from zgate_gateway.api.facade import NotReady, OperationFailed, TooManyReaders
from zgate_gateway.api.schemas import FlowEventQuery, FlowNews, FlowNewsKind, FlowQuery, FlowStage
from zgate_gateway.api.server import ApiServer
from zgate_gateway.flows import (
    DENIALS_KEPT,
    MAX_READERS,
    QUEUE_EVENTS,
    FlowFeed,
    is_open,
    news_of,
    open_flows,
)
from zgate_gateway.kernel import FlowEvent
from zgate_gateway.policy.policy_set import PolicySet
from zgate_protocol.drop_reason import DropReason

ROOT = Path(__file__).parents[3]
EVERYTHING = FlowEventQuery()
RULE = PolicySet.parse(
    'version: "1.0"\nclients:\n  alice:\n    rules:\n'
    "      - {id: allow-web, type: default, action: allow}\n"
).rules_for("alice")[0]


def event(number: int = 0, *, denied: bool = True, **changes: Any) -> FlowEvent:
    values: dict[str, Any] = {
        "kind": EventKind.DENIED if denied else EventKind.FLOW_ALLOWED,
        "time_ns": time.monotonic_ns(),
        "client_index": 3,
        "rule": NO_RULE,
        "revision": 7,
        "reason": DropReason.POLICY_DEFAULT if denied else DropReason.NONE,
        "direction": Direction.UP,
        "source": ip_address("10.100.0.2"),
        "destination": ip_address("10.20.0.5"),
        "protocol": 6,
        "source_port": number,
        "destination_port": 443,
        "length_bytes": 60,
        "suppressed": 0,
    }
    client = changes.pop("client", "alice")
    rule = None if denied else RULE
    return FlowEvent(KernelEvent(**{**values, **changes}), client, rule, revision=4)


async def take(
    stream: AsyncIterator[list[FlowNews]], count: int, timeout_s: float = 5
) -> list[FlowNews]:
    """So much news; what comes with it is given, too."""
    found: list[FlowNews] = []
    async with asyncio.timeout(timeout_s):
        while len(found) < count:
            found += await anext(stream)
    return found


def ports(news: list[FlowNews]) -> list[int | None]:
    return [one.source_port for one in news]


# News.


def test_an_event_in_the_words_of_the_api() -> None:
    denied = news_of(event(40000, suppressed=12))
    assert (denied.kind, denied.client, denied.reason) == ("denied", "alice", "POLICY_DEFAULT")
    assert (denied.source, denied.source_port) == ("10.100.0.2", 40000)
    assert (denied.destination, denied.destination_port) == ("10.20.0.5", 443)
    assert (denied.direction, denied.revision, denied.suppressed) == ("up", 4, 12)
    assert abs((datetime.now(UTC) - denied.ts).total_seconds()) < 5
    allowed = news_of(event(denied=False, protocol=58, destination_port=128 << 8))
    assert (allowed.kind, allowed.rule_id, allowed.reason) == ("allowed", "allow-web", None)
    assert (allowed.rule_line, denied.rule_line) == (5, None)
    assert (allowed.icmp_type, allowed.icmp_code, allowed.destination_port) == (128, 0, None)
    old = news_of(event(time_ns=time.monotonic_ns() - 3600 * 10**9))
    assert 3590 < (datetime.now(UTC) - old.ts).total_seconds() < 3610


async def test_a_reader_hears_what_happens_from_then_on() -> None:
    feed = FlowFeed()
    feed.publish(event(1))
    stream = feed.follow(EVERYTHING)
    assert await anext(stream) == []
    feed.publish(event(2))
    feed.publish(event(3, denied=False))
    assert ports(await take(stream, 2)) == [2, 3]
    feed.publish(event(4))
    assert ports(await take(stream, 1)) == [4]


@pytest.mark.parametrize(
    ("query", "heard"),
    [
        (EVERYTHING, [1, 2, 3, 4]),
        (FlowEventQuery(denied=True), [1, 3, 4]),
        (FlowEventQuery(client="alice"), [1, 2]),
        (FlowEventQuery(client="alice", denied=True), [1]),
    ],
)
async def test_a_reader_hears_what_it_asked_for(query: FlowEventQuery, heard: list[int]) -> None:
    feed = FlowFeed()
    stream = feed.follow(query)
    await anext(stream)
    feed.publish(event(1))
    feed.publish(event(2, denied=False))
    feed.publish(event(3, client="bob"))
    feed.publish(event(4, client=None))
    assert ports(await take(stream, len(heard))) == heard


async def test_a_slow_reader_is_told_how_much_it_lost_and_where() -> None:
    feed = FlowFeed()
    slow, quick = feed.follow(EVERYTHING), feed.follow(EVERYTHING)
    await anext(slow)
    await anext(quick)
    count = QUEUE_EVENTS + 500
    heard = []
    for number in range(count):
        feed.publish(event(number))
        if number % 50 == 49:
            heard += await take(quick, 50)
    heard += await take(quick, count % 50)
    assert ports(heard) == list(range(count))
    found = await take(slow, QUEUE_EVENTS + 1)
    assert ports(found[:-1]) == list(range(QUEUE_EVENTS))
    assert (found[-1].kind, found[-1].lost) == (FlowNewsKind.LOST, 500)
    feed.publish(event(7))
    assert ports(await take(slow, 1)) == [7]


async def test_while_the_loss_is_not_told_nothing_comes_after_it() -> None:
    feed = FlowFeed()
    stream = feed.follow(EVERYTHING)
    await anext(stream)
    for number in range(QUEUE_EVENTS + 1):
        feed.publish(event(number))
    first = await anext(stream)
    feed.publish(event(9999))  # there is room again
    rest = await take(stream, QUEUE_EVENTS + 1 - len(first))
    assert 9999 not in ports(rest)
    assert rest[-1].lost == 2


async def test_silence_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows_module, "HEARTBEAT_S", 0.01)
    stream = FlowFeed().follow(EVERYTHING)
    assert [await anext(stream) for _ in range(3)] == [[], [], []]


async def test_readers_are_counted_and_bounded() -> None:
    feed = FlowFeed()
    streams: list[Any] = [feed.follow(EVERYTHING) for _ in range(MAX_READERS)]
    for stream in streams:
        await anext(stream)
    assert feed.readers == MAX_READERS
    with pytest.raises(TooManyReaders, match="16 readers follow already"):
        feed.follow(EVERYTHING)
    await streams.pop().aclose()
    assert feed.readers == MAX_READERS - 1
    feed.follow(EVERYTHING)


async def test_streams_end_with_the_gateway() -> None:
    feed = FlowFeed()
    stream = feed.follow(EVERYTHING)
    await anext(stream)
    waiting = asyncio.ensure_future(anext(stream, None))
    await asyncio.sleep(0)
    feed.close()
    await asyncio.wait_for(waiting, 5)
    assert await anext(stream, None) is None
    assert feed.readers == 0
    with pytest.raises(NotReady):
        feed.follow(EVERYTHING)


def test_the_last_denials_are_kept() -> None:
    feed = FlowFeed()
    for number in range(DENIALS_KEPT + 10):
        feed.publish(event(number, client="alice" if number % 2 else "bob"))
    feed.publish(event(1, denied=False))
    newest = feed.denials(None, 3)
    assert ports(newest) == [DENIALS_KEPT + 9, DENIALS_KEPT + 8, DENIALS_KEPT + 7]
    assert len(feed.denials(None, 10**6)) == DENIALS_KEPT
    assert len(feed.denials("bob", 10**6)) == DENIALS_KEPT // 2


# Over the socket.


class Facade:
    """Offers the feed and nothing else."""

    def __init__(self, feed: FlowFeed) -> None:
        self._feed = feed

    def follow_flows(self, query: FlowEventQuery) -> AsyncIterator[list[FlowNews]]:
        return self._feed.follow(query)

    def metrics(self) -> Any:
        raise NotImplementedError


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[FlowFeed, Path]]:
    feed, path = FlowFeed(), tmp_path / "api.sock"
    server = ApiServer(Facade(feed), socket_path=path, socket_group=None)  # type: ignore[arg-type]
    await server.start()
    yield feed, path
    feed.close()
    await server.stop()


def follower(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(str(path))
    connection.sendall(b"GET /v1/flows/events HTTP/1.1\r\nhost: x\r\n\r\n")
    return connection


async def until(condition: Any, timeout_s: float = 5) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


async def test_a_reader_that_hangs_costs_nobody_anything(served: tuple[FlowFeed, Path]) -> None:
    feed, path = served
    with follower(path) as hanging:
        await until(lambda: feed.readers == 1)
        slowest_s = 0.0
        for _ in range(60):  # far more than its queue and all buffers on the way hold
            for number in range(500):
                feed.publish(event(number))
            began_s = time.thread_time()  # without what others keep us from the processor
            await asyncio.sleep(0)
            slowest_s = max(slowest_s, time.thread_time() - began_s)
        assert slowest_s < 0.5
        (reader,) = feed._readers
        assert len(reader._queue) == QUEUE_EVENTS and reader._lost > 0
        await asyncio.wait_for(asyncio.to_thread(read_until, hanging, b'"kind":"lost"'), 10)


def read_until(connection: socket.socket, words: bytes) -> None:
    seen = b""
    while words not in seen:
        data = connection.recv(65536)
        assert data
        seen = seen[-100:] + data


async def test_a_reader_that_leaves_is_forgotten(served: tuple[FlowFeed, Path]) -> None:
    feed, path = served
    with follower(path):
        await until(lambda: feed.readers == 1)
    await until(lambda: feed.readers == 0)
    with follower(path) as hanging:
        await until(lambda: feed.readers == 1)
        for number in range(30_000):
            feed.publish(event(number))
        await until(lambda: len(next(iter(feed._readers))._queue) == QUEUE_EVENTS)
        hanging.shutdown(socket.SHUT_RDWR)
    await until(lambda: feed.readers == 0)


# Open flows.


FLOW = Flow(
    client_index=3,
    client=ip_address("10.100.0.2"),
    remote=ip_address("10.20.0.5"),
    protocol=6,
    client_port=40000,
    remote_port=443,
    rule=11,
    revision=7,
    seen_ns=0,
    state=FlowState.ANSWERED,
)
HOLDERS = {ip_address("10.100.0.2"): "alice", ip_address("10.100.0.3"): "bob"}


class Rules:
    """Knows one rule."""

    def revision_of(self, generation: int) -> int:
        return generation - 3

    def rule(self, client_name: str, generation: int, global_rule: int) -> Any:
        known = (client_name, generation, global_rule) == ("alice", 7, 11)
        return type("Rule", (), {"id": "allow-web", "line": 9}) if known else None


class Table:
    """A flow table that may fail."""

    def __init__(self, flows: list[Flow], error: OSError | None = None) -> None:
        self._found = flows
        self._error = error

    def flows(self) -> Iterator[Flow]:
        yield from self._found
        if self._error is not None:
            raise self._error


def flow(age_s: float = 0, **changes: Any) -> Flow:
    return replace(FLOW, seen_ns=time.monotonic_ns() - int(age_s * 10**9), **changes)


async def ask(flows: list[Flow], **query: Any) -> schemas.FlowList:
    return await open_flows(Table(flows), Rules(), HOLDERS, FlowQuery(**query))


async def test_a_flow_has_names() -> None:
    (view,) = (await ask([flow(2.5)])).flows
    assert (view.client, view.rule_id, view.rule_line, view.revision) == (
        "alice",
        "allow-web",
        9,
        4,
    )
    assert (view.client_address, view.client_port) == ("10.100.0.2", 40000)
    assert (view.remote_address, view.remote_port, view.protocol) == ("10.20.0.5", 443, 6)
    assert view.stage is FlowStage.ANSWERED and 2.4 < view.idle_s < 10
    (ping,) = (await ask([flow(protocol=1)])).flows
    assert (ping.client_port, ping.remote_port) == (None, None)
    (strange,) = (await ask([flow(client=ip_address("10.100.0.9"))])).flows
    assert (strange.client, strange.rule_id) == (None, None)


async def test_the_newest_come_first_and_the_rest_is_counted() -> None:
    flows = [flow(age, client_port=age) for age in (50, 10, 40, 20, 30)]
    answer = await ask(flows, limit=3)
    assert [one.client_port for one in answer.flows] == [10, 20, 30]
    assert answer.total == 5


async def test_flows_of_one_client() -> None:
    bobs = flow(client=ip_address("10.100.0.3"))
    answer = await ask([flow(), bobs, flow()], client="bob")
    assert [one.client for one in answer.flows] == ["bob"] and answer.total == 1


async def test_a_large_table_leaves_time_for_others() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    answer = await ask([flow()] * 20_000, limit=10)
    task.cancel()
    assert answer.total == 20_000 and len(answer.flows) == 10
    assert turns > 50


async def test_a_table_that_cannot_be_read() -> None:
    table = Table([flow()], OSError(9, "Bad file descriptor"))
    with pytest.raises(OperationFailed, match="Bad file descriptor"):
        await open_flows(table, Rules(), HOLDERS, FlowQuery())


BOTH_FINS = FlowState.CLIENT_FIN | FlowState.REMOTE_FIN


@pytest.mark.parametrize(
    ("protocol", "state", "limit_s", "stage"),
    [
        (6, FlowState.ANSWERED, 24 * 3600, FlowStage.ANSWERED),
        (6, FlowState(0), 120, FlowStage.UNANSWERED),
        (6, FlowState.ANSWERED | FlowState.CLIENT_FIN, 24 * 3600, FlowStage.ANSWERED),
        (6, FlowState.ANSWERED | BOTH_FINS, 30, FlowStage.CLOSED),
        (6, FlowState.ANSWERED | FlowState.RESET, 30, FlowStage.CLOSED),
        (17, FlowState.ANSWERED, 180, FlowStage.ANSWERED),
        (1, FlowState(0), 30, FlowStage.UNANSWERED),
        (58, FlowState(0), 30, FlowStage.UNANSWERED),
        (47, FlowState(0), 600, FlowStage.UNANSWERED),
    ],
)
async def test_a_flow_that_was_idle_for_too_long_is_none(
    protocol: int, state: FlowState, limit_s: int, stage: FlowStage
) -> None:
    one = replace(FLOW, protocol=protocol, state=state)
    assert is_open(one, limit_s * 10**9)
    assert not is_open(one, limit_s * 10**9 + 1)
    (view,) = (await ask([flow(protocol=protocol, state=state)])).flows
    assert view.stage is stage
    assert (await ask([flow(limit_s + 1, protocol=protocol, state=state)])).total == 0


def test_the_program_means_the_same_by_idle() -> None:
    text = (ROOT / "bpf/zgate_bpf/programs/policy/flow.h").read_text()
    found = dict(re.findall(r"^#define ZG_(\w+_S)\s+\(?([\d* ]+)\)?$", text, flags=re.MULTILINE))
    for name in ("TCP_ANSWERED_S", "TCP_UNANSWERED_S", "TCP_CLOSED_S", "UDP_S", "ICMP_S"):
        factors = [int(factor) for factor in found[name].split("*")]
        seconds = factors[0] * (factors[1] if len(factors) > 1 else 1)
        assert getattr(flows_module, f"_{name}") == seconds, name
    assert int(found["OTHER_S"]) == flows_module._OTHER_S
