"""What is exchanged for what on a ztna-v1 connection."""

from ipaddress import ip_address, ip_network

import pytest
from scapy.layers.inet import ICMP, IP, UDP, IPerror, UDPerror
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw
from zgate_gateway.dialects.translation import Translation
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.icmp import IcmpError, build_icmp_error
from zgate_protocol.ip_range import IpRange, RouteTable

# The agent's own address and what it takes for the service's; its virtual IP and the service's.
A, D, V, S = "10.77.0.2", "10.99.0.1", "10.100.0.2", "10.101.0.1"
OTHER, OFFER, CLIENT = "10.101.0.2", "10.101.255.254", "10.100.0.9"
V6, S6 = "fd7a:7a67:6174:65::2", "fd7a:7a67:6174:66::1"


def udp(source: str, destination: str) -> bytes:
    head: Packet = IPv6 if ":" in source else IP
    return bytes(head(src=source, dst=destination) / UDP(sport=7, dport=9) / b"data")


def pairs(*addresses: tuple[str, str]) -> dict[bytes, bytes]:
    return {ip_address(one).packed: ip_address(other).packed for one, other in addresses}


@pytest.fixture
def agent() -> Translation:
    made = Translation()
    made.set_own([ip_address(V), ip_address(V6)])
    made.reach("pacs", [ip_address(S), ip_address(S6)])
    return made


@pytest.fixture
def connector() -> Translation:
    made = Translation()
    made.set_own([ip_address(V), ip_address(V6)])
    made.serve({"pacs": pairs((OFFER, S))})
    return made


# Agents.


@pytest.mark.parametrize("service", ["pacs", None])
def test_an_agents_packet_and_its_answer(agent: Translation, service: str | None) -> None:
    assert agent.from_client(udp(A, D), service) == udp(V, S)
    assert agent.to_client(udp(S, V)) == udp(D, A)


def test_version_6(agent: Translation) -> None:
    assert agent.from_client(udp("fd77::2", "fd99::1"), None) == udp(V6, S6)
    assert agent.to_client(udp(S6, V6)) == udp("fd99::1", "fd77::2")


@pytest.mark.parametrize(
    ("source", "destination", "reason"),
    [
        ("fe80::5054:ff:fe12:3456", "ff02::16", DropReason.LINK_LOCAL),
        ("fe80::5054:ff:fe12:3456", "fd99::1", DropReason.LINK_LOCAL),
        ("::", "ff02::1:ff00:2", DropReason.LINK_LOCAL),
        ("fd77::2", "ff05::c", DropReason.DESTINATION_NOT_ROUTED),
        ("::1", "fd99::1", DropReason.DESTINATION_NOT_ROUTED),
        ("10.77.0.2", "224.0.0.22", DropReason.LINK_LOCAL),
        ("10.77.0.2", "239.255.255.250", DropReason.DESTINATION_NOT_ROUTED),
    ],
)
def test_what_the_agents_kernel_says_to_its_link_is_for_nobody(
    agent: Translation, source: str, destination: str, reason: DropReason
) -> None:
    """And answers go on to where the agent asked from."""
    for asked in (udp("fd77::2", "fd99::1"), udp(A, D)):
        assert isinstance(agent.from_client(asked, None), bytes)
    assert agent.from_client(udp(source, destination), None) is reason
    assert agent.to_client(udp(S6, V6)) == udp("fd99::1", "fd77::2")
    assert agent.to_client(udp(S, V)) == udp(D, A)


def test_two_services_are_told_apart_by_name_only(agent: Translation) -> None:
    agent.reach("other", [ip_address(OTHER)])
    assert agent.from_client(udp(A, D), "other") == udp(V, OTHER)
    assert agent.from_client(udp(A, "10.99.0.7"), "pacs") == udp(V, S)
    assert agent.from_client(udp(A, D), None) is DropReason.DESTINATION_NOT_ROUTED
    assert agent.to_client(udp(OTHER, V)) == udp(D, A)
    assert agent.to_client(udp(S, V)) == udp("10.99.0.7", A)


