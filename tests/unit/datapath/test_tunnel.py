"""One session's packets: what fits, whose they are, and a reason for every drop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_datapath.path_mtu import PathMtuState
from zgate_datapath.tunnel import Tunnel, add_drops
from zgate_protocol.connect_ip import ConnectIpSession, Role
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.varint import encode_varint

from ...loopback import (  # noqa: TID252
    OFFICE_V4,
    Lab,
    eventually,
    sized_packet,
    udp_packet,
)

V4 = "10.100.0.2"


class FakeConnection:
    """As much of a connection as a tunnel asks for."""

    def __init__(self, max_frame_payload_bytes: int = 1400) -> None:
        self.max_frame_payload_bytes = max_frame_payload_bytes
        self.queued: list[bytes] = []
        self.answer = DropReason.NONE

    def enqueue(self, frame: bytes) -> DropReason:
        if not self.answer:
            self.queued.append(frame)
        return self.answer


def tunnel_of(stream_id: int = 0, **limits: int) -> tuple[Tunnel, FakeConnection]:
    connection = FakeConnection(**limits)
    session = ConnectIpSession(Role.CLIENT, stream_id)
    session.check_outgoing = lambda packet: DropReason.NONE
    return Tunnel(connection, session, stream_id), connection  # type: ignore[arg-type]


@pytest.mark.parametrize("stream_id", [0, 252, 256, 65536])
def test_a_frame_is_type_stream_context_packet(stream_id: int) -> None:
    tunnel, connection = tunnel_of(stream_id)
    assert not tunnel.send(b"packet")
    assert connection.queued == [b"\x30" + encode_varint(stream_id // 4) + b"\0packet"]


@pytest.mark.parametrize("stream_id", [0, 256])
def test_the_mtu_is_what_exactly_fits(stream_id: int) -> None:
    tunnel, connection = tunnel_of(stream_id, max_frame_payload_bytes=1400)
    mtu = tunnel.mtu_bytes
    assert not tunnel.send(bytes(mtu))
    assert len(connection.queued[0]) == 1 + 1400
    assert tunnel.send(bytes(mtu + 1)) is DropReason.TOO_BIG
    assert tunnel.drops == {DropReason.TOO_BIG: 1}


def test_before_the_handshake_nothing_fits() -> None:
    tunnel, _ = tunnel_of(max_frame_payload_bytes=0)
    assert tunnel.mtu_bytes == 0
    assert tunnel.send(b"p") is DropReason.TOO_BIG


def test_a_refused_packet_is_counted_and_not_queued() -> None:
    tunnel, connection = tunnel_of()
    tunnel.session.check_outgoing = lambda packet: DropReason.DESTINATION_NOT_ROUTED
    assert tunnel.send(b"packet") is DropReason.DESTINATION_NOT_ROUTED
    connection.answer = DropReason.QUEUE_FULL
    tunnel.session.check_outgoing = lambda packet: DropReason.NONE
    assert tunnel.send(b"packet") is DropReason.QUEUE_FULL
    assert connection.queued == []
    assert tunnel.drops == {DropReason.DESTINATION_NOT_ROUTED: 1, DropReason.QUEUE_FULL: 1}


def test_an_answer_of_ours_needs_no_route_but_must_fit() -> None:
    tunnel, connection = tunnel_of()
    tunnel.session.check_outgoing = lambda packet: DropReason.DESTINATION_NOT_ASSIGNED
    tunnel.reply(b"icmp")
    tunnel.reply(bytes(tunnel.mtu_bytes + 1))
    assert connection.queued == [b"\x30\0\0icmp"]


@given(st.integers(min_value=0, max_value=(1 << 60) - 1), st.binary(max_size=50))
def test_every_encoding_of_the_stream_is_recognized(quarter: int, rest: bytes) -> None:
    tunnel, _ = tunnel_of(quarter * 4)
    shortest = encode_varint(quarter)
    for length, bits in ((1, 0), (2, 1), (4, 2), (8, 3)):
        if quarter >= 1 << (8 * length - 2):
            continue
        payload = (bits << (8 * length - 2) | quarter).to_bytes(length, "big") + rest
        assert tunnel.owns(payload) == (length == len(shortest))
        assert tunnel.shorten(payload) == shortest + rest
    assert tunnel.restore(rest) == shortest + rest


@given(st.binary(max_size=20), st.sampled_from([0, 4, 252, 256, 65536]))
def test_any_payload_is_ours_or_not_but_never_an_error(payload: bytes, stream_id: int) -> None:
    tunnel, _ = tunnel_of(stream_id)
    if tunnel.owns(payload):
        assert tunnel.shorten(payload) == payload
    received = tunnel.shorten(payload)
    assert received is None or tunnel.owns(received)


def test_drops_add_up() -> None:
    total = {DropReason.TOO_BIG: 1}
    add_drops(total, [(DropReason.TOO_BIG, 2), (DropReason.BAD_LENGTH, 3)])
    assert total == {DropReason.TOO_BIG: 3, DropReason.BAD_LENGTH: 3}


# On a connection.


async def test_9221_s3_no_datagram_above_the_peers_limit(lab: Lab) -> None:
    """max_datagram_frame_size counts the whole frame, type included."""
    limit = 1300
    gateway = lab.gateway()
    peer = await lab.peer(gateway, max_datagram_frame_size=limit)
    await peer.establish()
    tunnel = gateway.session("alice").tunnel
    assert tunnel.mtu_bytes == limit - len(b"\x30\0\0")
    assert tunnel.send(sized_packet(OFFICE_V4, V4, tunnel.mtu_bytes + 1)) is DropReason.TOO_BIG
    sizes = [tunnel.mtu_bytes, *range(40, tunnel.mtu_bytes, 50)]
    for size in sizes:
        gateway.tun.inject(sized_packet(OFFICE_V4, V4, size))
    await eventually(lambda: len(peer.datagrams) == len(sizes))
    assert max(map(len, peer.datagrams)) + 1 == limit
    # aioquic checks the same on arrival: it would have closed the connection.
    assert peer.ended is None


@pytest.mark.parametrize("is_path_known", [True, False])
async def test_9484_s7_2_a_peer_that_takes_no_1280_bytes_gets_no_ipv6(
    lab: Lab, is_path_known: bool
) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway, max_datagram_frame_size=1200)
    if is_path_known:
        (connection,) = gateway.endpoint.connections
        await eventually(lambda: connection.path_mtu.state is PathMtuState.COMPLETE)
    peer.open_request()
    await eventually(lambda: peer.ended)
    assert gateway.record.down == [
        ("alice", "protocol error: IPv6 needs 1280 bytes, the tunnel carries 1197")
    ]
    gateway_without = lab.gateway(pools=("10.100.0.0/29",))
    peer = await lab.peer(gateway_without, max_datagram_frame_size=1200)
    await peer.establish()
    assert gateway_without.session("alice").tunnel.mtu_bytes == 1197


async def test_9484_s10_1_too_big_is_dropped_and_not_sent_on_the_stream(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    stream_id = await peer.establish()
    tunnel = gateway.session("alice").tunnel
    capsules = len(peer.capsules[stream_id])
    sent = tunnel.connection.quic._streams[stream_id].sender._buffer_stop
    assert tunnel.send(sized_packet(OFFICE_V4, V4, 1500)) is DropReason.TOO_BIG
    assert not tunnel.send(udp_packet(OFFICE_V4, V4))
    gateway.endpoint.flush(tunnel.connection)
    await eventually(lambda: len(peer.datagrams) == 1)
    assert tunnel.connection.quic._streams[stream_id].sender._buffer_stop == sent
    assert len(peer.capsules[stream_id]) == capsules
    assert tunnel.drops == {DropReason.TOO_BIG: 1}
