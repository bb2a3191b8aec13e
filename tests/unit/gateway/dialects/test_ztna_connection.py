"""ztna-v1 at the gateway, with a client that is aioquic and the dialect's text."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Any

import pytest
from zgate_gateway import proved_connection
from zgate_gateway.dialects import ztna_connection
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.service_capsule import (
    OfferKind,
    Register,
    Registered,
    RegistrationAnswer,
    RegistrationCode,
)

from ....dialect_clients import ZtnaClient  # noqa: TID252
from ....loopback import Gateway, Lab, eventually, icmp_type_and_code, udp_packet  # noqa: TID252

A, D, V, S = "10.77.0.2", "10.99.0.1", "10.100.0.2", "10.101.0.1"
OFFER, CLIENT = "10.101.255.254", "10.100.0.5"
VIPS = (ip_address(S), ip_address("fd7a:7a67:6174:66::1"))
Dial = Callable[..., Any]
Scene = Callable[[Gateway, ZtnaClient], Awaitable[None]]


def ztna_gateway(lab: Lab, **settings: Any) -> Gateway:
    made = lab.gateway(
        dialects=["ztna-v1"],
        client_pools=["10.100.0.0/29"],
        service_pools=["10.101.0.0/16"],
        **settings,
    )
    made.link.reachable = {"pacs": VIPS, "web": (ip_address("10.101.0.2"),)}
    return made


async def registered(gateway: Gateway, client: ZtnaClient, service: str = "pacs") -> None:
    client.register_agent(service)
    await eventually(lambda: service in client.registered)


# The address.


async def test_the_client_is_told_its_address(lab: Lab, dialling: Dial) -> None:
    gateway = ztna_gateway(lab)
    async with dialling(ZtnaClient, gateway) as client:
        await eventually(lambda: client.seen_at)
        own = client._transport.get_extra_info("sockname")
        assert client.seen_at == [("127.0.0.1", own[1])]


async def test_the_dialect_has_no_word_for_ipv6(lab: Lab, dialling: Dial) -> None:
    gateway = ztna_gateway(lab, address="::1")
    async with dialling(ZtnaClient, gateway) as client:
        await registered(gateway, client)
        client.send_packet(udp_packet(A, D))
        await eventually(lambda: gateway.tun.written)
        assert client.seen_at == []


async def test_and_when_it_changes(lab: Lab, dialling: Dial) -> None:
    gateway = ztna_gateway(lab)
    async with dialling(ZtnaClient, gateway) as client:
        await registered(gateway, client)
        before = client._transport
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
            other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            other.bind(("::", 0))
            fd = other.detach()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: client, sock=socket.socket(fileno=fd)
        )
        client.send_packet(udp_packet(A, D))
        await eventually(lambda: gateway.session("alice").owner.path().port == own_port(transport))
        gateway.table.upkeep()
        await eventually(lambda: len(client.seen_at) == 2)
        assert client.seen_at[1] == ("127.0.0.1", own_port(transport))
        before.close()


def own_port(transport: asyncio.DatagramTransport) -> int:
    return int(transport.get_extra_info("sockname")[1])


# Agents.


async def test_a_registration_is_a_session(lab: Lab, dialling: Dial) -> None:
    gateway = ztna_gateway(lab)
    async with dialling(ZtnaClient, gateway) as client:
        await registered(gateway, client)
        assert str(gateway.kernel.clients["alice"][0]) == V
        assert gateway.record.up == ["alice"]
        # Said again, it is answered again.
        client.register_agent("pacs")
        await eventually(lambda: client.registered == ["pacs", "pacs"])
    await eventually(lambda: gateway.record.down == [("alice", "closed by the client")])
    await eventually(lambda: not gateway.endpoint.connections)
    gateway.assert_holds_nothing()


async def test_packets_go_out_and_come_back(lab: Lab, dialling: Dial) -> None:
    gateway = ztna_gateway(lab)
    async with dialling(ZtnaClient, gateway) as client:
        await registered(gateway, client)
        client.send_to("pacs", udp_packet(A, D, b"framed"))
        client.send_packet(udp_packet(A, D, b"plain"))
        await eventually(lambda: len(gateway.tun.written) == 2)
        assert gateway.tun.written == [udp_packet(V, S, b"framed"), udp_packet(V, S, b"plain")]
        gateway.tun.inject(udp_packet(S, V, b"answer"))
        await eventually(lambda: client.packets)
        assert client.packets == [udp_packet(D, A, b"answer")]


@pytest.mark.parametrize(
    ("name", "outcome"),
    [(b"", 0x01), (b"a\n", 0x01), (b"\xff", 0x01), (b"db", 0x02)],
)
async def test_refusals(lab: Lab, dialling: Dial, name: bytes, outcome: int) -> None:
    gateway = ztna_gateway(lab)
    async with dialling(ZtnaClient, gateway) as client:
        client.say(bytes((0x10, len(name))) + name)
        await eventually(lambda: client.refused)
        assert client.refused == [(outcome, name)]
        # And the next one is none the worse for it.
        await registered(gateway, client)
        packet = udp_packet(A, D)
        client.send_to("db", packet)
        tunnel = gateway.session("alice").tunnel
        await eventually(lambda: tunnel.drops == {DropReason.DESTINATION_NOT_ROUTED: 1})
        assert gateway.tun.written == []
        await eventually(lambda: client.packets)
        assert icmp_type_and_code(client.packets[0]) == (3, 0)


async def test_datagrams_that_are_none(lab: Lab, dialling: Dial) -> None:
    gateway = ztna_gateway(lab)
    async with dialling(ZtnaClient, gateway) as client:
        client.say(b"\x99")
        client.send_packet(udp_packet(A, D))
        await eventually(
            lambda: gateway.table.drops == {DropReason.BAD_DATAGRAM: 1, DropReason.NO_SESSION: 1}
        )
        await registered(gateway, client)
        for noise in (b"\x10\x09pacs", b"\x2f\x04pacs", b"\x13", b"\x45\0"):
            client.say(noise)
        drops = gateway.session("alice").tunnel.drops
        await eventually(lambda: drops == {DropReason.BAD_DATAGRAM: 3, DropReason.BAD_LENGTH: 1})


async def test_packets_of_others_do_not_come(lab: Lab, dialling: Dial) -> None:
    gateway = ztna_gateway(lab)
    async with dialling(ZtnaClient, gateway) as client:
        await registered(gateway, client)
        client.send_packet(udp_packet(A, D))
        gateway.tun.inject(udp_packet(CLIENT, V))
        tunnel = gateway.session("alice").tunnel
        await eventually(lambda: tunnel.drops == {DropReason.DESTINATION_NOT_ASSIGNED: 1})
        assert client.packets == []


async def test_what_is_too_big_is_told_to_its_sender(lab: Lab, dialling: Dial) -> None:
    gateway = ztna_gateway(lab)
    async with dialling(ZtnaClient, gateway) as client:
        await registered(gateway, client)
        client.send_packet(udp_packet(A, D))
        gateway.tun.inject(udp_packet(S, V, bytes(1500)))
        await eventually(lambda: gateway.icmp.sent)
        assert icmp_type_and_code(gateway.icmp.sent[0]) == (3, 4)


# What can be wrong with a session.


async def test_an_empty_pool(lab: Lab, dialling: Dial) -> None:
    gateway = ztna_gateway(lab, max_sessions=0)
    async with dialling(ZtnaClient, gateway) as client:
        client.register_agent("pacs")
        client.register_connector("web")
        await eventually(lambda: len(client.refused) == 2)
        assert client.refused == [(0x02, b"pacs"), (0x02, b"web")]
    assert gateway.record.refused[0][0] == "alice"


async def test_nobody_registers(lab: Lab, dialling: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proved_connection, "_SESSION_TIMEOUT_S", 0.1)
    gateway = ztna_gateway(lab)
    async with dialling(ZtnaClient, gateway) as client:
        await eventually(lambda: client.ended)
        assert client.ended.reason_phrase == "no service was registered"


async def test_the_gateway_ends_the_session(lab: Lab, dialling: Dial) -> None:
    gateway = ztna_gateway(lab)
    async with dialling(ZtnaClient, gateway) as client:
        await registered(gateway, client)
        gateway.registry.close(gateway.registry.by_client["alice"], "revoked")
        await eventually(lambda: client.ended)
        assert client.ended.reason_phrase == "revoked"
        await eventually(lambda: not gateway.endpoint.connections)
        gateway.assert_holds_nothing()


async def test_the_client_is_gone_before_the_answer(lab: Lab, dialling: Dial) -> None:
    gateway = ztna_gateway(lab)
    gateway.link.delays = True
    async with dialling(ZtnaClient, gateway) as client:
        client.register_agent("pacs")
        await eventually(lambda: gateway.link.held)
    await eventually(lambda: not gateway.endpoint.connections)
    gateway.link.release()
    await eventually(lambda: not gateway.table.by_id)
    gateway.assert_holds_nothing()


async def test_streams_have_no_place(lab: Lab, dialling: Dial) -> None:
    gateway = ztna_gateway(lab)
    async with dialling(ZtnaClient, gateway) as client:
        client._quic.send_stream_data(0, b"GET /")
        client.transmit()
        await eventually(lambda: client.ended)


async def test_registrations_are_bounded(lab: Lab, dialling: Dial) -> None:
    gateway = ztna_gateway(lab)
    gateway.link.delays = True
    async with dialling(ZtnaClient, gateway) as client:
        for number in range(200):
            client.register_agent(f"s{number}")
        drops = gateway.table.drops
        await eventually(lambda: drops.get(DropReason.QUEUE_FULL, 0) >= 100)
        gateway.link.release()
        gateway.link.delays = False
        await eventually(lambda: "alice" in gateway.table.by_client)


async def test_services_of_a_session_are_bounded(
    lab: Lab, dialling: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ztna_connection, "MAX_SESSION_SERVICES", 1)
    gateway = ztna_gateway(lab)
    async with dialling(ZtnaClient, gateway) as client:
        await registered(gateway, client)
        client.register_agent("web")
        await eventually(lambda: client.refused == [(0x02, b"web")])
        # What it has, it may ask for again.
        client.register_agent("pacs")
        await eventually(lambda: client.registered == ["pacs", "pacs"])


async def test_off_unless_it_is_named(lab: Lab, dialling: Dial) -> None:
    gateway = lab.gateway(dialects=["stream"])
    with pytest.raises(ConnectionError):
        async with dialling(ZtnaClient, gateway):
            pass


# Connectors.


def accept(gateway: Gateway, register: Register) -> None:
    """What the supervisor would do."""
    session_id = gateway.session("alice").session_id
    offers = (ip_address(OFFER),)
    answers = tuple(
        RegistrationAnswer(OfferKind.SERVICE, one.name, RegistrationCode.ACCEPTED, "", VIPS, offers)
        for one in register.services
    )
    gateway.table.granted(session_id, offers, ())
    gateway.table.answered(session_id, Registered(register.revision, answers))


async def offering(gateway: Gateway, client: ZtnaClient) -> None:
    client.register_connector("pacs")
    await eventually(lambda: gateway.link.offered)
    accept(gateway, gateway.link.offered[-1][1])
    await eventually(lambda: client.registered == ["pacs"])


async def test_a_connector_offers_as_others_do(lab: Lab, dialling: Dial) -> None:
    gateway = ztna_gateway(lab)
    async with dialling(ZtnaClient, gateway) as client:
        await offering(gateway, client)
        (_, register), (_, statuses) = gateway.link.offered
        assert [one.name for one in register.services] == ["pacs"]
        assert [one.name for one in statuses] == ["pacs"]


async def test_a_connectors_packets(lab: Lab, dialling: Dial) -> None:
    gateway = ztna_gateway(lab)
    async with dialling(ZtnaClient, gateway) as client:
        await offering(gateway, client)
        gateway.tun.inject(udp_packet(CLIENT, OFFER, b"question"))
        await eventually(lambda: client.packets)
        assert client.packets == [udp_packet(CLIENT, S, b"question")]
        client.send_packet(udp_packet(S, CLIENT, b"answer"))
        await eventually(lambda: gateway.tun.written)
        assert gateway.tun.written == [udp_packet(OFFER, CLIENT, b"answer")]
        # To clients only.
        client.send_packet(udp_packet(S, "192.0.2.1"))
        drops = gateway.session("alice").tunnel.drops
        await eventually(lambda: drops == {DropReason.DESTINATION_NOT_ROUTED: 1})


async def test_an_answer_to_nobody_is_for_the_agent(lab: Lab, dialling: Dial) -> None:
    gateway = ztna_gateway(lab)
    async with dialling(ZtnaClient, gateway) as client:
        await offering(gateway, client)
        session_id = gateway.session("alice").session_id
        gateway.table.agent_changed(session_id, "pacs", (ip_address(CLIENT),))
        client.send_packet(udp_packet(S, A, b"answer"))
        await eventually(lambda: gateway.tun.written)
        assert gateway.tun.written == [udp_packet(OFFER, CLIENT, b"answer")]
        # There is no agent any more; and of sessions that are over nothing is known.
        gateway.table.agent_changed(session_id, "pacs", ())
        gateway.table.agent_changed("s99", "pacs", (ip_address(CLIENT),))
        client.send_packet(udp_packet(S, A))
        drops = gateway.session("alice").tunnel.drops
        await eventually(lambda: drops == {DropReason.DESTINATION_NOT_ROUTED: 1})


async def test_a_refused_connector(lab: Lab, dialling: Dial) -> None:
    gateway = ztna_gateway(lab)
    async with dialling(ZtnaClient, gateway) as client:
        client.register_connector("pacs")
        await eventually(lambda: gateway.link.offered)
        refused = RegistrationAnswer(
            OfferKind.SERVICE, "pacs", RegistrationCode.NOT_AUTHORIZED, "no"
        )
        gateway.table.answered(gateway.session("alice").session_id, Registered(1, (refused,)))
        await eventually(lambda: client.refused == [(0x02, b"pacs")])
        client.send_packet(udp_packet(S, CLIENT))
        drops = gateway.session("alice").tunnel.drops
        await eventually(lambda: drops == {DropReason.DESTINATION_NOT_ROUTED: 1})


class SilentTransport:
    """What is sent goes nowhere."""

    def sendto(self, data: bytes, address: object) -> None:
        return None


async def test_an_idle_connector_is_heard_and_a_dead_one_is_not(
    lab: Lab, dialling: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ztna_connection, "_BEAT_INTERVAL_S", 0.05)
    gateway = ztna_gateway(lab)
    async with dialling(ZtnaClient, gateway) as client:
        await offering(gateway, client)
        connection = gateway.session("alice").owner.connection
        heard = connection.last_received_s
        await eventually(lambda: connection.last_received_s > heard + 0.2)
        transport, client._transport = client._transport, SilentTransport()
        quiet = asyncio.get_running_loop().time()
        await asyncio.sleep(0.3)
        assert connection.last_received_s < quiet + 0.1
        client._transport = transport