def test_services_that_were_not_registered(agent: Translation) -> None:
    assert agent.from_client(udp(A, D), "web") is DropReason.DESTINATION_NOT_ROUTED
    assert Translation().from_client(udp(A, D), None) is DropReason.DESTINATION_NOT_ROUTED
    agent.reach("four", [ip_address(OTHER)])
    packet = udp("fd77::2", "fd99::1")
    assert agent.from_client(packet, "four") is DropReason.DESTINATION_NOT_ROUTED


def test_where_nothing_went_nothing_comes_from(agent: Translation) -> None:
    assert agent.to_client(udp(S, V)) is DropReason.DESTINATION_NOT_ASSIGNED
    agent.from_client(udp(A, D), None)
    assert agent.to_client(udp(CLIENT, V)) is DropReason.DESTINATION_NOT_ASSIGNED


def test_an_error_about_the_agents_packet_names_what_it_sent(agent: Translation) -> None:
    sent = agent.from_client(udp(A, D), None)
    assert isinstance(sent, bytes)
    for router in (S, "10.100.0.1"):
        error = build_icmp_error(IcmpError.PROHIBITED, sent, ip_address(router).packed)
        assert error is not None
        told = agent.to_client(error)
        assert isinstance(told, bytes)
        parsed = IP(told)
        assert (parsed.src, parsed.dst) == (D if router == S else router, A)
        assert (parsed[IPerror].src, parsed[IPerror].dst) == (A, D)
        assert parsed[UDPerror].chksum == IP(udp(A, D))[UDP].chksum


def test_an_error_by_the_agents_router_is_about_what_came(agent: Translation) -> None:
    agent.from_client(udp(A, D), None)
    quoted = udp(D, A)
    error = bytes(IP(src="10.77.0.1", dst=D) / ICMP(type=3, code=1) / Raw(quoted))
    passed = agent.from_client(error, None)
    assert isinstance(passed, bytes)
    parsed = IP(passed)
    assert (parsed.src, parsed.dst) == (V, S)
    assert (parsed[IPerror].src, parsed[IPerror].dst) == (S, V)
    # And the agent's address is what it was.
    assert agent.to_client(udp(S, V)) == udp(D, A)


def test_a_packet_to_oneself(agent: Translation) -> None:
    assert agent.from_client(udp(A, A), None) is DropReason.SOURCE_NOT_ASSIGNED


@pytest.mark.parametrize("packet", [b"", b"\x45", b"\x45" + bytes(30), b"\x60" + bytes(50)])
def test_what_is_no_packet(agent: Translation, connector: Translation, packet: bytes) -> None:
    for translation in (agent, connector):
        assert isinstance(translation.from_client(packet, None), DropReason)


# Connectors.


def test_a_connectors_packets(connector: Translation) -> None:
    assert connector.to_client(udp(CLIENT, OFFER)) == udp(CLIENT, S)
    assert connector.from_client(udp(S, CLIENT), None) == udp(OFFER, CLIENT)
    assert connector.from_client(udp(S, CLIENT), "pacs") == udp(OFFER, CLIENT)


def test_one_offer_has_every_source(connector: Translation) -> None:
    assert connector.from_client(udp("192.168.1.4", CLIENT), None) == udp(OFFER, CLIENT)
    packet = udp("fd00::4", V6)
    assert connector.from_client(packet, None) is DropReason.SOURCE_NOT_ASSIGNED


# What a connector sends to nobody's address.

NOBODYS, SECOND = "192.168.7.7", "10.101.255.253"


@pytest.fixture
def answering() -> Translation:
    ours = [IpRange.of(ip_network(one)) for one in ("10.100.0.0/16", "10.101.0.0/16")]
    made = Translation(RouteTable(ours))
    made.serve({"pacs": pairs((OFFER, S)), "web": pairs((SECOND, OTHER))})
    made.answer_to("pacs", [ip_address(CLIENT), ip_address(V6)])
    return made


def test_what_is_for_nobody_is_for_who_registered_last(answering: Translation) -> None:
    assert answering.from_client(udp(S, NOBODYS), None) == udp(OFFER, CLIENT)
    assert answering.from_client(udp("10.1.1.1", NOBODYS), "pacs") == udp(OFFER, CLIENT)
    answering.answer_to("pacs", [ip_address(V)])
    assert answering.from_client(udp(S, NOBODYS), None) == udp(OFFER, V)
    # Nobody has registered for the other service.
    assert answering.from_client(udp(OTHER, NOBODYS), None) == udp(SECOND, NOBODYS)


