"""The UDP port from outside: what strangers cost, who is let in, and what is left of them."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable

import pytest
from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from zgate_datapath import endpoint
from zgate_datapath.connection import Ending
from zgate_datapath.connection_ids import CONNECTION_ID_BYTES
from zgate_datapath.endpoint import _long_header_destination
from zgate_datapath.udp import PathError, UdpSocket
from zgate_protocol.icmp import TokenBucket

from ...loopback import Gateway, Lab, eventually, udp_packet  # noqa: TID252


class Stranger:
    """A bare UDP socket towards the port."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.connect(gateway.endpoint.udp.local_address)
        self.received: list[bytes] = []

    def send(self, packet: bytes) -> None:
        self.socket.send(packet)

    def listen(self) -> list[bytes]:
        while True:
            try:
                self.received.append(self.socket.recv(65535))
            except BlockingIOError:
                return self.received

    def received_bytes(self) -> int:
        return sum(map(len, self.listen()))

    async def settled(self) -> list[bytes]:
        """What came, after the gateway has looked at all that was sent."""
        await asyncio.sleep(0.05)
        return self.listen()


def first_flight(
    *, cid_bytes: int = CONNECTION_ID_BYTES, now: float = 0.0, token: bytes = b""
) -> bytes:
    """A client's first packet."""
    quic = QuicConnection(
        configuration=QuicConfiguration(is_client=True, alpn_protocols=["h3"], token=token)
    )
    if cid_bytes != CONNECTION_ID_BYTES:
        quic._peer_cid.cid = os.urandom(cid_bytes)
    quic.connect(("127.0.0.1", 1), now=now)
    return quic.datagrams_to_send(now)[0][0]


def initial_header(cid: bytes, *, version: int = 1, size: int = 1200, kind: int = 0xC0) -> bytes:
    head = bytes([kind]) + version.to_bytes(4, "big") + bytes([len(cid)]) + cid + b"\x04peer"
    rest = size - len(head) - 3
    return (head + b"\0" + (0x4000 | rest).to_bytes(2, "big")).ljust(size, b"\x5a")


def pressed(gateway: Gateway, **limits: int) -> None:
    for name, value in limits.items():
        setattr(gateway.endpoint, f"_{name}", value)


# What is nobody's.


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x40",
        b"\xc0",
        b"\xc0\0\0\0\1",
        b"\xc0\0\0\0\1\xff",
        b"\x40" + bytes(20),
        bytes([0x3F]) + os.urandom(1199),
        b"\xc0" + bytes(1199),
        initial_header(b"12345678", size=1199),
        initial_header(b""),
        initial_header(b"1234567"),
        initial_header(bytes(21)),
        initial_header(b"12345678", kind=0xE0),
        initial_header(b"12345678", kind=0x80),
        initial_header(b"12345678", version=0),
        initial_header(b"12345678", version=0x1A2A3A4A, size=1199),
    ],
    ids=[
        "nothing",
        "one byte",
        "one byte of a long header",
        "no ID length",
        "an ID longer than the packet",
        "an unknown ID in too few bytes",
        "noise",
        "zeros",
        "one byte too few",
        "no ID",
        "an ID of 7 bytes",
        "an ID of 21 bytes",
        "a handshake packet",
        "no fixed bit",
        "version negotiation",
        "another version in too few bytes",
    ],
)
async def test_what_begins_no_connection_is_not_answered(lab: Lab, packet: bytes) -> None:
    gateway = lab.gateway()
    stranger = Stranger(gateway)
    stranger.send(packet)
    await eventually(lambda: gateway.endpoint.unknown_packets == 1)
    assert await stranger.settled() == []
    gateway.assert_holds_nothing()


async def test_a_forged_initial_leaves_nothing_behind(lab: Lab) -> None:
    """Half of a flood is such packets: they must not fill the half-open table."""
    gateway = lab.gateway()
    stranger = Stranger(gateway)
    for number in range(50):
        stranger.send(initial_header(number.to_bytes(8, "big")))
    await eventually(lambda: gateway.endpoint.unknown_packets == 50)
    assert gateway.endpoint.half_open == 0
    assert await stranger.settled() == []
    gateway.assert_holds_nothing()


async def test_an_empty_id_in_a_first_packet_cannot_capture_short_packets(lab: Lab) -> None:
    gateway = lab.gateway()
    stranger = Stranger(gateway)
    stranger.send(first_flight(cid_bytes=0))
    await eventually(lambda: gateway.endpoint.unknown_packets)
    assert b"" not in gateway.endpoint._by_id


