"""Sessions over loopback: who gets one, what it may send, how it ends, and that nothing is left."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address, ip_network

import pytest
from aioquic.h3.connection import ErrorCode
from zgate_control.store import StoreError
from zgate_datapath.client import ConnectionLost, SessionRefused
from zgate_datapath.connection import Ending
from zgate_datapath.path_mtu import PathMtuState
from zgate_gateway import sessions as sessions_module
from zgate_gateway.sessions import _refusal_of, _satisfies
from zgate_protocol.capsule import (
    AddressAssign,
    AddressRequest,
    AssignedAddress,
    RouteAdvertisement,
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


def request_for(*entries: tuple[int, str]) -> bytes:
    return AddressRequest(
        tuple(AssignedAddress(number, ip_network(prefix)) for number, prefix in entries)
    ).encode()


def assigned(peer: Peer, stream_id: int) -> list[tuple[int, str]]:
    """What the last ADDRESS_ASSIGN said."""
    last = [c for c in peer.capsules[stream_id] if isinstance(c, AddressAssign)][-1]
    return sorted((entry.request_id, str(entry.prefix)) for entry in last.addresses)


# A session.


async def test_a_client_gets_addresses_routes_and_is_known_everywhere(lab: Lab) -> None:
    gateway = lab.gateway()
    client, state = await lab.connect(gateway)
    assert [str(address) for address in state.addresses] == [f"{V4}/32", f"{V6}/128"]
    assert {(str(r.start), r.ip_protocol) for r in state.routes} == {("0.0.0.0", 0), ("::", 0)}
    assert gateway.kernel.clients == {"alice": (V4, V6)}
    assert gateway.kernel.groups == {"alice": ("staff",)}
    assert gateway.record.up == ["alice"]
    assert set(gateway.table.by_address) == {V4.packed, V6.packed}
    session = gateway.session("alice")
    assert session.client == "alice"
    assert session.owner.peer.startswith("127.0.0.1:")
    assert gateway.table.established_total == 1
    assert client.tunnel.drops() == {}


@pytest.mark.parametrize(("ours", "office"), [(V4, OFFICE_V4), (V6, OFFICE_V6)])
async def test_packets_pass_both_ways_untouched(lab: Lab, ours: object, office: str) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    up = [udp_packet(ours, office, bytes([n]) * n) for n in range(1, 100)]
    down = [udp_packet(office, ours, bytes([n]) * n * 7) for n in range(1, 100)]
    for packet in up:
        client.tun.inject(packet)
    for packet in down:
        gateway.tun.inject(packet)
    await eventually(lambda: len(gateway.tun.written) == len(up))
    await eventually(lambda: len(client.tun.written) == len(down))
    # Order is kept and no byte is another: no hop limit is decremented here, for the kernels
    # at both ends forward.
    assert gateway.tun.written == up
    assert client.tun.written == down
    assert gateway.table.total_drops() == {}


async def test_9484_s7_2_the_hop_limit_of_what_passes_is_not_touched(lab: Lab) -> None:
    """The kernel decrements when it forwards; own packets are not forwarded at all."""
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    packets = [udp_packet(V4, OFFICE_V4, ttl=1), udp_packet(V6, OFFICE_V6, ttl=1)]
    for packet in packets:
        client.tun.inject(packet)
    await eventually(lambda: gateway.tun.written == packets)


async def test_two_clients_have_two_addresses_and_their_own_packets(lab: Lab) -> None:
    gateway = lab.gateway()
    alice, _ = await lab.connect(gateway, "alice")
    bob, state = await lab.connect(gateway, "bob")
    bobs = state.addresses[0].ip
    assert bobs != V4
    gateway.tun.inject(udp_packet(OFFICE_V4, bobs))
    gateway.tun.inject(udp_packet(OFFICE_V4, V4))
    await eventually(lambda: alice.tun.written and bob.tun.written)
    assert bob.tun.written == [udp_packet(OFFICE_V4, bobs)]
    assert alice.tun.written == [udp_packet(OFFICE_V4, V4)]


async def test_the_same_client_gets_its_address_again(lab: Lab) -> None:
    gateway = lab.gateway()
    client, first = await lab.connect(gateway)
    await client.tunnel.close()
    await eventually(lambda: not gateway.table.by_client)
    _, second = await lab.connect(gateway)
    assert second.addresses == first.addresses


# Ends.


async def test_a_client_that_leaves_leaves_nothing_behind(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    await client.tunnel.close("the user said so")
    await eventually(lambda: not gateway.endpoint.connections)
    gateway.assert_holds_nothing()
    assert gateway.record.down == [("alice", "the user said so")]


async def test_a_client_that_ends_its_stream_leaves_nothing_behind(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    stream_id = await peer.establish()
    peer.send_data(stream_id, b"", end=True)
    await eventually(lambda: peer.ended)
    await eventually(lambda: not gateway.endpoint.connections)
    gateway.assert_holds_nothing()
    assert gateway.record.down == [("alice", "closed by the client")]


async def test_a_client_that_resets_its_stream_leaves_nothing_behind(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    stream_id = await peer.establish()
    peer.connection.abort_stream(stream_id, ErrorCode.H3_REQUEST_CANCELLED)
    peer.flush()
    await eventually(lambda: peer.ended)
    await eventually(lambda: not gateway.endpoint.connections)
    gateway.assert_holds_nothing()


async def test_a_client_that_falls_silent_is_dropped(lab: Lab) -> None:
    gateway = lab.gateway(idle_timeout_s=0.3)
    client, _ = await lab.connect(gateway, keepalive_s=100.0)
    client.endpoint._stop_reading()
    await eventually(lambda: not gateway.endpoint.connections)
    gateway.assert_holds_nothing()
    assert gateway.record.down == [("alice", "Idle timeout")]


async def test_a_kicked_client_is_told_at_once(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    gateway.table.close(gateway.session("alice"), "kicked by the operator")
    assert gateway.kernel.clients == {}, "the kernel comes first"
    assert not gateway.table.by_address
    assert await asyncio.wait_for(client.tunnel.wait_closed(), 5) == "kicked by the operator"
    await eventually(lambda: not gateway.endpoint.connections)
    gateway.assert_holds_nothing()


async def test_closing_twice_is_no_error(lab: Lab) -> None:
    gateway = lab.gateway()
    await lab.connect(gateway)
    session = gateway.session("alice")
    gateway.table.close(session, "first")
    gateway.table.close(session, "second")
    assert gateway.record.down == [("alice", "first")]


async def test_packets_of_a_closed_session_are_dropped_with_a_reason(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    stream_id = await peer.establish()
    session = gateway.session("alice")
    gateway.table.close(session, "kicked")
    assert session.tunnel.send(udp_packet(OFFICE_V4, V4)) is DropReason.SESSION_CLOSED
    gateway.tun.inject(udp_packet(OFFICE_V4, V4))
    await eventually(lambda: gateway.table.total_drops().get(DropReason.NO_SESSION))
    peer.send_datagram(encode_varint(stream_id // 4) + b"\0" + udp_packet(V4, OFFICE_V4))
    await eventually(lambda: peer.ended)
    assert gateway.tun.written == []


@pytest.mark.parametrize("broken", ["audit", "kernel"])
async def test_a_failing_log_or_kernel_does_not_keep_a_session_alive(lab: Lab, broken: str) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    if broken == "audit":
        gateway.record.fails = OSError("disk full")
    else:
        gateway.kernel.fails = OSError("bpf: no such file")
    gateway.table.close(gateway.session("alice"), "revoked")
    gateway.record.fails = None
    assert not gateway.table.by_client and not gateway.table.by_address
    assert [pool.held for pool in gateway.pools] == [[], []]
    assert await asyncio.wait_for(client.tunnel.wait_closed(), 5) == "revoked"
    if broken == "audit":
        assert gateway.kernel.clients == {}


# One client, two sessions.


async def test_the_newer_session_of_a_client_replaces_the_older(lab: Lab) -> None:
    gateway = lab.gateway(newest_wins=True)
    older, first = await lab.connect(gateway)
    newer, second = await lab.connect(gateway)
    assert "replaced by a newer session" in await asyncio.wait_for(older.tunnel.wait_closed(), 5)
    assert first.addresses == second.addresses
    gateway.tun.inject(udp_packet(OFFICE_V4, V4))
    await eventually(lambda: newer.tun.written)
    assert older.tun.written == []
    assert gateway.kernel.calls == ["add alice", "remove alice", "add alice"]
    assert [pool.held for pool in gateway.pools] == [["alice"], ["alice"]]


async def test_the_older_session_stays_where_that_is_the_rule(lab: Lab) -> None:
    gateway = lab.gateway(newest_wins=False)
    older, _ = await lab.connect(gateway)
    with pytest.raises(SessionRefused) as refused:
        await lab.connect(gateway)
    assert refused.value.status == 409
    assert "connection_limit_reached" in refused.value.proxy_status
    gateway.tun.inject(udp_packet(OFFICE_V4, V4))
    await eventually(lambda: older.tun.written)
    # ... and when it has gone, the next may come at once.
    await older.tunnel.close()
    await eventually(lambda: not gateway.table.by_client)
    await lab.connect(gateway)


@pytest.mark.parametrize("newest_wins", [True, False])
async def test_a_second_session_on_one_connection_is_refused(lab: Lab, newest_wins: bool) -> None:
    gateway = lab.gateway(newest_wins=newest_wins)
    peer = await lab.peer(gateway)
    first = await peer.establish()
    status, proxy_status = await peer.answer(peer.open_request())
    assert (status, "one session per connection" in proxy_status) == (409, True)
    gateway.tun.inject(udp_packet(OFFICE_V4, V4))
    await eventually(lambda: peer.datagrams)
    assert peer.datagrams[0] == encode_varint(first // 4) + b"\0" + udp_packet(OFFICE_V4, V4)


# Refusals.


async def test_an_exhausted_pool_is_503_with_proxy_status(lab: Lab) -> None:
    gateway = lab.gateway(pools=("10.100.0.0/30", "fd7a::/125"))
    await lab.connect(gateway, "alice")
    with pytest.raises(SessionRefused) as refused:
        await lab.connect(gateway, "bob")
    assert refused.value.status == 503
    assert refused.value.proxy_status.startswith("zgate; error=connection_limit_reached; details=")
    assert gateway.kernel.clients.keys() == {"alice"}
    assert gateway.record.refused[0][:2] == ("bob", "connection_limit_reached")
    assert gateway.table.refused == {"connection_limit_reached": 1}


async def test_the_addresses_of_one_family_go_back_when_the_other_is_exhausted(lab: Lab) -> None:
    gateway = lab.gateway(pools=("10.100.0.0/29", "fd7a::/126"))
    await lab.connect(gateway, "alice")
    with pytest.raises(SessionRefused):
        await lab.connect(gateway, "bob")
    assert [pool.held for pool in gateway.pools] == [["alice"], ["alice"]]


async def test_too_many_sessions_are_503(lab: Lab) -> None:
    gateway = lab.gateway(max_sessions=1)
    await lab.connect(gateway, "alice")
    with pytest.raises(SessionRefused) as refused:
        await lab.connect(gateway, "bob")
    assert refused.value.status == 503
    # The same client is no further session.
    await lab.connect(gateway, "alice")


async def test_a_draining_gateway_takes_no_new_sessions(lab: Lab) -> None:
    gateway = lab.gateway()
    await lab.connect(gateway, "alice")
    gateway.table.accepting = False
    with pytest.raises(SessionRefused) as refused:
        await lab.connect(gateway, "bob")
    assert refused.value.status == 503
    assert "shutting down" in refused.value.proxy_status
    assert list(gateway.table.by_client) == ["alice"]


@pytest.mark.parametrize(
    "error",
    [
        StoreError("lease", "disk full", "make room"),
        OSError("bpf: E2BIG"),
        RuntimeError("no policy"),
    ],
)
async def test_a_kernel_or_store_that_fails_is_503_and_tells_no_secrets(
    lab: Lab, error: Exception
) -> None:
    gateway = lab.gateway()
    gateway.kernel.fails = error
    with pytest.raises(SessionRefused) as refused:
        await lab.connect(gateway)
    assert refused.value.status == 503
    assert "proxy_internal_error" in refused.value.proxy_status
    assert str(error) not in refused.value.proxy_status
    assert [pool.held for pool in gateway.pools] == [[], []]
    await eventually(lambda: not gateway.endpoint.connections)
    gateway.assert_holds_nothing()


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"path": "/"}, 404),
        ({"path": "/.well-known/masque/ip/10.0.0.1%2F8/*/"}, 400),
        ({"path": "/.well-known/masque/ip/*/256/"}, 400),
        ({"path": "/.well-known/masque/ip/*/44/"}, 403),
        ({"protocol": "connect-udp"}, 501),
        ({"protocol": "websocket"}, 501),
        ({"method": "GET", "protocol": None}, 404),
    ],
)
async def test_what_is_no_connect_ip_request_is_refused(
    lab: Lab, changes: dict[str, str | None], status: int
) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    stream_id = peer.open_request(**changes)
    assert (await peer.answer(stream_id))[0] == status
    assert stream_id in peer.fins
    assert not gateway.table.by_client
    # The connection goes on: another request on it gets its session.
    await peer.establish()


async def test_a_connection_may_not_try_for_ever(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    for _ in range(70):
        if peer.ended:
            break
        stream_id = peer.open_request(path="/", end=True)
        await eventually(lambda: stream_id in peer.headers or peer.ended)  # noqa: B023
    assert peer.ended == Ending(ErrorCode.H3_EXCESSIVE_LOAD, "too many requests")


async def test_requests_that_wait_are_bounded(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = lab.gateway()
    monkeypatch.setattr(gateway.table.loop, "getaddrinfo", _never)
    peer = await lab.peer(gateway)
    waiting = peer.open_request("slow.example")
    # One name at a time: resolvers are few, and all clients' share.
    assert (await peer.answer(peer.open_request("slow.example")))[0] == 409
    handler = gateway.handlers[-1]
    assert list(handler._resolving) == [waiting]
    # A client that leaves meanwhile takes its task with it.
    (task,) = handler._resolving.values()
    await peer.close()
    await eventually(task.cancelled)
    await eventually(lambda: not gateway.endpoint.connections)
    gateway.assert_holds_nothing()


async def test_a_connection_without_a_session_is_closed(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "_REQUEST_TIMEOUT_S", 0.1)
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    await eventually(lambda: peer.ended)
    assert peer.ended == Ending(ErrorCode.H3_NO_ERROR, "no session was asked for")
    client, _ = await lab.connect(gateway)
    await asyncio.sleep(0.15)
    assert not client.connection.is_terminated


# Names.


async def _never(*arguments: object, **named: object) -> list[object]:
    await asyncio.Event().wait()
    return []


def _answering(*addresses: str) -> object:
    async def getaddrinfo(*arguments: object, **named: object) -> list[object]:
        return [(0, 0, 0, "", (address, 0)) for address in addresses]

    return getaddrinfo


async def test_9484_s4_1_a_name_is_resolved_before_the_answer(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = lab.gateway()
    monkeypatch.setattr(
        gateway.table.loop, "getaddrinfo", _answering("192.0.2.7", "2001:db8::7", "fe80::1%eth0")
    )
    peer = await lab.peer(gateway)
    stream_id = peer.open_request("files.example", "17")
    await eventually(lambda: len(peer.capsules.get(stream_id, [])) >= 2)
    routes = next(c for c in peer.capsules[stream_id] if isinstance(c, RouteAdvertisement))
    assert {(str(r.start), str(r.end), r.ip_protocol) for r in routes.ranges} == {
        ("192.0.2.7", "192.0.2.7", 17),
        ("2001:db8::7", "2001:db8::7", 17),
    }
    prefix = encode_varint(stream_id // 4) + b"\0"
    peer.send_datagram(prefix + udp_packet(V4, OFFICE_V4))
    peer.send_datagram(prefix + udp_packet(V4, "192.0.2.7"))
    await eventually(lambda: gateway.tun.written)
    assert gateway.tun.written == [udp_packet(V4, "192.0.2.7")]
    assert gateway.table.total_drops() == {DropReason.DESTINATION_NOT_ROUTED: 1}


async def _fails(*arguments: object, **named: object) -> list[object]:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


async def _too_long_a_label(*arguments: object, **named: object) -> list[object]:
    raise UnicodeError("label too long")


@pytest.mark.parametrize(
    ("resolver", "status", "error"),
    [
        (_fails, 502, "dns_error"),
        (_too_long_a_label, 502, "dns_error"),
        (_answering(), 502, "dns_error"),
        (_answering("fe80::1%eth0"), 502, "dns_error"),
        (_never, 504, "dns_timeout"),
    ],
)
async def test_9484_s4_1_a_name_that_does_not_resolve_is_refused_with_proxy_status(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, resolver: object, status: int, error: str
) -> None:
    monkeypatch.setattr(sessions_module, "_RESOLVE_TIMEOUT_S", 0.05)
    gateway = lab.gateway()
    monkeypatch.setattr(gateway.table.loop, "getaddrinfo", resolver)
    peer = await lab.peer(gateway)
    stream_id = peer.open_request("nowhere.example")
    assert await peer.answer(stream_id) == (
        status,
        f'zgate; error={error}; details="{gateway.record.refused[0][2]}"',
    )
    assert stream_id in peer.fins
    assert not gateway.table.by_client


async def test_a_fault_while_a_name_is_resolved_ends_that_connection_only(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = lab.gateway()
    other, _ = await lab.connect(gateway, "bob")
    peer = await lab.peer(gateway)
    monkeypatch.setattr(gateway.table.loop, "getaddrinfo", _answering("not an address"))
    peer.open_request("files.example")
    await eventually(lambda: peer.ended)
    assert peer.ended.error_code == ErrorCode.H3_INTERNAL_ERROR
    gateway.tun.inject(udp_packet(OFFICE_V4, gateway.session("bob").addresses[0]))
    await eventually(lambda: other.tun.written)


# ADDRESS_REQUEST.


async def test_9484_s4_7_2_a_request_for_any_address_is_answered_with_the_lease(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    stream_id = await peer.establish()
    assert assigned(peer, stream_id) == [(0, f"{V4}/32"), (0, f"{V6}/128")]
    peer.send_data(stream_id, request_for((7, "0.0.0.0/32"), (9, "::/128")))
    await eventually(lambda: len(peer.capsules[stream_id]) == 3)
    assert assigned(peer, stream_id) == [(7, f"{V4}/32"), (9, f"{V6}/128")]


async def test_9484_s4_7_2_a_request_beyond_the_entitlement_is_refused(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    stream_id = await peer.establish()
    peer.send_data(
        stream_id,
        request_for((1, f"{V4}/32"), (2, "10.100.0.3/32"), (3, "fd00::/64"), (4, "0.0.0.0/32")),
    )
    await eventually(lambda: len(peer.capsules[stream_id]) == 3)
    assert assigned(peer, stream_id) == [
        (0, f"{V6}/128"),
        (1, f"{V4}/32"),
        (2, "0.0.0.0/32"),
        (3, "::/128"),
        (4, "0.0.0.0/32"),
    ]
    assert gateway.kernel.clients == {"alice": (V4, V6)}


async def test_9484_s4_7_2_a_request_that_comes_with_the_headers_is_answered(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    stream_id = peer.quic.get_next_available_stream_id()
    peer.open_request()
    peer.send_data(stream_id, request_for((5, "0.0.0.0/32")))
    await eventually(lambda: len(peer.capsules.get(stream_id, [])) >= 2)
    await eventually(lambda: (5, f"{V4}/32") in assigned(peer, stream_id))


@pytest.mark.parametrize(
    "capsule",
    [
        request_for((0, "0.0.0.0/32")),
        encode_capsule(2, b""),
        encode_capsule(1, b"\0\4\12"),
        encode_capsule(3, bytes(5)),
    ],
)
async def test_a_malformed_capsule_ends_its_session_and_nothing_else(
    lab: Lab, capsule: bytes
) -> None:
    gateway = lab.gateway()
    other, _ = await lab.connect(gateway, "bob")
    peer = await lab.peer(gateway)
    stream_id = await peer.establish()
    peer.send_data(stream_id, capsule)
    await eventually(lambda: peer.ended)
    await eventually(lambda: "alice" not in gateway.kernel.clients)
    assert gateway.record.down[-1][1].startswith("protocol error: ")
    gateway.tun.inject(udp_packet(OFFICE_V4, gateway.session("bob").addresses[0]))
    await eventually(lambda: other.tun.written)


async def test_trailers_end_the_session(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    stream_id = await peer.establish()
    peer.connection.send_headers(stream_id, [(b"x", b"y")])
    peer.flush()
    await eventually(lambda: not gateway.table.by_client)
    assert gateway.record.down[-1][1].startswith("protocol error: HEADERS")


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


# HTTP/3 settings.


async def test_9297_s2_1_1_a_peer_without_h3_datagram_is_refused(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zgate_datapath.h3 import DatagramH3Connection, Setting

    whole = DatagramH3Connection._get_local_settings

    def without(self: DatagramH3Connection) -> dict[int, int]:
        settings = whole(self)
        if self._is_client:
            del settings[Setting.H3_DATAGRAM]
        return settings

    monkeypatch.setattr(DatagramH3Connection, "_get_local_settings", without)
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    status, proxy_status = await peer.answer(peer.open_request())
    assert (status, "SETTINGS_H3_DATAGRAM" in proxy_status) == (400, True)
    assert not gateway.kernel.clients


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


# Faults of our own.


async def test_a_handler_that_raises_ends_its_connection_only(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = lab.gateway()
    alice, _ = await lab.connect(gateway, "alice")
    bob, _ = await lab.connect(gateway, "bob")

    def fault(*arguments: object) -> bool:
        raise ZeroDivisionError("a fault of our own")

    monkeypatch.setattr(gateway.session("alice").tunnel, "owns", fault)
    alice.tun.inject(udp_packet(V4, OFFICE_V4))
    assert await asyncio.wait_for(alice.tunnel.wait_closed(), 5) == "internal error"
    assert list(gateway.table.by_client) == ["bob"]
    assert list(gateway.kernel.clients) == ["bob"]
    assert len(gateway.endpoint.connections) == 1
    gateway.tun.inject(udp_packet(OFFICE_V4, gateway.session("bob").addresses[0]))
    await eventually(lambda: bob.tun.written)


async def test_a_fault_in_admission_ends_the_connection_and_leaves_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = lab.gateway()

    def fault(session: object) -> None:
        raise ZeroDivisionError("a fault of our own")

    monkeypatch.setattr(gateway.table, "announce", fault)
    with pytest.raises(ConnectionLost, match="internal error"):
        await lab.connect(gateway)
    await eventually(lambda: not gateway.endpoint.connections)
    gateway.assert_holds_nothing()


# Small parts.


def test_satisfies_and_refusals() -> None:
    held = ip_network("10.0.0.2/32")
    assert _satisfies(held, ip_network("0.0.0.0/32"))
    assert _satisfies(held, ip_network("0.0.0.0/0"))
    assert _satisfies(held, ip_network("10.0.0.2/32"))
    assert not _satisfies(held, ip_network("10.0.0.0/24"))
    assert not _satisfies(held, ip_network("::/128"))
    assert str(_refusal_of(held)) == "0.0.0.0/32"
    assert str(_refusal_of(ip_network("fd00::/64"))) == "::/128"


async def test_touching_leases_reaches_every_pool(lab: Lab) -> None:
    gateway = lab.gateway()
    touched: list[object] = []
    for pool in gateway.pools:
        pool.touch_connected = touched.append  # type: ignore[method-assign]
    gateway.table.touch_leases()
    assert len(touched) == 2


async def test_the_gateways_own_addresses(lab: Lab) -> None:
    gateway = lab.gateway()
    assert gateway.table.gateway_addresses == (GATEWAY_V4.packed, GATEWAY_V6.packed)
