"""Anything at the UDP port: the established session's pings all pass, and nothing grows.

Bounded by default; `ZGATE_FUZZ_PACKETS=100000 pytest tests/fuzz` runs longer. The seed is printed
by a failing test, and `ZGATE_FUZZ_SEED` repeats it.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from zgate_protocol.varint import encode_varint

from ..loopback import (  # noqa: TID252
    OFFICE_V4,
    OFFICE_V6,
    WAIT_S,
    Client,
    Gateway,
    Lab,
    Peer,
    eventually,
    udp_packet,
)

PACKETS = int(os.environ.get("ZGATE_FUZZ_PACKETS", "12000"))
SEED = int(os.environ.get("ZGATE_FUZZ_SEED", "0")) or random.randrange(1 << 32)
BURST = 40
V4, V6 = "10.100.0.2", "fd7a:7a67:6174:65::2"
MAX_GROWTH_BYTES = 1 << 20
MAX_PEAK_BYTES = 16 << 20


@pytest.fixture
def rng() -> random.Random:
    print(f"ZGATE_FUZZ_SEED={SEED}")
    return random.Random(SEED)


# What is sent.


def random_payload(rng: random.Random) -> bytes:
    """Noise; now and then with the beginning of a header."""
    body = rng.randbytes(rng.choice((0, 1, 5, 20, 100, 600, 1199, 1200, 1200, 1252, 1452)))
    start = rng.choice(
        (b"", b"\x40", b"\xc0", b"\xc0\0\0\0\1", b"\xe0\0\0\0\1\x08", b"\xc3kC3\xcf")
    )
    return start + body


def mutate(rng: random.Random, packets: list[bytes]) -> bytes:
    """A captured packet, damaged in one of the ways that find bugs."""
    packet = bytearray(rng.choice(packets))
    kind = rng.randrange(8)
    if kind == 0:
        return bytes(packet)  # a replay
    if kind == 1:
        return bytes(packet[: rng.randrange(len(packet) + 1)])
    if kind == 2:
        return bytes(packet) + rng.randbytes(rng.randrange(1, 300))
    if kind == 3:
        other = rng.choice(packets)
        cut = rng.randrange(len(packet) + 1)
        return bytes(packet[:cut]) + other[cut:]
    if kind == 4:
        packet[0] ^= 1 << rng.randrange(8)
        return bytes(packet)
    if kind == 5:
        start = rng.randrange(len(packet))
        packet[start : start + rng.randrange(1, 40)] = rng.randbytes(rng.randrange(40))
        return bytes(packet)
    if kind == 6:
        return bytes(packet) + rng.choice(packets)
    for _ in range(rng.randrange(1, 6)):
        packet[rng.randrange(len(packet))] ^= rng.randrange(1, 256)
    return bytes(packet)


@dataclass
class Capture:
    """What went from a peer's socket to the gateway."""

    packets: list[bytes] = field(default_factory=list)

    def attach(self, end: Client | Peer) -> None:
        udp = end.endpoint.udp
        send: Callable[..., bool] = udp.send_batch

        def send_and_keep(datagrams: list[bytes], address: object) -> bool:
            self.packets.extend(datagrams[:20])
            del self.packets[:-400]
            return send(datagrams, address)

        udp.send_batch = send_and_keep  # type: ignore[method-assign, assignment]


async def capture_handshake(lab: Lab, gateway: Gateway) -> list[bytes]:
    """Whole first flights, of a client with and of one without a certificate."""
    kept = Capture()
    for name in ("bob", None):
        peer = lab.make_peer(gateway, name)
        kept.attach(peer)  # type: ignore[arg-type]
        await peer.dial(gateway.endpoint.udp.local_address)
        await eventually(lambda: peer.is_ready or peer.ended)  # noqa: B023
        await peer.close()
    return kept.packets


# What must hold.


@dataclass
class Pings:
    """Packets of the established session, both ways; each must come through."""

    client: Client
    gateway: Gateway
    count: int = 0

    async def one(self) -> None:
        self.count += 1
        number = self.count.to_bytes(4, "big")
        up = udp_packet(V4, OFFICE_V4, number)
        down = udp_packet(OFFICE_V6, V6, number)
        self.client.tun.inject(up)
        self.gateway.tun.inject(down)
        deadline = asyncio.get_running_loop().time() + WAIT_S
        while not (up in self.gateway.tun.written and down in self.client.tun.written):
            assert asyncio.get_running_loop().time() < deadline, f"ping {self.count} was lost"
            await asyncio.sleep(0)
        self.gateway.tun.written.clear()
        self.client.tun.written.clear()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def strangers(gateway: Gateway, count: int) -> Iterator[socket.socket]:
    for _ in range(count):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect(gateway.endpoint.udp.local_address)
        yield sock


def drain(sockets: list[socket.socket]) -> int:
    received = 0
    for sock in sockets:
        try:
            while True:
                received += len(sock.recv(65535))
        except OSError:
            continue
    return received


