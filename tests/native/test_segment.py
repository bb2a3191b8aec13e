"""Super-packets that the TUN gives, cut: against a model whose checksums scapy computes."""

import random
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from .build import SANITIZED
from .offload_packets import (
    ACK,
    CWR,
    DESTINATION_OPTIONS,
    FIN,
    NOPS,
    PSH,
    Packet,
    expected_segments,
    super_packets,
)
from .offload_support import (
    BAD,
    GSO_ECN,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP,
    GSO_UDP_L4,
    LIBRARY,
    NEEDS_CHECKSUM,
    OK,
    TOO_BIG,
    UDP,
    Segmenter,
    Vnet,
    begin,
    cut,
    exact,
    super_read,
    with_partial_checksum,
)

ROUNDS = settings(max_examples=50 if SANITIZED else 300, deadline=None)
TEN_SEGMENTS = Packet(payload=bytes(range(250)) * 40, flags=ACK | PSH | FIN | CWR)


@ROUNDS
@given(super_packets())
@example((TEN_SEGMENTS, 1000))
def test_segments_are_what_the_model_says(case: tuple[Packet, int]) -> None:
    packet, gso_bytes = case
    vnet, read = super_read(bytes(packet), gso_bytes)
    assert cut(vnet, read) == expected_segments(packet, gso_bytes)


def test_flags_are_where_they_belong() -> None:
    segments = cut(*super_read(bytes(TEN_SEGMENTS), 1000, ecn=True))
    assert [segment[33] for segment in segments] == [ACK | CWR, *[ACK] * 8, ACK | PSH | FIN]


@ROUNDS
@given(super_packets(), st.data())
def test_a_super_packet_can_be_cut_in_parts(case: tuple[Packet, int], data: st.DataObject) -> None:
    packet, gso_bytes = case
    vnet, read = super_read(bytes(packet), gso_bytes)
    expected = expected_segments(packet, gso_bytes)
    segmenter = Segmenter(bytes(vnet) + read)
    for _ in range(3):
        index = data.draw(st.integers(0, len(expected) + 2))
        segmenter.seek(index)
        assert segmenter.next() == (expected[index] if index < len(expected) else b"")
    segmenter.close()


def test_the_kernels_hint_of_the_headers_length_is_not_believed() -> None:
    vnet, read = super_read(bytes(TEN_SEGMENTS), 1000)
    for hint in (0, 1, 39, 40, len(read), 65535):
        assert cut(replace(vnet, header_bytes=hint), read) == expected_segments(TEN_SEGMENTS, 1000)


@pytest.mark.parametrize("segment_bytes", [1040, 1041, 65535])
def test_segments_that_fit_pass(segment_bytes: int) -> None:
    vnet, read = super_read(bytes(TEN_SEGMENTS), 1000)
    assert begin(bytes(vnet) + read, segment_bytes) == OK
    assert begin(bytes(Vnet()) + bytes(Packet(bytes(1000))), segment_bytes) == OK


def test_segments_that_do_not_fit_are_told_from_bad_ones() -> None:
    vnet, read = super_read(bytes(TEN_SEGMENTS), 1000)
    assert begin(bytes(vnet) + read, 1039) == TOO_BIG
    assert begin(bytes(Vnet()) + bytes(Packet(bytes(1000))), 1039) == TOO_BIG
    # One segment, shorter than it might be.
    vnet, read = super_read(bytes(Packet(bytes(10))), 60000)
    assert begin(bytes(vnet) + read, 50) == OK


