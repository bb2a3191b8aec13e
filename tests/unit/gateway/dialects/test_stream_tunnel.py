"""The stream dialect at the gateway, with a client that is aioquic and the dialect's text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from zgate_protocol.drop_reason import DropReason

from ....dialect_clients import StreamClient  # noqa: TID252
from ....loopback import (  # noqa: TID252
    HOST,
    OFFICE_V4,
    OFFICE_V6,
    Gateway,
    Lab,
    eventually,
    icmp_type_and_code,
    udp_packet,
)

V4, V6 = "10.100.0.2", "fd7a:7a67:6174:65::2"
Dial = Callable[..., Any]


def stream_gateway(lab: Lab, **settings: Any) -> Gateway:
    return lab.gateway(dialects=["stream"], **settings)


async def established(client: StreamClient) -> None:
    client.request(HOST)
    await eventually(lambda: client.capsules)
    assert client.status == 200


async def test_addresses_come_first(lab: Lab, dialling: Dial) -> None:
    gateway = stream_gateway(lab)
    async with dialling(StreamClient, gateway) as client:
        await established(client)
        assert client.capsules[0][0] == 0x01
        assert client.addresses() == [f"{V4}/32", f"{V6}/128"]
        assert list(gateway.kernel.clients) == ["alice"]
        assert len(client.capsules) == 1


async def test_packets_both_ways(lab: Lab, dialling: Dial) -> None:
    gateway = stream_gateway(lab)
    async with dialling(StreamClient, gateway) as client:
        await established(client)
        for own, office in ((V4, OFFICE_V4), (V6, OFFICE_V6)):
            gateway.tun.written.clear()
            client.packets.clear()
            sent = [udp_packet(own, office, bytes(size)) for size in (0, 100, 1400, 8000)]
            for packet in sent:
                client.send_packet(packet)
            await eventually(lambda: len(gateway.tun.written) == 4)
            assert gateway.tun.written == sent
            answers = [udp_packet(office, own, bytes(size)) for size in (0, 100, 1400, 8000)]
            for packet in answers:
                gateway.tun.inject(packet)
            await eventually(lambda: len(client.packets) == 4)
            assert client.packets == answers


async def test_capsules_of_other_types_are_skipped(lab: Lab, dialling: Dial) -> None:
    gateway = stream_gateway(lab)
    async with dialling(StreamClient, gateway) as client:
        await established(client)
        for capsule_type in (0x00, 0x01, 0x02, 0x03, 0x21, 0x267A6702):
            client.send_capsule(capsule_type, b"\xff\xff")
        client.send_packet(udp_packet(V4, OFFICE_V4))
        await eventually(lambda: gateway.tun.written)
        assert "alice" in gateway.table.by_client


async def test_the_gate_is_that_of_others(lab: Lab, dialling: Dial) -> None:
    gateway = stream_gateway(lab)
    async with dialling(StreamClient, gateway) as client:
        await established(client)
        client.send_packet(udp_packet("10.100.0.5", OFFICE_V4))
        await eventually(lambda: client.packets)
        assert icmp_type_and_code(client.packets[0]) == (3, 13)
        assert gateway.tun.written == []
        drops = gateway.session("alice").tunnel.drops
        assert drops == {DropReason.SOURCE_NOT_ASSIGNED: 1}


async def test_an_empty_pool_is_503(lab: Lab, dialling: Dial) -> None:
    gateway = stream_gateway(lab, pools=["10.100.0.0/30", "fd7a:7a67:6174:65::/125"])
    async with dialling(StreamClient, gateway) as client:
        await established(client)
        async with dialling(StreamClient, gateway, "bob") as other:
            other.request(HOST)
            await eventually(lambda: other.is_over)
            assert other.status == 503


async def test_a_request_that_is_malformed(lab: Lab, dialling: Dial) -> None:
    gateway = stream_gateway(lab)
    async with dialling(StreamClient, gateway) as client:
        client.request("two words")
        await eventually(lambda: client.status)
        assert client.status == 400


async def test_the_end_of_the_stream_is_the_sessions(lab: Lab, dialling: Dial) -> None:
    gateway = stream_gateway(lab)
    async with dialling(StreamClient, gateway) as client:
        await established(client)
        client.http.send_data(client.stream_id, b"", end_stream=True)
        client.transmit()
        await eventually(lambda: client.ended)
    assert gateway.record.down == [("alice", "closed by the client")]
    await eventually(lambda: not gateway.endpoint.connections)
    gateway.assert_holds_nothing()


async def test_a_client_that_does_not_read(lab: Lab, dialling: Dial) -> None:
    """What is not acknowledged is bounded; what comes then is dropped, and counted."""
    gateway = stream_gateway(lab)
    async with dialling(StreamClient, gateway) as client:
        await established(client)
        loop, transport = asyncio.get_running_loop(), client._transport
        loop._remove_reader(transport._sock_fd)  # type: ignore[attr-defined]
        tunnel = gateway.session("alice").tunnel
        packet = udp_packet(OFFICE_V4, V4, bytes(8000))
        for _ in range(100):
            tunnel.send(packet)
        assert tunnel.drops[DropReason.QUEUE_FULL] >= 60
        backlog = tunnel.connection.stream_backlog_bytes(client.stream_id)
        assert backlog <= (1 << 18) + len(packet) + 16
        loop._add_reader(transport._sock_fd, transport._read_ready)  # type: ignore[attr-defined]
        gateway.endpoint.flush(tunnel.connection)
        await eventually(lambda: len(client.packets) >= 30)


@pytest.mark.parametrize("dialects", [(), ("ztna-v1",)])
async def test_off_unless_it_is_named(lab: Lab, dialling: Dial, dialects: tuple[str]) -> None:
    gateway = lab.gateway(dialects=dialects)
    async with dialling(StreamClient, gateway) as client:
        client.request(HOST)
        await eventually(lambda: client.status)
        assert client.status == 501


async def test_others_are_served_beside_it(lab: Lab, dialling: Dial) -> None:
    gateway = lab.gateway(dialects=["stream", "ztna-v1"])
    async with dialling(StreamClient, gateway) as client:
        await established(client)
        other, state = await lab.connect(gateway, "bob")
        assert str(state.addresses[0]).startswith("10.100.0.3")
        other.tun.inject(udp_packet("10.100.0.3", OFFICE_V4, b"hello"))
        await eventually(lambda: gateway.tun.written)
