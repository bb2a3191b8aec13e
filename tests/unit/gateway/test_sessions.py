"""Sessions over loopback: who has one, how it ends, and that nothing is left."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address, ip_network

import pytest
from aioquic.h3.connection import ErrorCode
from zgate_datapath.client import ConnectionLost, SessionRefused
from zgate_gateway.client_connection import ClientConnection, _refusal_of, _satisfies
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.varint import encode_varint

from ...loopback import (  # noqa: TID252
    GATEWAY_V4,
    GATEWAY_V6,
    OFFICE_V4,
    OFFICE_V6,
    Lab,
    eventually,
    udp_packet,
)

V4, V6 = ip_address("10.100.0.2"), ip_address("fd7a:7a67:6174:65::2")


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
    assert gateway.registry.established_total == 1
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
    gateway = lab.gateway(idle_timeout_s=1.0)
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
    assert gateway.kernel.calls == ["add alice"], "flows and counters go on"
    assert [pool.held for pool in gateway.pools] == [["alice"], ["alice"]]


async def test_what_a_client_still_sends_by_its_older_session_passes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a moment: it renews its session, and some packets are under way by the first one."""
    monkeypatch.setattr("zgate_gateway.registry.GRACE_S", 60.0)
    gateway = lab.gateway(newest_wins=True)
    older, _ = await lab.connect(gateway)
    await lab.connect(gateway)
    packet = udp_packet(V4, OFFICE_V4, b"late")
    older.tun.inject(packet)
    await eventually(lambda: packet in gateway.tun.written or gateway.tun.written)
    assert not gateway.table.by_id["s1"].closed


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

    def fault(*_: object) -> None:
        raise ZeroDivisionError("a fault of our own")

    monkeypatch.setattr(ClientConnection, "_assign", fault)
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
    gateway.registry.touch_leases()
    assert len(touched) == 2


async def test_the_gateways_own_addresses(lab: Lab) -> None:
    gateway = lab.gateway()
    assert gateway.table.gateway_addresses == (GATEWAY_V4.packed, GATEWAY_V6.packed)
