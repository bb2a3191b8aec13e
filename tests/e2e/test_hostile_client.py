"""A client with a certificate and bad manners: what it sends harms its own session at most."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address, ip_interface

from e2e_support.packets import UDP, ipv4_packet, ipv6_packet
from e2e_support.world import World
from zgate_datapath.client import ClientConfig, TunnelClient, TunnelState
from zgate_lab.deployment import SERVER_NAME
from zgate_lab.namespace import call_in
from zgate_lab.traffic import ping
from zgate_lab.waiting import wait_until

TIMEOUT_S = 10.0
ICMP = 1


class FakeTun:
    """Holds what the gateway sends; gives nothing by itself."""

    is_gone = False
    has_vnet_header = False

    def __init__(self) -> None:
        self._ours, self._its = socket.socketpair()
        self.fd = self._its.fileno()
        self.received: list[bytes] = []

    def write(self, packet: bytes) -> bool:
        self.received.append(packet)
        return True

    def read_batch(self, limit: int) -> list[bytes]:
        return []


class Mallory:
    """A session as carol, with the agent's own checks left out."""

    def __init__(self, client: TunnelClient, tun: FakeTun, state: TunnelState) -> None:
        self._client = client
        self.tun = tun
        addresses = [ip_interface(one).ip for one in state.addresses]
        self.ipv4 = next(one for one in addresses if isinstance(one, IPv4Address))
        self.ipv6 = next(one for one in addresses if isinstance(one, IPv6Address))

    def send(self, packet: bytes) -> None:
        assert self._client._tunnel and self._client._endpoint and self._client._connection
        self._client._tunnel.reply(packet)
        self._client._endpoint.flush(self._client._connection)

    def send_on_stream(self, data: bytes) -> None:
        assert self._client._tunnel and self._client._endpoint and self._client._connection
        self._client._connection.send_data(self._client._tunnel.stream_id, data)
        self._client._endpoint.flush(self._client._connection)

    async def received(self, fits: Callable[[bytes], bool]) -> bytes:
        async with asyncio.timeout(TIMEOUT_S):
            while not (found := [one for one in self.tun.received if fits(one)]):
                await asyncio.sleep(0.01)
        return found[0]

    async def ended(self) -> str:
        async with asyncio.timeout(TIMEOUT_S):
            return await self._client.wait_closed()


def as_mallory(world: World, act: Callable[[Mallory], Awaitable[None]]) -> None:
    """Connect from bob's device, act, and leave."""
    own = world.zgate.directory / "carol"
    config = ClientConfig(
        host=str(world.internet.gateway.ipv4),
        port=443,
        server_name=SERVER_NAME,
        ca_file=str(world.zgate.pki / "ca.crt"),
        certificate_file=str(own / "carol.crt"),
        key_file=str(own / "carol.key"),
        engine="python",  # the TUN is none, and has no vnet headers
    )

    async def session() -> None:
        tun = FakeTun()
        client = TunnelClient(config=config, tun=tun, on_change=lambda _: None)  # type: ignore[arg-type]
        state = await client.connect(TIMEOUT_S)
        try:
            await act(Mallory(client, tun, state))
        finally:
            await client.close()

    call_in(world.bob, lambda: asyncio.run(session()))


STRANGE_REQUEST = [
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":authority", b"gateway.demo"),
    (b":path", b"/"),
]
UDP_DATAGRAM = struct.pack("!HHHH", 1, 5001, 8, 0)


def test_packets_that_break_the_rules_are_counted_drops(world: World) -> None:
    office, forbidden = world.internet.office, world.internet.forbidden
    alice = [ip_interface(one).ip for one in world.zgate.sessions()["alice"]["addresses"]]

    async def act(mallory: Mallory) -> None:
        honest = ipv4_packet(mallory.ipv4, office.ipv4, UDP, UDP_DATAGRAM)
        before = world.zgate.counters("alice")
        mallory.send(ipv4_packet(alice[0], office.ipv4, UDP, UDP_DATAGRAM))
        mallory.send(ipv6_packet(alice[1], office.ipv6, UDP, UDP_DATAGRAM))
        mallory.send(honest[:-1])
        mallory.send(b"\x55" + honest[1:])
        mallory.send(ipv4_packet(mallory.ipv4, IPv4Address("169.254.1.1"), UDP, UDP_DATAGRAM))
        # The session goes on, and what is allowed passes.
        echo = struct.pack("!BBHHH", 8, 0, 0xF7FF - 7, 7, 0)
        mallory.send(ipv4_packet(mallory.ipv4, forbidden.ipv4, ICMP, echo))
        await mallory.received(lambda one: one[9] == ICMP and one[12:16] == forbidden.ipv4.packed)
        assert world.zgate.sessions()["carol"]["drops"] == {
            "SOURCE_NOT_ASSIGNED": 2,
            "BAD_LENGTH": 1,
            "BAD_VERSION": 1,
            "LINK_LOCAL": 1,
        }
        assert world.zgate.counters("alice") == before

    as_mallory(world, act)


def test_a_bad_capsule_ends_its_own_session_only(world: World) -> None:
    session = world.zgate.sessions()["alice"]["session_id"]

    async def act(mallory: Mallory) -> None:
        # ADDRESS_ASSIGN of two bytes, with no address in them.
        mallory.send_on_stream(b"\x01\x02\xff\xff")
        assert await mallory.ended()

    as_mallory(world, act)
    wait_until(lambda: "carol" not in world.zgate.sessions(), TIMEOUT_S, "the end")
    last = world.zgate.audit("session_down", client="carol")[-1]
    assert last["cause"].startswith("protocol error: ")
    assert world.zgate.sessions()["alice"]["session_id"] == session
    assert ping(world.alice, world.internet.office.ipv4).lost == 0


def test_requests_for_something_else_leave_the_session_alone(world: World) -> None:
    """More of them than a connection may have streams open: the session that is up stays up."""

    async def act(mallory: Mallory) -> None:
        connection = mallory._client._connection
        assert connection is not None
        assert mallory._client._endpoint is not None
        for _ in range(50):
            stream_id = connection.quic.get_next_available_stream_id()
            connection.send_headers(stream_id, STRANGE_REQUEST)
            mallory._client._endpoint.flush(connection)
            await asyncio.sleep(0.002)
        echo = struct.pack("!BBHHH", 8, 0, 0xF7FF - 8, 8, 0)
        forbidden = world.internet.forbidden.ipv4
        mallory.send(ipv4_packet(mallory.ipv4, forbidden, ICMP, echo))
        await mallory.received(lambda one: one[9] == ICMP and one[12:16] == forbidden.packed)

    as_mallory(world, act)
    wait_until(lambda: "carol" not in world.zgate.sessions(), TIMEOUT_S, "the end")
    assert "Traceback" not in world.gateway.output()
