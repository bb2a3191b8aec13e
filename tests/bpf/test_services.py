"""Packets to services and back: whose address stands in them, who gets them, and who does not."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import pytest
from bpf_support import service_world as s
from bpf_support.policies import allow, deny
from bpf_support.service_world import (
    ALICES,
    BOBS,
    CONNECTOR,
    ECHOS,
    FIRST,
    GATEWAYS,
    KINDS,
    LEFT,
    OFFERS,
    PACS,
    RIGHT,
    SECOND,
    VIPS,
    ServiceWorld,
)
from bpf_support.world import ALICE, BOB
from zgate_bpf import layouts
from zgate_bpf.kernel_policy import NO_CLIENT, Direction, EventKind
from zgate_bpf.services import OfferUse
from zgate_bpf.tables import NO_RULE, PASS_MARK, Action
from zgate_protocol.drop_reason import DropReason as Reason

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
EACH_KIND = pytest.mark.parametrize("kind", KINDS)
EVERYTHING = allow("0.0.0.0/0", "::/0")


@pytest.fixture
def pacs(world):
    """Everything allowed; the service is there, and nobody offers it yet."""
    world.policy(EVERYTHING, shared=True)
    made = ServiceWorld(world)
    yield made
    made.clear()


# There and back.


@FAMILIES
@EACH_KIND
def test_connector_sees_its_offer_and_client_the_service(pacs, family, kind):
    pacs.offer(FIRST)
    alice, vip, offer = ALICES[family], VIPS[family], OFFERS[FIRST][family]
    there = pacs.open(s.sent(kind, alice, vip))
    assert there.passed
    assert there.packet == s.sent(kind, alice, offer)
    back = pacs.world.up(s.answer(kind, offer, alice))
    assert back.passed
    assert back.mark == PASS_MARK
    assert back.packet == s.answer(kind, vip, alice)
    last = pacs.world.down(back.packet)
    assert last.passed
    assert last.known_flow
    assert last.packet == back.packet


@FAMILIES
@EACH_KIND
def test_client_and_connector_are_both_counted(pacs, family, kind):
    pacs.offer(FIRST)
    question = s.sent(kind, ALICES[family], VIPS[family])
    reply = s.answer(kind, OFFERS[FIRST][family], ALICES[family])
    for _ in range(2):
        there = pacs.open(question)
        assert there.client_index == LEFT
    back = pacs.world.up(reply)
    assert back.client_index == LEFT
    pacs.world.down(back.packet)
    for index, up, down in ((ALICE, 2, 1), (LEFT, 1, 2)):
        counted = pacs.kernel.counters(index)
        assert (counted.up_packets, counted.down_packets, counted.flows) == (up, down, 1)
        assert counted.dropped_packets == 0
    counted = pacs.kernel.counters(LEFT)
    assert (counted.up_bytes, counted.down_bytes) == (len(reply), 2 * len(question))
    (event,) = pacs.world.events()
    assert (event.kind, event.client_index) == (EventKind.FLOW_ALLOWED, ALICE)
    assert str(event.destination) == VIPS[family]


@FAMILIES
def test_super_packet_counts_its_segments(pacs, family):
    pacs.offer(FIRST)
    packet = s.sent("tcp", ALICES[family], VIPS[family], data=bytes(2_500))
    assert pacs.world.up(packet).passed
    assert pacs.world.down(packet, gso_segs=3, gso_size=1000).passed
    counted = pacs.kernel.counters(LEFT)
    headers = len(packet) - 2_500
    assert (counted.down_packets, counted.down_bytes) == (3, len(packet) + 2 * headers)


def test_udp_without_a_checksum_stays_without(pacs):
    pacs.offer(FIRST)
    packet = bytearray(s.sent("udp", ALICES[4], VIPS[4]))
    packet[26:28] = b"\0\0"
    there = pacs.open(bytes(packet))
    assert there.packet[26:28] == b"\0\0"
    assert there.packet[:20] == s.sent("udp", ALICES[4], OFFERS[FIRST][4])[:20]


@FAMILIES
@pytest.mark.parametrize("is_up", [True, False], ids=["from the connector", "to the connector"])
def test_udp_checksum_that_comes_out_as_zero_is_written_as_ones(pacs, family, is_up):
    pacs.offer(FIRST)
    alice, vip, offer = ALICES[family], VIPS[family], OFFERS[FIRST][family]
    make, at = (s.answer, (vip, alice)) if is_up else (s.sent, (alice, offer))
    where = len(make("udp", *at, data=b"")) - 2
    zero_sum = make("udp", *at, data=b"\0\0")[where : where + 2]
    wanted = make("udp", *at, data=zero_sum)
    assert wanted[where : where + 2] == b"\xff\xff"
    opened = pacs.open(s.sent("udp", alice, vip, data=zero_sum))
    if is_up:
        assert pacs.world.up(s.answer("udp", offer, alice, data=zero_sum)).packet == wanted
    else:
        assert opened.packet == wanted


def test_protocol_without_a_checksum_over_addresses(pacs):
    pacs.offer(FIRST)
    for family in (4, 6):
        packet = s.raw(s.ip(ALICES[family], VIPS[family]))
        there = pacs.open(packet)
        assert there.packet == s.raw(s.ip(ALICES[family], OFFERS[FIRST][family]))


def test_families_are_flows_of_their_own_and_connectors_too(pacs):
    pacs.offer(FIRST, SECOND)
    assert pacs.open(s.sent("tcp", ALICES[4], VIPS[4])).client_index == LEFT
    assert pacs.open(s.sent("tcp", ALICES[6], VIPS[6])).client_index == RIGHT


# Who may not.


@FAMILIES
@EACH_KIND
def test_no_flow_no_way_on(pacs, family, kind):
    """What the policy did not pass does not reach a connector, wherever it comes from."""
    pacs.offer(FIRST)
    packet = s.sent(kind, ALICES[family], VIPS[family])
    verdict = pacs.world.down(packet)
    assert verdict.reason is Reason.UNSOLICITED
    assert verdict.client_index == ALICE
    assert verdict.packet == packet
    assert pacs.kernel.counters(ALICE).up_dropped_packets == 1
    stranger = pacs.world.down(s.sent(kind, GATEWAYS[family], VIPS[family]))
    assert stranger.reason is Reason.UNSOLICITED
    assert stranger.client_index == NO_CLIENT


@FAMILIES
def test_policy_decides_about_the_service(pacs, family):
    bits = 32 if family == 4 else 128
    pacs.world.policy(allow(f"{VIPS[family]}/{bits}", protocol=6, ports=(104, 104)))
    pacs.offer(FIRST)
    alice, vip = ALICES[family], VIPS[family]
    there = pacs.open(s.sent("tcp", alice, vip))
    assert there.passed
    assert pacs.world.generation.rule_of(there.rule) == (1, 0)
    assert there.revision == pacs.world.revision
    denied = pacs.world.up(s.sent("tcp", alice, vip, port=105))
    assert denied.reason is Reason.POLICY_DEFAULT
    assert pacs.world.down(s.sent("tcp", alice, vip, port=105)).reason is Reason.UNSOLICITED


@FAMILIES
@EACH_KIND
def test_offers_are_not_for_clients(pacs, family, kind):
    """Not even for one whose policy allows everything."""
    pacs.offer(FIRST)
    packet = s.sent(kind, ALICES[family], OFFERS[FIRST][family])
    up = pacs.world.up(packet)
    assert (up.reason, up.client_index) == (Reason.NOT_A_DESTINATION, ALICE)
    assert pacs.world.down(packet).reason is Reason.NOT_A_DESTINATION
    assert [event.reason for event in pacs.world.events()] == [Reason.NOT_A_DESTINATION] * 2
    assert pacs.kernel.evaluate(packet, Direction.UP).reason is Reason.NOT_A_DESTINATION


@FAMILIES
def test_flow_that_an_offer_overtakes_ends(pacs, family):
    """An address that was free becomes an offer's: the flow to it is stopped on its way out."""
    packet = s.sent("udp", ALICES[family], OFFERS[FIRST][family])
    assert pacs.world.up(packet).passed
    assert pacs.world.down(packet).reason is Reason.NO_CLIENT
    pacs.offer(FIRST)
    assert pacs.world.down(packet).reason is Reason.NOT_A_DESTINATION
    pacs.world.policy(EVERYTHING)
    assert pacs.world.up(packet).reason is Reason.NOT_A_DESTINATION
    assert not pacs.world.up(packet).known_flow


