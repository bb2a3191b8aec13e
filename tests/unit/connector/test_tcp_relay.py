"""Flows between two loopback connections: the chamber's part is any listening socket."""

from __future__ import annotations

import asyncio
import errno
import gc
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from zgate_connector import tcp_relay
from zgate_connector.backends import BackendNames
from zgate_connector.config import LimitSettings
from zgate_connector.limits import FlowLedger, Refusal, ServiceCounters
from zgate_connector.poller import Poller
from zgate_connector.tcp_relay import TcpPort, TcpRelay

HOST = "127.0.0.1"
BUFFER_BYTES = 8192
RESET = struct.pack("ii", 1, 0)


@dataclass
class World:
    relay: TcpRelay
    port: TcpPort
    counters: ServiceCounters
    address: tuple[str, int]
    backend: socket.socket

    async def connect(self) -> tuple[socket.socket, socket.socket]:
        """Both ends of a flow."""
        client = await self.dial()
        backend, _ = await loop().sock_accept(self.backend)
        backend.setblocking(False)
        return client, backend

    async def dial(self) -> socket.socket:
        client = socket.socket()
        client.setblocking(False)
        await loop().sock_connect(client, self.address)
        return client


def loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


async def receive(sock: socket.socket, size_bytes: int = 1 << 16) -> bytes:
    async with asyncio.timeout(5):
        return await loop().sock_recv(sock, size_bytes)


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def listen() -> socket.socket:
    made = socket.create_server((HOST, 0))
    made.setblocking(False)
    return made


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    backend, listener = listen(), listen()
    poller = Poller(loop())
    limits = LimitSettings(buffer_bytes_per_flow=BUFFER_BYTES)
    ledger = FlowLedger(per_client=3, total=10)
    relay = TcpRelay(poller, BackendNames([HOST]), ledger, limits)
    counters = ServiceCounters()
    address = listener.getsockname()
    port = TcpPort(relay, listener, HOST, backend.getsockname()[1], counters)
    yield World(relay, port, counters, address, backend)
    port.close()
    relay.close()
    poller.close()
    backend.close()


async def test_bytes_go_both_ways_and_are_counted(world: World) -> None:
    client, backend = await world.connect()
    await loop().sock_sendall(client, b"question")
    assert await receive(backend) == b"question"
    await loop().sock_sendall(backend, b"an answer")
    assert await receive(client) == b"an answer"
    counters = world.counters
    assert (counters.open_flows, counters.total_flows) == (1, 1)
    assert (counters.bytes_up, counters.bytes_down) == (8, 9)
    client.close()
    assert await receive(backend) == b""
    backend.close()
    await eventually(lambda: world.counters.open_flows == 0)
    assert world.relay.ledger.open_flows == 0


async def test_what_waits_for_a_slow_reader_is_bounded_and_nothing_is_lost(world: World) -> None:
    client, backend = await world.connect()
    sent = bytes(range(256)) * (1 << 18)
    sending = asyncio.ensure_future(loop().sock_sendall(client, sent))
    (flow,) = world.port.flows
    await eventually(lambda: flow.held_bytes)
    for _ in range(20):
        assert flow.held_bytes <= BUFFER_BYTES
        await asyncio.sleep(0.002)
    assert not sending.done()
    received = bytearray()
    while len(received) < len(sent):
        received += await receive(backend)
        assert flow.held_bytes <= BUFFER_BYTES
    await sending
    assert received == sent


async def test_no_pipe_is_held_without_bytes(world: World) -> None:
    client, backend = await world.connect()
    await loop().sock_sendall(client, b"x")
    assert await receive(backend) == b"x"
    (flow,) = world.port.flows
    assert [way.pipe for way in flow._ways] == [None, None]


@pytest.mark.parametrize("is_client", [True, False])
async def test_resets_go_through(world: World, is_client: bool) -> None:
    ends = await world.connect()
    near, far = ends if is_client else ends[::-1]
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    near.close()
    with pytest.raises(ConnectionResetError):
        await receive(far)
    assert world.counters.open_flows == 0