async def flood(
    gateway: Gateway, pings: Pings, payloads: Iterator[bytes], senders: list[socket.socket]
) -> tuple[int, int]:
    """Send all from the senders in turn, pinging meanwhile; bytes sent and received back."""
    sent = received = 0
    for number, payload in enumerate(payloads):
        try:
            sent += senders[number % len(senders)].send(payload)
        except OSError:
            continue
        if number % BURST == 0:
            await pings.one()
            received += drain(senders)
            assert gateway.endpoint.half_open <= 512
            assert len(gateway.endpoint.connections) <= 600
    return sent, received + drain(senders)


async def settled(gateway: Gateway, connections: int) -> None:
    """All that the flood began has died."""
    await eventually(lambda: len(gateway.endpoint.connections) == connections, 10)
    await eventually(lambda: not gateway.endpoint.half_open)
    gateway.handlers.clear()  # the harness's own list
    gc.collect()


@pytest.mark.parametrize("kind", ["random", "mutated", "both, from the client's own address"])
async def test_a_session_survives_anything_at_its_port(
    lab: Lab, rng: random.Random, kind: str
) -> None:
    gateway = lab.gateway()
    handshakes = await capture_handshake(lab, gateway)
    # The gateway is what is tested; this end's packets must pass through Python to be kept.
    client, _ = await lab.connect(gateway, engine="python")
    gateway.endpoint._handshake_timeout_s = 0.3
    capture = Capture()
    capture.attach(client)
    pings = Pings(client, gateway)
    for _ in range(50):
        await pings.one()
    await settled(gateway, connections=1)
    session = gateway.session("alice")
    path = session.owner.peer

    def payloads(count: int) -> Iterator[bytes]:
        for _ in range(count):
            if kind == "random" or (kind.startswith("both") and rng.random() < 0.5):
                yield random_payload(rng)
            else:
                yield mutate(rng, capture.packets if rng.random() < 0.6 else handshakes)

    if kind.startswith("both"):
        senders = [client.endpoint.udp._socket]
    else:
        senders = list(strangers(gateway, 8))
    # The first part fills what is filled once: caches, free lists, retry tokens.
    await flood(gateway, pings, payloads(PACKETS // 4), senders)
    await settled(gateway, connections=1)
    tracemalloc.start()
    try:
        before, resident = tracemalloc.get_traced_memory()[0], resident_bytes()
        await flood(gateway, pings, payloads(PACKETS // 12), senders)
        await settled(gateway, connections=1)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < MAX_GROWTH_BYTES, "memory grows with what strangers send"
    assert peak - before < MAX_PEAK_BYTES, "garbage piles up while strangers send"
    assert resident_bytes() - resident < MAX_PEAK_BYTES
    # It is the same session, where it was, and the tables hold nothing else.
    assert gateway.session("alice") is session
    assert session.owner.peer == path
    assert gateway.record.down == [] and gateway.record.up == ["alice"]
    (connection,) = gateway.endpoint.connections
    assert set(gateway.endpoint._by_id.values()) == {connection}
    assert len(connection.connection_ids) <= 10
    assert len(connection.quic._network_paths) <= 8
    assert set(gateway.endpoint._timers) <= {connection}
    assert not gateway.tun.written
    if not kind.startswith("both"):
        for sock in senders:
            sock.close()


async def test_strangers_get_no_more_than_three_times_what_they_send(
    lab: Lab, rng: random.Random
) -> None:
    gateway = lab.gateway()
    handshakes = await capture_handshake(lab, gateway)
    client, _ = await lab.connect(gateway)
    gateway.endpoint._handshake_timeout_s = 0.3
    pings = Pings(client, gateway)
    for sender in strangers(gateway, 20):
        with sender:
            payloads = (mutate(rng, handshakes) for _ in range(BURST))
            sent, received = await flood(gateway, pings, payloads, [sender])
            await asyncio.sleep(0.01)
            received += drain([sender])
            assert received <= 3 * sent


async def test_a_client_may_say_anything_in_its_session(lab: Lab, rng: random.Random) -> None:
    """Datagram payloads and capsules of a client that is let in but not well-meaning."""
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    pings = Pings(client, gateway)
    inner = [udp_packet("10.100.0.3", OFFICE_V4), udp_packet("fd7a:7a67:6174:65::3", OFFICE_V6)]
    for _ in range(PACKETS // 400):
        peer = await lab.peer(gateway, "bob")
        stream_id = await peer.establish()
        prefix = encode_varint(stream_id // 4) + b"\0"
        for _ in range(60):
            if peer.ended:
                break
            packet = mutate(rng, inner) if rng.random() < 0.8 else rng.randbytes(50)
            peer.send_datagram((prefix if rng.random() < 0.9 else rng.randbytes(2)) + packet)
        if not peer.ended:
            peer.send_data(stream_id, rng.randbytes(rng.randrange(400)))
        await pings.one()
        await peer.close()
        # Whatever passed was the client's own: nothing else ever reaches the TUN.
        addresses = {address.packed for address in (gateway.pools[0].leases["bob"],)}
        addresses |= {gateway.pools[1].leases["bob"].packed}
        for written in gateway.tun.written:
            source = written[12:16] if written[0] >> 4 == 4 else written[8:24]
            assert source in addresses
        gateway.tun.written.clear()
    await settled(gateway, connections=1)
    assert list(gateway.table.by_client) == ["alice"]
    assert list(gateway.kernel.clients) == ["alice"]