@FAMILIES
@EACH_KIND
def test_connector_begins_nothing(pacs, family, kind):
    pacs.offer(FIRST)
    offer = OFFERS[FIRST][family]
    for destination in (ALICES[family], VIPS[family], GATEWAYS[family]):
        for packet in (s.sent(kind, offer, destination), s.answer(kind, offer, destination)):
            verdict = pacs.world.up(packet)
            assert verdict.reason is Reason.UNSOLICITED
            assert verdict.client_index == LEFT
    assert pacs.kernel.counters(LEFT).up_dropped_packets == 6
    assert not list(pacs.kernel.flows())


@FAMILIES
@EACH_KIND
def test_connector_answers_its_own_flows_only(pacs, family, kind):
    """Not another one's of the same service, nor another port, nor another client's."""
    pacs.offer(FIRST, SECOND, ECHOS)
    alice, vip = ALICES[family], VIPS[family]
    assert pacs.open(s.sent(kind, alice, vip)).client_index == LEFT
    for offer in (SECOND, ECHOS):
        late = pacs.world.up(s.answer(kind, OFFERS[offer][family], alice))
        assert late.reason is Reason.UNSOLICITED
        assert late.client_index == CONNECTOR[offer]
    own = OFFERS[FIRST][family]
    for packet in (
        s.answer(kind, own, alice, client_port=4001),
        s.answer(kind, own, BOBS[family]),
        s.answer("udp" if kind == "tcp" else "tcp", own, alice),
    ):
        assert pacs.world.up(packet).reason is Reason.UNSOLICITED
    assert pacs.world.up(s.answer(kind, own, alice)).passed