async def test_another_version_is_answered_with_ours_and_nothing_is_kept(lab: Lab) -> None:
    gateway = lab.gateway()
    stranger = Stranger(gateway)
    stranger.send(initial_header(b"12345678", version=0x1A2A3A4A))
    await eventually(stranger.listen)
    header = pull_quic_header(Buffer(data=stranger.received[0]), host_cid_length=8)
    assert header.packet_type is QuicPacketType.VERSION_NEGOTIATION
    assert (header.destination_cid, header.source_cid) == (b"peer", b"12345678")
    assert set(header.supported_versions) == {1, 0x6B3343CF}
    assert len(stranger.received[0]) < 100
    gateway.assert_holds_nothing()


async def test_a_client_of_another_version_ends_up_with_ours(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway, original_version=0x1A2A3A4A, supported_versions=[0x1A2A3A4A, 1])
    await peer.establish()


# Half-open connections.


async def test_a_stalled_handshake_gets_no_more_than_three_times_what_it_sent(lab: Lab) -> None:
    gateway = lab.gateway()
    stranger = Stranger(gateway)
    packet = first_flight()
    stranger.send(packet)
    await eventually(stranger.listen)
    await asyncio.sleep(0.6)  # some retransmissions long
    assert 0 < stranger.received_bytes() <= 3 * len(packet)
    assert gateway.endpoint.half_open == 1


async def test_a_stalled_handshake_dies_before_the_idle_timeout(lab: Lab) -> None:
    gateway = lab.gateway(idle_timeout_s=30.0)
    gateway.endpoint._handshake_timeout_s = 0.1
    stranger = Stranger(gateway)
    stranger.send(first_flight())
    await eventually(lambda: gateway.endpoint.handshakes == {"timed_out": 1})
    assert gateway.endpoint.half_open == 0
    gateway.assert_holds_nothing()


async def test_a_handshake_that_ends_otherwise_has_failed(lab: Lab) -> None:
    gateway = lab.gateway()
    Stranger(gateway).send(first_flight())
    await eventually(lambda: gateway.endpoint.half_open == 1)
    (connection,) = gateway.endpoint.connections
    connection.drop("for the test")
    gateway.endpoint.flush(connection)
    assert gateway.endpoint.handshakes == {"failed": 1}
    gateway.assert_holds_nothing()


async def test_the_default_deadline_is_ten_seconds(lab: Lab) -> None:
    assert lab.gateway().endpoint._handshake_timeout_s == 10.0


async def test_a_finished_handshake_has_no_deadline(lab: Lab) -> None:
    gateway = lab.gateway()
    gateway.endpoint._handshake_timeout_s = 1.0
    client, _ = await lab.connect(gateway)
    assert gateway.endpoint.half_open == 0
    await asyncio.sleep(1.1)
    client.tun.inject(udp_packet("10.100.0.2", "10.20.0.5"))
    await eventually(lambda: gateway.tun.written)


async def test_half_open_connections_are_bounded(lab: Lab) -> None:
    gateway = lab.gateway()
    pressed(gateway, max_half_open=4)
    strangers = [Stranger(gateway) for _ in range(8)]
    for stranger in strangers:
        stranger.send(first_flight())
    await eventually(lambda: gateway.endpoint.retry_tokens["issued"] == 6)
    assert gateway.endpoint.half_open == 2, "above half the bound, addresses must be proved"
    pressed(gateway, max_half_open=2)
    strangers[0].send(first_flight())
    await eventually(lambda: gateway.endpoint.refused_initials == 1)
    assert gateway.endpoint.half_open == 2


async def test_a_retry_proves_the_address_and_a_session_follows(lab: Lab) -> None:
    gateway = lab.gateway()
    pressed(gateway, max_half_open=1)
    gateway.endpoint._unproved = TokenBucket(0, 0)
    client, _ = await lab.connect(gateway)
    assert gateway.endpoint.retry_tokens == {"issued": 1, "accepted": 1}
    assert gateway.endpoint.handshakes == {"completed": 1}
    assert gateway.endpoint.retry_active
    client.tun.inject(udp_packet("10.100.0.2", "10.20.0.5"))
    await eventually(lambda: gateway.tun.written)


