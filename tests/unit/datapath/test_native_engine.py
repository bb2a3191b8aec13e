"""The native engine against aioquic, the Python engine and itself, over real sockets."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
import pytest_asyncio
from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import CipherSuite
from zgate_datapath import aioquic_private as private
from zgate_datapath.connection import Connection
from zgate_datapath.engine import native_problem
from zgate_datapath.native_engine import NativeEngine
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.varint import encode_varint

from ...loopback import (  # noqa: TID252
    OFFICE_V4,
    Gateway,
    Lab,
    Peer,
    Pki,
    eventually,
    udp_packet,
)
from .wire import (
    AioquicAlone,
    Holder,
    VnetTun,
    Wire,
    has_short_header,
    lost,
    tampered,
    unchanged,
)

pytestmark = pytest.mark.skipif(bool(native_problem()), reason="the native engine is not built")

# Packets that fit every socket buffer on the way.
_BURST = 40
_WAIT_S = 20.0


@dataclass
class Link:
    """A session between a peer and a gateway, with a wire between them."""

    gateway: Gateway
    peer: Peer
    wire: Wire
    stream_id: int
    name: str
    _sent: int = 0
    told: list[bytes] = field(default_factory=list)

    @property
    def prefix(self) -> bytes:
        return encode_varint(self.stream_id // 4) + b"\0"

    @property
    def address(self) -> str:
        return str(self.gateway.session(self.name).addresses[0])

    @property
    def gateway_side(self) -> Connection:
        (handler,) = [
            each for each in self.gateway.handlers if each._session is self.session_of_gateway
        ]
        return handler.connection

    @property
    def session_of_gateway(self) -> Any:
        return self.gateway.session(self.name)

    def native(self, connection: Connection) -> Any:
        """The C session of one end."""
        engine = connection.engine
        assert isinstance(engine, NativeEngine)
        assert engine._session is not None
        return engine._session

    def up_packet(self, size: int = 200) -> bytes:
        self._sent += 1
        return udp_packet(self.address, OFFICE_V4, self._sent.to_bytes(4, "big") + bytes(size))

    def known_up(self) -> list[bytes]:
        """1-RTT packets that the gateway has had."""
        known = [each for each in self.wire.sent_up if has_short_header(each) and len(each) > 60]
        return known[-20:]

    def down_packet(self, size: int = 200) -> bytes:
        self._sent += 1
        return udp_packet(OFFICE_V4, self.address, self._sent.to_bytes(4, "big") + bytes(size))

    def send_up(self, sizes: list[int]) -> list[bytes]:
        packets = [self.up_packet(size) for size in sizes]
        for packet in packets:
            self.peer.connection.enqueue(b"\x30" + self.prefix + packet)
        self.peer.flush()
        return packets

    def send_down(self, sizes: list[int]) -> list[bytes]:
        packets = [self.down_packet(size) for size in sizes]
        for packet in packets:
            self.gateway.tun.inject(packet)
        return packets

    async def update_keys(self, end: Connection) -> None:
        """With nothing under way: aioquic keeps no old keys for what its update overtakes."""
        ours, theirs = (
            private.crypto_pair(each.quic) for each in (self.gateway_side, self.peer.connection)
        )
        await eventually(lambda: ours.send.key_phase == theirs.send.key_phase, _WAIT_S)
        phase = ours.send.key_phase
        end.quic.request_key_update()
        self.ping(end)
        await eventually(lambda: ours.send.key_phase == theirs.send.key_phase != phase, _WAIT_S)

    def ping(self, end: Connection) -> None:
        end.ping()
        if end is self.peer.connection:
            self.peer.flush()
        else:
            self.gateway.endpoint.flush(end)

    def missing_above(self, packets: list[bytes]) -> int:
        """How many have not come out of the gateway's TUN."""
        return len(set(_untouched(packets)) - set(_untouched(self.gateway.tun.written)))

    def missing_below(self, packets: list[bytes]) -> int:
        heard = [each[len(self.prefix) :] for each in self.peer.datagrams]
        return len(set(_untouched(packets)) - set(_untouched(heard)))

    async def carry(self, count: int, size: Callable[[], int] = lambda: 200) -> None:
        """So many packets both ways; every one arrives, once."""
        for begin in range(0, count, _BURST):
            sizes = [size() for _ in range(min(_BURST, count - begin))]
            up, down = self.send_up(sizes), self.send_down(sizes)
            await eventually(lambda up=up: not self.missing_above(up), _WAIT_S)
            await eventually(lambda down=down: not self.missing_below(down), _WAIT_S)
        arrived = _untouched(self.gateway.tun.written)
        assert len(arrived) == len(set(arrived))