@FAMILIES
def test_nobody_sends_from_a_services_address(pacs, family):
    pacs.offer(FIRST)
    pacs.services.set_own_addresses([ip_address(address) for address in GATEWAYS.values()])
    assert pacs.open(s.sent("udp", ALICES[family], VIPS[family])).passed
    for source in (VIPS[family], GATEWAYS[family]):
        assert pacs.world.up(s.answer("udp", source, ALICES[family])).reason is Reason.NO_CLIENT


@FAMILIES
def test_flow_of_a_client_that_left(pacs, family):
    pacs.offer(FIRST)
    question = s.sent("udp", ALICES[family], VIPS[family])
    reply = s.answer("udp", OFFERS[FIRST][family], ALICES[family])
    assert pacs.open(question).passed
    pacs.kernel.set_client(ip_address(ALICES[family]), BOB)
    assert pacs.world.up(reply).reason is Reason.UNSOLICITED
    assert pacs.world.down(question).reason is Reason.UNSOLICITED
    pacs.kernel.remove_client(ip_address(ALICES[family]))
    assert pacs.world.up(reply).reason is Reason.UNSOLICITED
    assert pacs.world.down(question).reason is Reason.UNSOLICITED


@FAMILIES
def test_client_with_a_services_address_is_the_client(pacs, family):
    """It cannot happen by the pools; if it does, the client's entry is what counts."""
    pacs.offer(FIRST)
    pacs.kernel.set_client(ip_address(VIPS[family]), BOB)
    try:
        packet = s.sent("udp", ALICES[family], VIPS[family])
        assert pacs.open(packet).reason is Reason.UNSOLICITED
    finally:
        pacs.kernel.remove_client(ip_address(VIPS[family]))


# Policy, again and again.


@FAMILIES
def test_new_revision_keeps_the_flow_with_its_offer(pacs, family):
    pacs.offer(FIRST, SECOND)
    question = s.sent("udp", ALICES[family], VIPS[family])
    assert pacs.open(question).client_index == LEFT
    pacs.services.use_offer(FIRST, OfferUse.UP, 1000)
    pacs.world.policy(EVERYTHING)
    again = pacs.open(question)
    assert (again.client_index, again.chosen) == (LEFT, False)
    back = pacs.world.up(s.answer("udp", OFFERS[FIRST][family], ALICES[family]))
    assert pacs.world.down(back.packet).passed


@FAMILIES
def test_new_revision_that_denies_ends_the_flow(pacs, family):
    pacs.offer(FIRST)
    question = s.sent("udp", ALICES[family], VIPS[family])
    reply = s.answer("udp", OFFERS[FIRST][family], ALICES[family])
    assert pacs.open(question).passed
    pacs.world.policy(deny("0.0.0.0/0", "::/0"))
    back = pacs.world.up(reply)
    assert back.passed
    assert pacs.world.down(back.packet).reason is Reason.POLICY_RULE
    assert pacs.world.up(reply).reason is Reason.UNSOLICITED
    assert pacs.world.up(question).reason is Reason.POLICY_RULE


# Which offer.