async def test_a_burst_of_new_clients_is_sent_to_prove_its_addresses(lab: Lab) -> None:
    gateway = lab.gateway()
    gateway.endpoint._unproved = TokenBucket(0, 3)
    strangers = [Stranger(gateway) for _ in range(10)]
    assert not gateway.endpoint.retry_active
    for stranger in strangers:
        stranger.send(first_flight())
    await eventually(lambda: gateway.endpoint.retry_tokens["issued"] == 7)
    assert gateway.endpoint.retry_active
    assert gateway.endpoint.half_open == 3
    # A Retry is no amplifier.
    answers = [stranger.listen()[0] for stranger in strangers[3:]]
    assert all(len(answer) < 200 for answer in answers)


async def test_a_token_that_is_not_ours_counts_as_none(lab: Lab) -> None:
    gateway = lab.gateway()
    stranger = Stranger(gateway)
    stranger.send(first_flight(token=b"of another life" * 5))
    await eventually(lambda: gateway.endpoint.half_open == 1)
    gateway.endpoint._unproved = TokenBucket(0, 0)
    Stranger(gateway).send(first_flight(token=b"of another life" * 5))
    await eventually(lambda: gateway.endpoint.retry_tokens["issued"] == 1)
    assert gateway.endpoint.retry_tokens["refused"] == 2


async def test_connections_are_bounded(lab: Lab) -> None:
    gateway = lab.gateway()
    pressed(gateway, max_connections=1)
    await lab.connect(gateway)
    Stranger(gateway).send(first_flight())
    await eventually(lambda: gateway.endpoint.refused_initials == 1)
    assert len(gateway.endpoint.connections) == 1


# Connection IDs.