async def test_the_backend_refuses(world: World) -> None:
    world.backend.close()
    with pytest.raises(ConnectionResetError):
        await receive(await world.dial())
    assert world.relay.ledger.refused == {Refusal.BACKEND: 1}


async def test_a_client_beyond_its_limit_is_reset(world: World) -> None:
    flows = [await world.connect() for _ in range(3)]
    with pytest.raises(ConnectionResetError):
        await receive(await world.dial())
    assert world.relay.ledger.refused == {Refusal.CLIENT_LIMIT: 1}
    assert world.counters.open_flows == len(flows)


async def test_without_descriptors_connections_wait(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp_relay, "_PAUSE_S", 0.01)
    listener = world.port._listener

    class Exhausted:
        """The socket, at first without descriptors for what it accepts."""

        failures = 3

        def __getattr__(self, name: str) -> object:
            return getattr(listener, name)

        def accept(self) -> object:
            if self.failures:
                self.failures -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            assert listener is not None
            return listener.accept()

    monkeypatch.setattr(world.port, "_listener", Exhausted())
    client, backend = await world.connect()
    await loop().sock_sendall(client, b"patience")
    assert await receive(backend) == b"patience"
    assert world.relay.ledger.refused == {Refusal.NO_RESOURCES: 3}


async def test_without_pipes_a_flow_is_reset(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def take() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    client, backend = await world.connect()
    monkeypatch.setattr(world.relay.pipes, "take", take)
    await loop().sock_sendall(client, b"x")
    for end in (client, backend):
        with pytest.raises(ConnectionResetError):
            await receive(end)


async def test_who_stops_listening_keeps_flows_and_what_was_accepted(world: World) -> None:
    client, backend = await world.connect()
    waiting = await world.dial()
    world.port.stop_listening()
    world.port.stop_listening()
    late, _ = await loop().sock_accept(world.backend)
    await loop().sock_sendall(waiting, b"in time")
    assert await receive(socket_of(late)) == b"in time"
    await loop().sock_sendall(client, b"go on")
    assert await receive(backend) == b"go on"
    with pytest.raises(ConnectionRefusedError):
        await world.dial()


def socket_of(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    return sock


async def test_the_end_of_a_port_resets_its_flows(world: World) -> None:
    client, backend = await world.connect()
    world.port.close()
    for end in (client, backend):
        with pytest.raises(ConnectionResetError):
            await receive(end)
    assert world.counters.open_flows == 0
    assert not world.port.flows


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_the_ends_do_nothing_is_left(world: World, seed: int) -> None:
    """Bytes, ends and resets of both sides in any order: all that was sent before a clean end
    arrives, and each flow is forgotten."""
    chance = random.Random(seed)
    gc.collect()  # what other tests have left
    files_before = open_files()

    async def one() -> None:
        client, backend = await world.connect()
        sent = [b"", b""]
        ends = (client, backend)
        is_open = [True, True]
        is_reset = False
        for _ in range(chance.randrange(12)):
            side = chance.randrange(2)
            if not is_open[side]:
                continue
            what = chance.random()
            if what < 0.7:
                data = chance.randbytes(chance.randrange(1, 20_000))
                await loop().sock_sendall(ends[side], data)
                sent[side] += data
            elif what < 0.85:
                ends[side].shutdown(socket.SHUT_WR)
                is_open[side] = False
            else:
                ends[side].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                is_reset = True
                break
            if chance.random() < 0.5:
                await asyncio.sleep(0)
        if not is_reset:
            for end, still in zip(ends, is_open, strict=True):
                if still:
                    end.shutdown(socket.SHUT_WR)
            assert await read_all(backend) == sent[0]
            assert await read_all(client) == sent[1]
        client.close()
        backend.close()

    for _ in range(40):
        await one()
    await eventually(lambda: world.counters.open_flows == 0)
    assert world.counters.total_flows == 40
    assert world.relay.ledger.open_flows == 0
    assert not world.relay._connecting
    assert not world.port.flows
    world.relay.pipes.close()
    assert open_files() <= files_before


async def read_all(sock: socket.socket) -> bytes:
    data = b""
    while more := await receive(sock):
        data += more
    return data


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
