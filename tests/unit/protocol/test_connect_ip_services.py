"""What two sessions tell each other about services and about the network."""

from ipaddress import ip_address

import pytest
from zgate_protocol.connect_ip import ConnectIpSession, Role
from zgate_protocol.dns_capsule import DnsAssign
from zgate_protocol.errors import LocalError
from zgate_protocol.events import (
    AddressObserved,
    DnsAssigned,
    DrainAsked,
    Event,
    OffersChanged,
    RegistrationAnswered,
    ServicesOffered,
    StreamAborted,
)
from zgate_protocol.service_capsule import (
    Drain,
    Health,
    ObservedAddress,
    OfferedService,
    OfferState,
    OfferStatus,
    Register,
    Registered,
    ServiceCapsule,
    ServicePorts,
)

REGISTER = Register(1, (OfferedService("pacs", (ServicePorts(6, 104, 104),)),))
STATE = OfferState((OfferStatus("pacs", Health.UP, 0, 0, 0, 0, ""),))
ANSWERED = Registered(1, ())
OBSERVED = ObservedAddress(1, ip_address("192.0.2.7"), 4433)
DNS = DnsAssign((ip_address("10.100.0.1"),), ("zgate.internal",))
TO_PROXY: list[tuple[ServiceCapsule, Event]] = [
    (REGISTER, ServicesOffered(REGISTER)),
    (STATE, OffersChanged(STATE)),
]
TO_CLIENT: list[tuple[ServiceCapsule, Event]] = [
    (ANSWERED, RegistrationAnswered(ANSWERED)),
    (Drain(500), DrainAsked(500)),
    (OBSERVED, AddressObserved(OBSERVED)),
    (DNS, DnsAssigned(DNS)),
]


def sessions() -> tuple[ConnectIpSession, ConnectIpSession]:
    client, proxy = ConnectIpSession(Role.CLIENT, 0), ConnectIpSession(Role.PROXY, 0)
    proxy.receive_headers(client.request("gateway.example", "/.well-known/masque/ip/*/*/"))
    return client, proxy


@pytest.mark.parametrize(("capsule", "event"), TO_PROXY)
def test_offers_reach_the_proxy_and_no_client(capsule: ServiceCapsule, event: Event) -> None:
    client, proxy = sessions()
    # The request may still be unanswered.
    assert proxy.receive_data(client.send_capsule(capsule)) == [event]
    client.receive_headers(proxy.accept())
    assert client.receive_data(proxy.send_capsule(capsule)) == []


@pytest.mark.parametrize(("capsule", "event"), TO_CLIENT)
def test_notices_reach_the_client_and_no_proxy(capsule: ServiceCapsule, event: Event) -> None:
    client, proxy = sessions()
    client.receive_headers(proxy.accept())
    assert client.receive_data(proxy.send_capsule(capsule)) == [event]
    assert proxy.receive_data(client.send_capsule(capsule)) == []
    assert proxy.is_open


def test_an_older_observation_is_not_told() -> None:
    client, proxy = sessions()
    client.receive_headers(proxy.accept())
    told = [
        client.receive_data(ObservedAddress(number, OBSERVED.address, number).encode())
        for number in (3, 3, 2, 4)
    ]
    assert [len(events) for events in told] == [1, 0, 0, 1]


def test_a_malformed_one_ends_the_session() -> None:
    _, proxy = sessions()
    proxy.accept()
    data = REGISTER.encode()
    # The protocol of the ports.
    (event,) = proxy.receive_data(data[:-5] + b"\0" + data[-4:])
    assert isinstance(event, StreamAborted)
    assert proxy.is_closed


def test_nothing_is_sent_on_a_stream_that_is_not_there() -> None:
    with pytest.raises(LocalError):
        ConnectIpSession(Role.CLIENT, 0).send_capsule(REGISTER)
    client, proxy = sessions()
    with pytest.raises(LocalError):
        proxy.send_capsule(DNS)
    client.close()
    with pytest.raises(LocalError):
        client.send_capsule(STATE)
