"""Packets merged for the TUN: what goes in comes out, and nothing merges that must not."""

import errno
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .build import SANITIZED
from .offload_packets import (
    ACK,
    CWR,
    DESTINATION_OPTIONS,
    ECE,
    FIN,
    NOPS,
    PSH,
    RST,
    SACK,
    SYN,
    TIMESTAMPS,
    URG,
    Packet,
)
from .offload_support import (
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CHECKSUM,
    TCP,
    UDP,
    VNET,
    Merged,
    Vnet,
    merge,
    with_partial_checksum,
    with_right_checksums,
)

ROUNDS = settings(max_examples=50 if SANITIZED else 200, deadline=None)
PLAIN = bytes(VNET.size)
MAX_MERGED = 64


def stream(first: Packet, sizes: list[int]) -> list[Packet]:
    """Packets that follow each other."""
    packets = []
    for number, size in enumerate(sizes):
        packets.append(replace(first, payload=bytes([65 + number % 26]) * size))
        first = replace(
            first, sequence=(first.sequence + size) % 2**32, ip_id=(first.ip_id + 1) % 2**16
        )
    return packets


def merged(packets: list[Packet], **how: int) -> Merged:
    return merge([bytes(packet) for packet in packets], **how)


def counts(result: Merged) -> list[int]:
    """How many packets each write held."""
    return [
        1
        if write[: VNET.size] == PLAIN
        else -(-(len(write) - VNET.size - Vnet.of(write).header_bytes) // Vnet.of(write).gso_bytes)
        for write in result.writes
    ]


def without_meaningless_id(packet: bytes) -> bytes:
    """Of a datagram that may not be fragmented the ID means nothing (RFC 6864 section 4.1)."""
    if packet[0] >> 4 == 4 and packet[6] & 0x40:
        right = with_right_checksums(packet)
        assert right[10:12] == packet[10:12]
        return packet[:4] + b"\0\0" + packet[6:10] + b"\0\0" + packet[12:]
    return packet


KINDS = [(version, protocol) for version in (4, 6) for protocol in (TCP, UDP)]


@pytest.mark.parametrize(("version", "protocol"), KINDS)
def test_a_stream_becomes_one_write(version: int, protocol: int) -> None:
    packets = stream(
        Packet(version=version, protocol=protocol, options=TIMESTAMPS, sequence=2**32 - 150),
        [100, 100, 100, 30],
    )
    result = merged(packets)
    whole = replace(packets[0], payload=b"".join(packet.payload for packet in packets))
    header_bytes = len(bytes(whole)) - 330
    upper_at = 20 if version == 4 else 40
    gso_type = GSO_UDP_L4
    if protocol == TCP:
        gso_type = GSO_TCPV4 if version == 4 else GSO_TCPV6
    vnet = Vnet(NEEDS_CHECKSUM, gso_type, header_bytes, 100, upper_at, 16 if protocol == TCP else 6)
    assert result.writes == [bytes(vnet) + with_partial_checksum(bytes(whole))]
    assert result.cut() == [bytes(packet) for packet in packets]
    stats = result.stats
    assert (stats.packets, stats.writes, stats.merged_packets) == (4, 1, 4)
    assert (stats.failed_writes, stats.failed_packets) == (0, 0)


@pytest.mark.parametrize(("version", "protocol"), KINDS)
def test_a_single_packet_is_written_as_it_is(version: int, protocol: int) -> None:
    packet = bytes(Packet(b"x", version=version, protocol=protocol))
    assert merge([packet]).writes == [PLAIN + packet]
    assert merge([]).writes == []


@pytest.mark.parametrize(("version", "protocol"), KINDS)
def test_a_tun_that_does_not_take_a_kind_gets_single_packets(version: int, protocol: int) -> None:
    packets = stream(Packet(version=version, protocol=protocol), [10] * 5)
    refused = {"tcp": protocol != TCP, "udp": protocol != UDP}
    assert merged(packets, **refused).writes == [PLAIN + bytes(packet) for packet in packets]
    other = {"tcp": protocol == TCP, "udp": protocol == UDP}
    assert counts(merged(packets, **other)) == [5]


DIFFERENCES: dict[str, dict[str, object]] = {
    "source port": {"ports": (1001, 2000)},
    "destination port": {"ports": (1000, 2001)},
    "type of service": {"tos": 8},
    "congestion experienced": {"tos": 3},
    "TTL": {"ttl": 63},
    "wrong checksum": {"wrong": 1},
}
V4_DIFFERENCES = {
    "source": {"addresses": bytes([10, 0, 0, 3, 10, 0, 0, 2])},
    "destination": {"addresses": bytes([10, 0, 0, 1, 10, 0, 0, 3])},
    "DF": {"fragment": 0},
    "reserved bit": {"fragment": 0xC000},
    "options": {"ip_options": NOPS},
    "first fragment": {"fragment": 0x2000},
    "later fragment": {"fragment": 1},
}
V6_DIFFERENCES = {
    "source": {"addresses": bytes(32)},
    "flow label": {"flow_label": 1},
    "extension header": {"extensions": (DESTINATION_OPTIONS,)},
}
TCP_DIFFERENCES = {
    "sequence": {"sequence": 1000},
    "acknowledgement": {"acknowledgement": 3},
    "window": {"window": 501},
    "urgent pointer": {"urgent": 1},
    "options": {"options": NOPS},
    "reserved": {"reserved": 1},
    **{f"flags {flag:#x}": {"flags": ACK | flag} for flag in (FIN, SYN, RST, URG, ECE, CWR)},
    "no ACK": {"flags": 0},
}
UDP_DIFFERENCES = {"no payload": {"payload": b""}}


def differences() -> list[tuple[int, int, str, dict[str, object]]]:
    return [
        (version, protocol, name, change)
        for version, protocol in KINDS
        for name, change in (
            DIFFERENCES
            | (V4_DIFFERENCES if version == 4 else V6_DIFFERENCES)
            | (TCP_DIFFERENCES if protocol == TCP else UDP_DIFFERENCES)
        ).items()
    ]


@pytest.mark.parametrize(
    ("version", "protocol", "change"),
    [
        pytest.param(v, p, c, id=f"IPv{v}-{'TCP' if p == TCP else 'UDP'}-{n}")
        for v, p, n, c in differences()
    ],
)
def test_a_packet_that_differs_merges_with_none(
    version: int, protocol: int, change: dict[str, object]
) -> None:
    packets = stream(Packet(version=version, protocol=protocol), [100] * 6)
    packets[3] = replace(packets[3], **change)  # type: ignore[arg-type]
    result = merged(packets)
    single = PLAIN + bytes(packets[3])
    assert single in result.writes
    others = [bytes(packet) for packet in packets if packet is not packets[3]]
    assert list(
        map(
            without_meaningless_id,
            (packet for packet in result.cut() if packet != bytes(packets[3])),
        )
    ) == list(map(without_meaningless_id, others))


@pytest.mark.parametrize("changed", range(6))
@pytest.mark.parametrize(("version", "protocol"), KINDS)
def test_a_wrong_checksum_stays_wrong(version: int, protocol: int, changed: int) -> None:
    packets = stream(Packet(version=version, protocol=protocol), [100] * 6)
    packets[changed] = replace(packets[changed], wrong=1)
    result = merged(packets)
    assert result.cut() == [bytes(packet) for packet in packets]
    assert PLAIN + bytes(packets[changed]) in result.writes


@pytest.mark.parametrize("changed", range(3))
def test_a_flipped_bit_anywhere_stays(changed: int) -> None:
    """In every byte of the packet: what is written is what came, or is refused by checksum."""
    packets = [bytes(packet) for packet in stream(Packet(options=TIMESTAMPS), [50] * 3)]
    for at in range(len(packets[changed])):
        flipped = bytearray(packets[changed])
        flipped[at] ^= 0x10
        batch = [*packets[:changed], bytes(flipped), *packets[changed + 1 :]]
        result = merge(batch)
        assert sorted(result.cut()) == sorted(batch), at
        assert PLAIN + bytes(flipped) in result.writes, at


def test_a_wrong_ipv4_header_checksum_stays_wrong() -> None:
    packets = [bytes(packet) for packet in stream(Packet(), [50] * 3)]
    packets[1] = packets[1][:10] + b"\x12\x34" + packets[1][12:]
    assert merge(packets).writes == [PLAIN + packet for packet in packets]


@pytest.mark.parametrize("version", [4, 6])
def test_udp_without_a_checksum_stays_so(version: int) -> None:
    packets = [bytes(packet) for packet in stream(Packet(version=version, protocol=UDP), [50] * 3)]
    at = (20 if version == 4 else 40) + 6
    packets = [packet[:at] + b"\0\0" + packet[at + 2 :] for packet in packets]
    assert merge(packets).writes == [PLAIN + packet for packet in packets]


def test_udp_without_a_checksum_stays_so_where_zero_would_be_right() -> None:
    piece = bytes(Packet(bytes(2), protocol=UDP))[26:28]
    (packet,) = stream(Packet(protocol=UDP), [0])
    right = bytes(replace(packet, payload=piece))
    assert right[26:28] == b"\xff\xff"
    none = right[:26] + b"\0\0" + right[28:]
    assert merge([right] * 3).stats.merged_packets == 3
    assert merge([none] * 3).writes == [PLAIN + none] * 3


@pytest.mark.parametrize(
    "everywhere",
    [
        {"reserved": 1},
        {"flags": ACK | ECE},
        {"flags": ACK | CWR},
        {"flags": ACK | URG, "urgent": 1},
        {"flags": 0},
        {"ip_options": NOPS},
        {"version": 6, "extensions": (DESTINATION_OPTIONS,)},
    ],
)
def test_what_must_not_merge_does_not_among_its_like(everywhere: dict[str, object]) -> None:
    packets = [replace(packet, **everywhere) for packet in stream(Packet(), [100] * 4)]  # type: ignore[arg-type]
    assert merged(packets).writes == [PLAIN + bytes(packet) for packet in packets]


def test_a_packet_with_ip_options_is_passed_by_none_of_its_addresses() -> None:
    packets = stream(Packet(protocol=UDP), [100] * 5)
    packets[2] = replace(packets[2], ip_options=NOPS)
    assert counts(merged(packets)) == [2, 1, 2]


@pytest.mark.parametrize("length", [0, 8, 57, 59])
def test_a_udp_length_that_is_not_the_packets_does_not_merge(length: int) -> None:
    """Even if the sum over all of it is right."""
    packets = [bytes(packet) for packet in stream(Packet(protocol=UDP), [50] * 3)]
    lying = [
        with_right_checksums(packet[:24] + length.to_bytes(2, "big") + packet[26:])
        for packet in packets
    ]
    assert merge(lying).writes == [PLAIN + packet for packet in lying]


def test_push_ends_a_merge_and_is_on_the_last_segment() -> None:
    packets = stream(Packet(), [100] * 6)
    packets[2] = replace(packets[2], flags=ACK | PSH)
    result = merged(packets)
    assert counts(result) == [3, 3]
    assert result.cut() == [bytes(packet) for packet in packets]


def test_a_shorter_packet_ends_a_merge_and_a_longer_one_begins_the_next() -> None:
    assert counts(merged(stream(Packet(), [100, 100, 99, 100, 101]))) == [3, 1, 1]
    assert counts(merged(stream(Packet(protocol=UDP), [100, 100, 99, 100, 101]))) == [3, 1, 1]


def test_an_acknowledgement_passes_no_data_and_is_passed_by_none() -> None:
    packets = stream(Packet(), [100, 100, 0, 100, 100])
    result = merged(packets)
    assert counts(result) == [2, 1, 2]
    assert result.cut() == [bytes(packet) for packet in packets]


def test_the_other_direction_is_another_flow() -> None:
    forth = stream(Packet(), [100] * 3)
    back = stream(
        Packet(ports=(2000, 1000), addresses=bytes([10, 0, 0, 2, 10, 0, 0, 1])), [0, 100, 100]
    )
    mixed = [packet for pair in zip(forth, back, strict=True) for packet in pair]
    assert counts(merged(mixed)) == [3, 1, 2]


def test_a_fragment_is_passed_by_no_packet_of_its_addresses() -> None:
    fragment = Packet(b"x" * 8, protocol=UDP, fragment=0x2000)
    ours = stream(Packet(protocol=UDP), [100] * 4)
    other = stream(Packet(addresses=bytes([10, 0, 0, 1, 10, 0, 0, 9])), [100] * 4)
    batch = [*ours[:2], *other[:2], fragment, *ours[2:], *other[2:]]
    assert counts(merged(batch)) == [2, 4, 1, 2]


def test_ids_count_up_unless_nobody_may_fragment() -> None:
    gap = stream(Packet(fragment=0), [100] * 4)
    gap[2:] = [replace(packet, ip_id=packet.ip_id + 1) for packet in gap[2:]]
    assert counts(merged(gap)) == [2, 2]
    assert counts(merged([replace(packet, fragment=0x4000) for packet in gap])) == [4]
    wrap = stream(Packet(fragment=0, ip_id=0xFFFE), [100] * 4)
    result = merged(wrap)
    assert counts(result) == [4]
    assert result.cut() == [bytes(packet) for packet in wrap]


def test_writes_are_bounded() -> None:
    assert counts(merged(stream(Packet(), [1400] * 100))) == [46, 46, 8]
    assert counts(merged(stream(Packet(version=6), [9000] * 10))) == [7, 3]
    assert counts(merged(stream(Packet(protocol=UDP), [10] * 130))) == [64, 64, 2]
    assert counts(merged(stream(Packet(version=6), [65475, 1]))) == [1, 1]
    result = merged(stream(Packet(), [32747, 32748]))
    assert counts(result) == [1, 1]
    result = merged(stream(Packet(), [32748, 32747]))
    assert [len(write) for write in result.writes] == [VNET.size + 65535]


def test_more_flows_than_there_is_room_for() -> None:
    flows = [stream(Packet(ports=(number, 1)), [10, 10]) for number in range(1000)]
    batch = [flow[0] for flow in flows] + [flow[1] for flow in flows]
    assert merged(batch).cut() == [bytes(packet) for packet in batch]
    near = [packet for flow in flows for packet in flow]
    assert counts(merged(near)) == [2] * 1000


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EMSGSIZE, errno.EPERM])
def test_a_refused_super_packet_goes_packet_by_packet(code: int) -> None:
    packets = stream(Packet(options=TIMESTAMPS), [100, 100, 40])
    result = merged([*packets, Packet(b"x", protocol=UDP)], fail_merged=code)
    assert result.writes[:3] == [PLAIN + bytes(packet) for packet in packets]
    stats = result.stats
    assert (stats.packets, stats.writes, stats.merged_packets) == (4, 4, 0)
    assert (stats.failed_writes, stats.failed_packets) == (1, 0)


