"""The native engine against aioquic, the Python engine and itself, over real sockets."""

from __future__ import annotations

import asyncio
import random

import pytest
from aioquic.tls import CipherSuite
from zgate_datapath import aioquic_private as private
from zgate_datapath.native_engine import NativeEngine
from zgate_protocol.drop_reason import DropReason

from ...loopback import eventually  # noqa: TID252
from .links import (
    BURST,
    WAIT_S,
    Links,
    native_gateway,
    needs_native,
    no_forgeries,
    only_native,
    waiting_for_acks,
)
from .wire import Holder, has_short_header, unchanged

pytestmark = needs_native


# Traffic.


async def test_known_traffic_arrives_whole_both_ways(links: Links) -> None:
    link = await links.link()
    await link.carry(200)
    no_forgeries(link)


async def test_random_sizes_arrive_whole_both_ways(links: Links) -> None:
    link = await links.link()
    dice = random.Random(4)
    await link.carry(400, lambda: dice.randrange(0, 1280))
    no_forgeries(link)


async def test_what_is_acknowledged_leaves_the_flight(links: Links) -> None:
    link = await links.link()
    await link.carry(200)
    for connection in (link.gateway_side, link.peer.connection):
        await eventually(
            lambda connection=connection: connection.statistics()["bytes_in_flight"] == 0, WAIT_S
        )


@native_gateway
async def test_aioquics_own_packets_are_acknowledged_by_the_engines_acks(links: Links) -> None:
    link = await links.link()
    for _ in range(5):
        link.gateway_side.ping()
        link.gateway.endpoint.flush(link.gateway_side)
        link.peer.connection.ping()
        link.peer.flush()
        await link.carry(20)
    for connection in (link.gateway_side, link.peer.connection):
        await eventually(lambda connection=connection: not waiting_for_acks(connection), WAIT_S)


@pytest.mark.parametrize("engines", [("native", "aioquic")], indirect=True, ids="-".join)
async def test_a_peer_that_acknowledges_every_packet_at_once(links: Links) -> None:
    link = await links.link()
    link.peer.quic._ack_delay = 0.0
    await link.carry(400)
    await eventually(lambda: link.gateway_side.statistics()["bytes_in_flight"] == 0, WAIT_S)
    assert link.gateway_side.statistics()["lost_packets"] == 0


@only_native
@pytest.mark.parametrize("suite", list(CipherSuite)[:3], ids=lambda suite: suite.name)
async def test_every_cipher_suite(links: Links, suite: CipherSuite) -> None:
    link = await links.link(cipher_suites=[suite])
    assert private.crypto_pair(link.peer.quic).send.cipher_suite is suite
    await link.carry(80)
    no_forgeries(link)


async def test_over_ipv6(links: Links) -> None:
    gateway = links.lab.gateway(address="::1")
    link = await links.link(gateway=gateway)
    assert ":" in str(link.gateway_side.peer_address[0])  # type: ignore[index]
    await link.carry(80)


@only_native
@pytest.mark.parametrize("dice", [0, 1], ids=["off", "on"])
async def test_the_spin_bit_is_off_for_one_connection_in_sixteen(
    links: Links, monkeypatch: pytest.MonkeyPatch, dice: int
) -> None:
    monkeypatch.setattr("zgate_datapath.native_engine.secrets.randbelow", lambda below: dice)
    link = await links.link()
    link.wire.sent_up.clear()
    link.wire.sent_down.clear()
    for _ in range(20):
        await link.carry(2)
    for sent in (link.wire.sent_up, link.wire.sent_down):
        spins = {bool(packet[0] & 0x20) for packet in sent if has_short_header(packet)}
        assert spins == ({True, False} if dice else {False})


# What paths do.


@native_gateway
@pytest.mark.parametrize("distance", [200, 2000])
async def test_a_packet_overtaken_by_many_is_still_new(links: Links, distance: int) -> None:
    link = await links.link()
    await link.carry(BURST)
    link.wire.up = holder = Holder()
    up = link.send_up([100])
    await eventually(lambda: holder.held)
    while holder.passed < distance:
        await link.carry(BURST, lambda: 1000)
    assert holder.held is not None
    link.wire.send_up(holder.held)
    await eventually(lambda: not link.missing_above(up), WAIT_S)
    # ... but only once.
    before = link.gateway_side.engine.counters.duplicate_packets
    link.wire.send_up(holder.held)
    await eventually(lambda: link.gateway_side.engine.counters.duplicate_packets > before)


@only_native
async def test_a_packet_from_before_the_window_is_dropped(links: Links) -> None:
    link = await links.link()
    link.wire.up = holder = Holder(1000)
    up = link.send_up([1000])
    await eventually(lambda: holder.held)
    session = link.native(link.gateway_side)
    # What aioquic has received moves the window as well.
    session.note_received(session.expected_number + 8200, session.expected_number + 8200, False)
    assert holder.held is not None
    link.wire.send_up(holder.held)
    await eventually(lambda: link.gateway_side.engine.counters.duplicate_packets)
    assert link.missing_above(up)