def test_new_flows_go_where_the_fewest_are(pacs):
    pacs.offer(FIRST, open_flows=3)
    pacs.offer(SECOND)
    taken = [
        pacs.open(s.sent("tcp", ALICES[4], VIPS[4], client_port=port)).client_index
        for port in range(1000, 1007)
    ]
    assert taken == [RIGHT, RIGHT, RIGHT, LEFT, RIGHT, LEFT, RIGHT]
    assert [pacs.services.open_flows(offer) for offer in (FIRST, SECOND)] == [5, 5]
    pacs.services.use_offer(SECOND, OfferUse.UP, 2)
    assert pacs.open(s.sent("tcp", ALICES[4], VIPS[4], client_port=99)).client_index == RIGHT


def test_each_flow_is_given_once(pacs):
    pacs.offer(FIRST, SECOND)
    first = pacs.open(s.sent("udp", ALICES[4], VIPS[4]))
    assert first.chosen
    assert not any(pacs.open(s.sent("udp", ALICES[4], VIPS[4])).chosen for _ in range(5))
    assert pacs.services.open_flows(FIRST) == 1
    assert pacs.offer_of(4) == FIRST


def test_cpus_choose_at_the_same_time(pacs):
    """Each flow is given once, whichever of its packets is first, and none is miscounted."""
    pacs.offer(FIRST, SECOND)
    ports = range(1000, 1500)
    packets = [s.sent("udp", ALICES[4], VIPS[4], client_port=port) for port in ports]
    assert all(pacs.world.up(packet).passed for packet in packets)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(pacs.world.down, [one for one in packets for _ in range(4)]))
    for index in range(len(packets)):
        of_flow = found[4 * index : 4 * index + 4]
        assert sum(one.chosen for one in of_flow) == 1
        assert len({one.client_index for one in of_flow}) == 1
    taken = Counter(one.client_index for one in found if one.chosen)
    assert taken[LEFT] == pacs.services.open_flows(FIRST)
    assert taken[RIGHT] == pacs.services.open_flows(SECOND)
    assert abs(taken[LEFT] - taken[RIGHT]) < 50


def test_sixteen_offers_share_new_flows(pacs):
    for number in range(layouts.OFFERS_PER_SERVICE):
        pacs.services.set_offer(
            1000 + number,
            service=PACS,
            client_index=200 + number,
            addresses=[ip_address(f"10.101.200.{number}"), ip_address(f"fd7b::c8:{number}")],
            use=OfferUse.UP,
        )
    taken = [
        pacs.open(s.sent("udp", ALICES[6], VIPS[6], client_port=port)).client_index
        for port in range(1000, 1032)
    ]
    assert sorted(taken) == sorted([*range(200, 216)] * 2)


@FAMILIES
def test_nobody_offers_it(pacs, family):
    """Dropped, counted and told; but it goes on, so that the client gets an ICMP error."""
    packet = s.sent("tcp", ALICES[family], VIPS[family])
    verdict = pacs.open(packet)
    assert verdict.reason is Reason.NO_BACKEND
    assert not verdict.passed
    assert verdict.handed_on
    assert verdict.client_index == ALICE
    assert verdict.packet == packet
    assert pacs.world.generation.rule_of(verdict.rule) == (1, 0)
    counted = pacs.kernel.counters(ALICE)
    assert (counted.up_packets, counted.up_dropped_packets) == (1, 1)
    allowed, denied = pacs.world.events()
    assert allowed.kind is EventKind.FLOW_ALLOWED
    assert (denied.reason, denied.direction) == (Reason.NO_BACKEND, Direction.UP)
    assert (str(denied.source), str(denied.destination)) == (ALICES[family], VIPS[family])
    error = s.unreachable(GATEWAYS[family], ALICES[family], packet)
    told = pacs.world.down(error)
    assert told.passed
    assert told.related
    assert told.packet == error


@pytest.mark.parametrize("use", [OfferUse.GONE, OfferUse.KEEP])
def test_no_offer_takes_new_flows(pacs, use):
    pacs.offer(FIRST, SECOND, use=use)
    assert pacs.open(s.sent("tcp", ALICES[4], VIPS[4])).reason is Reason.NO_BACKEND
    assert pacs.offer_of(4) is None


