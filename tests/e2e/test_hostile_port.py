"""The gateway's port in hostile hands: strangers' packets cost bounded memory and nobody's ping."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from e2e_support.world import World
from zgate_lab.capture import Capture
from zgate_lab.traffic import ping, send_udp

PAYLOADS = 100_000
RATE_PER_S = 10_000
PINGS = 1000
MAX_GROWTH_BYTES = 10 << 20
GATEWAY_PORT = 443
UDP, UDP_HEADER_BYTES = 17, 8
SEED = 20_240_611


def captured_payloads(world: World) -> list[bytes]:
    """What a whole session sends to the port: handshake, requests, datagrams, the end."""
    gateway = world.internet.gateway
    with Capture(gateway.namespace, gateway.interface) as capture:
        world.zgate.reconnect("bob")
        ping(world.bob, world.internet.office.ipv4, count=5, timeout_s=0.1)
        ping(world.alice, world.internet.office.ipv4, count=5)
    return [
        packet.payload[UDP_HEADER_BYTES:]
        for packet in capture.packets
        if packet.protocol == UDP and not packet.is_outgoing and is_to_port(packet.payload)
    ]


def is_to_port(udp: bytes) -> bool:
    return int.from_bytes(udp[2:4]) == GATEWAY_PORT


def mutated(source: random.Random, real: bytes) -> bytes:
    """A real packet with a few bytes changed, cut off, or with something behind it."""
    data = bytearray(real)
    for _ in range(source.randint(1, 8)):
        data[source.randrange(len(data))] = source.randrange(256)
    kind = source.randrange(4)
    if kind == 0:
        del data[source.randrange(1, len(data) + 1) :]
    elif kind == 1:
        data += source.randbytes(source.randint(1, 100))
    return bytes(data[:1472])


def payloads(source: random.Random, real: Sequence[bytes]) -> Iterator[bytes]:
    """Half of them mutated from real ones, handshakes as often as others; the rest is random."""
    handshakes = [one for one in real if one[0] & 0x80]
    others = [one for one in real if not one[0] & 0x80]
    while True:
        for kind in (handshakes, others):
            yield source.randbytes(source.randint(0, 1400))
            yield mutated(source, source.choice(kind))


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")


def test_100_000_hostile_payloads_harm_nobody(world: World) -> None:
    source = random.Random(SEED)
    real = captured_payloads(world)
    gateway = world.internet.gateway
    session = world.zgate.sessions()["alice"]
    reconnects = world.zgate.agent_status("alice")["reconnects"]
    hostile = payloads(source, real)

    def attack(count: int) -> int:
        return send_udp(
            world.bob, gateway.ipv4, GATEWAY_PORT, hostile, count=count, rate_per_s=RATE_PER_S
        )

    # Whatever is made once and kept is made now.
    attack(PAYLOADS // 20)
    before = resident_bytes(world.gateway.pid)
    with ThreadPoolExecutor(1) as pool:
        pings = pool.submit(
            ping, world.alice, world.internet.office.ipv4, count=PINGS, interval_s=0.01
        )
        assert attack(PAYLOADS) == PAYLOADS
        result = pings.result()
    grown = resident_bytes(world.gateway.pid) - before
    assert result.lost == 0, result.output
    assert grown < MAX_GROWTH_BYTES, f"{grown >> 20} MiB more"
    after = world.zgate.sessions()["alice"]
    assert (after["session_id"], after["peer"]) == (session["session_id"], session["peer"])
    assert world.zgate.agent_status("alice")["reconnects"] == reconnects
    assert "Traceback" not in world.gateway.output()
    assert "raised" not in world.gateway.output()
    # And who comes with a certificate is let in as before.
    world.zgate.reconnect("bob")
