"""ICMP errors about flows to services: who may send them, and what stands in them afterwards."""

import pytest
from bpf_support import service_world as s
from bpf_support.policies import allow
from bpf_support.service_world import (
    ALICES,
    BOBS,
    ECHOS,
    FIRST,
    GATEWAYS,
    KINDS,
    LEFT,
    OFFERS,
    SECOND,
    VIPS,
    ServiceWorld,
)
from bpf_support.world import ALICE, OTHER4, OTHER6
from zgate_bpf.services import OfferUse
from zgate_protocol.drop_reason import DropReason as Reason

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
EACH_KIND = pytest.mark.parametrize("kind", KINDS)
ROUTERS = {4: OTHER4, 6: OTHER6}
# What is quoted: everything, the least that RFC 792 asks for, and a piece of the checksum.
CUTS = pytest.mark.parametrize("quoted_bytes", [2000, 8, 17], ids=["whole", "least", "odd"])


@pytest.fixture
def pacs(world):
    """One offer, everything allowed, and flows of every kind and family through it."""
    world.policy(allow("0.0.0.0/0", "::/0"), shared=True)
    made = ServiceWorld(world)
    made.offer(FIRST)
    for family in (4, 6):
        for kind in KINDS:
            assert made.open(s.sent(kind, ALICES[family], VIPS[family])).passed
    made.offer(SECOND, ECHOS)
    world.events()
    yield made
    made.clear()


def cut(packet, quoted_bytes):
    return packet[: (20 if packet[0] >> 4 == 4 else 40) + quoted_bytes]


@FAMILIES
@EACH_KIND
@CUTS
def test_from_the_connector(pacs, family, kind, quoted_bytes):
    """Its address and the one that it was asked by are the service's for the client."""
    alice, vip, offer = ALICES[family], VIPS[family], OFFERS[FIRST][family]

    def quoted(remote):
        return cut(s.sent(kind, alice, remote), quoted_bytes)

    verdict = pacs.world.up(s.unreachable(offer, alice, quoted(offer)))
    assert verdict.passed
    assert (verdict.related, verdict.client_index) == (True, LEFT)
    assert verdict.packet == s.unreachable(vip, alice, quoted(vip))
    last = pacs.world.down(verdict.packet)
    assert (last.passed, last.related) == (True, True)
    assert last.packet == verdict.packet


@FAMILIES
@EACH_KIND
@CUTS
def test_from_the_client(pacs, family, kind, quoted_bytes):
    alice, vip, offer = ALICES[family], VIPS[family], OFFERS[FIRST][family]

    def quoted(remote):
        return cut(s.answer(kind, remote, alice), quoted_bytes)

    verdict = pacs.open(s.unreachable(alice, vip, quoted(vip)))
    assert verdict.passed
    assert (verdict.related, verdict.client_index) == (True, LEFT)
    assert verdict.packet == s.unreachable(alice, offer, quoted(offer))


@FAMILIES
@EACH_KIND
@CUTS
def test_from_the_gateway_to_the_client(pacs, family, kind, quoted_bytes):
    """What is too large for the connector's session is told of with the address it had there."""
    alice, vip, offer = ALICES[family], VIPS[family], OFFERS[FIRST][family]
    gateway = GATEWAYS[family]

    def quoted(remote):
        return cut(s.sent(kind, alice, remote), quoted_bytes)

    verdict = pacs.world.down(s.unreachable(gateway, alice, quoted(offer)))
    assert verdict.passed
    assert (verdict.related, verdict.client_index) == (True, ALICE)
    assert verdict.packet == s.unreachable(gateway, alice, quoted(vip))


@FAMILIES
@EACH_KIND
@CUTS
def test_from_the_gateway_to_the_connector(pacs, family, kind, quoted_bytes):
    """What is too large for the client's session: the answer had the service's address."""
    alice, vip, offer = ALICES[family], VIPS[family], OFFERS[FIRST][family]
    gateway = GATEWAYS[family]

    def quoted(remote):
        return cut(s.answer(kind, remote, alice), quoted_bytes)

    verdict = pacs.world.down(s.unreachable(gateway, vip, quoted(vip)))
    assert verdict.passed
    assert (verdict.related, verdict.client_index) == (True, LEFT)
    assert verdict.packet == s.unreachable(gateway, offer, quoted(offer))


