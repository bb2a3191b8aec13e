"""Links between a gateway and a peer over real sockets, with either engine or aioquic alone.

What the tests of the native engine share; `links` and `engines` are this folder's fixtures.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from zgate_datapath import aioquic_private as private
from zgate_datapath.connection import Connection
from zgate_datapath.engine import native_problem
from zgate_datapath.native_engine import NativeEngine
from zgate_protocol.varint import encode_varint

from ...loopback import OFFICE_V4, Gateway, Lab, Peer, Pki, eventually, udp_packet  # noqa: TID252
from .wire import AioquicAlone, Wire, has_short_header

needs_native = pytest.mark.skipif(bool(native_problem()), reason="the native engine is not built")

# Packets that fit every socket buffer on the way.
BURST = 40
#: Within the first congestion window: CoDel may drop what waits longer in the queue.
WAVE_BYTES = 9_000
WAIT_S = 20.0


@dataclass
class Link:
    """A session between a peer and a gateway, with a wire between them."""

    gateway: Gateway
    peer: Peer
    wire: Wire
    stream_id: int
    name: str
    _sent: int = 0

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
        await eventually(lambda: ours.send.key_phase == theirs.send.key_phase, WAIT_S)
        phase = ours.send.key_phase
        end.quic.request_key_update()
        self.ping(end)
        await eventually(lambda: ours.send.key_phase == theirs.send.key_phase != phase, WAIT_S)

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
        rest = [size() for _ in range(count)]
        while rest:
            sizes = [rest.pop()]
            while rest and len(sizes) < BURST and sum(sizes) + rest[-1] < WAVE_BYTES:
                sizes.append(rest.pop())
            up, down = self.send_up(sizes), self.send_down(sizes)
            await eventually(lambda up=up: not self.missing_above(up), WAIT_S)
            await eventually(lambda down=down: not self.missing_below(down), WAIT_S)
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
        await eventually(lambda: peer.is_ready or peer.ended, WAIT_S)
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


def no_forgeries(link: Link) -> None:
    assert link.gateway_side.engine.counters.forged_packets == 0
    assert link.peer.connection.engine.counters.forged_packets == 0


def waiting_for_acks(connection: Connection) -> int:
    """How many of aioquic's own packets nobody has acknowledged yet."""
    sent = private.application_space(connection.quic).sent_packets
    return sum(each.is_ack_eliciting for each in sent.values())