@pytest.mark.parametrize("code", [errno.ENOBUFS, errno.EAGAIN, errno.EIO, errno.EBADFD])
def test_a_tun_that_takes_nothing_loses_packets_and_says_so(code: int) -> None:
    packets = stream(Packet(), [100] * 3)
    result = merged([*packets, Packet(b"x", protocol=UDP)], fail_all=code)
    assert result.writes == []
    stats = result.stats
    assert (stats.writes, stats.failed_writes, stats.failed_packets) == (0, 2, 4)


@pytest.mark.parametrize("data", [b"", b"\x45", b"\x60" * 39, b"\x45" * 20, b"\0" * 100])
def test_what_is_no_packet_is_written_as_it_is(data: bytes) -> None:
    good = bytes(Packet(b"x"))
    assert merge([good, data, good]).writes == [PLAIN + each for each in (good, data, good)]


# Streams of every kind, mixed.


@st.composite
def flows(draw: st.DrawFn) -> list[Packet]:
    """What one sender sends, with all that can happen to it on the way."""
    first = Packet(
        version=draw(st.sampled_from([4, 6])),
        protocol=draw(st.sampled_from([TCP, TCP, UDP])),
        ports=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        fragment=draw(st.sampled_from([0, 0x4000])),
        options=draw(st.sampled_from([b"", TIMESTAMPS])),
        sequence=draw(st.sampled_from([1, 2**32 - 100])),
        ip_id=draw(st.sampled_from([1, 0xFFFF])),
    )
    size = draw(st.sampled_from([1, 40, 100]))
    sizes = draw(
        st.lists(st.sampled_from([size, size, size, size, size - 1, size + 1, 0]), max_size=14)
    )
    packets = stream(first, sizes)
    events = st.tuples(st.integers(0, 13), st.sampled_from(sorted(EVENTS)))
    for at, event in draw(st.lists(events, max_size=3)):
        if at < len(packets):
            EVENTS[event](packets, at)
    return packets


