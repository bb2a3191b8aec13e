"""Forgeries, replays and junk: none of it reaches aioquic, and no session ends for it."""

from __future__ import annotations

import os
from typing import Any

import pytest
from aioquic.quic.packet import QuicErrorCode
from zgate_datapath import aioquic_private as private
from zgate_datapath.connection import Connection

from ...loopback import eventually  # noqa: TID252
from .links import BURST, WAIT_S, Link, Links, native_gateway, needs_native, no_forgeries
from .wire import tampered

pytestmark = needs_native


def _aioquic_receives(connection: Connection) -> list[bytes]:
    """What reaches aioquic from now on."""
    seen: list[bytes] = []
    receive = connection.quic.receive_datagram

    def noted(data: bytes, addr: Any, now: float) -> None:
        seen.append(data)
        receive(data, addr, now)

    connection.quic.receive_datagram = noted  # type: ignore[method-assign]
    return seen


async def _all_are_refused(link: Link, forged: list[bytes], reached: list[bytes]) -> None:
    """Send these to the gateway: it counts each as forged, and aioquic sees none."""
    before = link.gateway_side.engine.counters.forged_packets
    for packet in forged:
        link.wire.send_up(packet)
    await eventually(
        lambda: link.gateway_side.engine.counters.forged_packets >= before + len(forged)
    )
    assert not [packet for packet in reached if packet in forged]


@native_gateway
@pytest.mark.parametrize("at", [-1, 9, 12, 30], ids=["tag", "number", "number end", "text"])
async def test_a_forged_packet_never_reaches_aioquic(links: Links, at: int) -> None:
    link = await links.link()
    await link.carry(BURST)
    reached = _aioquic_receives(link.gateway_side)
    forged = [tampered(packet, at) for packet in link.known_up()]
    await _all_are_refused(link, forged, reached)
    await link.carry(BURST)


@native_gateway
async def test_a_forged_first_byte_never_reaches_aioquic(links: Links) -> None:
    link = await links.link()
    await link.carry(BURST)
    reached = _aioquic_receives(link.gateway_side)
    sample = link.known_up()[0]
    forged = [bytes([sample[0] ^ bits]) + sample[1:] for bits in (1, 2, 4, 7, 8, 16, 0x1F)]
    await _all_are_refused(link, forged, reached)


@native_gateway
async def test_forgeries_and_replays_from_elsewhere_never_reach_aioquic(links: Links) -> None:
    link = await links.link()
    await link.carry(BURST)
    reached = _aioquic_receives(link.gateway_side)
    known = link.known_up()
    forged = [tampered(packet) for packet in known]
    before = link.gateway_side.engine.counters
    for packet in (*known, *forged):
        link.wire.send_up_from_elsewhere(packet)
    await eventually(
        lambda: (
            link.gateway_side.engine.counters.forged_packets >= before.forged_packets + len(forged)
        )
    )
    after = link.gateway_side.engine.counters
    assert after.duplicate_packets >= before.duplicate_packets + len(known)
    await link.carry(BURST)
    assert not {*known, *forged} & set(reached)


@native_gateway
async def test_replays_are_dropped(links: Links) -> None:
    link = await links.link()
    link.wire.up = link.wire.down = lambda packet: [packet, packet]
    await link.carry(200)
    counters = link.gateway_side.engine.counters
    assert counters.duplicate_packets > counters.opened_packets // 2
    no_forgeries(link)


@native_gateway
async def test_junk_at_the_port_harms_nobody(links: Links) -> None:
    link = await links.link()
    cid = link.gateway_side.quic.host_cid
    for junk in (
        b"",
        b"\x40",
        b"\x40" + cid,
        b"\x40" + cid + bytes(19),
        b"\x40" + cid + bytes(20),
        b"\x40" + cid + os.urandom(1400),
        b"\x00" + cid + os.urandom(100),
        b"\xc0" + os.urandom(1400),
        os.urandom(40000),
    ):
        link.wire.send_up(junk)
        link.wire.send_up_from_elsewhere(junk)
    await link.carry(BURST)
    assert not link.gateway_side.is_terminated


@pytest.mark.parametrize("engines", [("native", "aioquic")], indirect=True, ids="-".join)
async def test_an_ack_of_what_was_never_sent_ends_that_connection_only(links: Links) -> None:
    gateway = links.lab.gateway()
    bad = await links.link("alice", gateway)
    good = await links.link("bob", gateway)
    connection = bad.gateway_side
    space = private.application_space(bad.peer.quic)
    space.ack_queue.add(10**6, 10**6 + 1)
    space.ack_at = 0.0
    bad.peer.flush()
    await eventually(lambda: bad.peer.ended, WAIT_S)
    assert bad.peer.ended is not None
    assert bad.peer.ended.error_code == QuicErrorCode.PROTOCOL_VIOLATION
    await eventually(lambda: connection not in gateway.endpoint.connections, WAIT_S)
    await good.carry(BURST)
