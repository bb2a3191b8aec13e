"""What a client may send in its session: datagrams, bad packets and what they are told."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from zgate_datapath.path_mtu import PathMtuState
from zgate_protocol.capsule import (
    encode_capsule,
)
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.errors import H3Error
from zgate_protocol.icmp import ECHO_REPLY_V6, TokenBucket, build_probe
from zgate_protocol.varint import encode_varint

from ...loopback import (  # noqa: TID252
    GATEWAY_V4,
    GATEWAY_V6,
    OFFICE_V4,
    OFFICE_V6,
    Gateway,
    Lab,
    Peer,
    eventually,
    icmp_type_and_code,
    udp_packet,
)

V4, V6 = ip_address("10.100.0.2"), ip_address("fd7a:7a67:6174:65::2")


# Datagrams.


async def send_and_count(gateway: Gateway, peer: Peer, payload: bytes, reason: DropReason) -> None:
    before = gateway.table.total_drops().get(reason, 0)
    peer.send_datagram(payload)
    await eventually(lambda: gateway.table.total_drops().get(reason, 0) == before + 1)


async def test_9297_s2_1_datagrams_of_unknown_streams_are_dropped_and_counted(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    packet = udp_packet(V4, OFFICE_V4)
    await send_and_count(gateway, peer, b"\0\0" + packet, DropReason.NO_SESSION)
    stream_id = await peer.establish()
    await send_and_count(gateway, peer, b"\7\0" + packet, DropReason.UNKNOWN_STREAM)
    good = encode_varint(stream_id // 4) + b"\0" + packet
    peer.send_datagram(good)
    await eventually(lambda: gateway.tun.written == [packet])
    assert peer.ended is None


async def test_9297_s2_1_a_longer_encoding_of_the_stream_is_the_same_stream(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    stream_id = await peer.establish()
    packet = udp_packet(V4, OFFICE_V4)
    for length, bits in ((2, 0x4000), (4, 0x80000000), (8, 0xC000000000000000)):
        number = (bits | stream_id // 4).to_bytes(length, "big")
        peer.send_datagram(number + b"\0" + packet)
    await eventually(lambda: gateway.tun.written == [packet] * 3)


@pytest.mark.parametrize("payload", [b"", b"\x40", b"\xff" * 8 + b"\0", b"\xd0" + bytes(7)])
@pytest.mark.parametrize("established", [True, False])
async def test_9297_s2_1_a_bad_quarter_stream_id_ends_the_connection_and_its_session(
    lab: Lab, payload: bytes, established: bool
) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    if established:
        await peer.establish()
    peer.send_datagram(payload)
    await eventually(lambda: peer.ended)
    assert peer.ended.error_code == H3Error.DATAGRAM_ERROR
    await eventually(lambda: not gateway.endpoint.connections)
    gateway.assert_holds_nothing()


async def test_9297_s2_datagram_on_a_refused_request_aborts_the_stream(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    refused = peer.open_request(method="GET", protocol=None, path="/")
    assert (await peer.answer(refused))[0] == 404
    peer.send_datagram(encode_varint(refused // 4) + b"\0" + udp_packet(V4, OFFICE_V4))
    # A reset of ours, or where the answer's end was acknowledged before it, STOP_SENDING alone:
    # both carry the code.
    await eventually(lambda: peer.resets)
    assert peer.resets == {refused: H3Error.DATAGRAM_ERROR}
    assert peer.ended is None
    await peer.establish()


async def test_a_packet_in_a_datagram_capsule_passes_and_only_on_its_own_stream(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    packet = udp_packet(V4, OFFICE_V4)
    capsule = encode_capsule(0, b"\0" + packet)
    stream_id = await peer.establish()
    peer.send_data(stream_id, capsule)
    await eventually(lambda: gateway.tun.written == [packet])
    gateway.handlers[-1]._receive_capsule(object(), b"\0" + packet)  # type: ignore[arg-type]
    assert gateway.tun.written == [packet]
    assert gateway.table.total_drops() == {DropReason.NO_SESSION: 1}


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\0", DropReason.BAD_LENGTH),
        (b"\0\x45", DropReason.BAD_LENGTH),
        (b"\0" + udp_packet(V4, OFFICE_V4) + b"x", DropReason.BAD_LENGTH),
        (b"\0" + udp_packet(V4, OFFICE_V4)[:-1], DropReason.BAD_LENGTH),
        (b"\0\x75" + udp_packet(V4, OFFICE_V4)[1:], DropReason.BAD_VERSION),
        (b"\2" + udp_packet(V4, OFFICE_V4), DropReason.UNKNOWN_CONTEXT),
        (b"", DropReason.BAD_DATAGRAM),
        (b"\0" + udp_packet(V4, "169.254.1.1"), DropReason.LINK_LOCAL),
        (b"\0" + udp_packet("fe80::1", OFFICE_V6), DropReason.LINK_LOCAL),
        (b"\0" + udp_packet("10.100.0.3", OFFICE_V4), DropReason.SOURCE_NOT_ASSIGNED),
        (b"\0" + udp_packet("fd00::3", OFFICE_V6), DropReason.SOURCE_NOT_ASSIGNED),
    ],
    ids=lambda value: value.name if isinstance(value, DropReason) else "",
)
async def test_9484_s7_2_1_a_bad_packet_is_a_counted_drop_and_the_session_goes_on(
    lab: Lab, payload: bytes, reason: DropReason
) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    number = encode_varint(await peer.establish() // 4)
    await send_and_count(gateway, peer, number + payload, reason)
    assert gateway.tun.written == []
    peer.send_datagram(number + b"\0" + udp_packet(V4, OFFICE_V4))
    await eventually(lambda: gateway.tun.written)


@pytest.mark.parametrize(
    ("spoofed", "office", "expected", "sender"),
    [
        ("10.100.0.3", OFFICE_V4, (3, 13), GATEWAY_V4),
        ("192.168.7.7", OFFICE_V4, (3, 13), GATEWAY_V4),
        ("fd00::3", OFFICE_V6, (1, 5), GATEWAY_V6),
    ],
)
async def test_9484_s7_2_1_a_spoofed_source_is_told_so(
    lab: Lab, spoofed: str, office: str, expected: tuple[int, int], sender: object
) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    prefix = encode_varint(await peer.establish() // 4) + b"\0"
    peer.send_datagram(prefix + udp_packet(spoofed, office))
    await eventually(lambda: peer.datagrams)
    answer = peer.datagrams[0][len(prefix) :]
    assert icmp_type_and_code(answer) == expected
    source, destination = (
        (answer[12:16], answer[16:20]) if answer[0] >> 4 == 4 else (answer[8:24], answer[24:40])
    )
    assert source == sender.packed  # type: ignore[attr-defined]
    assert destination == ip_address(spoofed).packed
    # It goes to who sent the packet, and nowhere else.
    assert gateway.tun.written == [] and gateway.icmp.sent == []


async def test_9484_s7_2_1_no_route_is_told(lab: Lab) -> None:
    gateway = lab.gateway(routes=["10.20.0.0/16"])
    peer = await lab.peer(gateway)
    prefix = encode_varint(await peer.establish() // 4) + b"\0"
    peer.send_datagram(prefix + udp_packet(V4, "192.0.2.1"))
    await eventually(lambda: peer.datagrams)
    assert icmp_type_and_code(peer.datagrams[0][len(prefix) :]) == (3, 0)
    assert gateway.table.total_drops() == {DropReason.DESTINATION_NOT_ROUTED: 1}


async def test_errors_to_a_client_are_limited(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    prefix = encode_varint(await peer.establish() // 4) + b"\0"
    gateway.handlers[-1]._icmp_bucket = TokenBucket(0, 20)
    for _ in range(100):
        peer.send_datagram(prefix + udp_packet("10.100.0.3", OFFICE_V4))
    await eventually(lambda: gateway.table.total_drops() == {DropReason.SOURCE_NOT_ASSIGNED: 100})
    await eventually(lambda: len(peer.datagrams) == 20)


async def test_9484_s7_2_the_link_probe_of_1280_bytes_is_answered(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    prefix = encode_varint(await peer.establish() // 4) + b"\0"
    peer.send_datagram(prefix + build_probe(ip_address("fe80::2").packed, 77, 1))
    await eventually(lambda: peer.datagrams)
    answer = peer.datagrams[0][len(prefix) :]
    assert len(answer) == 1280
    assert answer[40] == ECHO_REPLY_V6
    assert gateway.tun.written == []


async def test_a_tun_that_takes_nothing_is_a_counted_drop(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    gateway.tun.takes = False
    client.tun.inject(udp_packet(V4, OFFICE_V4))
    await eventually(lambda: gateway.table.total_drops() == {DropReason.TUN_WRITE_FAILED: 1})


async def test_drops_are_kept_when_the_session_ends(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    session = gateway.session("alice")
    session.tunnel.count(DropReason.BAD_LENGTH)
    session.tunnel.connection.dropped[DropReason.TOO_BIG] = 2
    before = gateway.table.total_drops()
    assert before == {DropReason.BAD_LENGTH: 1, DropReason.TOO_BIG: 2}
    await client.tunnel.close()
    await eventually(lambda: not gateway.endpoint.connections)
    assert gateway.table.total_drops() == before


# Path MTU.


async def test_9484_s7_2_a_path_without_1280_bytes_ends_the_session(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    await peer.establish()
    session = gateway.session("alice")
    session.tunnel.connection.path_mtu.state = PathMtuState.UNUSABLE
    session.owner.mtu_changed()
    await eventually(lambda: peer.ended)
    assert gateway.record.down == [("alice", "the path carries no IPv6 packet of 1280 bytes")]
    await eventually(lambda: not gateway.endpoint.connections)
    gateway.assert_holds_nothing()
