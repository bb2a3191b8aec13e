"""Gateways that listen at all addresses of the host, with both engines."""

from __future__ import annotations

import socket

import pytest
from zgate_datapath.connection import Connection
from zgate_datapath.connection_ids import ConnectionIds
from zgate_datapath.local_address import local_host
from zgate_protocol.icmp import TokenBucket

from ...loopback import Gateway, Lab, eventually, udp_packet  # noqa: TID252
from .links import BURST, WAIT_S, Link, Links, no_forgeries
from .test_connection_ids import short
from .test_endpoint import first_flight, initial_header

ALL = ("0.0.0.0", "::")
SECOND, THIRD = "127.0.0.2", "127.0.0.3"


def ask(gateway: Gateway, host: str) -> socket.socket:
    """A socket that hears only what comes from where it sends to."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setblocking(False)
    made.connect((host, gateway.port))
    return made


async def answer(asked: socket.socket, packet: bytes) -> bytes:
    """What the gateway says to it."""
    asked.send(packet)
    heard: list[bytes] = []

    def is_there() -> bool:
        try:
            heard.append(asked.recv(2000))
        except BlockingIOError:
            return False
        return True

    await eventually(is_there)
    return heard[0]


@pytest.mark.parametrize("address", ALL)
async def test_strangers_are_answered_from_where_they_knocked(lab: Lab, address: str) -> None:
    ids = ConnectionIds(bytes(32))
    gateway = lab.gateway(address=address, connection_ids=ids)
    with ask(gateway, SECOND) as knocked:
        other_version = initial_header(b"12345678", version=0x1A2A3A4A)
        assert (await answer(knocked, other_version))[1:5] == bytes(4), "Version Negotiation"
        reset = await answer(knocked, short(ids.issue(), 100))
        assert len(reset) < 100
        assert gateway.endpoint.resets.sent == 1
        gateway.endpoint._unproved = TokenBucket(0, 0)
        assert (await answer(knocked, first_flight()))[0] & 0xF0 == 0xF0, "Retry"
        gateway.endpoint._unproved = TokenBucket(1, 1)
        assert (await answer(knocked, first_flight()))[0] & 0xF0 == 0xC0, "Initial"


@pytest.mark.parametrize(
    ("address", "host"),
    [("0.0.0.0", SECOND), ("::", SECOND), ("::", "::1")],
)
async def test_a_client_dials_any_address(lab: Lab, address: str, host: str) -> None:
    gateway = lab.gateway(address=address)
    client, state = await lab.connect(gateway, host=host)
    (handler,) = gateway.handlers
    assert handler.path().local_host == host
    client.tun.inject(udp_packet(str(state.addresses[0].ip), "10.20.0.5"))
    await eventually(lambda: gateway.tun.written)
    gateway.tun.inject(udp_packet("10.20.0.5", str(state.addresses[0].ip)))
    await eventually(lambda: client.tun.written)
    assert gateway.endpoint.udp.dropped_on_send == 0


async def test_one_address_of_its_own_needs_no_words(lab: Lab) -> None:
    gateway = lab.gateway(address=SECOND)
    await lab.connect(gateway, host=SECOND)
    (handler,) = gateway.handlers
    assert handler.path().local_host == ""


async def test_a_killed_gateways_client_hears_it_from_where_it_dialled(lab: Lab) -> None:
    """As `zgate_gateway.worker.child` does it, from what `clients.json` keeps."""
    ids = ConnectionIds(bytes(32))
    first = lab.gateway(address="::", connection_ids=ids)
    client, _ = await lab.connect(first, host=SECOND)
    path, port = first.handlers[0].path(), first.port
    first.kill()
    second = lab.gateway(address="::", connection_ids=ids, port=port)
    udp = second.endpoint.udp
    udp.send_batch(
        [second.endpoint.resets.make(path.connection_id)],
        udp.peer_at(path.host, path.port, path.local_host),
    )
    assert "stateless reset" in await client.tunnel.wait_closed()


# Something between sends a client's packets to another address of ours.


async def wildcard_link(links: Links) -> Link:
    """The wire knows 0.0.0.0, which is 127.0.0.1 for whoever sends to it."""
    return await links.link(gateway=links.lab.gateway(address="0.0.0.0"))


def local_of(connection: Connection) -> str:
    assert connection.peer_address is not None
    return local_host(connection.peer_address)


async def test_who_is_sent_to_another_address_is_answered_from_there(links: Links) -> None:
    """A load balancer, say: the client answers the challenge, so that is its path now."""
    link = await wildcard_link(links)
    for host in (SECOND, THIRD, "127.0.0.1"):
        await link.carry(BURST)
        link.wire._gateway = (host, link.gateway.port)
        link.ping(link.peer.connection)
        await eventually(lambda host=host: local_of(link.gateway_side) == host, WAIT_S)
        await link.carry(BURST)
    no_forgeries(link)


async def test_who_hears_nothing_from_there_stays_where_it_was(links: Links) -> None:
    """RFC 9000 section 9: a client drops what comes from an address that it has not dialled."""
    link = await wildcard_link(links)
    await link.carry(BURST)
    dialled = ("127.0.0.1", link.gateway.port)
    link.wire._backs[-1].connect(dialled)
    link.wire._gateway = (SECOND, link.gateway.port)
    link.ping(link.peer.connection)
    await eventually(lambda: local_of(link.gateway_side) == SECOND, WAIT_S)
    link.wire._gateway = dialled
    await eventually(lambda: local_of(link.gateway_side) == "127.0.0.1", WAIT_S)
    await link.carry(BURST)
    no_forgeries(link)