def _untouched(packets: list[bytes]) -> list[bytes]:
    """Without what a hop may change: TTL and header checksum."""
    return [each[:8] + each[9:10] + each[12:] for each in packets]


class Links:
    """Makes links of one pair of engines, and takes their wires away."""

    def __init__(self, lab: Lab, peer_engine: str) -> None:
        self.lab = lab
        self._peer_engine = peer_engine
        self._wires: list[Wire] = []

    async def link(
        self, name: str = "alice", gateway: Gateway | None = None, **peer_settings: Any
    ) -> Link:
        gateway = gateway or self.lab.gateway()
        wire = Wire(gateway.endpoint.udp.local_address)
        self._wires.append(wire)
        source = str(wire.address[0])
        peer_settings.setdefault("max_datagram_size", 1452)
        peer = self.lab.make_peer(gateway, name, source=source, **peer_settings)
        if self._peer_engine == "aioquic":
            peer.connection.engine = AioquicAlone(peer.quic)
        await peer.dial(wire.address)
        await eventually(lambda: peer.is_ready or peer.ended, _WAIT_S)
        stream_id = await peer.establish()
        return Link(gateway, peer, wire, stream_id, name)

    def close(self) -> None:
        for wire in self._wires:
            wire.close()


PAIRS = [
    ("native", "native"),
    ("native", "python"),
    ("python", "native"),
    ("native", "aioquic"),
]


