"""ADDRESS_REQUEST and its answers; capsules that end their session and nothing else."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from zgate_protocol.capsule import (
    AddressAssign,
    AddressRequest,
    AssignedAddress,
    encode_capsule,
)

from ...loopback import (  # noqa: TID252
    OFFICE_V4,
    Lab,
    Peer,
    eventually,
    udp_packet,
)

V4, V6 = ip_address("10.100.0.2"), ip_address("fd7a:7a67:6174:65::2")


def request_for(*entries: tuple[int, str]) -> bytes:
    return AddressRequest(
        tuple(AssignedAddress(number, ip_network(prefix)) for number, prefix in entries)
    ).encode()


def assignments(peer: Peer, stream_id: int) -> list[AddressAssign]:
    return [c for c in peer.capsules[stream_id] if isinstance(c, AddressAssign)]


def assigned(peer: Peer, stream_id: int) -> list[tuple[int, str]]:
    """What the last ADDRESS_ASSIGN said."""
    last = assignments(peer, stream_id)[-1]
    return sorted((entry.request_id, str(entry.prefix)) for entry in last.addresses)


# ADDRESS_REQUEST.


async def test_9484_s4_7_2_a_request_for_any_address_is_answered_with_the_lease(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    stream_id = await peer.establish()
    assert assigned(peer, stream_id) == [(0, f"{V4}/32"), (0, f"{V6}/128")]
    peer.send_data(stream_id, request_for((7, "0.0.0.0/32"), (9, "::/128")))
    await eventually(lambda: len(assignments(peer, stream_id)) == 2)
    assert assigned(peer, stream_id) == [(7, f"{V4}/32"), (9, f"{V6}/128")]


async def test_9484_s4_7_2_a_request_beyond_the_entitlement_is_refused(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    stream_id = await peer.establish()
    peer.send_data(
        stream_id,
        request_for((1, f"{V4}/32"), (2, "10.100.0.3/32"), (3, "fd00::/64"), (4, "0.0.0.0/32")),
    )
    await eventually(lambda: len(assignments(peer, stream_id)) == 2)
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
