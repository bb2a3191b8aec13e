"""Sessions that offer something: what they hold, what passes, who hears of it, and how it ends."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from zgate_datapath.client import TunnelState
from zgate_datapath.offers import ClientOffers, Notices
from zgate_gateway import sessions as sessions_module
from zgate_protocol.dns_capsule import DnsAssign
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.icmp import TokenBucket
from zgate_protocol.ip_range import IpRange, networks_of
from zgate_protocol.service_capsule import (
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

from ...loopback import (  # noqa: TID252
    GATEWAY_V4,
    GATEWAY_V6,
    OFFICE_V4,
    Client,
    Gateway,
    Lab,
    Peer,
    eventually,
    icmp_type_and_code,
    sized_packet,
    udp_packet,
)
from ..datapath.wire import Wire  # noqa: TID252

V4, V6 = ip_address("10.100.0.2"), ip_address("fd7a:7a67:6174:65::2")
AGENT_V4, AGENT_V6 = "10.100.0.6", "fd7a:7a67:6174:65::6"
SERVICE_V4, SERVICE_V6 = ip_address("10.101.0.1"), ip_address("fd7a:7a67:6174:66::1")
OFFER_V4, OFFER_V6 = ip_address("10.101.255.254"), ip_address("fd7a:7a67:6174:66:ffff::fffe")
CLIENT_POOLS = ("10.100.0.0/29", "fd7a:7a67:6174:65::/125")
SERVICE_POOLS = ("10.101.0.0/16", "fd7a:7a67:6174:66::/64")
NETWORK = "10.16.0.0/12"
PACS = OfferedService("pacs", (ServicePorts(6, 104, 104),))
ANSWER = RegistrationAnswer(
    OfferKind.SERVICE,
    "pacs",
    RegistrationCode.ACCEPTED,
    "",
    (SERVICE_V4, SERVICE_V6),
    (OFFER_V4, OFFER_V6),
)


@dataclass
class Told:
    """What the gateway has said to a client."""

    registered: list[Registered] = field(default_factory=list)
    drains: list[int] = field(default_factory=list)
    observed: list[ObservedAddress] = field(default_factory=list)
    dns: list[DnsAssign] = field(default_factory=list)

    @property
    def notices(self) -> Notices:
        return Notices(
            self.registered.append, self.drains.append, self.observed.append, self.dns.append
        )


@dataclass
class Site:
    """A gateway and a connector."""

    gateway: Gateway
    client: Client
    told: Told
    state: TunnelState

    @property
    def session(self) -> Any:
        return self.gateway.session("connector")

    def grant(self, *addresses: Any, networks: tuple[str, ...] = ()) -> None:
        held = [ip_network(network) for network in networks]
        self.gateway.table.granted(self.session.session_id, addresses, held)

    @property
    def addresses(self) -> set[str]:
        """What the connector knows that it holds."""
        state = self.client.changes[-1] if self.client.changes else self.state
        return {str(address.ip) for address in state.addresses}

    @property
    def routes(self) -> set[str]:
        state = self.client.changes[-1] if self.client.changes else self.state
        return {str(network) for network in networks_of(state.routes)}


def make_gateway(lab: Lab, **more: Any) -> Gateway:
    return lab.gateway(
        **{
            "client_pools": CLIENT_POOLS,
            "service_pools": SERVICE_POOLS,
            "routes": ("192.0.2.0/24",),
            **more,
        }
    )


async def make_site(lab: Lab, **more: Any) -> Site:
    gateway = make_gateway(lab, **more)
    told = Told()
    offers = ClientOffers((PACS,), (ip_network(NETWORK),))
    client, state = await lab.connect(gateway, "connector", offers=offers, notices=told.notices)
    return Site(gateway, client, told, state)


# What is offered.


async def test_the_supervisor_hears_what_a_session_offers(lab: Lab) -> None:
    site = await make_site(lab)
    session_id = site.session.session_id
    await eventually(lambda: len(site.gateway.link.offered) == 2)
    assert site.gateway.link.offered == [
        (session_id, Register(1, (PACS,))),
        (session_id, (NETWORK,)),
    ]
    status = OfferStatus("pacs", Health.UP, 3, 9, 100, 200, "")
    site.client.tunnel.send_offer_state([status])
    await eventually(lambda: site.gateway.link.offered[2:] == [(session_id, (status,))])


async def test_offers_wait_for_the_session(lab: Lab) -> None:
    gateway = make_gateway(lab)
    gateway.link.delays = True
    peer = await lab.peer(gateway)
    stream_id = peer.open_request()
    peer.send_data(stream_id, Register(7, (PACS,)).encode())
    await eventually(lambda: gateway.link.held)
    await asyncio.sleep(0.02)
    assert gateway.link.offered == []
    gateway.link.release()
    await eventually(lambda: gateway.link.offered)
    assert gateway.link.offered == [(gateway.session("alice").session_id, Register(7, (PACS,)))]


async def test_the_offers_of_a_refused_request_are_nobodys(lab: Lab) -> None:
    gateway = make_gateway(lab, max_sessions=1)
    await lab.connect(gateway, "bob")
    peer = await lab.peer(gateway)
    stream_id = peer.open_request()
    peer.send_data(stream_id, Register(7, (PACS,)).encode())
    status, _ = await peer.answer(stream_id)
    assert status == 503
    (_, handler) = gateway.handlers
    assert handler._intakes == {}
    assert gateway.link.offered == []


async def test_who_floods_ends_its_own_session_alone(lab: Lab) -> None:
    site = await make_site(lab)
    peer = await lab.peer(site.gateway, "alice")
    stream_id = await peer.establish()
    beat = OfferState((OfferStatus("pacs", Health.UP, 0, 0, 0, 0, ""),)).encode()
    peer.send_data(stream_id, beat * 60)
    await eventually(lambda: peer.ended)
    assert peer.ended is not None
    assert peer.ended.reason == "the client speaks of its offers too often"
    assert ("alice", peer.ended.reason) in site.gateway.record.down
    assert "connector" in site.gateway.table.by_client


# What is granted.


@pytest.mark.parametrize(
    ("own", "offer", "agent"), [(V4, OFFER_V4, AGENT_V4), (V6, OFFER_V6, AGENT_V6)]
)
async def test_offer_addresses_come_and_go(lab: Lab, own: Any, offer: Any, agent: str) -> None:
    site = await make_site(lab)
    gateway, client = site.gateway, site.client
    own_addresses = {str(V4), str(V6)}
    assert site.addresses == own_addresses
    site.grant(OFFER_V4, OFFER_V6)
    await eventually(lambda: site.addresses == {*own_addresses, str(OFFER_V4), str(OFFER_V6)})
    assert gateway.table.by_address[offer.packed] is site.session

    # Both ways, beside its own addresses.
    for ours in (offer, own):
        there, back = udp_packet(agent, ours), udp_packet(ours, agent)
        gateway.tun.inject(there)
        await eventually(lambda wanted=there: client.tun.written[-1:] == [wanted])
        client.tun.inject(back)
        await eventually(lambda wanted=back: gateway.tun.written[-1:] == [wanted])

    site.grant()
    await eventually(lambda: site.addresses == own_addresses)
    assert offer.packed not in gateway.table.by_address
    gateway.tun.inject(udp_packet(agent, offer))
    await eventually(lambda: gateway.table.drops.get(DropReason.NO_SESSION) == 1)
    # It was ours a moment ago: no wonder, no news, and nobody's fault.
    assert gateway.icmp.sent == []
    assert gateway.table.misdirected_packets == 0
    written = len(gateway.tun.written)
    peer_session = site.session.tunnel.session
    assert peer_session.gate.unwrap(b"\0" + udp_packet(offer, agent)) is (
        DropReason.SOURCE_NOT_ASSIGNED
    )
    gateway.tun.inject(udp_packet(agent, own))
    await eventually(lambda: client.tun.written[-1:] == [udp_packet(agent, own)])
    assert len(gateway.tun.written) == written


async def test_who_offers_something_is_told_the_way_to_the_clients(lab: Lab) -> None:
    site = await make_site(lab)
    assert site.routes == {"192.0.2.0/24", *SERVICE_POOLS}
    site.grant(OFFER_V4, OFFER_V6)
    await eventually(lambda: site.routes == {"192.0.2.0/24", *SERVICE_POOLS, *CLIENT_POOLS})
    site.gateway.table.set_routes((IpRange.of(ip_network("198.51.100.0/24")),))
    await eventually(lambda: site.routes == {"198.51.100.0/24", *SERVICE_POOLS, *CLIENT_POOLS})
    site.grant()
    await eventually(lambda: site.routes == {"198.51.100.0/24", *SERVICE_POOLS})


async def test_a_network_is_a_sessions_once_it_is_granted(lab: Lab) -> None:
    site = await make_site(lab)
    gateway, client = site.gateway, site.client
    back = udp_packet(OFFICE_V4, AGENT_V4)
    site.grant(networks=(NETWORK,))
    await eventually(lambda: CLIENT_POOLS[0] in site.routes)
    there = udp_packet(AGENT_V4, OFFICE_V4)
    gateway.tun.inject(there)
    await eventually(lambda: client.tun.written == [there])
    client.tun.inject(back)
    await eventually(lambda: gateway.tun.written == [back])

    # A longer prefix goes to another; an address of somebody's own goes before both.
    office = ip_network("10.20.0.0/24")
    other, state = await lab.connect(gateway, "other", offers=ClientOffers((), (office,)))
    gateway.table.granted(gateway.session("other").session_id, [], [office])
    # A packet may overtake the word of whose answers are to come here.
    await eventually(lambda: other.changes and other.changes[-1].routes != state.routes)
    gateway.tun.inject(there)
    await eventually(lambda: other.tun.written == [there])
    own = udp_packet(AGENT_V4, state.addresses[0].ip)
    gateway.tun.inject(own)
    await eventually(lambda: other.tun.written == [there, own])
    elsewhere = udp_packet(AGENT_V4, "10.30.0.1")
    gateway.tun.inject(elsewhere)
    await eventually(lambda: client.tun.written == [there, elsewhere])

    # What it was, it is no longer.
    site.grant()
    await eventually(lambda: CLIENT_POOLS[0] not in site.routes)
    gate = site.session.tunnel.session.gate
    assert gate.unwrap(b"\0" + back) is DropReason.SOURCE_NOT_ASSIGNED
    gateway.steering.owners[ip_address("10.30.0.1").packed] = 1
    gateway.tun.inject(elsewhere)
    await eventually(lambda: gateway.table.drops.get(DropReason.NO_SESSION) == 1)
    assert gateway.table.misdirected_packets == 0, "it was behind us a moment ago"
    gateway.table._departed_networks.clear()
    gateway.tun.inject(elsewhere)
    await eventually(lambda: gateway.table.misdirected_packets == 1)


async def test_a_session_that_ends_leaves_nothing(lab: Lab) -> None:
    site = await make_site(lab)
    site.grant(OFFER_V4, OFFER_V6, networks=(NETWORK, "fd00:20::/32"))
    site.gateway.table.answered(site.session.session_id, Registered(1, (ANSWER,)))
    session_id = site.session.session_id
    await eventually(lambda: site.told.registered)
    await site.client.tunnel.close()
    await eventually(lambda: not site.gateway.endpoint.connections)
    site.gateway.assert_holds_nothing()
    # What comes too late is for nobody.
    site.gateway.table.granted(session_id, [OFFER_V4], [ip_network(NETWORK)])
    site.gateway.table.answered(session_id, Registered(1, (ANSWER,)))
    site.gateway.table.drain(session_id, 5)
    site.gateway.assert_holds_nothing()


async def test_many_are_told_of_routes_a_few_at_a_time_and_of_the_newest_in_the_end(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "_TOLD_AT_ONCE", 2)
    gateway = make_gateway(lab)
    clients = [(await lab.connect(gateway, name))[0] for name in ("a", "b", "c", "d", "e")]
    table = gateway.table
    told: list[str] = []
    owner_type = type(gateway.session("a").owner)
    original = owner_type.holdings_changed

    def count(owner: Any, session: Any) -> None:
        told.append(session.client)
        original(owner, session)

    monkeypatch.setattr(owner_type, "holdings_changed", count)
    newest = (IpRange.of(ip_network("198.51.100.0/24")),)
    table.set_routes((IpRange.of(ip_network("203.0.113.0/24")),))
    assert len(told) == 2
    table.set_routes(newest)
    table.set_routes(newest)
    assert len(told) == 4, "the same is not told twice"
    await clients[4].tunnel.close()
    await eventually(lambda: "e" not in table.by_client)
    expected = {"198.51.100.0/24", *SERVICE_POOLS}
    for client in clients[:4]:
        await eventually(
            lambda client=client: (
                client.changes
                and {str(one) for one in networks_of(client.changes[-1].routes)} == expected
            )
        )
    assert sorted(told[2:]) in (["a", "b", "c", "d"], ["a", "b", "c", "d", "e"])


async def test_what_cannot_be_told_ends_that_session_alone(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await make_site(lab)
    await lab.connect(site.gateway, "bob")

    def fails(*_: object) -> None:
        raise RuntimeError("made by the test")

    monkeypatch.setattr(site.session.owner, "_advertise", fails)
    site.gateway.table.set_routes(())
    assert set(site.gateway.table.by_client) == {"bob"}
    assert ("connector", "internal error") in site.gateway.record.down


# What is told.


async def test_answers_and_drains_reach_the_connector(lab: Lab) -> None:
    site = await make_site(lab)
    site.gateway.table.answered(site.session.session_id, Registered(1, (ANSWER,)))
    site.gateway.table.drain(site.session.session_id, 30_000)
    await eventually(lambda: site.told.drains)
    assert site.told.registered == [Registered(1, (ANSWER,))]
    assert site.told.drains == [30_000]


async def test_names_are_asked_from_the_gateway(lab: Lab) -> None:
    site = await make_site(lab, dns_domain="zgate.internal")
    await eventually(lambda: site.told.dns)
    assert site.told.dns == [DnsAssign((GATEWAY_V4, GATEWAY_V6), ("zgate.internal",))]


async def test_without_a_domain_there_is_no_such_word(lab: Lab) -> None:
    site = await make_site(lab)
    site.grant(OFFER_V4)
    await eventually(lambda: str(OFFER_V4) in site.addresses)
    assert site.told.dns == []


async def test_who_speaks_quic_address_discovery_gets_no_capsule_beside_it(lab: Lab) -> None:
    site = await make_site(lab)
    await eventually(lambda: site.told.observed)
    site.grant(OFFER_V4)
    await eventually(lambda: str(OFFER_V4) in site.addresses)
    (observed,) = site.told.observed
    assert observed.port == site.client.endpoint.udp.local_address[1]


async def test_others_learn_their_address_by_capsule_at_start_and_on_change(lab: Lab) -> None:
    gateway = make_gateway(lab)
    wire = Wire(gateway.endpoint.udp.local_address)
    try:
        peer: Peer = lab.make_peer(gateway, source="127.0.0.1")
        await peer.dial(wire.address)
        await eventually(lambda: peer.is_ready)
        stream_id = await peer.establish()

        def observed() -> list[ObservedAddress]:
            return [c for c in peer.capsules[stream_id] if isinstance(c, ObservedAddress)]

        for expected in range(1, 4):
            port = wire._backs[-1].getsockname()[1]
            await eventually(lambda wanted=expected: len(observed()) == wanted)
            assert observed()[-1] == ObservedAddress(expected - 1, ip_address("127.0.0.1"), port)
            gateway.table.upkeep()
            gateway.endpoint.flush_touched()
            wire.move()
            peer.connection.ping()
            peer.flush()
            at_port = wire._backs[-1].getsockname()[1]
            owner = gateway.session("alice").owner
            await eventually(lambda port=at_port, owner=owner: owner.path().port == port)
            gateway.table.upkeep()
    finally:
        wire.close()


# What nobody serves.


@pytest.mark.parametrize(
    ("agent", "service", "expected"),
    [(AGENT_V4, SERVICE_V4, (3, 13)), (AGENT_V6, SERVICE_V6, (1, 1))],
)
async def test_a_service_without_a_backend_is_administratively_prohibited(
    lab: Lab, agent: str, service: Any, expected: tuple[int, int]
) -> None:
    gateway = make_gateway(lab)
    packet = udp_packet(agent, service)
    gateway.tun.inject(packet)
    await eventually(lambda: gateway.icmp.sent)
    (error,) = gateway.icmp.sent
    assert icmp_type_and_code(error) == expected
    assert packet in error
    # The kernel has counted it.
    assert gateway.table.total_drops() == {}
    assert gateway.table.misdirected_packets == 0
    # Nothing is said of what is no service's, and nothing about an error.
    gateway.tun.inject(udp_packet(agent, "10.102.0.1" if service.version == 4 else "fd01::1"))
    gateway.tun.inject(error.replace(ip_address(agent).packed, service.packed))
    await eventually(lambda: gateway.table.drops.get(DropReason.NO_SESSION) == 1)
    gateway.tun.inject(packet)
    await eventually(lambda: len(gateway.icmp.sent) == 2)


@pytest.mark.parametrize(
    ("agent", "network", "address", "expected"),
    [
        (AGENT_V4, "10.16.0.0/12", "10.20.0.9", (3, 13)),
        (AGENT_V6, "fd00:20::/32", "fd00:20::9", (1, 1)),
    ],
)
async def test_a_network_that_nobody_leads_to_is_administratively_prohibited(
    lab: Lab, agent: str, network: str, address: str, expected: tuple[int, int]
) -> None:
    gateway = make_gateway(lab)
    packet = udp_packet(agent, address)
    # Not before it lies behind connectors, and not while another worker has one of them.
    gateway.tun.inject(packet)
    await eventually(lambda: gateway.table.drops == {DropReason.NO_SESSION: 1})
    gateway.table.set_networks([ip_network(network)])
    owners = gateway.steering.owners
    owners[ip_address(address).packed] = 1
    gateway.tun.inject(packet)
    await eventually(lambda: gateway.table.misdirected_packets == 1)
    assert gateway.icmp.sent == []
    del owners[ip_address(address).packed]
    gateway.tun.inject(packet)
    await eventually(lambda: gateway.icmp.sent)
    (error,) = gateway.icmp.sent
    assert icmp_type_and_code(error) == expected
    assert packet in error
    # The kernel has counted it.
    assert gateway.table.total_drops() == {DropReason.NO_SESSION: 2}
    assert gateway.table.misdirected_packets == 1
    # And no more when it is withdrawn.
    gateway.table.set_networks([])
    gateway.tun.inject(packet)
    await eventually(lambda: gateway.table.drops == {DropReason.NO_SESSION: 3})
    assert len(gateway.icmp.sent) == 1


async def test_a_network_whose_last_connector_has_just_gone_is_answered_too(lab: Lab) -> None:
    """What was queued before is not told from what came since; both count here."""
    site = await make_site(lab)
    gateway = site.gateway
    gateway.table.set_networks([ip_network(NETWORK)])
    site.grant(networks=(NETWORK,))
    there = udp_packet(AGENT_V4, "10.20.0.9")
    gateway.tun.inject(there)
    await eventually(lambda: site.client.tun.written == [there])
    site.grant()
    gateway.tun.inject(there)
    await eventually(lambda: gateway.icmp.sent)
    assert icmp_type_and_code(gateway.icmp.sent[0]) == (3, 13)
    assert gateway.table.drops == {DropReason.NO_SESSION: 1}
    # Another connector has it by now, elsewhere: what waited here is lost, and nobody is misled.
    gateway.steering.owners[ip_address("10.20.0.9").packed] = 1
    gateway.tun.inject(there)
    await eventually(lambda: gateway.table.drops == {DropReason.NO_SESSION: 2})
    assert len(gateway.icmp.sent) == 1
    assert gateway.table.misdirected_packets == 0


async def test_answers_about_what_nobody_serves_are_bounded(lab: Lab) -> None:
    gateway = make_gateway(lab)
    gateway.forwarder._unserved_bucket = TokenBucket(rate_per_s=0, burst=500)
    for _ in range(20):
        for _ in range(50):
            gateway.tun.inject(udp_packet(AGENT_V4, SERVICE_V4))
        await asyncio.sleep(0.005)
    await eventually(lambda: len(gateway.icmp.sent) == 500)
    await asyncio.sleep(0.02)
    assert len(gateway.icmp.sent) == 500
    # Who is told of a path's MTU is told it still.
    _, state = await lab.connect(gateway, "bob")
    before = len(gateway.icmp.sent)
    gateway.tun.inject(sized_packet(OFFICE_V4, state.addresses[0].ip, 1500))
    await eventually(lambda: len(gateway.icmp.sent) > before)
    assert icmp_type_and_code(gateway.icmp.sent[-1]) == (3, 4)


async def test_an_offers_address_of_another_worker_is_misdirected(lab: Lab) -> None:
    gateway = make_gateway(lab)
    gateway.steering.owners[OFFER_V4.packed] = 1
    gateway.tun.inject(udp_packet(AGENT_V4, OFFER_V4))
    await eventually(lambda: gateway.table.misdirected_packets == 1)
    assert gateway.table.drops == {DropReason.NO_SESSION: 1}
    assert gateway.icmp.sent == []


async def test_an_error_speaks_of_the_service_and_not_of_the_offer(lab: Lab) -> None:
    """The agent has sent to the service: it knows no other packet."""
    site = await make_site(lab)
    site.grant(OFFER_V4, OFFER_V6)
    site.gateway.table.answered(site.session.session_id, Registered(1, (ANSWER,)))
    sent = [sized_packet(AGENT_V4, SERVICE_V4, 1500), sized_packet(AGENT_V6, SERVICE_V6, 1500)]
    for offer, agent in ((OFFER_V4, AGENT_V4), (OFFER_V6, AGENT_V6)):
        site.gateway.tun.inject(sized_packet(agent, offer, 1500))
    await eventually(lambda: len(site.gateway.icmp.sent) == 2)
    for error, packet in zip(site.gateway.icmp.sent, sent, strict=True):
        quote = error[28:] if error[0] >> 4 == 4 else error[48:]
        assert packet.startswith(quote[:40])


# Silence.


async def test_a_connector_that_falls_silent_is_told_and_so_is_its_return(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "_SILENT_AFTER_S", 0.3)
    monkeypatch.setattr(sessions_module, "_LATE_LOOK_S", 0.2)
    gateway = make_gateway(lab)
    wire = Wire(gateway.endpoint.udp.local_address)
    try:
        offers = ClientOffers((PACS,), ())
        client, _ = await lab.connect(gateway, "connector", offers=offers, port=wire.address[1])
        await lab.connect(gateway, "agent")
        table, session_id = gateway.table, gateway.session("connector").session_id
        await eventually(lambda: gateway.session("connector").beats)

        def looked(*expected: bool) -> bool:
            table.look()
            return gateway.link.silences == [(session_id, is_silent) for is_silent in expected]

        for _ in range(5):
            client.tunnel.send_offer_state([])
            await asyncio.sleep(0.05)
            table.look()
        assert gateway.link.silences == []
        # Nothing comes through any more, nor do forged packets count as a sign of life.
        wire.up = lambda packet: []
        last = wire.sent_up[-1]
        started = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < started + 0.2:
            wire.send_up(last[:-1] + bytes([last[-1] ^ 1]))
            await asyncio.sleep(0.01)
        await eventually(lambda: looked(True))
        wire.up = lambda packet: [packet]
        client.tunnel.send_offer_state([])
        await eventually(lambda: looked(True, False))
        # An agent need not speak.
        assert not gateway.session("agent").is_silent
    finally:
        wire.close()


async def test_a_look_that_comes_late_blames_nobody(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "_SILENT_AFTER_S", 0.0)
    site = await make_site(lab)
    await eventually(lambda: site.session.beats)
    await asyncio.sleep(0.01)
    site.gateway.table._looked_s -= 5.0
    site.gateway.table.look()
    assert site.gateway.link.silences == []
    site.gateway.table.look()
    assert site.gateway.link.silences == [(site.session.session_id, True)]
