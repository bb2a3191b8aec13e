"""Connection IDs name their owner and nobody sees it; the tokens of stateless resets."""

from __future__ import annotations

import asyncio
import os
from collections import Counter

import pytest
from zgate_datapath.connection import Connection
from zgate_datapath.connection_ids import (
    CONNECTION_ID_BYTES,
    MIN_RESET_BYTES,
    ConnectionIds,
    StatelessResets,
    ends_with_token,
)

from ...loopback import GATEWAY_V4, Lab, eventually, udp_packet  # noqa: TID252

SECRET = bytes(range(32))


@pytest.mark.parametrize("owner", [0, 1, 15])
def test_every_id_names_its_owner_to_whoever_has_the_secret(owner: int) -> None:
    ids = ConnectionIds(SECRET, owner, 16)
    other = ConnectionIds(SECRET, 0, 16)
    issued = [ids.issue() for _ in range(1000)]
    assert {len(one) for one in issued} == {CONNECTION_ID_BYTES}
    assert {other.owner_of(one) for one in issued} == {owner}
    # RFC 9000 section 5.1: what an observer could compare differs.
    assert len({one[0] for one in issued}) > 200


def test_an_id_of_nobody_here_has_no_owner() -> None:
    ids = ConnectionIds(SECRET, 0, 2)
    owners = Counter(ids.owner_of(os.urandom(8)) for _ in range(20_000))
    assert set(owners) == {0, 1, None}
    assert owners[None] > 19_000
    assert ids.owner_of(b"1234567") is None
    assert ConnectionIds(SECRET, 3, 4).owner_of(ConnectionIds(SECRET, 9, 16).issue()) is None


def test_another_secret_is_another_mask() -> None:
    one, other = ConnectionIds(SECRET, 0, 1), ConnectionIds(owner=0, owners=1)
    assert sum(other.owner_of(one.issue()) == 0 for _ in range(1000)) < 30