def test_quoted_udp_without_a_checksum_stays_without(pacs):
    alice, vip, offer = ALICES[4], VIPS[4], OFFERS[FIRST][4]

    def quoted(remote):
        packet = bytearray(s.sent("udp", alice, remote))
        packet[26:28] = b"\0\0"
        return bytes(packet)

    verdict = pacs.world.up(s.unreachable(offer, alice, quoted(offer)))
    assert verdict.packet == s.unreachable(vip, alice, quoted(vip))


@FAMILIES
def test_error_about_no_flow(pacs, family):
    alice, vip, offer = ALICES[family], VIPS[family], OFFERS[FIRST][family]
    there = s.sent("udp", alice, offer, client_port=1)
    assert pacs.world.up(s.unreachable(offer, alice, there)).reason is Reason.UNSOLICITED
    error = s.unreachable(GATEWAYS[family], alice, there)
    assert pacs.world.down(error).reason is Reason.UNSOLICITED
    back = s.answer("udp", vip, alice, client_port=1)
    assert pacs.world.down(s.unreachable(GATEWAYS[family], vip, back)).reason is Reason.UNSOLICITED
    assert pacs.world.down(s.unreachable(ROUTERS[family], vip, b"x" * 60)).reason is (
        Reason.UNSOLICITED
    )


@FAMILIES
def test_error_about_another_connectors_flow(pacs, family):
    """Whatever its own address and the quoted one are."""
    alice = ALICES[family]
    first, second = OFFERS[FIRST][family], OFFERS[SECOND][family]
    for source, quoted in (
        (second, first),
        (second, second),
        (second, VIPS[family]),
        (first, second),
        (OFFERS[ECHOS][family], first),
    ):
        error = s.unreachable(source, alice, s.sent("tcp", alice, quoted))
        assert pacs.world.up(error).reason is Reason.UNSOLICITED, (source, quoted)
    own = s.unreachable(first, alice, s.sent("tcp", alice, first))
    assert pacs.world.up(own).passed
    bobs = s.unreachable(first, BOBS[family], s.sent("tcp", alice, first))
    assert pacs.world.up(bobs).reason is Reason.UNSOLICITED


@FAMILIES
def test_error_about_what_is_no_service(pacs, family):
    """Even if the flow's entry names the offer, as a recycled one may."""
    alice, offer = ALICES[family], OFFERS[FIRST][family]
    question = s.sent("tcp", alice, ROUTERS[family])
    assert pacs.world.up(question).passed
    s.write_backend(pacs, FIRST + 1)
    assert pacs.world.up(s.unreachable(offer, alice, question)).reason is Reason.UNSOLICITED


@FAMILIES
def test_error_about_another_clients_flow(pacs, family):
    """The policy may let Bob send such a packet; it goes no further than to the kernel."""
    alice, bob, vip = ALICES[family], BOBS[family], VIPS[family]
    forged = s.unreachable(bob, vip, s.answer("tcp", vip, alice))
    verdict = pacs.open(forged)
    assert verdict.reason is Reason.UNSOLICITED
    assert verdict.packet == forged


@FAMILIES
def test_error_about_a_flow_that_no_offer_has(pacs, family):
    """It chooses none, and nobody is told: an ICMP error is no answer to one."""
    alice, vip = ALICES[family], VIPS[family]
    pacs.services.use_offer(FIRST, OfferUse.GONE, 0)
    verdict = pacs.open(s.unreachable(alice, vip, s.answer("udp", vip, alice)))
    assert verdict.reason is Reason.NO_BACKEND
    assert not verdict.handed_on
    assert pacs.services.open_flows(SECOND) == 0


@FAMILIES
def test_error_does_not_make_an_offer_known(pacs, family):
    """Not even one from the gateway, about an address that is an offer's, but not this flow's."""
    alice = ALICES[family]
    for offer in (SECOND, ECHOS):
        quoted = s.sent("tcp", alice, OFFERS[offer][family])
        error = s.unreachable(GATEWAYS[family], alice, quoted)
        assert pacs.world.down(error).reason is Reason.UNSOLICITED