def test_and_in_its_own_family(answering: Translation) -> None:
    answering.serve({"pacs": pairs((OFFER, S), ("fd01::2", S6))})
    assert answering.from_client(udp(S6, "fd00::7"), None) == udp("fd01::2", V6)
    answering.answer_to("pacs", [ip_address(V)])
    assert answering.from_client(udp(S6, "fd00::7"), None) == udp("fd01::2", "fd00::7")


@pytest.mark.parametrize(
    "address",
    [V, "10.101.7.7", "224.0.0.1", "255.255.255.255", "127.0.0.1", "169.254.0.1", "0.0.0.0"],
)
def test_what_is_somebodys_or_everybodys_stays(answering: Translation, address: str) -> None:
    assert answering.from_client(udp(S, address), None) == udp(OFFER, address)


def test_without_an_agent_it_stays(answering: Translation) -> None:
    answering.answer_to("pacs", [])
    assert answering.from_client(udp(S, NOBODYS), None) == udp(OFFER, NOBODYS)


def test_who_registered_is_forgotten_with_the_offer(answering: Translation) -> None:
    answering.serve({"web": pairs((SECOND, OTHER))})
    answering.serve({"pacs": pairs((OFFER, S))})
    assert answering.from_client(udp(S, NOBODYS), None) == udp(OFFER, NOBODYS)
    answering.answer_to("elsewhere", [ip_address(V)])
    assert answering._agents == {}


def test_an_error_to_nobody_quotes_whom_it_is_about(answering: Translation) -> None:
    arrived = udp(CLIENT, S)
    error = bytes(IP(src=S, dst=NOBODYS) / ICMP(type=3, code=3) / Raw(arrived))
    passed = answering.from_client(error, None)
    assert isinstance(passed, bytes)
    parsed = IP(passed)
    assert (parsed.src, parsed.dst) == (OFFER, CLIENT)
    assert (parsed[IPerror].src, parsed[IPerror].dst) == (CLIENT, OFFER)


def test_two_offers_are_told_apart_by_source_or_name(connector: Translation) -> None:
    connector.serve({"pacs": pairs((OFFER, S)), "web": pairs(("10.101.255.253", OTHER))})
    assert connector.from_client(udp(OTHER, CLIENT), None) == udp("10.101.255.253", CLIENT)
    unknown = udp("192.168.1.4", CLIENT)
    assert connector.from_client(unknown, None) is DropReason.SOURCE_NOT_ASSIGNED
    assert connector.from_client(unknown, "web") == udp("10.101.255.253", CLIENT)


def test_an_offer_that_is_over_is_over(connector: Translation) -> None:
    connector.serve({})
    assert connector.from_client(udp(S, CLIENT), None) is DropReason.DESTINATION_NOT_ROUTED
    assert connector.to_client(udp(CLIENT, OFFER)) is DropReason.DESTINATION_NOT_ASSIGNED


def test_an_error_by_a_backend_quotes_the_offer(connector: Translation) -> None:
    arrived = connector.to_client(udp(CLIENT, OFFER))
    assert isinstance(arrived, bytes)
    error = bytes(IP(src=S, dst=CLIENT) / ICMP(type=3, code=3) / Raw(arrived))
    passed = connector.from_client(error, None)
    assert isinstance(passed, bytes)
    parsed = IP(passed)
    assert (parsed.src, parsed[IPerror].dst) == (OFFER, OFFER)


def test_one_client_may_be_both(agent: Translation) -> None:
    agent.serve({"web": pairs((OFFER, OTHER))})
    assert agent.from_client(udp(OTHER, CLIENT), None) == udp(OFFER, CLIENT)
    assert agent.from_client(udp(A, D), None) == udp(V, S)
    assert agent.to_client(udp(CLIENT, OFFER)) == udp(CLIENT, OTHER)
    assert agent.to_client(udp(S, V)) == udp(D, A)