@FAMILIES
def test_kept_flows_stay_and_new_ones_go_elsewhere(pacs, family):
    pacs.offer(FIRST, SECOND)
    old = s.sent("tcp", ALICES[family], VIPS[family])
    assert pacs.open(old).client_index == LEFT
    pacs.services.use_offer(FIRST, OfferUse.KEEP, 0)
    assert pacs.open(old).client_index == LEFT
    assert pacs.world.up(s.answer("tcp", OFFERS[FIRST][family], ALICES[family])).passed
    new = [s.sent("tcp", ALICES[family], VIPS[family], client_port=port) for port in (1, 2, 3)]
    assert [pacs.open(packet).client_index for packet in new] == [RIGHT] * 3


@FAMILIES
@pytest.mark.parametrize("how", ["gone", "removed", "service changed"])
def test_flows_of_an_offer_that_is_gone_choose_anew(pacs, family, how):
    pacs.offer(FIRST, SECOND)
    alice, question = ALICES[family], s.sent("tcp", ALICES[family], VIPS[family])
    assert pacs.open(question).client_index == LEFT
    if how == "gone":
        pacs.services.use_offer(FIRST, OfferUse.GONE, 1)
    else:
        pacs.services.remove_offer(FIRST)
    if how == "service changed":
        number = {"service": s.ECHO, "client_index": LEFT, "use": OfferUse.UP}
        pacs.services.set_offer(FIRST, addresses=s.addresses(OFFERS[FIRST]), **number)
    again = pacs.open(question)
    assert (again.client_index, again.chosen) == (RIGHT, True)
    assert again.packet == s.sent("tcp", alice, OFFERS[SECOND][family])
    late = pacs.world.up(s.answer("tcp", OFFERS[FIRST][family], alice))
    assert late.reason is (Reason.NO_CLIENT if how == "removed" else Reason.UNSOLICITED)
    assert pacs.world.up(s.answer("tcp", OFFERS[SECOND][family], alice)).passed
    pacs.services.remove_offer(FIRST)
    pacs.offer(FIRST)
    assert pacs.open(question).client_index == RIGHT


def test_last_one_gone_and_back(pacs):
    pacs.offer(FIRST)
    question = s.sent("tcp", ALICES[4], VIPS[4])
    assert pacs.open(question).passed
    pacs.services.use_offer(FIRST, OfferUse.GONE, 1)
    assert pacs.open(question).reason is Reason.NO_BACKEND
    pacs.services.use_offer(FIRST, OfferUse.UP, 1)
    again = pacs.open(question)
    assert again.passed
    assert not again.chosen


@FAMILIES
def test_recycled_entry_names_an_offer_of_another_service(pacs, family):
    """An entry of the flow table may be another flow's when an offer is written into it."""
    pacs.offer(FIRST, ECHOS)
    question = s.sent("udp", ALICES[family], VIPS[family])
    assert pacs.open(question).passed
    for backend in (ECHOS + 1, 0xFFFFFFFF, layouts.MAX_OFFERS + 1):
        s.write_backend(pacs, backend)
        for offer in (ECHOS, FIRST):
            reply = s.answer("udp", OFFERS[offer][family], ALICES[family])
            assert pacs.world.up(reply).reason is Reason.UNSOLICITED
        verdict = pacs.open(question)
        assert verdict.packet == s.sent("udp", ALICES[family], OFFERS[FIRST][family])
        assert verdict.chosen


@FAMILIES
def test_new_connection_on_the_same_ports_chooses_again(pacs, family):
    pacs.offer(FIRST, SECOND)
    alice, vip, offer = ALICES[family], VIPS[family], OFFERS[FIRST][family]
    assert pacs.open(s.sent("tcp", alice, vip)).client_index == LEFT
    pacs.services.use_offer(FIRST, OfferUse.UP, 9)
    reset = s.raw(s.ip(offer, alice) / s.TCP(sport=104, dport=4000, flags="R"))
    pacs.world.down(pacs.world.up(reset).packet)
    assert pacs.open(s.sent("tcp", alice, vip)).client_index == RIGHT


def test_removed_service_is_nobody(pacs):
    pacs.offer(FIRST)
    question = s.sent("udp", ALICES[4], VIPS[4])
    assert pacs.open(question).passed
    pacs.services.remove_service(PACS)
    assert pacs.open(question).reason is Reason.NO_CLIENT
    reply = s.answer("udp", OFFERS[FIRST][4], ALICES[4])
    assert pacs.world.up(reply).reason is Reason.NO_CLIENT


# Dry runs.


