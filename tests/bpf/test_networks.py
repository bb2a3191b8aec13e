"""Networks behind connectors: routed, not translated."""

from ipaddress import ip_address, ip_network

import pytest
from bpf_support import service_world as s
from bpf_support.policies import allow, deny
from bpf_support.service_world import (
    ALICES,
    BOBS,
    FIRST,
    GATEWAYS,
    KINDS,
    LEFT,
    OFFERS,
    RIGHT,
    VIPS,
)
from bpf_support.world import ALICE, OTHER4, OTHER6, SERVER4, SERVER6
from test_service_fragments import fragments
from zgate_bpf.kernel_policy import NO_CLIENT, Direction, EventKind
from zgate_protocol.drop_reason import DropReason as Reason

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
EACH_KIND = pytest.mark.parametrize("kind", KINDS)
SERVERS, OTHERS = {4: SERVER4, 6: SERVER6}, {4: OTHER4, 6: OTHER6}
WIDE = {4: "10.20.0.0/16", 6: "2001:db8::/32"}
NARROW = {4: "10.20.0.0/24", 6: "2001:db8::/64"}


@pytest.fixture
def sites(world):
    """A network behind the left connector; everything allowed."""
    world.policy(allow("0.0.0.0/0", "::/0"), shared=True)
    made = s.ServiceWorld(world)
    known = []

    def put(network, client):
        made.services.set_network(ip_network(network), client)
        known.append(ip_network(network))

    made.put = put
    for family in (4, 6):
        put(WIDE[family], LEFT)
    yield made
    for network in known:
        made.services.remove_network(network)
    made.clear()


@FAMILIES
@EACH_KIND
def test_there_and_back(sites, family, kind):
    alice, server = ALICES[family], SERVERS[family]
    question, reply = s.sent(kind, alice, server), s.answer(kind, server, alice)
    there = sites.open(question)
    assert there.passed
    assert (there.packet, there.client_index, there.mark) == (question, LEFT, 0)
    back = sites.world.up(reply)
    assert back.passed
    assert (back.packet, back.client_index, back.mark) == (reply, LEFT, 0x5A0000)
    assert sites.world.down(reply).passed
    for index, up, down in ((ALICE, 1, 1), (LEFT, 1, 1)):
        counted = sites.kernel.counters(index)
        assert (counted.up_packets, counted.down_packets) == (up, down)
    assert sites.kernel.counters(LEFT).down_bytes == len(question)
    assert len(sites.world.events()) == 1


@FAMILIES
def test_longest_prefix_wins(sites, family):
    sites.put(NARROW[family], RIGHT)
    question = s.sent("udp", ALICES[family], SERVERS[family])
    assert sites.open(question).client_index == RIGHT
    sites.services.remove_network(ip_network(NARROW[family]))
    assert sites.open(question).client_index == LEFT
    sites.services.remove_network(ip_network(WIDE[family]))
    assert sites.open(question).reason is Reason.NO_CLIENT
    assert sites.world.up(s.answer("udp", SERVERS[family], ALICES[family])).reason is (
        Reason.NO_CLIENT
    )


@FAMILIES
def test_network_of_the_other_family_is_another(sites, family):
    """0.0.0.0/0 is not ::/0, and equal bytes are not equal addresses."""
    for one in (4, 6):
        sites.services.remove_network(ip_network(WIDE[one]))
    sites.put("::/0" if family == 4 else "0.0.0.0/0", RIGHT)
    assert sites.open(s.sent("udp", ALICES[family], SERVERS[family])).reason is Reason.NO_CLIENT
    sites.put("0.0.0.0/0" if family == 4 else "::/0", LEFT)
    assert sites.open(s.sent("udp", ALICES[family], SERVERS[family])).client_index == LEFT


@FAMILIES
def test_clients_and_services_come_before_networks(sites, family):
    sites.offer(FIRST)
    sites.put("10.0.0.0/8" if family == 4 else "fd00::/8", RIGHT)
    alice, bob = ALICES[family], BOBS[family]
    assert sites.open(s.sent("udp", alice, bob)).reason is Reason.UNSOLICITED
    there = sites.open(s.sent("udp", alice, VIPS[family]))
    assert there.packet == s.sent("udp", alice, OFFERS[FIRST][family])
    offer = OFFERS[FIRST][family]
    assert sites.world.down(s.sent("udp", alice, offer)).reason is Reason.NOT_A_DESTINATION