async def test_losses_are_noticed_and_nothing_sticks(links: Links) -> None:
    link = await links.link()
    dice = random.Random(7)
    await link.carry(BURST)
    link.wire.up = link.wire.down = lambda packet: [] if dice.random() < 0.1 else [packet]
    ends = (link.gateway_side, link.peer.connection)

    def is_settled() -> bool:
        return not any(end.queued_packets() or end.statistics()["bytes_in_flight"] for end in ends)

    for _ in range(20):
        # What waits too long for a window that losses made small is dropped: the queue's duty.
        link.send_up([500] * BURST)
        link.send_down([500] * BURST)
        await asyncio.sleep(0.02)
        await eventually(is_settled, WAIT_S)
    link.wire.up = link.wire.down = unchanged
    await link.carry(4)
    for connection in ends:
        if isinstance(connection.engine, NativeEngine):
            assert connection.statistics()["lost_packets"] > 0


# Limits.


@only_native
async def test_no_frame_is_larger_than_the_peer_takes(links: Links) -> None:
    link = await links.link()
    engine = link.gateway_side.engine
    engine.set_frame_limit(300, 1452)
    assert engine.enqueue(b"\x30" + bytes(301)) is DropReason.TOO_BIG
    assert engine.enqueue(b"\x30" + link.prefix + bytes(300 - len(link.prefix))) is DropReason.NONE
    for size in (1, 40, 150, 299):  # those that share a packet have a length as well
        assert engine.enqueue(b"\x30" + link.prefix + bytes(size - 1)) is DropReason.NONE
    sizes: list[int] = []
    received = link.peer.datagrams_received
    link.peer.datagrams_received = lambda payloads: (  # type: ignore[method-assign]
        sizes.extend(map(len, payloads)),
        received(payloads),
    )[1]
    link.gateway.endpoint.flush(link.gateway_side)
    await eventually(lambda: len(sizes) == 5, WAIT_S)
    assert sorted(sizes) == [2, 41, 151, 300, 300]


@native_gateway
async def test_a_peer_without_datagrams_is_acknowledged(links: Links) -> None:
    gateway = links.lab.gateway()
    peer = await links.lab.peer(gateway, "alice", max_datagram_frame_size=2)
    peer.connection.ping()
    peer.flush()
    await eventually(lambda: not waiting_for_acks(peer.connection), WAIT_S)


@only_native
async def test_a_limit_that_grows_in_mid_batch_harms_no_payload(links: Links) -> None:
    link = await links.link()
    engine = link.gateway_side.engine
    engine.set_frame_limit(200, 230)
    payloads = [link.prefix + bytes([n]) * 60 for n in range(2)]
    engine.enqueue(b"\x30" + payloads[0])
    engine.set_frame_limit(1400, 1430)
    for n in range(2, 20):
        payloads.append(link.prefix + bytes([n]) * (400 if n % 2 else 60))
    for payload in payloads[1:]:
        engine.enqueue(b"\x30" + payload)
    link.gateway.endpoint.flush(link.gateway_side)
    await eventually(lambda: set(payloads) <= set(link.peer.datagrams), WAIT_S)


# Lives.


@only_native
async def test_sessions_that_close_in_the_middle_of_a_batch(links: Links) -> None:
    gateway = links.lab.gateway(pools=("10.100.0.0/26",))
    all_links = [await links.link(f"client{n}", gateway) for n in range(8)]
    write = gateway.tun.write
    closing = [link.session_of_gateway for link in all_links[::2]]

    def write_and_close(packet: bytes) -> bool:
        if closing and len(gateway.tun.written) % 5 == 4:
            gateway.table.close(closing.pop(), "in the middle")
        return write(packet)

    gateway.table.write_tun = write_and_close
    survivors = all_links[1::2]
    for _ in range(10):
        for link in all_links:
            if link.name in gateway.table.by_client:
                link.send_up([100] * 10)
        await eventually(lambda: True)
    await eventually(lambda: not closing, WAIT_S)
    gateway.table.write_tun = write
    for link in survivors:
        await link.carry(BURST)
    await eventually(lambda: len(gateway.endpoint.connections) == len(survivors), WAIT_S)


@only_native
async def test_the_end_frees_the_session(links: Links) -> None:
    link = await links.link()
    session = link.native(link.gateway_side)
    connection = link.gateway_side
    link.gateway.table.close(link.session_of_gateway, "over")
    await eventually(lambda: not session.is_open, WAIT_S)
    await eventually(lambda: connection not in link.gateway.endpoint.connections, WAIT_S)
    with pytest.raises(ValueError, match="closed"):
        session.send_frame(b"x")