Event = Callable[[list[Packet], int], None]


def change(**fields: object) -> Event:
    def apply(packets: list[Packet], at: int) -> None:
        packets[at] = replace(packets[at], **fields)  # type: ignore[arg-type]

    return apply


def change_from_here(**fields: object) -> Event:
    def apply(packets: list[Packet], at: int) -> None:
        packets[at:] = [replace(packet, **fields) for packet in packets[at:]]  # type: ignore[arg-type]

    return apply


def swap(packets: list[Packet], at: int) -> None:
    packets[at - 1 : at + 1] = reversed(packets[at - 1 : at + 1])


def repeat(packets: list[Packet], at: int) -> None:
    packets.insert(at, packets[at])


def repeat_later(packets: list[Packet], at: int) -> None:
    packets.append(packets[at])


def lose(packets: list[Packet], at: int) -> None:
    del packets[at]


EVENTS: dict[str, Event] = {
    "push": change(flags=ACK | PSH),
    "push again": change(flags=ACK | PSH),
    "end": change(flags=ACK | FIN),
    "reset": change(flags=RST),
    "urgent": change(flags=ACK | URG, urgent=1),
    "echo": change(flags=ACK | ECE),
    "reduced": change(flags=ACK | CWR),
    "marked": change(tos=3),
    "marked from here": change_from_here(tos=3),
    "SACK": change(options=SACK),
    "acknowledged": change_from_here(acknowledgement=77),
    "window": change_from_here(window=9),
    "timestamp": change_from_here(options=TIMESTAMPS[:-1] + b"\x09"),
    "damage": change(wrong=0x1234),
    "fragment": change(fragment=0x2000),
    "IDs stand still": change_from_here(ip_id=5),
    "swap": swap,
    "repeat": repeat,
    "retransmit": repeat_later,
    "lose": lose,
}