@pytest.fixture(params=PAIRS, ids="-".join)
def engines(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Which engine the gateway and its peer run."""
    pair: tuple[str, str] = request.param
    return pair


@pytest_asyncio.fixture
async def links(pki: Pki, engines: tuple[str, str]) -> AsyncIterator[Links]:
    lab = Lab(pki, engines[0], "python" if engines[1] == "aioquic" else engines[1])
    made = Links(lab, engines[1])
    yield made
    await lab.close()
    made.close()


native_gateway = pytest.mark.parametrize(
    "engines", [pair for pair in PAIRS if pair[0] == "native"], indirect=True, ids="-".join
)
only_native = pytest.mark.parametrize(
    "engines", [("native", "native")], indirect=True, ids="-".join
)


def _no_forgeries(link: Link) -> None:
    assert link.gateway_side.engine.counters.forged_packets == 0
    assert link.peer.connection.engine.counters.forged_packets == 0


def _waiting_for_acks(connection: Connection) -> int:
    """How many of aioquic's own packets nobody has acknowledged yet."""
    sent = private.application_space(connection.quic).sent_packets
    return sum(each.is_ack_eliciting for each in sent.values())


# Traffic.


async def test_known_traffic_arrives_whole_both_ways(links: Links) -> None:
    link = await links.link()
    await link.carry(200)
    _no_forgeries(link)


async def test_random_sizes_arrive_whole_both_ways(links: Links) -> None:
    link = await links.link()
    dice = random.Random(4)
    await link.carry(400, lambda: dice.randrange(0, 1280))
    _no_forgeries(link)


async def test_what_is_acknowledged_leaves_the_flight(links: Links) -> None:
    link = await links.link()
    await link.carry(200)
    for connection in (link.gateway_side, link.peer.connection):
        await eventually(
            lambda connection=connection: connection.statistics()["bytes_in_flight"] == 0, _WAIT_S
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
        await eventually(lambda connection=connection: not _waiting_for_acks(connection), _WAIT_S)


@pytest.mark.parametrize("engines", [("native", "aioquic")], indirect=True, ids="-".join)
async def test_a_peer_that_acknowledges_every_packet_at_once(links: Links) -> None:
    link = await links.link()
    link.peer.quic._ack_delay = 0.0
    await link.carry(400)
    await eventually(lambda: link.gateway_side.statistics()["bytes_in_flight"] == 0, _WAIT_S)
    assert link.gateway_side.statistics()["lost_packets"] == 0


@only_native
@pytest.mark.parametrize("suite", list(CipherSuite)[:3], ids=lambda suite: suite.name)
async def test_every_cipher_suite(links: Links, suite: CipherSuite) -> None:
    link = await links.link(cipher_suites=[suite])
    assert private.crypto_pair(link.peer.quic).send.cipher_suite is suite
    await link.carry(80)
    _no_forgeries(link)


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


# Keys.


def _watch_phases(connection: Connection) -> list[int]:
    """The key phases that a connection goes through."""
    pair = private.crypto_pair(connection.quic)
    phases: list[int] = []
    update = pair._update_key

    def noted(trigger: str) -> None:
        update(trigger)
        phases.append(pair.send.key_phase)

    pair._update_key = noted  # type: ignore[method-assign]
    return phases


@pytest.mark.parametrize("who", ["gateway", "peer", "both"])
async def test_key_updates_under_load(links: Links, engines: tuple[str, str], who: str) -> None:
    link = await links.link()
    ends = {"gateway": link.gateway_side, "peer": link.peer.connection}
    updating = {name: end for name, end in ends.items() if who in (name, "both")}
    for name, end in updating.items():
        if engines[name == "peer"] == "native":
            link.native(end).key_update_packets = 60
    phases = _watch_phases(link.gateway_side)
    for _ in range(12):
        for name, end in updating.items():
            if engines[name == "peer"] != "native":
                await link.update_keys(end)
        await link.carry(_BURST)
    assert len(phases) >= 3
    _no_forgeries(link)


@only_native
async def test_both_ends_update_at_once(links: Links) -> None:
    link = await links.link()
    for _ in range(6):
        await link.carry(_BURST)
        up, down = link.send_up([100] * 20), link.send_down([100] * 20)
        for end in (link.gateway_side, link.peer.connection):
            phase = private.crypto_pair(end.quic).send.key_phase
            end.engine.update_key(phase, link.peer.endpoint.loop.time())  # type: ignore[attr-defined]
        link.gateway.endpoint.flush(link.gateway_side)
        link.peer.flush()
        await eventually(lambda up=up: not link.missing_above(up), _WAIT_S)
        await eventually(lambda down=down: not link.missing_below(down), _WAIT_S)
    _no_forgeries(link)


@only_native
async def test_an_update_after_a_phase_of_one_packet(links: Links) -> None:
    """aioquic took that packet: it says where the phase began, and that the next one is new."""
    link = await links.link()
    for _ in range(20):
        phase = private.crypto_pair(link.peer.quic).send.key_phase
        link.peer.connection.engine.update_key(phase, link.peer.endpoint.loop.time())  # type: ignore[attr-defined]
        await link.carry(1)
    _no_forgeries(link)


@only_native
async def test_a_key_that_the_peer_has_changed_is_not_worn_any_more(links: Links) -> None:
    link = await links.link()
    pair = private.crypto_pair(link.gateway_side.quic)
    phase = pair.send.key_phase
    engine = link.gateway_side.engine
    assert isinstance(engine, NativeEngine)
    engine.update_key(phase ^ 1, 0.0)
    assert pair.send.key_phase == phase


@native_gateway
async def test_packets_overtaken_by_a_key_update_still_open(links: Links) -> None:
    link = await links.link()
    await link.carry(_BURST)
    link.wire.up = holder = Holder()
    up = link.send_up([100])
    await eventually(lambda: holder.held)
    if isinstance(link.peer.connection.engine, NativeEngine):
        phase = private.crypto_pair(link.peer.quic).send.key_phase
        link.peer.connection.engine.update_key(phase, link.peer.endpoint.loop.time())
    else:
        link.peer.quic.request_key_update()
    more = link.send_up([100] * 10)
    await eventually(lambda: not link.missing_above(more), _WAIT_S)
    assert holder.held is not None
    link.wire.send_up(holder.held)
    await eventually(lambda: not link.missing_above(up), _WAIT_S)


# Attackers.


def _aioquic_receives(connection: Connection) -> list[bytes]:
    """What reaches aioquic from now on."""
    seen: list[bytes] = []
    receive = connection.quic.receive_datagram

    def noted(data: bytes, addr: Any, now: float) -> None:
        seen.append(data)
        receive(data, addr, now)

    connection.quic.receive_datagram = noted  # type: ignore[method-assign]
    return seen


@native_gateway
@pytest.mark.parametrize("at", [-1, 9, 12, 30], ids=["tag", "number", "number end", "text"])
async def test_a_forged_packet_never_reaches_aioquic(links: Links, at: int) -> None:
    link = await links.link()
    await link.carry(_BURST)
    reached = _aioquic_receives(link.gateway_side)
    forged = [tampered(packet, at) for packet in link.known_up()]
    before = link.gateway_side.engine.counters.forged_packets
    for packet in forged:
        link.wire.send_up(packet)
    await eventually(
        lambda: link.gateway_side.engine.counters.forged_packets >= before + len(forged)
    )
    assert not [packet for packet in reached if packet in forged]
    await link.carry(_BURST)


@native_gateway
async def test_a_forged_first_byte_never_reaches_aioquic(links: Links) -> None:
    link = await links.link()
    await link.carry(_BURST)
    reached = _aioquic_receives(link.gateway_side)
    sample = link.known_up()[0]
    forged = [bytes([sample[0] ^ bits]) + sample[1:] for bits in (1, 2, 4, 7, 8, 16, 0x1F)]
    before = link.gateway_side.engine.counters.forged_packets
    for packet in forged:
        link.wire.send_up(packet)
    await eventually(
        lambda: link.gateway_side.engine.counters.forged_packets >= before + len(forged)
    )
    assert not [packet for packet in reached if packet in forged]


@native_gateway
async def test_forgeries_and_replays_from_elsewhere_never_reach_aioquic(links: Links) -> None:
    link = await links.link()
    await link.carry(_BURST)
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
    await link.carry(_BURST)
    assert not {*known, *forged} & set(reached)


@native_gateway
async def test_replays_are_dropped(links: Links) -> None:
    link = await links.link()
    link.wire.up = link.wire.down = lambda packet: [packet, packet]
    await link.carry(200)
    counters = link.gateway_side.engine.counters
    assert counters.duplicate_packets > counters.opened_packets // 2
    _no_forgeries(link)


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
    await link.carry(_BURST)
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
    await eventually(lambda: bad.peer.ended, _WAIT_S)
    assert bad.peer.ended is not None
    assert bad.peer.ended.error_code == QuicErrorCode.PROTOCOL_VIOLATION
    await eventually(lambda: connection not in gateway.endpoint.connections, _WAIT_S)
    await good.carry(_BURST)


# What paths do.


@native_gateway
@pytest.mark.parametrize("distance", [200, 2000])
async def test_a_packet_overtaken_by_many_is_still_new(links: Links, distance: int) -> None:
    link = await links.link()
    await link.carry(_BURST)
    link.wire.up = holder = Holder()
    up = link.send_up([100])
    await eventually(lambda: holder.held)
    while holder.passed < distance:
        await link.carry(_BURST, lambda: 1000)
    assert holder.held is not None
    link.wire.send_up(holder.held)
    await eventually(lambda: not link.missing_above(up), _WAIT_S)
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
    await link.carry(_BURST)
    link.wire.up = link.wire.down = lambda packet: [] if dice.random() < 0.1 else [packet]
    ends = (link.gateway_side, link.peer.connection)

    def is_settled() -> bool:
        return not any(end.queued_packets() or end.statistics()["bytes_in_flight"] for end in ends)

    for _ in range(20):
        # What waits too long for a window that losses made small is dropped: the queue's duty.
        link.send_up([500] * _BURST)
        link.send_down([500] * _BURST)
        await asyncio.sleep(0.02)
        await eventually(is_settled, _WAIT_S)
    link.wire.up = link.wire.down = unchanged
    await link.carry(4)
    for connection in ends:
        if isinstance(connection.engine, NativeEngine):
            assert connection.statistics()["lost_packets"] > 0


# Connection IDs and addresses.


async def test_the_peer_rotates_its_connection_id(links: Links) -> None:
    link = await links.link()
    for _ in range(3):
        await link.carry(_BURST)
        before = link.gateway_side.quic.host_cid
        link.peer.quic.change_connection_id()
        link.peer.connection.engine.leave_aioquic(0.0)
        link.peer.connection.ping()
        link.peer.flush()
        await eventually(lambda before=before: link.gateway_side.quic.host_cid != before, _WAIT_S)
        await link.carry(_BURST)
    _no_forgeries(link)


async def test_the_gateway_rotates_its_connection_id(links: Links) -> None:
    link = await links.link()
    for _ in range(3):
        await link.carry(_BURST)
        link.gateway_side.quic.change_connection_id()
        link.gateway_side.engine.leave_aioquic(0.0)
        link.gateway_side.ping()
        link.gateway.endpoint.flush(link.gateway_side)
        await link.carry(_BURST)
    _no_forgeries(link)


@native_gateway
async def test_a_retired_connection_id_is_nobodys(links: Links) -> None:
    link = await links.link()
    await link.carry(_BURST)
    old = link.gateway_side.quic.host_cid
    link.peer.quic.change_connection_id()
    link.peer.connection.engine.leave_aioquic(0.0)
    link.peer.connection.ping()
    link.peer.flush()
    await eventually(lambda: old not in link.gateway.endpoint._by_id, _WAIT_S)
    await link.carry(_BURST)
    forged = link.gateway_side.engine.counters.forged_packets
    unknown = link.gateway.endpoint.unknown_packets
    link.wire.send_up(b"\x40" + old + os.urandom(60))
    await eventually(lambda: link.gateway.endpoint.unknown_packets > unknown)
    assert link.gateway_side.engine.counters.forged_packets == forged


async def test_a_client_moves_to_another_address(links: Links) -> None:
    link = await links.link()
    for _ in range(3):
        await link.carry(_BURST)
        before = link.gateway_side.peer_address
        link.wire.move()
        link.peer.connection.ping()
        link.peer.flush()
        await eventually(lambda before=before: link.gateway_side.peer_address != before, _WAIT_S)
        await link.carry(_BURST)
    _no_forgeries(link)


@native_gateway
async def test_an_unproved_address_gets_no_more_than_three_times_what_it_sent(
    links: Links,
) -> None:
    link = await links.link()
    await link.carry(_BURST)
    before = link.gateway_side.peer_address
    link.wire.down = lost  # the client never answers the challenge
    link.wire.move()
    link.peer.connection.ping()
    link.peer.flush()
    await eventually(lambda: link.gateway_side.peer_address != before, _WAIT_S)
    for _ in range(20):
        link.send_down([1000] * 20)
        link.gateway.endpoint.flush(link.gateway_side)
        link.send_up([10])
        await eventually(lambda: True)
    assert link.wire.bytes_down <= 3 * link.wire.bytes_up
    link.wire.down = unchanged
    link.peer.connection.ping()
    link.peer.flush()
    await eventually(lambda: link.native(link.gateway_side).may_send, _WAIT_S)
    await link.carry(_BURST)


@native_gateway
async def test_a_lost_challenge_is_repeated(links: Links) -> None:
    """The engine's packets are credit for it; after too many aioquic goes back and tries again."""
    link = await links.link()
    await link.carry(_BURST)
    lost_on_the_new_path: list[bytes] = []

    def lose_the_first(packet: bytes) -> list[bytes]:
        lost_on_the_new_path.append(packet)
        return [] if len(lost_on_the_new_path) <= 8 else [packet]

    before = link.gateway_side.peer_address
    link.wire.move()
    link.wire.down = lose_the_first
    link.peer.connection.ping()
    link.peer.flush()
    await eventually(lambda: link.gateway_side.peer_address != before, _WAIT_S)

    def is_proved() -> bool:
        link.send_up([20])
        is_there = link.gateway_side.peer_address != before
        return is_there and bool(link.native(link.gateway_side).may_send)

    await eventually(is_proved, _WAIT_S)
    assert len(lost_on_the_new_path) >= 8
    await link.carry(4)


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
    await eventually(lambda: len(sizes) == 5, _WAIT_S)
    assert sorted(sizes) == [2, 41, 151, 300, 300]


@native_gateway
async def test_a_peer_without_datagrams_is_acknowledged(links: Links) -> None:
    gateway = links.lab.gateway()
    peer = await links.lab.peer(gateway, "alice", max_datagram_frame_size=2)
    peer.connection.ping()
    peer.flush()
    await eventually(lambda: not _waiting_for_acks(peer.connection), _WAIT_S)


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
    await eventually(lambda: set(payloads) <= set(link.peer.datagrams), _WAIT_S)


# The way without Python.


@pytest.fixture
def vnet_tun() -> Iterator[VnetTun]:
    made = VnetTun()
    yield made
    made.close()


async def _direct(links: Links, tun: VnetTun) -> Link:
    gateway = links.lab.gateway()
    assert gateway.endpoint.carrier is not None
    gateway.endpoint.carrier.attach_tun(
        tun,  # type: ignore[arg-type]
        on_read=lambda read: None,
        on_gone=lambda: None,
    )
    return await links.link(gateway=gateway)


@native_gateway
async def test_the_first_packet_of_a_pair_is_judged_and_the_rest_pass(
    links: Links, vnet_tun: VnetTun
) -> None:
    link = await _direct(links, vnet_tun)
    judged = link.send_up([100])
    await eventually(lambda: not link.missing_above(judged), _WAIT_S)
    assert link.gateway_side.engine.first_packet_s == 0, "Python has seen it"
    began_s = time.monotonic()
    passing = link.send_up([100] * 20)
    arrived: list[bytes] = []
    await eventually(lambda: arrived.extend(vnet_tun.delivered()) or len(arrived) >= 20, _WAIT_S)
    assert set(arrived) == set(passing)
    down = [link.down_packet(100) for _ in range(20)]
    for packet in down:
        vnet_tun.inject(packet)
    await eventually(lambda: not link.missing_below(down), _WAIT_S)
    assert link.gateway_side.engine.carried.received_packets == 20
    first_s = link.gateway_side.engine.first_packet_s
    assert began_s <= first_s <= time.monotonic()
    passing = link.send_up([100])
    arrived.clear()
    await eventually(lambda: arrived.extend(vnet_tun.delivered()) or arrived, _WAIT_S)
    assert link.gateway_side.engine.first_packet_s == first_s, "the first stays the first"


@native_gateway
async def test_a_source_that_is_not_the_clients_never_passes(
    links: Links, vnet_tun: VnetTun
) -> None:
    link = await _direct(links, vnet_tun)
    stolen = udp_packet("10.100.0.6", OFFICE_V4, b"stolen")
    for _ in range(5):
        link.peer.send_datagram(link.prefix + stolen)
    honest = link.send_up([100])
    await eventually(lambda: not link.missing_above(honest), _WAIT_S)
    assert stolen not in link.gateway.tun.written
    assert stolen not in vnet_tun.delivered()


@native_gateway
async def test_nothing_passes_after_the_session(links: Links, vnet_tun: VnetTun) -> None:
    link = await _direct(links, vnet_tun)
    first = link.send_up([100])
    await eventually(lambda: not link.missing_above(first), _WAIT_S)
    second = link.send_up([100])
    await eventually(lambda: vnet_tun.delivered() == second, _WAIT_S)
    packet = link.up_packet(100)
    # The goodbye is on its way: what still comes from the peer goes nowhere.
    link.wire.down = lost
    link.gateway.table.close(link.session_of_gateway, "revoked")
    link.peer.send_datagram(link.prefix + packet)
    link.wire.sent_up.clear()
    await eventually(lambda: link.peer.connection.ping() or link.peer.flush() or link.wire.sent_up)
    assert vnet_tun.delivered() == []
    assert packet not in link.gateway.tun.written


@native_gateway
@pytest.mark.parametrize(
    ("address", "networks"), [("10.101.255.254", ()), ("10.20.0.9", ("10.20.0.0/16",))]
)
async def test_what_is_granted_passes_without_python_until_it_is_taken_away(
    links: Links, vnet_tun: VnetTun, address: str, networks: tuple[str, ...]
) -> None:
    link = await _direct(links, vnet_tun)
    gateway, session_id = link.gateway, link.session_of_gateway.session_id
    strays: list[bytes] = []
    assert gateway.endpoint.carrier is not None
    gateway.endpoint.carrier._on_read = strays.append
    own = link.send_up([100])
    await eventually(lambda: not link.missing_above(own), _WAIT_S)

    def grant(*granted: str) -> None:
        addresses = () if networks else [ip_address(each) for each in granted]
        held = [ip_network(each) for each in networks if granted]
        gateway.table.granted(session_id, addresses, held)

    async def passes(source: str) -> None:
        """Both ways; Python judges the first packet of a pair only."""
        down = [udp_packet("10.100.0.6", source, bytes((n, len(strays)))) for n in range(20)]
        for packet in down:
            vnet_tun.inject(packet)
        await eventually(lambda: not link.missing_below(down), _WAIT_S)
        first = udp_packet(source, "10.100.0.6", b"first")
        link.peer.send_datagram(link.prefix + first)
        await eventually(lambda: first in gateway.tun.written, _WAIT_S)
        up = [udp_packet(source, "10.100.0.6", bytes((n, len(strays)))) for n in range(20)]
        for packet in up:
            link.peer.send_datagram(link.prefix + packet)
        arrived: list[bytes] = []
        await eventually(lambda: arrived.extend(vnet_tun.delivered()) or len(arrived) >= 20)
        assert set(arrived) == set(up)
        gateway.tun.written.clear()

    async def is_kept_out() -> None:
        known = len(strays)
        vnet_tun.inject(udp_packet("10.100.0.6", address))
        await eventually(lambda: len(strays) == known + 1, _WAIT_S)
        link.peer.send_datagram(link.prefix + udp_packet(address, "10.100.0.6", b"late"))
        # The own address still passes, and in order: what was before it has been judged.
        honest = udp_packet(link.address, OFFICE_V4, bytes((1, len(strays))))
        link.peer.send_datagram(link.prefix + honest)
        await eventually(lambda: honest in (*vnet_tun.delivered(), *gateway.tun.written), _WAIT_S)
        assert not any(b"late" in packet for packet in gateway.tun.written)

    await is_kept_out()
    grant(address)
    await passes(address)
    grant()
    await is_kept_out()
    grant(address)
    await passes(address)
    gateway.table.close(link.session_of_gateway, "revoked")
    known = len(strays)
    vnet_tun.inject(udp_packet("10.100.0.6", address))
    await eventually(lambda: len(strays) == known + 1, _WAIT_S)


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
    await eventually(lambda: not closing, _WAIT_S)
    gateway.table.write_tun = write
    for link in survivors:
        await link.carry(_BURST)
    await eventually(lambda: len(gateway.endpoint.connections) == len(survivors), _WAIT_S)


@only_native
async def test_the_end_frees_the_session(links: Links) -> None:
    link = await links.link()
    session = link.native(link.gateway_side)
    connection = link.gateway_side
    link.gateway.table.close(link.session_of_gateway, "over")
    await eventually(lambda: not session.is_open, _WAIT_S)
    await eventually(lambda: connection not in link.gateway.endpoint.connections, _WAIT_S)
    with pytest.raises(ValueError, match="closed"):
        session.send_frame(b"x")
