"""Flows between loopback sockets: the chamber's part is any bound socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from ipaddress import ip_address

import pytest
import pytest_asyncio
from zgate_connector.backends import BackendNames
from zgate_connector.limits import FlowLedger, Refusal, ServiceCounters
from zgate_connector.poller import Poller
from zgate_connector.udp_relay import UdpPort, UdpRelay, port_unreachable
from zgate_protocol.icmp import checksum, invoking_packet
from zgate_protocol.ip_header import parse_ip

HOST = "127.0.0.1"
IDLE_S = 30.0


def loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def bind() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.bind((HOST, 0))
    return sock


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


@dataclass
class World:
    relay: UdpRelay
    port: UdpPort
    counters: ServiceCounters
    address: tuple[str, int]
    backend: socket.socket

    async def ask(self, client: socket.socket, data: bytes) -> bytes:
        """A question, which the backend sends back."""
        async with asyncio.timeout(5):
            await loop().sock_sendto(client, data, self.address)
            question, source = await loop().sock_recvfrom(self.backend, 65535)
            await loop().sock_sendto(self.backend, question, source)
            answer, origin = await loop().sock_recvfrom(client, 65535)
        assert origin == self.address
        return answer


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    backend, own = bind(), bind()
    poller = Poller(loop())
    relay = UdpRelay(
        poller, BackendNames([HOST]), FlowLedger(per_client=3, total=10), idle_timeout_s=IDLE_S
    )
    counters = ServiceCounters()
    address = own.getsockname()
    port = UdpPort(relay, own, HOST, backend.getsockname()[1], counters)
    yield World(relay, port, counters, address, backend)
    port.close()
    relay.close()
    poller.close()
    backend.close()


async def test_a_question_and_its_answer(world: World) -> None:
    with bind() as client:
        assert await world.ask(client, b"question") == b"question"
        assert await world.ask(client, b"") == b""
    counters = world.counters
    assert (counters.open_flows, counters.total_flows) == (1, 1)
    assert (counters.bytes_up, counters.bytes_down) == (8, 8)


async def test_a_flow_ends_when_it_is_not_used(world: World) -> None:
    world.relay._idle_timeout_s = 0.3
    with bind() as client:
        await world.ask(client, b"?")
        await eventually(lambda: world.counters.open_flows == 0)
        assert world.relay.ledger.open_flows == 0
        assert not world.relay._of_client
        await world.ask(client, b"!")
    assert world.counters.total_flows == 2


async def test_the_oldest_of_a_client_makes_room(world: World) -> None:
    clients = [bind() for _ in range(4)]
    for client in (*clients[:3], clients[0], clients[3]):
        await world.ask(client, b"?")
    assert world.relay.evicted_flows == 1
    left = {flow.source[1] for flow in world.port._flows.values()}
    assert left == {clients[one].getsockname()[1] for one in (0, 2, 3)}
    for client in clients:
        client.close()


async def test_who_has_no_udp_flow_to_give_up_is_refused(world: World) -> None:
    for _ in range(3):
        assert world.relay.ledger.open(HOST)  # TCP flows, say
    with bind() as client:
        await loop().sock_sendto(client, b"?", world.address)
        await eventually(lambda: world.relay.ledger.refused == {Refusal.CLIENT_LIMIT: 1})
    assert world.counters.total_flows == 0


async def test_a_refusing_backend_ends_the_flow(world: World) -> None:
    world.backend.close()
    with bind() as client:
        await loop().sock_sendto(client, b"?", world.address)
        await eventually(lambda: world.relay.ledger.refused == {Refusal.BACKEND: 1})
    await eventually(lambda: world.counters.open_flows == 0)
    assert world.counters.total_flows == 1


async def test_no_new_flows_after_listening(world: World) -> None:
    with bind() as first, bind() as late:
        await world.ask(first, b"?")
        world.port.stop_listening()
        assert await world.ask(first, b"!") == b"!"
        await loop().sock_sendto(late, b"?", world.address)
        assert await world.ask(first, b"!") == b"!"
    assert world.counters.total_flows == 1


async def test_a_datagram_that_does_not_fit_is_counted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bind() as client:
        await world.ask(client, b"?")
        (flow,) = world.port._flows.values()
        flow.send(bytes(65535))  # more than a datagram holds
        assert world.relay.lost_datagrams == 1
        assert await world.ask(client, b"on") == b"on"


@pytest.mark.parametrize(
    ("client", "offer"), [("10.100.0.7", "10.101.255.254"), ("fd00::7", "fd00:1::ffff")]
)
@pytest.mark.parametrize("size_bytes", [0, 5, 2000])
def test_the_icmp_error_is_about_the_clients_datagram(
    client: str, offer: str, size_bytes: int
) -> None:
    error = port_unreachable((client, 40000), (offer, 53), size_bytes)
    assert error is not None
    header = parse_ip(error)
    assert header.source == ip_address(offer).packed
    assert header.destination == ip_address(client).packed
    start = 20 if header.version == 4 else 40
    assert tuple(error[start : start + 2]) == ((3, 3) if header.version == 4 else (1, 4))
    quoted = invoking_packet(error)
    assert quoted is not None
    assert quoted.source == ip_address(client).packed
    assert quoted.destination == ip_address(offer).packed
    inner = error[start + 8 :]
    assert inner[start : start + 4] == (40000).to_bytes(2, "big") + (53).to_bytes(2, "big")
    assert inner[start + 4 : start + 6] == (8 + size_bytes).to_bytes(2, "big")
    if header.version == 4:
        assert checksum(inner[:20]) == 0