@FAMILIES
def test_asking_what_becomes_of_a_packet(pacs, family):
    question = s.sent("tcp", ALICES[family], VIPS[family])
    assert pacs.kernel.evaluate(question, Direction.UP).no_offer
    pacs.offer(FIRST, use=OfferUse.KEEP)
    asked = pacs.kernel.evaluate(question, Direction.UP)
    assert (asked.passed, asked.no_offer) == (True, True)
    pacs.services.use_offer(FIRST, OfferUse.UP, 0)
    assert not pacs.kernel.evaluate(question, Direction.UP).no_offer
    assert pacs.kernel.evaluate(question, Direction.DOWN).reason is Reason.UNSOLICITED
    assert pacs.open(question).passed
    pacs.services.use_offer(FIRST, OfferUse.KEEP, 1)
    assert not pacs.kernel.evaluate(question, Direction.UP).no_offer
    pacs.world.policy(deny("0.0.0.0/0", "::/0"))
    denied = pacs.kernel.evaluate(question, Direction.UP)
    assert (denied.reason, denied.no_offer) == (Reason.POLICY_RULE, False)


@FAMILIES
def test_asking_leaves_no_trace(pacs, family):
    pacs.offer(FIRST)
    question = s.sent("udp", ALICES[family], VIPS[family])
    assert pacs.world.up(question).passed
    counted = pacs.kernel.counters(ALICE), pacs.kernel.counters(LEFT)
    asked = pacs.kernel.evaluate(question, Direction.DOWN)
    assert (asked.passed, asked.client_index, asked.packet) == (True, LEFT, question)
    assert pacs.offer_of(family) is None
    assert pacs.services.open_flows(FIRST) == 0
    pacs.services.use_offer(FIRST, OfferUse.GONE, 0)
    none = pacs.kernel.evaluate(question, Direction.DOWN)
    assert (none.reason, none.handed_on) == (Reason.NO_BACKEND, False)
    pacs.services.use_offer(FIRST, OfferUse.UP, 0)
    assert pacs.open(question).passed
    reply = s.answer("udp", OFFERS[FIRST][family], ALICES[family])
    asked = pacs.kernel.evaluate(reply, Direction.UP)
    assert (asked.passed, asked.packet, asked.mark) == (True, reply, layouts.DRY_RUN_MARK)
    assert pacs.kernel.counters(ALICE).up_packets == counted[0].up_packets + 1
    assert pacs.kernel.counters(LEFT).up_packets == counted[1].up_packets


# Names.


@FAMILIES
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_every_client_may_ask_for_names(pacs, family, kind):
    pacs.services.set_own_addresses([ip_address(address) for address in GATEWAYS.values()])
    pacs.world.policy(deny("0.0.0.0/0", "::/0"))
    question = s.sent(kind, ALICES[family], GATEWAYS[family], port=53)
    verdict = pacs.world.up(question)
    assert verdict.passed
    assert (verdict.rule, verdict.new_flow, verdict.mark) == (NO_RULE, True, PASS_MARK)
    reply = s.answer(kind, GATEWAYS[family], ALICES[family], port=53)
    assert pacs.world.down(reply).passed
    pacs.world.policy(default=Action.DENY)
    assert pacs.world.down(reply).passed
    assert pacs.world.up(question).known_flow
    assert pacs.kernel.evaluate(question, Direction.UP).passed
    assert pacs.world.up(s.sent(kind, BOBS[family], GATEWAYS[family], port=53)).reason is (
        Reason.NO_POLICY
    )


@FAMILIES
def test_names_are_all_that_is_free(pacs, family):
    pacs.services.set_own_addresses([ip_address(address) for address in GATEWAYS.values()])
    pacs.offer(FIRST)
    pacs.world.policy(default=Action.DENY)
    alice, gateway = ALICES[family], GATEWAYS[family]
    for packet in (
        s.sent("udp", alice, gateway, port=54),
        s.sent("tcp", alice, gateway, port=443),
        s.sent("ping", alice, gateway, port=53),
        s.sent("udp", alice, VIPS[family], port=53),
        s.raw(s.ip(alice, gateway) / s.unrelated_sctp()),
    ):
        assert pacs.world.up(packet).reason is Reason.POLICY_DEFAULT
    assert pacs.world.down(s.answer("udp", gateway, alice, port=53)).reason is Reason.UNSOLICITED
    pacs.services.set_own_addresses([])
    assert pacs.world.up(s.sent("udp", alice, gateway, port=53)).reason is Reason.POLICY_DEFAULT