@pytest.mark.parametrize(("secret", "owner", "owners"), [(b"x", 0, 1), (SECRET, 1, 1)])
def test_what_makes_no_sense_is_refused(secret: bytes, owner: int, owners: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        ConnectionIds(secret, owner, owners)


def test_the_secret_is_not_shown() -> None:
    assert "000102" not in repr(ConnectionIds(SECRET)).replace("\\x", "")


def test_tokens_are_the_same_in_every_process_and_for_no_other_id() -> None:
    one, other = ConnectionIds(SECRET, 0, 2), ConnectionIds(SECRET, 1, 2)
    cid = one.issue()
    assert one.reset_token(cid) == other.reset_token(cid)
    assert one.reset_token(cid) != one.reset_token(one.issue())
    assert one.reset_token(cid) != ConnectionIds().reset_token(cid)


def short(cid: bytes, size: int) -> bytes:
    return (b"\x41" + cid).ljust(size, b"\xaa")


@pytest.mark.parametrize("size", [22, 23, 42, 43, 44, 1200])
def test_9000_s10_3_3_a_reset_is_smaller_than_its_packet_and_looks_like_one(size: int) -> None:
    ids = ConnectionIds(SECRET)
    cid = ids.issue()
    answer = StatelessResets(ids).answer(short(cid, size), 0.0)
    assert answer is not None
    assert MIN_RESET_BYTES <= len(answer) == min(size - 1, 42)
    assert answer[0] & 0xC0 == 0x40
    assert ends_with_token(answer, ids.reset_token(cid))


@pytest.mark.parametrize(
    "packet",
    [b"", b"\x41", short(b"12345678", 21), b"\xc1" + bytes(60), b"\x01" + bytes(60)],
    ids=["nothing", "a byte", "too small", "a long header", "no fixed bit"],
)
def test_what_is_not_answered(packet: bytes) -> None:
    assert StatelessResets(ConnectionIds(SECRET)).answer(packet, 0.0) is None


def test_9000_s21_11_no_worker_tells_the_tokens_of_another() -> None:
    resets = StatelessResets(ConnectionIds(SECRET, 0, 2))
    assert resets.answer(short(ConnectionIds(SECRET, 1, 2).issue(), 100), 0.0) is None
    assert resets.answer(short(ConnectionIds(SECRET, 0, 2).issue(), 100), 0.0)


def test_resets_are_limited() -> None:
    ids = ConnectionIds(SECRET)
    resets = StatelessResets(ids, per_s=10)
    packet = short(ids.issue(), 100)
    assert sum(resets.answer(packet, 1.0) is not None for _ in range(100)) == resets.sent == 10
    assert resets.answer(packet, 1.2) is not None


def test_what_is_no_reset() -> None:
    token = bytes(range(16))
    assert ends_with_token(bytes(5) + token, token)
    assert not ends_with_token(bytes(4) + token, token)
    assert not ends_with_token(bytes(5) + token, token[::-1])
    assert not ends_with_token(bytes(30), b"")


# With real connections.


async def test_all_ids_of_a_connection_are_of_its_worker(lab: Lab) -> None:
    ids = ConnectionIds(SECRET, 2, 4)
    gateway = lab.gateway(connection_ids=ids)
    client, _ = await lab.connect(gateway)
    quic = gateway.session("alice").tunnel.connection.quic
    assert len(quic._host_cids) == 8
    assert {ids.owner_of(one.cid) for one in quic._host_cids} == {2}
    # What the client was told is what any process can compute.
    told = [client.connection.quic._peer_cid, *client.connection.quic._peer_cid_available]
    assert len(told) == 8
    assert all(one.stateless_reset_token == ids.reset_token(one.cid) for one in told)


async def test_an_id_is_known_before_the_client_can_use_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may move to one with its very next packet, which must not be answered with a reset."""
    gateway = lab.gateway()
    endpoint, follow = gateway.endpoint, gateway.endpoint._follow
    known: list[tuple[int, int]] = []

    def follow_and_look(connection: Connection) -> None:
        follow(connection)
        if not connection.is_terminated:
            ids = [one.cid for one in connection.quic._host_cids]
            known.append((len(ids), sum(one in endpoint._by_id for one in ids)))

    monkeypatch.setattr(endpoint, "_follow", follow_and_look)
    client, _ = await lab.connect(gateway)
    client.tunnel.rebind()
    client.tun.inject(udp_packet("10.100.0.2", GATEWAY_V4))
    await eventually(lambda: gateway.tun.written)
    assert max(known) == (8, 8)
    assert all(made == found for made, found in known)


async def test_a_client_of_a_gateway_that_has_forgotten_it_knows_at_once(lab: Lab) -> None:
    ids = ConnectionIds(SECRET)
    first = lab.gateway(connection_ids=ids)
    client, _ = await lab.connect(first)
    port = first.port
    first.kill()
    second = lab.gateway(connection_ids=ConnectionIds(SECRET), port=port)
    client.tun.inject(udp_packet("10.100.0.2", GATEWAY_V4))
    async with asyncio.timeout(10):
        assert "stateless reset" in await client.tunnel.wait_closed()
    # One for each packet that was under way: a path MTU probe may have been.
    assert second.endpoint.resets.sent >= 1
    # Nothing more is sent: RFC 9000 section 10.3.1.
    assert not client.endpoint.connections
    await lab.connect(second)


async def test_also_after_the_client_has_moved_to_another_id(lab: Lab) -> None:
    ids = ConnectionIds(SECRET)
    first = lab.gateway(connection_ids=ids)
    client, _ = await lab.connect(first)
    before = client.connection.quic._peer_cid.cid
    client.tunnel.rebind()
    assert client.connection.quic._peer_cid.cid != before
    client.tun.inject(udp_packet("10.100.0.2", GATEWAY_V4))
    await eventually(lambda: first.tun.written)
    port = first.port
    first.kill()
    lab.gateway(connection_ids=ids, port=port)
    client.tun.inject(udp_packet("10.100.0.2", GATEWAY_V4))
    async with asyncio.timeout(10):
        assert "stateless reset" in await client.tunnel.wait_closed()


async def test_a_forged_reset_ends_nothing(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    forged = StatelessResets(ConnectionIds()).make(bytes(8))
    gateway.endpoint.udp.send_batch([forged], client.endpoint.udp.local_address)
    await eventually(lambda: client.endpoint.unknown_packets)
    client.tun.inject(udp_packet("10.100.0.2", GATEWAY_V4))
    await eventually(lambda: gateway.tun.written)


async def test_a_packet_for_another_worker_is_counted_and_never_answered(lab: Lab) -> None:
    gateway = lab.gateway(connection_ids=ConnectionIds(SECRET, 0, 2))
    client, _ = await lab.connect(gateway)
    packet = short(ConnectionIds(SECRET, 1, 2).issue(), 100)
    client.endpoint.udp.send_batch([packet], gateway.endpoint.udp.local_address)
    await eventually(lambda: gateway.endpoint.misdirected_packets == 1)
    assert gateway.endpoint.resets.sent == 0


async def test_a_retry_token_of_one_worker_is_good_at_another(lab: Lab) -> None:
    key = os.urandom(16)
    one = lab.gateway(connection_ids=ConnectionIds(SECRET, 0, 2), retry_key=key)
    other = lab.gateway(connection_ids=ConnectionIds(SECRET, 1, 2), retry_key=key)
    address, cid = ("192.0.2.1", 4711), b"12345678"
    token = one.endpoint._retry.create_token(
        address=address,
        original_destination_connection_id=b"original",
        retry_source_connection_id=cid,
        now=5.0,
    )
    checked = {"address": address, "destination_cid": cid, "token": token, "now": 6.0}
    assert other.endpoint._retry.validate_token(**checked) == b"original"
    with pytest.raises(ValueError, match="invalid"):
        lab.gateway().endpoint._retry.validate_token(**checked)
