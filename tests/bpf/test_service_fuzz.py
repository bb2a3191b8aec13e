"""Random packets between clients, services, offers and networks: what must hold for all of them.

ZGATE_FUZZ_SEED repeats a run.
"""

import os
import random
import struct
from collections import Counter, deque
from ipaddress import ip_address, ip_network

import pytest
from bpf_support.generator import Generator
from bpf_support.policies import allow
from bpf_support.service_world import (
    ECHO_VIPS,
    ECHOS,
    FIRST,
    GATEWAYS,
    LEFT,
    OFFERS,
    SECOND,
    VIPS,
    ServiceWorld,
)
from bpf_support.site import CHECKSUM_AT, total
from bpf_support.world import ALICE4, ALICE6, BOB4, BOB6, SERVER4, SERVER6
from zgate_bpf.services import OfferUse
from zgate_lab.waiting import SLOWNESS
from zgate_protocol.drop_reason import DropReason as Reason

PACKETS = int(40_000 / SLOWNESS)
CLIENTS = {4: [ALICE4, BOB4], 6: [ALICE6, BOB6]}
NETWORKS = {4: "10.20.0.0/16", 6: "2001:db8::/48"}
INSIDE = {4: SERVER4, 6: SERVER6}
OF_OFFERS = {OFFERS[offer][family]: offer for offer in OFFERS for family in (4, 6)}
EXTENSIONS = {0, 43, 44, 51, 60}


class Traffic(Generator):
    """Between clients and everything that they may meet; `up` is what a TUN is written."""

    def __init__(self, random):
        super().__init__(random)
        self.delivered = {}  # the last packets by who got them

    def addresses(self, up):
        family = self.random.choice([4, 6])
        client = self.random.choice(CLIENTS[family])
        if up and self.random.random() < 0.5:
            return client, self.random.choice([VIPS, ECHO_VIPS, INSIDE, VIPS])[family]
        offers = [OFFERS[offer][family] for offer in OFFERS]
        remote = self.random.choice([*offers, INSIDE[family], VIPS[family]])
        return (remote, client) if up else (client, remote)

    def error(self):
        """About a packet that somebody got: by who got it, or by the gateway, to who sent it."""
        random = self.random
        receiver = random.choice(list(self.delivered))
        quoted = random.choice(self.delivered[receiver])
        family = ip_address(receiver).version
        other = random.choice([VIPS, OFFERS[FIRST], OFFERS[SECOND], INSIDE, CLIENTS])[family]
        other = other if isinstance(other, str) else random.choice(other)
        to = random.choice([ends(quoted)[0]] * 5 + [other])
        by = random.choice([receiver] * 3 + [GATEWAYS[family], other])
        quoted = quoted[: random.choice([len(quoted), len(quoted), 28, 48, 30])]
        number, kind = (1, 3) if family == 4 else (58, 1)
        body = struct.pack("!BBHI", kind, 0, random.randrange(0x10000), 0) + quoted
        packet = self.wrapped(by, to, number, body)
        return by in GATEWAYS.values(), self.bent(packet) if random.random() < 0.1 else packet


class Watcher:
    """Runs packets, and says what does not hold."""

    def __init__(self, pacs, traffic):
        self.pacs = pacs
        self.traffic = traffic
        self.seen = Counter()

    def up(self, packet):
        verdict = self.pacs.world.up(packet)
        self.seen["up", verdict.reason] += 1
        self._check_translation(packet, verdict)
        if not verdict.passed:
            return
        source, destination = ends(packet)
        from_offer = OF_OFFERS.get(source)
        assert destination not in OF_OFFERS
        if from_offer is not None:
            assert self._has_flow(destination, from_offer), "an answer to nothing"
            assert ends(verdict.packet)[0] in (*VIPS.values(), *ECHO_VIPS.values())
        self._down(verdict.packet, source, related=verdict.related)

    def _has_flow(self, client, offer):
        return any(
            (str(flow.client), flow.offer) == (client, offer) for flow in self.pacs.kernel.flows()
        )

    def _down(self, packet, source, *, related):
        """What came in goes out again: to a client, or translated to a connector."""
        verdict = self.pacs.world.down(packet)
        self.seen["down", verdict.reason] += 1
        self._check_translation(packet, verdict)
        if verdict.passed:
            got = self.traffic.delivered.setdefault(ends(verdict.packet)[1], deque(maxlen=20))
            got.append(verdict.packet)
        if source in OF_OFFERS or source in INSIDE.values():
            assert verdict.passed, "what a connector may send, its client may get"
            return
        _, destination = ends(packet)
        if destination in (*VIPS.values(), *ECHO_VIPS.values()):
            if verdict.passed:
                assert ends(verdict.packet)[1] in OF_OFFERS
            elif is_error(packet) and not related:
                # Whatever the policy says of such packets.
                assert verdict.reason is Reason.UNSOLICITED
            else:
                assert verdict.reason is Reason.NO_BACKEND
        if destination in INSIDE.values() and not self.pacs.is_led:
            is_strange = is_error(packet) and not related
            assert verdict.reason is (Reason.UNSOLICITED if is_strange else Reason.NO_BACKEND)
            assert not (verdict.handed_on and is_error(packet))
            self.seen["told", verdict.handed_on] += 1

    def down(self, packet):
        """As the gateway itself sends it."""
        verdict = self.pacs.world.down(packet)
        self.seen["gateway", verdict.reason] += 1
        self._check_translation(packet, verdict)

    def _check_translation(self, before, verdict):
        after = verdict.packet
        assert len(after) == len(before)
        if after == before:
            return
        assert verdict.passed, "what is dropped is not touched"
        self.seen["translated", before[0] >> 4, verdict.related] += 1
        assert sums(after) == sums(before), (before.hex(), after.hex())


