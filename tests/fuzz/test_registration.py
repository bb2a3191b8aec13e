"""What clients register, damaged: capsules about services, and both dialects at the gateway.

Bounded by default; `ZGATE_FUZZ_PACKETS=100000 pytest tests/fuzz` runs longer. The seed is printed
by a failing test, and `ZGATE_FUZZ_SEED` repeats it.
"""

from __future__ import annotations

import os
import random
import tracemalloc
from ipaddress import ip_address
from typing import Any

import pytest
from zgate_gateway.dialects.translation import Translation
from zgate_protocol.capsule import CapsuleDecoder
from zgate_protocol.dialects.stream import StreamSession, encode_packet
from zgate_protocol.dialects.ztna_v1 import parse_datagram
from zgate_protocol.dns_capsule import DnsAssign
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.errors import MalformedCapsule
from zgate_protocol.limits import Limits
from zgate_protocol.service_capsule import (
    Drain,
    Health,
    ObservedAddress,
    OfferedService,
    OfferKind,
    OfferState,
    OfferStatus,
    Register,
    Registered,
    RegistrationAnswer,
    RegistrationCode,
    ServicePorts,
)

from ..dialect_clients import StreamClient, ZtnaClient, configuration, dial  # noqa: TID252
from ..loopback import (  # noqa: TID252
    HOST,
    OFFICE_V4,
    Gateway,
    Lab,
    eventually,
    udp_packet,
)

ROUNDS = int(os.environ.get("ZGATE_FUZZ_PACKETS", "12000"))
SEED = int(os.environ.get("ZGATE_FUZZ_SEED", "0")) or random.randrange(1 << 32)
LIMITS = Limits(max_service_capsule_bytes=4096, max_datagram_capsule_bytes=4096)
MAX_GROWTH_BYTES = 1 << 20
VIPS = (ip_address("10.101.0.1"), ip_address("fd7a:7a67:6174:66::1"))
OFFER = ip_address("10.101.255.254")
V4, AGENT, VIRTUAL_IP = "10.100.0.2", "10.77.0.2", "10.99.0.1"

SERVICES = (
    OfferedService("pacs", (ServicePorts(6, 104, 104), ServicePorts(17, 1, 65535))),
    OfferedService("é" * 100, ()),
)
ANSWERS = (
    RegistrationAnswer(OfferKind.SERVICE, "pacs", RegistrationCode.ACCEPTED, "", VIPS, (OFFER,)),
    RegistrationAnswer(OfferKind.ROUTE, "10.2.0.0/16", RegistrationCode.OVERLAP, "why"),
)
CAPSULES = [
    Register(7, SERVICES).encode(),
    Registered(7, ANSWERS).encode(),
    OfferState((OfferStatus("pacs", Health.UP, 1, 1 << 20, 1 << 40, 3, "slow"),)).encode(),
    Drain(1000).encode(),
    ObservedAddress(3, VIPS[1], 443).encode(),
    DnsAssign(VIPS, ("zgate.internal", "")).encode(),
]
DATAGRAMS = [
    b"\x10\x04pacs",
    b"\x11\x04pacs",
    b"\x10\x02\xc3\xa9",
    b"\x2f\x04pacs" + udp_packet(AGENT, VIRTUAL_IP),
    b"\x2f\x04pacs" + udp_packet("fd77::2", "fd99::1"),
    udp_packet(AGENT, VIRTUAL_IP),
]


@pytest.fixture
def rng() -> random.Random:
    print(f"ZGATE_FUZZ_SEED={SEED}")
    return random.Random(SEED)


def damaged(rng: random.Random, whole: list[bytes]) -> bytes:
    """One of them, or two, with bytes changed, left out or put in."""
    data = bytearray(rng.choice(whole))
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                del data[at : at + rng.randrange(1, 8)]
            case 1:
                data[at:at] = rng.randbytes(rng.randrange(1, 8))
            case 2 if at < len(data):
                data[at] = rng.choice((0, 1, 0x3F, 0x40, 0x7F, 0x80, 0xBF, 0xC0, 0xFF))
            case _ if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
    return bytes(data) + (rng.choice(whole) if rng.random() < 0.2 else b"")


# Parsers alone.


def test_capsules_about_services(rng: random.Random) -> None:
    """A capsule or an error, in pieces of every size; nothing is held beyond the limit."""
    for _ in range(ROUNDS):
        data, decoder = damaged(rng, CAPSULES), CapsuleDecoder(LIMITS)
        try:
            while data:
                cut = rng.randrange(1, len(data) + 1)
                for capsule in decoder.feed(data[:cut]):
                    capsule.encode()
                data = data[cut:]
                assert decoder.buffered_bytes <= LIMITS.max_service_capsule_bytes + 16
        except MalformedCapsule:
            continue


def test_the_stream_dialect(rng: random.Random) -> None:
    whole = [
        encode_packet(udp_packet(V4, OFFICE_V4)),
        b"\x01\x08" + bytes(8),
        b"\x2f\x00",
        *CAPSULES,
    ]
    for _ in range(ROUNDS):
        session = StreamSession(0, limits=LIMITS)
        session._requested(_request())
        session.accept()
        data = b"".join(damaged(rng, whole) for _ in range(3))
        while data:
            cut = rng.randrange(1, len(data) + 1)
            session.receive_data(data[:cut])
            data = data[cut:]
            assert session._decoder.buffered_bytes <= LIMITS.max_datagram_capsule_bytes + 16