GOOD, READ = super_read(bytes(TEN_SEGMENTS), 1000)
LIES = {
    "no checksum asked for": replace(GOOD, flags=0),
    "no payload in a segment": replace(GOOD, gso_bytes=0),
    "another IP version": replace(GOOD, gso_type=GSO_TCPV6),
    "another protocol": replace(GOOD, gso_type=GSO_UDP_L4, checksum_offset=6),
    "UFO": replace(GOOD, gso_type=GSO_UDP),
    "UFO with ECN": replace(GOOD, gso_type=GSO_UDP | GSO_ECN),
    "USO with ECN": replace(GOOD, gso_type=GSO_UDP_L4 | GSO_ECN),
    "a tunnel": replace(GOOD, gso_type=GSO_TCPV4 | 0x20),
    "an unknown type": replace(GOOD, gso_type=2),
    "ECN alone": replace(GOOD, gso_type=GSO_ECN),
    "the checksum elsewhere": replace(GOOD, checksum_offset=6),
    "TCP inside the IP header": replace(GOOD, checksum_start=16),
    "TCP further on": replace(GOOD, checksum_start=24),
    "TCP at the end": replace(GOOD, checksum_start=len(READ)),
    "TCP beyond": replace(GOOD, checksum_start=65535, checksum_offset=65535),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_vnet_header_that_lies_is_refused(lie: str) -> None:
    assert begin(bytes(GOOD) + READ) == OK
    assert begin(bytes(LIES[lie]) + READ) == BAD


def edited(packet: bytes, *changes: tuple[int, int]) -> bytes:
    buffer = bytearray(packet)
    for at, value in changes:
        buffer[at] = value
    return bytes(buffer)


@pytest.mark.parametrize(
    "read",
    [
        edited(READ, (0, 0x44)),
        edited(READ, (0, 0x46)),
        edited(READ, (0, 0x75)),
        edited(READ, (2, 0)),
        edited(READ, (6, 0x60)),
        edited(READ, (7, 1)),
        edited(READ, (9, 17)),
        edited(READ, (32, 0x40)),
        READ[:39],
        READ[:-1],
        READ + b"\0",
        READ[:20],
        READ[:1],
        b"",
    ],
)
def test_a_super_packet_that_is_no_tcp_packet_is_refused(read: bytes) -> None:
    assert begin(bytes(GOOD) + read) == BAD


def test_a_tcp_header_inside_of_the_payload_is_not_believed() -> None:
    inner = bytes(TEN_SEGMENTS)[20:]
    _, read = super_read(bytes(replace(TEN_SEGMENTS, payload=inner)), 1000)
    assert begin(bytes(replace(GOOD, checksum_start=20)) + read) == OK
    assert begin(bytes(replace(GOOD, checksum_start=40)) + read) == BAD


def test_headers_longer_than_the_packet_are_refused() -> None:
    vnet, read = super_read(bytes(Packet(b"", options=NOPS)), 1000)
    assert begin(bytes(vnet) + edited(read, (32, 0x70))) == BAD


@pytest.mark.parametrize("extension", [44, 51, 50, 59, 6])
def test_extension_headers_that_cannot_be_copied_are_refused(extension: int) -> None:
    packet = bytes(Packet(bytes(3000), version=6, extensions=(DESTINATION_OPTIONS,)))
    vnet, read = super_read(packet, 1000)
    assert begin(bytes(vnet) + read) == OK
    assert begin(bytes(vnet) + edited(read, (6, extension))) == BAD
    assert begin(bytes(vnet) + edited(read, (41, 1))) == BAD
    assert begin(bytes(vnet) + edited(read, (41, 255))) == BAD


def test_a_udp_length_that_lies_is_refused() -> None:
    vnet, read = super_read(bytes(Packet(bytes(3000), protocol=UDP)), 1000)
    assert begin(bytes(vnet) + read) == OK
    assert begin(bytes(vnet) + edited(read, (25, 0))) == BAD


# Packets that are none of the kernel's super-packets.


@ROUNDS
@given(super_packets())
def test_a_plain_packet_passes_as_it_is_or_gets_its_checksum(case: tuple[Packet, int]) -> None:
    packet = bytes(case[0])
    assert cut(Vnet(), packet) == [packet]
    vnet, read = super_read(packet, 1)
    (completed,) = cut(replace(vnet, gso_type=0, gso_bytes=0), read)
    # In ones' complement 0 and 0xffff are the same; the kernel writes the latter.
    at = vnet.checksum_start + vnet.checksum_offset
    zero = packet[at : at + 2] == b"\0\0"
    assert completed == (edited(packet, (at, 0xFF), (at + 1, 0xFF)) if zero else packet)


def test_a_udp_checksum_of_zero_is_written_as_its_other_form() -> None:
    """All bits set, as RFC 768 says: zero would mean that there is none."""
    # What the checksum of zeros leaves is what makes it zero.
    piece = bytes(Packet(bytes(2), protocol=UDP))[26:28]
    for count, gso_type in ((1, 0), (3, GSO_UDP_L4)):
        vnet, read = super_read(bytes(Packet(piece * count, protocol=UDP)), 2)
        segments = cut(replace(vnet, gso_type=gso_type), read)
        assert [segment[26:28] for segment in segments] == [b"\xff\xff"] * count


@pytest.mark.parametrize(
    "vnet",
    [
        Vnet(NEEDS_CHECKSUM, 0, 0, 0, 0, 10),
        Vnet(NEEDS_CHECKSUM, 0, 0, 0, 19, 6),
        Vnet(NEEDS_CHECKSUM, 0, 0, 0, 20, 7),
        Vnet(NEEDS_CHECKSUM, 0, 0, 0, 20, 1040),
        Vnet(NEEDS_CHECKSUM, 0, 0, 0, 1039, 0),
        Vnet(NEEDS_CHECKSUM, 0, 0, 0, 65535, 65534),
    ],
)
def test_a_checksum_outside_of_the_packet_is_refused(vnet: Vnet) -> None:
    packet = with_partial_checksum(bytes(Packet(bytes(1000))))
    assert begin(bytes(vnet) + packet) == BAD
    assert begin(bytes(replace(vnet, checksum_start=1036, checksum_offset=2)) + packet) == OK


@settings(max_examples=200 if SANITIZED else 1000, deadline=None)
@given(
    st.integers(0, 255),
    st.sampled_from([0, 1, 3, 4, 5, 0x81, 0x84]) | st.integers(0, 255),
    st.tuples(*[st.sampled_from([0, 6, 16, 20, 40, 60]) | st.integers(0, 65535)] * 4),
    super_packets().map(lambda case: bytes(case[0])[:2000]) | st.binary(max_size=200),
    st.randoms(use_true_random=False),
)
def test_whatever_is_read_nothing_outside_is_touched(
    flags: int, gso_type: int, numbers: tuple[int, ...], packet: bytes, rng: random.Random
) -> None:
    """Under AddressSanitizer this is a proof; elsewhere it sees a crash."""
    buffer = bytearray(packet)
    for _ in range(rng.randrange(3)):
        if buffer:
            buffer[rng.randrange(min(len(buffer), 80))] = rng.randrange(256)
    segmenter = Segmenter(bytes(Vnet(flags, gso_type, *numbers)) + bytes(buffer), 1400)
    if segmenter.result == OK:
        sizes = [len(segmenter.next()) for _ in range(segmenter.count)]
        assert all(0 < size <= 1400 for size in sizes)
    segmenter.close()


@pytest.mark.parametrize("read_bytes", range(10))
def test_a_read_without_a_whole_vnet_header_is_refused(read_bytes: int) -> None:
    assert begin(bytes(read_bytes)) == BAD


# Congestion Experienced.


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("ecn", [1, 2, 3])
def test_a_mark_changes_two_bits_and_the_header_checksum(version: int, ecn: int) -> None:
    for tos in range(0, 256, 4):
        packet = Packet(b"x", version=version, tos=tos | ecn, flow_label=0xFEDCB)
        buffer = exact(bytes(packet))
        assert LIBRARY.zdp_mark_ce(buffer, len(buffer))
        assert bytes(buffer) == bytes(replace(packet, tos=tos | 3))


@pytest.mark.parametrize("version", [4, 6])
def test_what_cannot_be_marked_stays(version: int) -> None:
    packet = bytes(Packet(b"x", version=version, tos=0xFC))
    for data in (packet, packet[:19], packet[:1], b"", b"\x75" * 60):
        buffer = exact(data)
        assert not LIBRARY.zdp_mark_ce(buffer, len(buffer))
        assert bytes(buffer) == data


def test_a_wrong_header_checksum_is_not_made_right_by_a_mark() -> None:
    right = bytes(Packet(b"x", tos=2))
    wrong = exact(edited(right, (11, right[11] ^ 1)))
    assert LIBRARY.zdp_mark_ce(wrong, len(wrong))
    marked = bytes(Packet(b"x", tos=3))
    assert bytes(wrong)[:10] == marked[:10]
    assert bytes(wrong)[10:12] != marked[10:12]