def ends(packet):
    if packet[0] >> 4 == 4:
        return tuple(str(ip_address(packet[at : at + 4])) for at in (12, 16))
    return tuple(str(ip_address(packet[at : at + 16])) for at in (8, 24))


def is_error(packet):
    is_later, upper, protocol = upper_layer(packet)
    if is_later:
        return False
    if packet[0] >> 4 == 4:
        return protocol == 1 and upper[0] in (3, 11, 12)
    return protocol == 58 and upper[0] in (1, 2, 3, 4)


def upper_layer(packet):
    """Whether it is a later fragment, the bytes behind all headers, and what they are."""
    if packet[0] >> 4 == 4:
        (length,) = struct.unpack_from("!H", packet, 2)
        offset = struct.unpack_from("!H", packet, 6)[0] & 0x1FFF
        return bool(offset), packet[(packet[0] & 15) * 4 : length], packet[9]
    (length,) = struct.unpack_from("!H", packet, 4)
    number, rest, later = packet[6], packet[40 : 40 + length], False
    while number in EXTENSIONS and not later:
        size = {44: 8, 51: (rest[1] + 2) * 4}.get(number, (rest[1] + 1) * 8)
        later = number == 44 and bool(struct.unpack_from("!H", rest, 2)[0] & 0xFFF8)
        number, rest = rest[0], rest[size:]
    return later, rest, number


def sums(packet):
    """What no translation changes, whether the packet's checksums are right or not.

    A header's sum, and the upper layer's with the addresses: in one's complement, and 0 is 0xFFFF.
    """
    is_later, upper, protocol = upper_layer(packet)
    found = []
    if packet[0] >> 4 == 4:
        found.append(total(packet[: (packet[0] & 15) * 4]))
    addresses = packet[12:20] if packet[0] >> 4 == 4 else packet[8:40]
    at = CHECKSUM_AT.get(protocol) if protocol != 58 or len(addresses) == 32 else None
    if at and not is_later and not (protocol == 17 and upper[6:8] == b"\0\0"):
        found.append(total(upper, total(addresses)))
    if protocol == 1 and len(addresses) == 8 and not is_later:
        found.append(total(upper))
    return [one or 0xFFFF for one in found]


@pytest.fixture
def pacs(world):
    world.policy(allow("0.0.0.0/0", "::/0"), shared=True)
    made = ServiceWorld(world)
    made.offer(FIRST, SECOND, ECHOS)
    made.is_led = True
    for network in NETWORKS.values():
        made.services.set_network(ip_network(network), LEFT)
    yield made
    for network in NETWORKS.values():
        made.services.remove_network(ip_network(network))
    made.clear()


@pytest.mark.timeout(0)
def test_what_holds_for_every_packet(pacs):
    seed = int(os.environ.get("ZGATE_FUZZ_SEED", "9484"))
    numbers = random.Random(seed)
    traffic = Traffic(numbers)
    watcher = Watcher(pacs, traffic)
    for count in range(PACKETS):
        if count % 500 == 0:
            change(pacs, numbers)
        try:
            if not traffic.delivered or numbers.random() < 0.7:
                watcher.up(traffic.packet(True))
                continue
            is_gateways, error = traffic.error()
            (watcher.down if is_gateways else watcher.up)(error)
        except ValueError as problem:
            assert "tests no packet" in str(problem)
    print(f"{PACKETS} packets, seed {seed}: {dict(watcher.seen)}")
    for family in (4, 6):
        for related in (False, True):
            assert watcher.seen["translated", family, related] > 50 / SLOWNESS
    for reason in (Reason.NONE, Reason.UNSOLICITED, Reason.MALFORMED, Reason.NO_CLIENT):
        assert watcher.seen["up", reason] > 50 / SLOWNESS
    assert watcher.seen["down", Reason.NO_BACKEND] > 0
    assert watcher.seen["told", True] > 50 / SLOWNESS


def change(pacs, numbers):
    """Offers come, rest and go; clients begin anew."""
    pacs.world.clients()
    for offer in (FIRST, SECOND):
        pacs.services.use_offer(offer, numbers.choice(list(OfferUse)), numbers.randrange(3))
    pacs.is_led = numbers.random() < 0.7
    for network in NETWORKS.values():
        pacs.services.set_network(ip_network(network), LEFT if pacs.is_led else None)
    if numbers.random() < 0.2:
        pacs.offer(ECHOS)