async def test_every_id_leads_to_its_connection_and_goes_with_it(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    (connection,) = gateway.endpoint.connections
    await eventually(lambda: len(connection.connection_ids) == 9)
    assert {k for k, v in gateway.endpoint._by_id.items() if v is connection} == (
        connection.connection_ids
    )
    # The client moves to a fresh one; the old one is retired, a new one issued.
    used = client.connection.quic._peer_cid.cid
    client.connection.local_address_changed(client.endpoint.loop.time())
    client.endpoint.flush(client.connection)
    await eventually(lambda: used not in gateway.endpoint._by_id)
    await eventually(lambda: len(connection.connection_ids) == 9)
    await client.tunnel.close()
    await eventually(lambda: not gateway.endpoint._by_id)


@pytest.mark.parametrize("cut", range(15))
def test_a_long_header_cut_anywhere_has_some_destination(cut: int) -> None:
    packet = initial_header(b"12345678")[:cut]
    assert _long_header_destination(packet) == packet[6:14]


# Migration.


async def test_a_client_that_changes_its_address_keeps_its_session(lab: Lab) -> None:
    gateway = lab.gateway()
    client, state = await lab.connect(gateway)
    session = gateway.session("alice")
    before = session.owner.peer
    client.tunnel.rebind()
    client.tun.inject(udp_packet("10.100.0.2", "10.20.0.5"))
    await eventually(lambda: session.owner.peer != before)
    await eventually(lambda: gateway.tun.written)
    gateway.tun.inject(udp_packet("10.20.0.5", "10.100.0.2"))
    await eventually(lambda: client.tun.written)
    assert gateway.session("alice") is session
    assert gateway.record.down == []
    assert session.owner.peer.endswith(f":{client.endpoint.udp.local_address[1]}")
    await eventually(lambda: client.changes)
    assert client.changes[-1].local_address != state.local_address


async def test_ten_address_changes_in_a_row_are_survived(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    for number in range(10):
        client.tunnel.rebind()
        packet = udp_packet("10.100.0.2", "10.20.0.5", bytes([number]))
        client.tun.inject(packet)
        await eventually(lambda: packet in gateway.tun.written)  # noqa: B023
    (connection,) = gateway.endpoint.connections
    assert len(connection.quic._network_paths) <= 8


async def test_garbage_with_a_sessions_id_from_elsewhere_changes_nothing(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    session = gateway.session("alice")
    before, cid = session.owner.peer, client.connection.quic._peer_cid.cid
    stranger = Stranger(gateway)
    for size in range(9, 200):
        stranger.send(b"\x40" + cid + os.urandom(size))
    client.tun.inject(udp_packet("10.100.0.2", "10.20.0.5"))
    await eventually(lambda: gateway.tun.written)
    assert session.owner.peer == before
    assert await stranger.settled() == []
    (connection,) = gateway.endpoint.connections
    assert len(connection.quic._network_paths) == 1


async def test_a_replay_from_another_address_draws_no_traffic_there(lab: Lab) -> None:
    """An attacker on the path copies packets: the copy must not move the session."""
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    session = gateway.session("alice")
    before = session.owner.peer
    captured: list[bytes] = []
    original = client.endpoint.udp.send_batch

    def capture(datagrams: list[bytes], address: object) -> bool:
        captured.extend(datagrams)
        return original(datagrams, address)  # type: ignore[arg-type]

    client.endpoint.udp.send_batch = capture  # type: ignore[method-assign, assignment]
    client.tun.inject(udp_packet("10.100.0.2", "10.20.0.5"))
    await eventually(lambda: gateway.tun.written)
    stranger = Stranger(gateway)
    for packet in captured * 5:
        stranger.send(packet)
    assert await stranger.settled() == []
    assert session.owner.peer == before
    assert len(gateway.tun.written) == 1


# ICMP about the path.


async def test_a_too_big_message_lowers_the_mtu_towards_that_host_only(lab: Lab) -> None:
    gateway = lab.gateway()
    await lab.connect(gateway)
    (connection,) = gateway.endpoint.connections
    now = gateway.endpoint.loop.time()
    gateway.endpoint._heed([PathError(("192.0.2.9", 1), errno.EMSGSIZE, 1400)], now)
    assert connection.path_mtu.udp_payload_bytes == 1452
    gateway.endpoint._heed([PathError(("127.0.0.1", 1), errno.ECONNREFUSED, None)], now)
    assert connection.path_mtu.udp_payload_bytes == 1452
    gateway.endpoint._heed(
        [PathError(("127.0.0.1", 1), errno.EMSGSIZE, mtu) for mtu in (1450, 1400, 1440)], now
    )
    assert connection.path_mtu.udp_payload_bytes == 1372
    gateway.endpoint.flush_touched()


async def test_many_forged_errors_look_at_each_connection_once(lab: Lab) -> None:
    gateway = lab.gateway()
    await lab.connect(gateway)
    (connection,) = gateway.endpoint.connections
    looks: list[int] = []
    connection.path_too_big = lambda mtu, now: looks.append(mtu)  # type: ignore[method-assign]
    errors = [PathError(("127.0.0.1", n), errno.EMSGSIZE, 1400) for n in range(16)]
    gateway.endpoint._heed(errors, gateway.endpoint.loop.time())
    assert looks == [1400]


async def test_the_kernel_is_believed_again_when_it_has_forgotten(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = lab.gateway()
    await lab.connect(gateway)
    errors = [PathError(("127.0.0.1", 1), errno.EMSGSIZE, 576)]
    now = gateway.endpoint.loop.time()
    gateway.endpoint._heed(errors, now)
    assert gateway.endpoint._belief is None, "it has refused nothing yet"
    monkeypatch.setattr(endpoint, "_KERNEL_FORGETS_S", 0.0)
    for _ in range(2):
        gateway.endpoint.udp.believe_kernel(False)
        gateway.endpoint._heed(errors, now)
        await eventually(lambda: gateway.endpoint.udp.believes_kernel)


# The endpoint itself.


async def test_what_comes_in_during_a_flush_is_not_flushed_at_an_earlier_time(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The carrier may take packets in while it is flushed: their acknowledgement comes after."""
    gateway = lab.gateway()
    await lab.connect(gateway)
    endpoint = gateway.endpoint
    (connection,) = endpoint.connections
    received_s: list[float] = []
    flushed_s: list[float] = []

    class Carrier:
        def flush(self) -> None:
            if not received_s:
                received_s.append(endpoint.loop.time())
                endpoint.touch(connection)

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_, **__: None

    monkeypatch.setattr(endpoint, "carrier", Carrier())
    monkeypatch.setattr(connection, "flush", flushed_s.append)
    endpoint.flush(connection)
    before, after = flushed_s
    assert before < received_s[0] <= after
    monkeypatch.undo()


async def test_wait_empty_returns_when_the_last_has_gone(lab: Lab) -> None:
    gateway = lab.gateway()
    await asyncio.wait_for(gateway.endpoint.wait_empty(), 1)
    client, _ = await lab.connect(gateway)
    waiting = asyncio.create_task(gateway.endpoint.wait_empty())
    await asyncio.sleep(0)
    assert not waiting.done()
    await client.tunnel.close()
    await asyncio.wait_for(waiting, 5)


async def test_a_closed_endpoint_holds_and_does_nothing(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    endpoint = client.endpoint
    endpoint.close()
    assert not endpoint.connections and not endpoint._by_id and not endpoint._timers
    assert endpoint.udp.fileno() == -1
    endpoint.close()


async def test_no_timer_spins_while_a_probe_waits_for_room(lab: Lab) -> None:
    """A due path MTU probe without congestion window once made a timer in the past."""
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    (connection,) = gateway.endpoint.connections
    connection.engine.window_bytes = lambda: 0  # type: ignore[method-assign]
    connection.path_mtu._next_at = 0.0
    connection.path_mtu._in_flight = False
    alarms = 0
    handle_timer = connection.handle_timer

    def count(now: float) -> None:
        nonlocal alarms
        alarms += 1
        handle_timer(now)

    connection.handle_timer = count  # type: ignore[method-assign]
    gateway.endpoint.flush(connection)
    await asyncio.sleep(0.1)
    assert alarms < 20
    assert client.connection is not None


@pytest.mark.parametrize("broken", ["flush", "timer", "receive", "deadline"])
async def test_an_exception_inside_aioquic_ends_that_connection_only(
    lab: Lab, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = lab.gateway()
    alice, _ = await lab.connect(gateway, "alice")
    bob, _ = await lab.connect(gateway, "bob")
    connection = gateway.session("alice").tunnel.connection

    def fault(*arguments: object, **named: object) -> None:
        raise AssertionError("an assert of aioquic")

    name = {
        "flush": "datagrams_to_send",
        "timer": "handle_timer",
        "receive": "receive_datagram",
        "deadline": "get_timer",
    }[broken]
    monkeypatch.setattr(connection.quic, name, fault)
    # RETIRE_CONNECTION_ID is aioquic's, whatever the engine.
    alice.connection.quic.change_connection_id()
    alice.connection.ping()
    alice.endpoint.flush(alice.connection)
    if broken in ("timer", "deadline"):
        connection._control_due = True
        gateway.endpoint._on_timer(connection)
    await eventually(lambda: connection not in gateway.endpoint.connections)
    assert list(gateway.table.by_client) == ["bob"]
    assert list(gateway.kernel.clients) == ["bob"]
    assert connection not in gateway.endpoint._timers
    assert connection not in gateway.endpoint._by_id.values()
    bob.tun.inject(udp_packet(gateway.session("bob").addresses[0], "10.20.0.5"))
    await eventually(lambda: gateway.tun.written)


async def test_a_handler_that_raises_at_the_end_leaves_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    (connection,) = gateway.endpoint.connections

    def fault(ending: Ending) -> None:
        raise ZeroDivisionError("a fault of our own")

    monkeypatch.setattr(connection.handler, "terminated", fault)
    await client.tunnel.close()
    await eventually(lambda: not gateway.endpoint.connections)
    assert not gateway.endpoint._by_id and not gateway.endpoint._timers


async def test_a_socket_that_is_gone_raises_nothing() -> None:
    udp = UdpSocket.bind("127.0.0.1", 0)
    udp.close()
    assert udp.send_batch([b"x"], ("127.0.0.1", 9))
    assert udp.dropped_on_send == 1


async def test_two_connections_in_one_batch_both_get_their_packets(lab: Lab) -> None:
    gateway = lab.gateway()
    alice, _ = await lab.connect(gateway, "alice")
    bob, _ = await lab.connect(gateway, "bob")
    gateway.endpoint._stop_reading()
    packets = []
    for client, name in ((alice, "alice"), (bob, "bob")) * 20:
        packet = udp_packet(gateway.session(name).addresses[0], "10.20.0.5", os.urandom(8))
        packets.append(packet)
        client.connection.enqueue(client.tunnel._tunnel._frame_prefix + packet)  # type: ignore[union-attr]
        client.endpoint.flush(client.connection)
    gateway.endpoint.start()
    await eventually(lambda: len(gateway.tun.written) == 40)
    assert sorted(gateway.tun.written) == sorted(packets)


def test_the_connection_id_length_is_what_short_headers_are_read_with() -> None:
    quic = QuicConnection(
        configuration=QuicConfiguration(
            is_client=True, connection_id_length=CONNECTION_ID_BYTES, alpn_protocols=["h3"]
        )
    )
    assert len(quic.host_cid) == CONNECTION_ID_BYTES
