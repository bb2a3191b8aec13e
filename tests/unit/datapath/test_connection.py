"""One connection: order of things, bounds on what a peer makes us hold, and its end."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from aioquic.h3.connection import ErrorCode, FrameType, encode_frame, encode_settings
from aioquic.quic.connection import QuicConnectionState
from zgate_datapath import connection as connection_module
from zgate_datapath.connection import Connection, Ending
from zgate_datapath.h3 import DatagramH3Connection
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.errors import H3Error
from zgate_protocol.icmp import TokenBucket
from zgate_protocol.varint import encode_varint

from ...loopback import (  # noqa: TID252
    OFFICE_V4,
    Gateway,
    Lab,
    Peer,
    eventually,
    python_engine,
    sized_packet,
    udp_packet,
)

V4 = "10.100.0.2"


def gateways_end(gateway: Gateway) -> Connection:
    """The gateway's end of the only connection."""
    (connection,) = gateway.endpoint.connections
    return connection


# RFC 9297.


@pytest.mark.parametrize("payload", [b"", b"\x40", b"\xff" * 8])
async def test_9297_s2_1_bad_quarter_stream_id_closes_the_connection(
    lab: Lab, payload: bytes
) -> None:
    """As the client sees it; the gateway's side is in test_sessions."""
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    connection = gateways_end(gateway)
    connection.enqueue(b"\x30" + payload)
    gateway.endpoint.flush(connection)
    await eventually(lambda: client.connection.is_terminated)
    await eventually(lambda: gateway.record.down)
    assert client.connection.quic._close_event is not None
    assert client.connection.quic._close_event.error_code == H3Error.DATAGRAM_ERROR
    await eventually(lambda: not gateway.endpoint.connections)


async def test_9297_s2_1_the_client_drops_and_counts_datagrams_of_other_streams(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    connection = gateways_end(gateway)
    packet = udp_packet(OFFICE_V4, V4)
    for payload in (b"\x07\0" + packet, b"\x40\0\0" + packet):
        connection.enqueue(b"\x30" + payload)
        gateway.endpoint.flush(connection)
    await eventually(lambda: client.tun.written == [packet])
    assert client.tunnel.drops() == {DropReason.UNKNOWN_STREAM: 1}


class LateSettings(DatagramH3Connection):
    """A client whose SETTINGS come after its first requests."""

    def _init_connection(self) -> None:
        if not self._is_client:
            super()._init_connection()
            return
        self._local_encoder_stream_id = self._create_uni_stream(2)
        self._local_decoder_stream_id = self._create_uni_stream(3)

    def send_settings(self) -> None:
        control = self._create_uni_stream(0)
        frame = encode_frame(FrameType.SETTINGS, encode_settings(self._get_local_settings()))
        self._quic.send_stream_data(control, frame)


@pytest.fixture
def late_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "DatagramH3Connection", LateSettings)


async def early_peer(lab: Lab, gateway: Gateway) -> Peer:
    peer = lab.make_peer(gateway)
    await peer.dial(gateway.endpoint.udp.local_address)
    await eventually(lambda: peer.connection.h3)
    return peer


async def test_9297_s2_1_1_requests_wait_for_the_settings(lab: Lab, late_settings: None) -> None:
    gateway = lab.gateway()
    peer = await early_peer(lab, gateway)
    stream_id = peer.open_request()
    await eventually(lambda: gateways_end(gateway)._held_events)
    assert gateway.record.up == []
    h3 = peer.connection.h3
    assert isinstance(h3, LateSettings)
    h3.send_settings()
    peer.flush()
    assert (await peer.answer(stream_id))[0] == 200
    assert gateways_end(gateway)._held_events == []


async def test_requests_without_settings_are_not_held_without_end(
    lab: Lab, late_settings: None
) -> None:
    gateway = lab.gateway()
    peer = await early_peer(lab, gateway)
    for _ in range(100):
        if peer.ended:
            break
        peer.open_request()
        await asyncio.sleep(0.001)
    await eventually(lambda: peer.ended)
    assert peer.ended == Ending(ErrorCode.H3_EXCESSIVE_LOAD, "requests without SETTINGS")
    await eventually(lambda: not gateway.endpoint.connections)
    gateway.assert_holds_nothing()


# Bounds.