@FAMILIES
@EACH_KIND
def test_only_answers_come_out_of_it(sites, family, kind):
    alice, server = ALICES[family], SERVERS[family]
    reply = s.answer(kind, server, alice)
    verdict = sites.world.up(reply)
    assert (verdict.reason, verdict.client_index) == (Reason.UNSOLICITED, LEFT)
    for destination in (alice, GATEWAYS[family], OTHERS[family], VIPS[family], SERVERS[family]):
        question = s.sent(kind, server, destination)
        assert sites.world.up(question).reason is Reason.UNSOLICITED
    assert sites.world.down(s.sent(kind, alice, server)).reason is Reason.UNSOLICITED
    stranger = sites.world.down(s.sent(kind, GATEWAYS[family], server))
    assert (stranger.reason, stranger.client_index) == (Reason.UNSOLICITED, NO_CLIENT)
    assert sites.kernel.counters(LEFT).up_dropped_packets == 6


@FAMILIES
def test_new_revision_ends_what_it_denies(sites, family):
    alice, server = ALICES[family], SERVERS[family]
    assert sites.open(s.sent("tcp", alice, server)).passed
    sites.world.policy(deny("0.0.0.0/0", "::/0"))
    reply = s.answer("tcp", server, alice)
    assert sites.world.up(reply).passed
    assert sites.world.down(reply).reason is Reason.POLICY_RULE
    assert sites.world.up(reply).reason is Reason.UNSOLICITED


# ICMP errors.


@FAMILIES
@EACH_KIND
def test_errors_from_inside_and_to_it(sites, family, kind):
    """From any host of the network, about what went into it; and about its answers, into it."""
    alice, server = ALICES[family], SERVERS[family]
    router = "10.20.99.1" if family == 4 else "2001:db8:99::1"
    question, reply = s.sent(kind, alice, server), s.answer(kind, server, alice)
    assert sites.open(question).passed
    inside = s.unreachable(router, alice, question)
    found = sites.world.up(inside)
    assert (found.passed, found.related, found.client_index) == (True, True, LEFT)
    assert sites.world.down(inside).passed
    for packet in (
        s.unreachable(alice, server, reply),
        s.unreachable(GATEWAYS[family], server, reply),
    ):
        verdict = sites.world.down(packet)
        assert (verdict.passed, verdict.client_index) == (True, LEFT)
        assert verdict.packet == packet


@FAMILIES
def test_errors_about_what_is_not_theirs(sites, family):
    """A connector's network says nothing about another's, about services, or about the rest."""
    alice, server = ALICES[family], SERVERS[family]
    sites.offer(FIRST)
    sites.put("192.168.0.0/16" if family == 4 else "fd99::/16", RIGHT)
    source = "192.168.0.1" if family == 4 else "fd99::1"
    for remote in (server, OTHERS[family], VIPS[family]):
        assert sites.world.up(s.sent("tcp", alice, remote)).passed
    assert sites.world.down(s.sent("tcp", alice, VIPS[family])).passed
    quoted = (server, OTHERS[family], VIPS[family], OFFERS[FIRST][family])
    for remote in quoted:
        error = s.unreachable(source, alice, s.sent("tcp", alice, remote))
        verdict = sites.world.up(error)
        assert (verdict.reason, verdict.client_index) == (Reason.UNSOLICITED, RIGHT), remote
    offers = s.unreachable(OFFERS[FIRST][family], alice, s.sent("tcp", alice, server))
    assert sites.world.up(offers).reason is Reason.UNSOLICITED


@FAMILIES
def test_asking_about_a_network(sites, family):
    question = s.sent("tcp", ALICES[family], SERVERS[family])
    asked = sites.kernel.evaluate(question, Direction.UP)
    assert (asked.passed, asked.no_offer) == (True, False)
    assert sites.world.up(question).passed
    assert sites.kernel.evaluate(question, Direction.DOWN).client_index == LEFT
    assert sites.kernel.counters(LEFT).down_packets == 0
    sites.put(WIDE[family], None)
    asked = sites.kernel.evaluate(question, Direction.UP)
    assert (asked.passed, asked.no_offer) == (True, True)
    sites.world.policy(deny("0.0.0.0/0", "::/0"))
    asked = sites.kernel.evaluate(question, Direction.UP)
    assert (asked.reason, asked.no_offer) == (Reason.POLICY_RULE, False)


# Networks whose connectors have all gone.


@FAMILIES
@EACH_KIND
def test_nobody_leads_there(sites, family, kind):
    """Dropped, counted and told; but it goes on, so that the client gets an ICMP error."""
    alice = ALICES[family]
    sites.put(WIDE[family], None)
    packet = s.sent(kind, alice, SERVERS[family])
    verdict = sites.open(packet)
    assert (verdict.reason, verdict.passed, verdict.handed_on) == (Reason.NO_BACKEND, False, True)
    assert (verdict.client_index, verdict.packet) == (ALICE, packet)
    counted = sites.kernel.counters(ALICE)
    assert (counted.up_packets, counted.up_dropped_packets) == (1, 1)
    allowed, denied = sites.world.events()
    assert allowed.kind is EventKind.FLOW_ALLOWED
    assert (denied.reason, denied.direction) == (Reason.NO_BACKEND, Direction.UP)
    error = s.unreachable(GATEWAYS[family], alice, packet)
    told = sites.world.down(error)
    assert (told.passed, told.related, told.packet) == (True, True, error)
    asked = sites.kernel.evaluate(packet, Direction.DOWN)
    assert (asked.reason, asked.handed_on) == (Reason.NO_BACKEND, False)


