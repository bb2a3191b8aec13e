"""What a connector's end offers over a real connection, and what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from zgate_datapath.offers import ClientOffers, Notices, Offering
from zgate_protocol import events
from zgate_protocol.capsule import AddressAssign, AssignedAddress
from zgate_protocol.connect_ip import ConnectIpSession, Role
from zgate_protocol.dns_capsule import DnsAssign
from zgate_protocol.ip_range import IpRange
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

from ...loopback import Gateway, Lab, eventually  # noqa: TID252

PACS = OfferedService("pacs", (ServicePorts(6, 104, 104),))
ECHO = OfferedService("echo", (ServicePorts(17, 9999, 9999),))
NETWORK = ip_network("10.20.0.0/16")
UP = OfferStatus("pacs", Health.UP, 1, 2, 3, 4, "")


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[events.Event]:
    """What the gateway's sessions make of what arrives."""
    heard: list[events.Event] = []
    receive_data = ConnectIpSession.receive_data

    def listen(session: ConnectIpSession, data: bytes, fin: bool = False) -> list[events.Event]:
        happened = receive_data(session, data, fin)
        if session.role is Role.PROXY:
            heard.extend(happened)
        return happened

    monkeypatch.setattr(ConnectIpSession, "receive_data", listen)
    return heard


def of(heard: Sequence[events.Event], kind: type[Any]) -> list[Any]:
    return [event for event in heard if isinstance(event, kind)]


def tell(gateway: Gateway, data: bytes) -> None:
    tunnel = gateway.session("alice").tunnel
    tunnel.connection.send_data(tunnel.stream_id, data)
    gateway.endpoint.flush(tunnel.connection)


async def test_what_is_offered_arrives_with_the_session(
    lab: Lab, heard: list[events.Event]
) -> None:
    offers = ClientOffers((PACS, ECHO), (NETWORK,))
    await lab.connect(lab.gateway(), offers=offers)
    await eventually(lambda: of(heard, events.RoutesAdvertised))
    assert of(heard, events.ServicesOffered) == [events.ServicesOffered(Register(1, (PACS, ECHO)))]
    assert of(heard, events.RoutesAdvertised) == [events.RoutesAdvertised((IpRange.of(NETWORK),))]


async def test_an_agent_offers_nothing(lab: Lab, heard: list[events.Event]) -> None:
    client, _ = await lab.connect(lab.gateway())
    assert client.tunnel.send_offer_state([UP])
    await eventually(lambda: of(heard, events.OffersChanged))
    assert of(heard, events.OffersChanged) == [events.OffersChanged(OfferState((UP,)))]
    assert not of(heard, events.ServicesOffered)
    assert not of(heard, events.RoutesAdvertised)


async def test_another_list_replaces_the_first(lab: Lab, heard: list[events.Event]) -> None:
    client, _ = await lab.connect(lab.gateway(), offers=ClientOffers((PACS,), (NETWORK,)))
    client.tunnel.offer(ClientOffers((ECHO,)))
    await eventually(lambda: len(of(heard, events.RoutesAdvertised)) == 2)
    assert [one.register for one in of(heard, events.ServicesOffered)] == [
        Register(1, (PACS,)),
        Register(2, (ECHO,)),
    ]
    assert of(heard, events.RoutesAdvertised)[1].ranges == ()


async def test_before_and_after_the_session_nothing_is_sent(lab: Lab) -> None:
    gateway = lab.gateway()
    client = lab.make_client(gateway)
    assert not client.tunnel.send_offer_state([UP])
    client.tunnel.offer(ClientOffers((ECHO,)))
    await client.tunnel.connect(5)
    await client.tunnel.close()
    client.tunnel.offer(ClientOffers((PACS,)))
    client.tunnel.send_offer_state([UP])


async def test_what_the_gateway_says_is_passed_on(lab: Lab) -> None:
    told: list[object] = []
    notices = Notices(told.append, told.append, told.append, told.append)
    gateway = lab.gateway()
    await lab.connect(gateway, notices=notices)
    answer = RegistrationAnswer(OfferKind.SERVICE, "pacs", RegistrationCode.NOT_AUTHORIZED, "no")
    registered = Registered(1, (answer,))
    seen = ObservedAddress(7_000_000, ip_address("192.0.2.1"), 1234)
    dns = DnsAssign((ip_address("10.100.0.1"),), ("zgate.internal",))
    for capsule in (registered, Drain(5000), seen, dns):
        tell(gateway, capsule.encode())
    await eventually(lambda: told and told[-1] == dns)
    for one in (registered, 5000, seen):
        assert one in told


async def test_a_connector_takes_an_address_of_each_family_for_every_service(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway, offers=ClientOffers((PACS,)))
    hosts = [ip_network(f"10.101.{one // 256}.{one % 256}/32") for one in range(512)]
    assigned = AddressAssign(tuple(AssignedAddress(0, one) for one in hosts))
    tell(gateway, assigned.encode())
    await eventually(lambda: client.changes and len(client.changes[-1].addresses) == 512)


def test_an_agent_does_not() -> None:
    assert Offering(None).limits.max_addresses == 64


def test_nobody_need_listen() -> None:
    Notices().tell(events.DrainAsked(0))


def test_revisions_rise_and_nothing_offered_is_nothing_said() -> None:
    session = ConnectIpSession(Role.CLIENT, 0)
    session.request("gw.example", "/.well-known/masque/ip/*/*/")
    offering = Offering(None)
    assert offering.capsules(session) == b""
    offering.replace(ClientOffers((PACS,)))
    assert offering.capsules(session).startswith(Register(1, (PACS,)).encode())
    assert offering.capsules(session).startswith(Register(2, (PACS,)).encode())