def test_the_ztna_dialect(rng: random.Random) -> None:
    """Every datagram is a message or none; every packet a translated one or a drop."""
    translation = Translation()
    translation.set_own([ip_address(V4), ip_address("fd7a:7a67:6174:65::2")])
    translation.reach("pacs", VIPS)
    translation.serve({"web": {OFFER.packed: VIPS[0].packed}})
    for _ in range(ROUNDS):
        data = damaged(rng, DATAGRAMS)
        message = parse_datagram(data)
        packet = getattr(message, "packet", data)
        for service in (getattr(message, "service", None), "pacs", "web", None):
            translated = translation.from_client(packet, service)
            assert isinstance(translated, DropReason) or len(translated) == len(packet)


def _request() -> Any:
    return StreamSession(0).receive_headers(
        [(b":method", b"CONNECT"), (b":authority", b"gateway"), (b"protocol", b"connect-ip")]
    )[0]


# At the gateway.


async def pings(gateway: Gateway, client: Any, number: int) -> None:
    """What is another session's passes."""
    packet = udp_packet("10.100.0.2", OFFICE_V4, number.to_bytes(4, "big"))
    client.tun.inject(packet)
    await eventually(lambda: packet in gateway.tun.written)


def settings(lab: Lab, protocol: str) -> Any:
    own = lab.pki.client("bob")
    return configuration(protocol, HOST, str(lab.pki.ca_file), str(own.certificate), str(own.key))


def sources(written: list[bytes]) -> set[bytes]:
    return {one[12:16] if one[0] >> 4 == 4 else one[8:24] for one in written}


def held_by(gateway: Gateway, client: str) -> set[bytes]:
    return {pool.leases[client].packed for pool in gateway.pools if client in pool.leases}


async def test_a_ztna_client_may_say_anything(lab: Lab, rng: random.Random) -> None:
    gateway = lab.gateway(dialects=["ztna-v1"], service_pools=["10.101.0.0/16"])
    gateway.link.reachable = {"pacs": VIPS}
    other, _ = await lab.connect(gateway)
    for number in range(ROUNDS // 1000):
        async with dial(ZtnaClient, "127.0.0.1", gateway.port, settings(lab, "ztna-v1")) as client:
            client.register_agent("pacs")
            await eventually(lambda: client.registered)
            gateway.tun.written.clear()
            for _ in range(60):
                client.say(damaged(rng, DATAGRAMS) or b"\0")
            await pings(gateway, other, number)
            own = held_by(gateway, "bob") | held_by(gateway, "alice")
            assert sources(gateway.tun.written) <= own
            assert "bob" in gateway.table.by_client
        await eventually(lambda: "bob" not in gateway.table.by_client)
    assert list(gateway.kernel.clients) == ["alice"]


async def test_a_stream_client_may_say_anything(lab: Lab, rng: random.Random) -> None:
    gateway = lab.gateway(dialects=["stream"])
    other, _ = await lab.connect(gateway)
    whole = [encode_packet(udp_packet("10.100.0.3", OFFICE_V4)), b"\x01\x03abc", *CAPSULES]
    tracemalloc.start()
    try:
        for number in range(ROUNDS // 1000):
            if number == 2:  # what is filled once is filled
                before = tracemalloc.get_traced_memory()[0]
            async with dial(StreamClient, "127.0.0.1", gateway.port, settings(lab, "h3")) as client:
                client.request(HOST)
                await eventually(lambda: client.capsules)
                gateway.tun.written.clear()
                for _ in range(20):
                    assert client.http is not None
                    client.http.send_data(client.stream_id, damaged(rng, whole), end_stream=False)
                    client.transmit()
                await pings(gateway, other, number)
                own = held_by(gateway, "bob") | held_by(gateway, "alice")
                assert sources(gateway.tun.written) <= own
            await eventually(lambda: "bob" not in gateway.table.by_client)
            await eventually(lambda: len(gateway.endpoint.connections) == 1)
            gateway.handlers.clear()
        assert tracemalloc.get_traced_memory()[0] - before < MAX_GROWTH_BYTES
    finally:
        tracemalloc.stop()
    assert list(gateway.kernel.clients) == ["alice"]


async def test_a_connector_may_register_anything(lab: Lab, rng: random.Random) -> None:
    """Over the RFC form: what is malformed ends its session, and no other."""
    gateway = lab.gateway()
    other, _ = await lab.connect(gateway)
    for number in range(ROUNDS // 400):
        peer = await lab.peer(gateway, "bob")
        stream_id = await peer.establish()
        for _ in range(5):
            if peer.ended or stream_id in peer.resets:
                break
            peer.send_data(stream_id, damaged(rng, CAPSULES))
        await pings(gateway, other, number)
        await peer.close()
        gateway.link.offered.clear()
    await eventually(lambda: list(gateway.table.by_client) == ["alice"])
    assert list(gateway.kernel.clients) == ["alice"]
