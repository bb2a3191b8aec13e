"""Connection IDs that change and clients that move, under the native engine."""

from __future__ import annotations

import os

from ...loopback import eventually  # noqa: TID252
from .links import BURST, WAIT_S, Links, native_gateway, needs_native, no_forgeries
from .wire import lost, unchanged

pytestmark = needs_native


async def test_the_peer_rotates_its_connection_id(links: Links) -> None:
    link = await links.link()
    for _ in range(3):
        await link.carry(BURST)
        before = link.gateway_side.quic.host_cid
        link.peer.quic.change_connection_id()
        link.peer.connection.engine.leave_aioquic(0.0)
        link.peer.connection.ping()
        link.peer.flush()
        await eventually(lambda before=before: link.gateway_side.quic.host_cid != before, WAIT_S)
        await link.carry(BURST)
    no_forgeries(link)


async def test_the_gateway_rotates_its_connection_id(links: Links) -> None:
    link = await links.link()
    for _ in range(3):
        await link.carry(BURST)
        link.gateway_side.quic.change_connection_id()
        link.gateway_side.engine.leave_aioquic(0.0)
        link.gateway_side.ping()
        link.gateway.endpoint.flush(link.gateway_side)
        await link.carry(BURST)
    no_forgeries(link)


@native_gateway
async def test_a_retired_connection_id_is_nobodys(links: Links) -> None:
    link = await links.link()
    await link.carry(BURST)
    old = link.gateway_side.quic.host_cid
    link.peer.quic.change_connection_id()
    link.peer.connection.engine.leave_aioquic(0.0)
    link.peer.connection.ping()
    link.peer.flush()
    await eventually(lambda: old not in link.gateway.endpoint._by_id, WAIT_S)
    await link.carry(BURST)
    forged = link.gateway_side.engine.counters.forged_packets
    unknown = link.gateway.endpoint.unknown_packets
    link.wire.send_up(b"\x40" + old + os.urandom(60))
    await eventually(lambda: link.gateway.endpoint.unknown_packets > unknown)
    assert link.gateway_side.engine.counters.forged_packets == forged


async def test_a_client_moves_to_another_address(links: Links) -> None:
    link = await links.link()
    for _ in range(3):
        await link.carry(BURST)
        before = link.gateway_side.peer_address
        link.wire.move()
        link.peer.connection.ping()
        link.peer.flush()
        await eventually(lambda before=before: link.gateway_side.peer_address != before, WAIT_S)
        await link.carry(BURST)
    no_forgeries(link)


@native_gateway
async def test_an_unproved_address_gets_no_more_than_three_times_what_it_sent(
    links: Links,
) -> None:
    link = await links.link()
    await link.carry(BURST)
    before = link.gateway_side.peer_address
    link.wire.down = lost  # the client never answers the challenge
    link.wire.move()
    link.peer.connection.ping()
    link.peer.flush()
    await eventually(lambda: link.gateway_side.peer_address != before, WAIT_S)
    for _ in range(20):
        link.send_down([1000] * 20)
        link.gateway.endpoint.flush(link.gateway_side)
        link.send_up([10])
        await eventually(lambda: True)
    assert link.wire.bytes_down <= 3 * link.wire.bytes_up
    link.wire.down = unchanged
    link.peer.connection.ping()
    link.peer.flush()
    await eventually(lambda: link.native(link.gateway_side).may_send, WAIT_S)
    await link.carry(BURST)


@native_gateway
async def test_a_lost_challenge_is_repeated(links: Links) -> None:
    """The engine's packets are credit for it; after too many aioquic goes back and tries again."""
    link = await links.link()
    await link.carry(BURST)
    lost_on_the_new_path: list[bytes] = []

    def lose_the_first(packet: bytes) -> list[bytes]:
        lost_on_the_new_path.append(packet)
        return [] if len(lost_on_the_new_path) <= 8 else [packet]

    before = link.gateway_side.peer_address
    link.wire.move()
    link.wire.down = lose_the_first
    link.peer.connection.ping()
    link.peer.flush()
    await eventually(lambda: link.gateway_side.peer_address != before, WAIT_S)

    def is_proved() -> bool:
        link.send_up([20])
        is_there = link.gateway_side.peer_address != before
        return is_there and bool(link.native(link.gateway_side).may_send)

    await eventually(is_proved, WAIT_S)
    assert len(lost_on_the_new_path) >= 8
    await link.carry(4)