@st.composite
def mixes(draw: st.DrawFn) -> list[Packet]:
    """Several flows, interleaved."""
    queues = draw(st.lists(flows(), min_size=1, max_size=4))
    order = draw(st.lists(st.integers(0, len(queues) - 1), max_size=60))
    mixed = [queues[index].pop(0) for index in order if queues[index]]
    return mixed + [packet for queue in queues for packet in queue]


def flow_of(packet: Packet) -> tuple[object, ...]:
    return packet.version, packet.protocol, packet.ports


class Model:
    """The rules once more, as they would be told: which packets go in one write."""

    def __init__(self) -> None:
        self.groups: list[list[Packet]] = []
        self.latest: dict[tuple[object, ...], list[Packet]] = {}

    def add(self, packet: Packet) -> None:
        if packet.version == 4 and packet.fragment & 0x3FFF:
            self.latest = {
                flow: group for flow, group in self.latest.items() if flow[0] != packet.version
            }
            self.groups.append([packet])
            return
        group = self.latest.get(flow_of(packet))
        if group and self.fits(group, packet):
            group.append(packet)
        else:
            group = [packet]
            self.groups.append(group)
        self.latest[flow_of(packet)] = group

    @staticmethod
    def fits(group: list[Packet], packet: Packet) -> bool:
        first, last = group[0], group[-1]
        follower = replace(last, payload=packet.payload, flags=packet.flags)
        if packet.protocol == TCP:
            sequence = (last.sequence + len(last.payload)) % 2**32
            follower = replace(follower, sequence=sequence)
            if packet.flags not in (ACK, ACK | PSH) or last.flags != ACK:
                return False
        else:
            # Fields that a UDP packet does not have.
            names = ("sequence", "acknowledgement", "flags", "window", "urgent", "options")
            follower = replace(follower, **{name: getattr(packet, name) for name in names})
        if packet.version == 6 or packet.fragment:
            follower = replace(follower, ip_id=packet.ip_id)
        else:
            follower = replace(follower, ip_id=(last.ip_id + 1) % 2**16)
        if packet.version == 6:
            follower = replace(follower, fragment=packet.fragment)
        return (
            follower == packet
            and not packet.wrong
            and len(group) < MAX_MERGED
            and len(last.payload) == len(first.payload)
            and 0 < len(packet.payload) <= len(first.payload)
        )


