"""Fragments of packets to services: the rest goes where the first one went."""

import pytest
from bpf_support import service_world as s
from bpf_support.policies import allow
from bpf_support.service_world import ALICES, FIRST, LEFT, OFFERS, SECOND, VIPS, ServiceWorld
from scapy.layers.inet import IP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from zgate_bpf.services import OfferUse
from zgate_protocol.drop_reason import DropReason as Reason

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
DATA = bytes(range(256)) * 12


@pytest.fixture
def pacs(world):
    world.policy(allow("0.0.0.0/0", "::/0"), shared=True)
    made = ServiceWorld(world)
    made.offer(FIRST, SECOND)
    # Fragments outlive their client, by design.
    for key, _ in list(world.kernel._fragments.items()):
        world.kernel._fragments.delete(key)
    yield made
    made.clear()


def fragments(source, destination, ports, number=1):
    """One packet in three pieces; its checksum lies in the first, over all of them."""
    upper = UDP(sport=ports[0], dport=ports[1]) / DATA
    if "." in source:
        pieces = fragment(IP(src=source, dst=destination, id=number) / upper, 1200)
    else:
        whole = IPv6(src=source, dst=destination) / IPv6ExtHdrFragment(id=number) / upper
        pieces = fragment6(whole, 1280)
    made = [s.raw(piece) for piece in pieces]
    assert len(made) == 3
    return made


def test_scapy_computes_the_checksum_over_the_whole():
    """Else the comparisons below would be worth nothing."""
    for source, destination, at in (("10.0.0.1", "10.0.0.2", 26), ("fd00::1", "fd00::2", 54)):
        first, *_ = fragments(source, destination, (1, 2))
        whole = s.raw(s.ip(source, destination) / UDP(sport=1, dport=2) / DATA)
        begin = len(whole) - len(DATA) - 2
        assert first[at : at + 2] == whole[begin : begin + 2] != b"\0\0"


@FAMILIES
def test_fragments_there_and_back(pacs, family):
    alice, vip, offer = ALICES[family], VIPS[family], OFFERS[FIRST][family]
    found = [pacs.open(piece) for piece in fragments(alice, vip, (4000, 104))]
    assert [one.packet for one in found] == fragments(alice, offer, (4000, 104))
    assert [one.client_index for one in found] == [LEFT] * 3
    back = [pacs.world.up(piece) for piece in fragments(offer, alice, (104, 4000))]
    assert [one.packet for one in back] == fragments(vip, alice, (104, 4000))
    assert all(one.passed for one in back)
    last = [pacs.world.down(one.packet) for one in back]
    assert all(one.passed for one in last)
    assert [one.packet for one in last] == [one.packet for one in back]


@FAMILIES
def test_later_fragment_without_its_first(pacs, family):
    alice, vip, offer = ALICES[family], VIPS[family], OFFERS[FIRST][family]
    assert pacs.open(s.sent("udp", alice, vip)).passed
    lost = Reason.FRAGMENT_WITHOUT_FIRST
    assert pacs.world.down(fragments(alice, vip, (4000, 104))[1]).reason is lost
    assert pacs.world.up(fragments(offer, alice, (104, 4000))[2]).reason is lost


@FAMILIES
def test_other_connectors_fragment_of_the_same_number(pacs, family):
    """Of the service's address both are; the flow tells them apart."""
    alice, vip = ALICES[family], VIPS[family]
    assert pacs.open(s.sent("udp", alice, vip)).client_index == LEFT
    first = fragments(OFFERS[FIRST][family], alice, (104, 4000))[0]
    assert pacs.world.up(first).passed
    strange = fragments(OFFERS[SECOND][family], alice, (104, 4000))[1]
    assert pacs.world.up(strange).reason is Reason.UNSOLICITED


@FAMILIES
def test_fragments_that_nobody_takes(pacs, family):
    """One ICMP error for all of them."""
    for offer in (FIRST, SECOND):
        pacs.services.use_offer(offer, OfferUse.GONE, 0)
    pieces = fragments(ALICES[family], VIPS[family], (4000, 104))
    found = [pacs.open(piece) for piece in pieces]
    assert [one.reason for one in found] == [Reason.NO_BACKEND] * 3
    assert [one.handed_on for one in found] == [True, False, False]
    assert [one.packet for one in found] == pieces


@FAMILIES
def test_fragments_of_many_packets_at_once(pacs, family):
    """Two flows with two offers, their fragments between each other."""
    alice, vip = ALICES[family], VIPS[family]
    left = fragments(alice, vip, (1, 104), number=1)
    right = fragments(alice, vip, (2, 104), number=2)
    wanted = [
        *zip(
            fragments(alice, OFFERS[FIRST][family], (1, 104), number=1),
            fragments(alice, OFFERS[SECOND][family], (2, 104), number=2),
            strict=True,
        )
    ]
    found = [(pacs.open(a).packet, pacs.open(b).packet) for a, b in zip(left, right, strict=True)]
    assert found == wanted