async def test_data_behind_a_gap_is_not_held_without_end(lab: Lab) -> None:
    """aioquic raises its flow control limits with what arrives, read or not."""
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    stream_id = await peer.establish()
    sender = peer.quic._streams[stream_id].sender
    peer.quic.send_stream_data(stream_id, bytes(8 << 20))
    sender._pending.subtract(sender._pending[0].start, sender._pending[0].start + 1)
    held = 0
    deadline = asyncio.get_running_loop().time() + 30
    while not peer.ended:
        assert asyncio.get_running_loop().time() < deadline
        peer.flush()
        for connection in gateway.endpoint.connections:
            streams = connection.quic._streams.values()
            held = max(held, sum(len(s.receiver._buffer) for s in streams))
        await asyncio.sleep(0.001)
    assert peer.ended == Ending(ErrorCode.H3_EXCESSIVE_LOAD, "too much stream data behind a gap")
    assert held < 1 << 20
    await eventually(lambda: not gateway.endpoint.connections)
    gateway.assert_holds_nothing()


async def test_any_amount_of_data_in_order_is_no_backlog(lab: Lab) -> None:
    """Unknown capsules are skipped, however long (RFC 9297 section 3.2)."""
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    stream_id = await peer.establish()
    total = 2 << 20
    capsule = encode_varint(0x1234) + encode_varint(total)
    peer.send_data(stream_id, capsule + bytes(total))
    packet = udp_packet(V4, OFFICE_V4)
    await eventually(lambda: gateways_end(gateway).quic._local_max_data.used > total, 10)
    peer.send_datagram(encode_varint(stream_id // 4) + b"\0" + packet)
    await eventually(lambda: gateway.tun.written == [packet])


async def test_datagrams_before_the_handshake_is_complete_are_dropped(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    connection = gateways_end(gateway)
    connection._is_up = False
    peer.send_datagram(b"\0\0" + udp_packet(V4, OFFICE_V4))
    await eventually(lambda: connection.dropped == {DropReason.NO_SESSION: 1})
    await peer.close()
    await eventually(lambda: gateway.table.total_drops() == {DropReason.NO_SESSION: 1})


# Out.


async def test_small_packets_share_one_quic_packet(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    await peer.establish()
    tunnel = gateway.session("alice").tunnel
    counters = tunnel.connection.engine.counters
    before = counters.sealed_packets
    packets = [udp_packet(OFFICE_V4, V4, bytes([n]) * n) for n in range(1, 65)]
    for packet in packets:
        tunnel.send(packet)
    gateway.endpoint.flush(tunnel.connection)
    await eventually(lambda: len(peer.datagrams) == len(packets))
    assert [payload[2:] for payload in peer.datagrams] == packets
    assert counters.sealed_packets - before < len(packets) / 8


@python_engine
async def test_what_fits_no_more_when_it_is_sent_is_a_counted_drop(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    await peer.establish()
    tunnel = gateway.session("alice").tunnel
    assert not tunnel.send(sized_packet(OFFICE_V4, V4, tunnel.mtu_bytes))
    tunnel.connection.path_mtu.too_big(1400, gateway.endpoint.loop.time())
    assert not tunnel.send(udp_packet(OFFICE_V4, V4))
    gateway.endpoint.flush(tunnel.connection)
    await eventually(lambda: peer.datagrams)
    assert len(peer.datagrams) == 1
    assert gateway.table.total_drops() == {DropReason.TOO_BIG: 1}


@python_engine
async def test_a_full_queue_says_so_and_tells_when_there_is_room(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    room: list[bool] = []
    peer.can_send = lambda: room.append(True)  # type: ignore[method-assign]
    connection = peer.connection
    window = connection.engine.window_bytes
    connection.engine.window_bytes = lambda: 0  # type: ignore[method-assign]
    answers = [connection.enqueue(b"\x30\0\0x") for _ in range(connection.queue_packets + 3)]
    assert answers.count(DropReason.QUEUE_FULL) == 3
    assert not connection.has_room()
    peer.flush()
    assert room == [] and connection.queued_packets() == connection.queue_packets
    connection.engine.window_bytes = window  # type: ignore[method-assign]
    peer.flush()
    await eventually(lambda: connection.queued_packets() == 0)
    assert connection.has_room() and room == [True]


@python_engine
async def test_the_congestion_window_holds_back_what_the_engine_seals(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    connection = peer.connection
    for _ in range(connection.queue_packets):
        connection.enqueue(b"\x30" + bytes(1300))
    peer.flush()
    loss = peer.quic._loss
    assert loss.bytes_in_flight <= loss.congestion_window
    assert 0 < connection.queued_packets() < connection.queue_packets


@python_engine
async def test_a_probe_on_an_unproved_path_needs_credit(lab: Lab) -> None:
    gateway = lab.gateway()
    await lab.connect(gateway)
    connection = gateways_end(gateway)
    path = connection.quic._network_paths[0]
    connection.path_mtu.path_changed(0.0)
    path.is_validated = False
    path.bytes_received, path.bytes_sent = 400, 0
    probes: list[Any] = []
    connection.engine.seal_probe = lambda *a: probes.append(a) or b""  # type: ignore[method-assign, func-returns-value]
    connection._probe_path(path.addr, 1.0)
    assert probes == []
    path.is_validated = True
    connection._probe_path(path.addr, 1.0)
    assert len(probes) == 1


async def test_aioquics_own_queue_of_datagrams_is_never_used(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    for _ in range(2000):
        client.tun.inject(sized_packet(V4, OFFICE_V4, 1400))
        await asyncio.sleep(0)
    await eventually(lambda: len(gateway.tun.written) > 100)
    assert not client.connection.quic._datagrams_pending
    assert not gateways_end(gateway).quic._datagrams_pending


# Ends.


def test_an_alert_is_told_from_an_http3_error_of_the_same_number() -> None:
    assert Ending(0x100 + 46, "", is_transport=True).tls_alert == 46
    assert Ending(0x100, "", is_transport=True).tls_alert == 0
    assert Ending(0x1FF, "", is_transport=True).tls_alert == 255
    assert Ending(0x200, "", is_transport=True).tls_alert is None
    assert Ending(0xFF, "", is_transport=True).tls_alert is None
    assert Ending(ErrorCode.H3_NO_ERROR, "").tls_alert is None
    assert str(Ending(0x10B, "")) == "error 0x10b"
    assert str(Ending(0x10B, "because")) == "because"


async def test_a_goodbye_is_taken_at_its_word(lab: Lab) -> None:
    """... and not after a draining period of several round trips."""
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    await peer.establish()
    connection = gateways_end(gateway)
    peer.connection.close(ErrorCode.H3_NO_ERROR, "bye")
    peer.flush()
    await eventually(lambda: connection.is_terminated)
    assert connection.quic._state is QuicConnectionState.DRAINING
    assert gateway.record.down == [("alice", "bye")]


@python_engine
async def test_what_waits_at_the_end_is_counted(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    await peer.establish()
    tunnel = gateway.session("alice").tunnel
    tunnel.connection.engine.window_bytes = lambda: 0  # type: ignore[method-assign]
    for _ in range(7):
        tunnel.send(udp_packet(OFFICE_V4, V4))
    await peer.close()
    await eventually(lambda: not gateway.endpoint.connections)
    assert gateway.table.total_drops() == {DropReason.SESSION_CLOSED: 7}


async def test_nothing_happens_after_the_end(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    connection = gateways_end(gateway)
    address = connection.peer_address
    assert address is not None
    connection.drop("enough")
    connection.drop("twice")
    now = gateway.endpoint.loop.time()
    connection.receive([b"\x40" + bytes(50)], address, now)
    connection.handle_timer(now)
    connection.flush(now)
    connection.abort_stream(0, 0)
    connection.stop_reading(0, 0)
    assert connection.next_timer(now) is None
    assert connection.is_terminated
    assert peer.ended is None, "dropped without a word"


async def test_aborting_an_unknown_stream_is_no_error(lab: Lab) -> None:
    gateway = lab.gateway()
    await lab.connect(gateway)
    gateways_end(gateway).abort_stream(400, ErrorCode.H3_REQUEST_CANCELLED)
    gateways_end(gateway).stop_reading(400, ErrorCode.H3_REQUEST_CANCELLED)


async def test_tracebacks_that_peers_provoke_are_limited(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection_module, "_FAULT_LOG", TokenBucket(0, 2))
    gateway = lab.gateway()

    def fault(*arguments: object, **named: object) -> None:
        raise AssertionError("an assert of aioquic")

    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            peer = await lab.peer(gateway)
            connection = next(iter(gateway.endpoint.connections))
            monkeypatch.setattr(connection.quic, "receive_datagram", fault)
            peer.quic.change_connection_id()
            peer.connection.ping()
            peer.flush()
            await eventually(lambda: not gateway.endpoint.connections)
    assert caplog.text.count("its connection ends") == 2


async def test_the_first_packet_of_a_stranger_that_raises_leaves_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aioquic.quic.connection import QuicConnection

    gateway = lab.gateway()
    peer = lab.make_peer(gateway)

    def fault(self: QuicConnection, *arguments: object) -> None:
        raise AssertionError("an assert of aioquic")

    monkeypatch.setattr(QuicConnection, "_payload_received", fault)
    await peer.dial(gateway.endpoint.udp.local_address)
    await eventually(lambda: gateway.handlers)
    await eventually(lambda: not gateway.endpoint.connections)
    gateway.assert_holds_nothing()


async def test_statistics_have_their_units(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    numbers = client.connection.statistics()
    assert numbers["path_udp_payload_bytes"] == 1452
    assert 0 < numbers["smoothed_rtt_s"] < 10
    assert numbers["congestion_window_bytes"] >= 2400
    assert numbers["queued_packets"] == 0