@ROUNDS
@given(mixes())
def test_mixed_streams_merge_as_the_model_says_and_come_out_whole(packets: list[Packet]) -> None:
    result = merged(packets)
    model = Model()
    for packet in packets:
        model.add(packet)
    assert counts(result) == [len(group) for group in model.groups]
    expected = [bytes(packet) for group in model.groups for packet in group]
    assert [without_meaningless_id(packet) for packet in result.cut()] == [
        without_meaningless_id(packet) for packet in expected
    ]
    order_given, order_kept = defaultdict(list), defaultdict(list)
    for order, sequence in ((order_given, packets), (order_kept, chain(*model.groups))):
        for packet in sequence:
            order[flow_of(packet)].append(packet)
    assert order_given == order_kept, "the model itself keeps each flow's order"
    assert result.stats.packets == len(packets)
    assert result.stats.writes == len(model.groups)
    assert result.stats.merged_packets == sum(
        len(group) for group in model.groups if len(group) > 1
    )


@settings(max_examples=100 if SANITIZED else 500, deadline=None)
@given(
    st.lists(flows(), max_size=4),
    st.lists(st.binary(max_size=120), max_size=3),
    st.randoms(use_true_random=False),
)
def test_damaged_packets_are_written_byte_for_byte(
    streams: list[list[Packet]], noise: list[bytes], rng: random.Random
) -> None:
    """No right checksum is left: then nothing merges, whatever else is in the header."""
    batch = list(noise)
    for packet in chain(*streams):
        buffer = bytearray(bytes(packet))
        # IPv6's first bytes are under no checksum.
        at = rng.randrange(8 if packet.version == 6 else 0, len(buffer))
        buffer[at] ^= 1 << rng.randrange(8)
        batch.append(bytes(buffer))
    rng.shuffle(batch)
    assert merge(batch).writes == [PLAIN + packet for packet in batch]