@FAMILIES
@EACH_KIND
def test_nothing_comes_from_where_nobody_leads(sites, family, kind):
    """Not even an answer to a flow that was allowed, nor an error about it."""
    alice, server = ALICES[family], SERVERS[family]
    question, reply = s.sent(kind, alice, server), s.answer(kind, server, alice)
    error = s.unreachable(server, alice, question)
    assert sites.open(question).client_index == LEFT
    assert sites.world.up(reply).passed
    sites.put(WIDE[family], None)
    left = sites.kernel.counters(LEFT)
    for packet in (reply, error, s.sent(kind, server, alice), s.sent(kind, server, BOBS[family])):
        verdict = sites.world.up(packet)
        assert (verdict.reason, verdict.client_index) == (Reason.NO_CLIENT, NO_CLIENT)
        assert not verdict.handed_on
    # A living connector's network does not speak for it.
    sites.put("192.168.0.0/16" if family == 4 else "fd99::/16", RIGHT)
    strange = s.unreachable("192.168.0.1" if family == 4 else "fd99::1", alice, question)
    assert sites.world.up(strange).reason is Reason.UNSOLICITED
    assert sites.kernel.counters(LEFT) == left
    sites.put(WIDE[family], RIGHT)
    assert sites.open(question).client_index == RIGHT
    assert sites.world.up(reply).client_index == RIGHT


@FAMILIES
def test_nobody_is_told_of_what_no_client_may_send_there(sites, family):
    """Who has no flow, an ICMP error, and all fragments but the first."""
    alice, server = ALICES[family], SERVERS[family]
    question, reply = s.sent("udp", alice, server), s.answer("udp", server, alice)
    sites.put(WIDE[family], None)
    for packet in (question, s.sent("udp", GATEWAYS[family], server)):
        verdict = sites.world.down(packet)
        assert (verdict.reason, verdict.handed_on) == (Reason.UNSOLICITED, False)
    sites.world.policy(deny("0.0.0.0/0", "::/0"))
    assert not sites.world.up(question).passed
    assert sites.world.down(question).reason is Reason.UNSOLICITED
    sites.world.policy(allow("0.0.0.0/0", "::/0"), shared=True)
    assert sites.open(question).handed_on
    about = sites.world.down(s.unreachable(alice, server, reply))
    assert (about.reason, about.handed_on) == (Reason.NO_BACKEND, False)
    found = [sites.open(piece) for piece in fragments(alice, server, (4000, 104), number=93)]
    assert [one.reason for one in found] == [Reason.NO_BACKEND] * 3
    assert [one.handed_on for one in found] == [True, False, False]
    # Another network, a client that is gone, and this one when it is withdrawn.
    for remote in ("192.168.7.7", "10.100.9.9") if family == 4 else ("fd99::7", "fd7a::9:9"):
        verdict = sites.open(s.sent("udp", alice, remote))
        assert (verdict.reason, verdict.handed_on) == (Reason.NO_CLIENT, False)
    sites.services.remove_network(ip_network(WIDE[family]))
    verdict = sites.open(question)
    assert (verdict.reason, verdict.handed_on) == (Reason.NO_CLIENT, False)


@FAMILIES
def test_a_network_that_nobody_leads_to_hides_none_that_somebody_does(sites, family):
    """It may lie inside that one, or around it."""
    question = s.sent("udp", ALICES[family], SERVERS[family])
    wide, narrow = WIDE[family], NARROW[family]
    sites.put(narrow, RIGHT)
    assert sites.open(question).client_index == RIGHT
    sites.put(narrow, None)
    assert sites.open(question).client_index == LEFT
    sites.put(wide, None)
    assert sites.open(question).handed_on
    sites.put(wide, LEFT)
    assert sites.open(question).client_index == LEFT
    sites.services.remove_network(ip_network(wide))
    assert sites.open(question).handed_on
    sites.put(wide, None)
    sites.put(narrow, RIGHT)
    assert sites.open(question).client_index == RIGHT
    sites.services.remove_network(ip_network(narrow))
    assert sites.open(question).handed_on
    sites.services.remove_network(ip_network(wide))
    assert sites.open(question).reason is Reason.NO_CLIENT


def test_set_again_is_the_new_connectors(sites):
    sites.put(WIDE[4], RIGHT)
    assert sites.open(s.sent("tcp", ALICES[4], SERVERS[4])).client_index == RIGHT
    assert ip_address(SERVERS[4]) in ip_network(WIDE[4])
