"""The responder on real sockets, on the loopback device."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address
from random import Random
from types import SimpleNamespace
from typing import Any

import dns.message
import dns.rcode
import pytest
from zgate_gateway.dns import responder as module
from zgate_gateway.dns.responder import DnsLimits, DnsResponder

V4, V6 = ip_address("127.0.0.1"), ip_address("::1")
PACS = (ip_address("10.101.0.1"), ip_address("fd7a:7a67:6174:66::1"))
QUERY = dns.message.make_query("pacs.zgate.internal", "A").to_wire()


class FakeAccess:
    """Clients by source address; alice may reach pacs."""

    def __init__(self) -> None:
        self.sessions: dict[Any, Any] = {
            ip_address("127.0.0.1"): SimpleNamespace(client="alice", closed=False),
            ip_address("::1"): SimpleNamespace(client="alice", closed=False),
            ip_address("127.0.0.3"): SimpleNamespace(client="bob", closed=False),
        }

    def session_at(self, address: Any) -> Any:
        return self.sessions.get(address)

    def addresses(self, session: Any, service: str) -> Any:
        return PACS if (session.client, service) == ("alice", "pacs") else ()


def free_port() -> int:
    """One that is free for UDP and for TCP, on both addresses."""
    for _ in range(50):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
            udp.bind(("127.0.0.1", 0))
            try:
                tcp.bind(("127.0.0.1", udp.getsockname()[1]))
            except OSError:
                continue
            return int(udp.getsockname()[1])
    raise AssertionError("no port is free")


class World:
    def __init__(self) -> None:
        self.access = FakeAccess()
        self.port = free_port()
        self.responders: list[DnsResponder] = []

    def start(self, limits: DnsLimits | None = None) -> DnsResponder:
        made = DnsResponder(
            tun_name="lo",
            addresses=(V4, V6),
            domain="zgate.internal",
            access=self.access,  # type: ignore[arg-type]
            loop=asyncio.get_running_loop(),
            limits=limits,
            port=self.port,
        )
        made.open()
        self.responders.append(made)
        return made

    async def udp(
        self, data: bytes, source: str = "127.0.0.1", wait_s: float = 5.0
    ) -> dns.message.Message | None:
        """Send a datagram, and return what comes back."""
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in source else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.bind((source, 0))
            sock.connect(("::1" if ":" in source else "127.0.0.1", self.port))
            await loop.sock_sendall(sock, data)
            try:
                got = await asyncio.wait_for(loop.sock_recv(sock, 4096), wait_s)
            except TimeoutError:
                return None
            return dns.message.from_wire(got)

    async def connect(self, source: str = "127.0.0.1") -> Any:
        target = "::1" if ":" in source else "127.0.0.1"
        return await asyncio.open_connection(target, self.port, local_addr=(source, 0))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    for responder in made.responders:
        responder.close()
        while responder._connections:
            await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def ask_tcp(reader: Any, writer: Any, data: bytes = QUERY) -> dns.message.Message:
    writer.write(len(data).to_bytes(2) + data)
    length = int.from_bytes(await asyncio.wait_for(reader.readexactly(2), 5))
    return dns.message.from_wire(await asyncio.wait_for(reader.readexactly(length), 5))


@pytest.mark.parametrize("source", ["127.0.0.1", "::1"])
async def test_udp_and_tcp_of_both_families(world: World, source: str) -> None:
    responder = world.start()
    assert responder.problem is None
    answer = await world.udp(QUERY, source)
    assert answer is not None and str(answer.answer[0][0]) == "10.101.0.1"
    reader, writer = await world.connect(source)
    for _ in range(3):
        assert str((await ask_tcp(reader, writer)).answer[0][0]) == "10.101.0.1"
    writer.close()
    await until(lambda: not responder._connections)
    assert responder.counters["answered"] == 4


async def test_another_client_gets_another_answer(world: World) -> None:
    world.start()
    answer = await world.udp(QUERY, "127.0.0.3")
    assert answer is not None and answer.rcode() == dns.rcode.NXDOMAIN


async def test_strangers_and_answers_get_none(world: World) -> None:
    responder = world.start()
    assert await world.udp(QUERY, "127.0.0.9", wait_s=0.2) is None
    reader, writer = await world.connect("127.0.0.9")
    assert await reader.read() == b""
    writer.close()
    response = bytearray(QUERY)
    response[2] |= 0x80
    assert await world.udp(bytes(response), wait_s=0.2) is None
    assert await world.udp(b"short", wait_s=0.2) is None
    assert responder.counters == {"stranger": 2, "not_a_query": 2}


async def test_who_asks_too_much_waits_and_nobody_else(world: World) -> None:
    limits = DnsLimits(queries_per_client_per_s=0.001, burst_per_client=3)
    responder = world.start(limits)
    answers = [await world.udp(QUERY) for _ in range(3)]
    answers += [await world.udp(QUERY, wait_s=0.2) for _ in range(2)]
    assert [one is not None for one in answers] == [True] * 3 + [False] * 2
    assert responder.counters["rate_limited"] == 2
    assert await world.udp(QUERY, "127.0.0.3") is not None
    reader, writer = await world.connect()
    writer.write(len(QUERY).to_bytes(2) + QUERY)
    assert await reader.read() == b""  # TCP is no way around it
    writer.close()
    assert responder.counters["rate_limited"] == 3


async def test_there_is_a_limit_for_all_together(world: World) -> None:
    responder = world.start(DnsLimits(queries_per_s=1))
    assert await world.udp(QUERY) is not None
    assert await world.udp(QUERY, "127.0.0.3", wait_s=0.2) is None
    assert responder.counters["overloaded"] == 1


async def test_a_flood_leaves_the_loop_to_others(world: World) -> None:
    """Whatever is sent, a turn ends after so many datagrams, and the next one comes later."""
    responder = world.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.9", 0))  # a stranger: the cheapest to drop
        for _ in range(150):
            sock.sendto(b"x" * 20, ("127.0.0.1", world.port))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert responder.counters["stranger"] <= module._DATAGRAMS_PER_TURN
        await until(lambda: responder.counters["stranger"] == 150)
    assert await world.udp(QUERY) is not None


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"\x00\x05ab",
        (4097).to_bytes(2) + bytes(10),
        b"\xff\xff" + bytes(1000),
        b"\x00\x00",
        b"\x00\x0b" + bytes(11),
        len(QUERY).to_bytes(2) + QUERY[:2] + b"\x80" + QUERY[3:],
    ],
    ids=["one byte", "cut off", "too long", "too long by far", "nothing", "zeros", "an answer"],
)
async def test_what_is_no_query_ends_the_connection(world: World, data: bytes) -> None:
    responder = world.start()
    reader, writer = await world.connect()
    writer.write(data)
    writer.write_eof()
    with contextlib.suppress(ConnectionResetError):  # what was not read resets it
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    await until(lambda: not responder._connections)
    assert await world.udp(QUERY) is not None


async def test_a_malformed_query_is_answered_and_the_connection_goes_on(world: World) -> None:
    world.start()
    reader, writer = await world.connect()
    broken = await ask_tcp(reader, writer, QUERY[:20])
    assert broken.rcode() == dns.rcode.FORMERR
    assert (await ask_tcp(reader, writer)).rcode() == dns.rcode.NOERROR
    writer.close()


async def test_a_silent_connection_and_one_that_stays_too_long_are_cut(world: World) -> None:
    responder = world.start(DnsLimits(silence_s=0.05))
    reader, writer = await world.connect()
    writer.write(b"\x00")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    await until(lambda: responder.counters["cut_off"] == 1)
    responder.close()
    responder = world.start(DnsLimits(connection_s=1.0))
    reader, writer = await world.connect()
    await ask_tcp(reader, writer)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    responder.close()
    world.start(DnsLimits(queries_per_connection=2))
    reader, writer = await world.connect()
    for _ in range(2):
        await ask_tcp(reader, writer)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_so_many_connections_and_no_more(world: World) -> None:
    responder = world.start(DnsLimits(connections=3, connections_per_client=2))
    held = [await world.connect() for _ in range(2)]
    for reader, writer in held:
        await ask_tcp(reader, writer)
    third = await world.connect()
    assert await third[0].read() == b""
    other = await world.connect("127.0.0.3")
    await ask_tcp(*other)
    full = await world.connect("127.0.0.3")
    assert await full[0].read() == b""
    assert responder.counters["no_room"] == 2
    held[0][1].close()
    await until(lambda: len(responder._connections) == 2)
    again = await world.connect()
    await ask_tcp(*again)
    for _, writer in (*held, third, other, full, again):
        writer.close()


async def test_a_session_that_ended_gets_no_more_answers(world: World) -> None:
    world.start()
    reader, writer = await world.connect()
    await ask_tcp(reader, writer)
    world.access.sessions[V4].closed = True
    writer.write(len(QUERY).to_bytes(2) + QUERY)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_port_that_is_taken_is_told_and_tried_again(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.02)
    caplog.set_level(logging.INFO)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", world.port))
        responder = world.start()
        assert str(responder.problem).startswith(f"UDP port {world.port} of 127.0.0.1: Address al")
        keeping = asyncio.create_task(responder.keep())
        await asyncio.sleep(0.1)
        reader, writer = await world.connect()  # the others are there
        await ask_tcp(reader, writer)
        writer.close()
    await until(lambda: responder.problem is None)
    keeping.cancel()
    assert await world.udp(QUERY) is not None
    texts = [record.getMessage() for record in caplog.records if "names" in record.getMessage()]
    assert len(texts) == 2 and texts[1] == "services have names again"


async def test_any_bytes_on_both_sockets(world: World, caplog: pytest.LogCaptureFixture) -> None:
    no_limits = DnsLimits(queries_per_client_per_s=1e6, burst_per_client=10**6, queries_per_s=10**6)
    responder = world.start(no_limits)
    random = Random(20)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(400):
            changed = bytearray(QUERY if random.random() < 0.7 else random.randbytes(300))
            for _ in range(random.randrange(6)):
                changed[random.randrange(len(changed))] = random.randrange(256)
            data = bytes(changed[: random.randrange(len(changed) + 1)])
            sock.sendto(data, ("127.0.0.1", world.port))
            await asyncio.sleep(0)
        await until(lambda: responder.counters.total() >= 400)
    for _ in range(60):
        reader, writer = await world.connect()
        data = random.randbytes(random.randrange(200))
        writer.write(data if random.random() < 0.5 else len(data).to_bytes(2) + data)
        writer.write_eof()
        with contextlib.suppress(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 5)
        writer.close()
    assert await world.udp(QUERY) is not None
    assert responder.counters["internal"] == 0 and not caplog.records


async def test_a_mistake_of_ours_is_told_once(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    responder = world.start()
    with monkeypatch.context() as patched:
        patched.setattr(world.access, "addresses", lambda *_: 1 / 0)
        for _ in range(3):
            assert await world.udp(QUERY, wait_s=0.1) is None
    assert responder.counters == {"internal": 3}
    assert [one.getMessage() for one in caplog.records] == [
        "a question of alice for a name was not answered"
    ]
    assert await world.udp(QUERY) is not None


async def test_close_leaves_nothing(world: World) -> None:
    responder = world.start()
    reader, writer = await world.connect()
    await ask_tcp(reader, writer)
    responder.close()
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    await until(lambda: not responder._connections)
    world.start()
    assert await world.udp(QUERY) is not None
