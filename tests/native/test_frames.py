"""Frames that the engine reads and writes, against aioquic's encodings and a parser in Python."""

import ctypes
import random
from dataclasses import dataclass, field

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.packet import pull_ack_frame, push_ack_frame
from aioquic.quic.rangeset import RangeSet
from hypothesis import given, settings
from hypothesis import strategies as st

from .bindings import (
    FRAMES_OURS,
    EcnCounts,
    Frames,
    Range,
    Ranges,
    buffer,
    native,
    room,
)
from .build import SANITIZED

MAX_RANGES = 64
MAX_DATAGRAMS = 128
EXAMPLES = 200 if SANITIZED else 1500
VARINT_MAX = 2**62 - 1


@dataclass
class Parsed:
    ack_eliciting: bool = False
    ack: "ParsedAck | None" = None
    datagrams: list[tuple[int, int]] = field(default_factory=list)  # offset, length


@dataclass
class ParsedAck:
    delay: int
    ranges: list[tuple[int, int]]  # first, last; largest first
    cut: bool = False
    ecn: tuple[int, int, int] | None = None


def parse(payload: bytes) -> Parsed | None:
    """None: aioquic's. The payload has a malloc'd block of its own, with nothing behind it."""
    frames, data = Frames(), buffer(payload)
    ctypes.memset(ctypes.byref(frames), 0xA5, ctypes.sizeof(frames))  # it sets what it answers
    if native().zdp_parse_frames(data, len(payload), frames) != FRAMES_OURS:
        return None
    start = ctypes.addressof(data)
    datagrams = [(one.data - start, one.bytes) for one in frames.datagrams[: frames.datagram_count]]
    ack = None
    if frames.has_ack:
        found = frames.ack
        ecn = (found.ecn.ect0, found.ecn.ect1, found.ecn.ce) if found.has_ecn else None
        ranges = [(one.first, one.last) for one in found.ranges[: found.count]]
        ack = ParsedAck(found.delay, ranges, found.cut, ecn)
    return Parsed(frames.ack_eliciting, ack, datagrams)


class Malformed(Exception):
    pass


class Reference:
    """The same in plain words, from RFC 9000 section 19 and RFC 9221 section 4."""

    def __init__(self, payload: bytes) -> None:
        self.payload, self.at, self.parsed = payload, 0, Parsed()

    def byte(self) -> int:
        if self.at == len(self.payload):
            raise Malformed
        self.at += 1
        return self.payload[self.at - 1]

    def varint(self) -> int:
        first = self.byte()
        value = first & 0x3F
        for _ in range((1 << (first >> 6)) - 1):
            value = value << 8 | self.byte()
        return value

    def parse(self) -> Parsed | None:
        try:
            if not self.payload:
                raise Malformed
            while self.at < len(self.payload):
                self.frame(self.byte())
        except Malformed:
            return None
        return self.parsed

    def frame(self, kind: int) -> None:
        if kind in (0x02, 0x03) and self.parsed.ack is None:
            self.parsed.ack = self.ack(kind == 0x03)
        elif kind in (0x30, 0x31) and len(self.parsed.datagrams) < MAX_DATAGRAMS:
            length = self.varint() if kind == 0x31 else len(self.payload) - self.at
            if self.at + length > len(self.payload):
                raise Malformed
            self.parsed.datagrams.append((self.at, length))
            self.at += length
        elif kind not in (0x00, 0x01):
            raise Malformed
        self.parsed.ack_eliciting |= kind not in (0x00, 0x02, 0x03)

    def ack(self, ecn: bool) -> ParsedAck:
        last, delay, more = self.varint(), self.varint(), self.varint()
        ranges = [self.range(last)]
        for _ in range(more):
            ranges.append(self.range(ranges[-1][0] - self.varint() - 2))
        counts = (self.varint(), self.varint(), self.varint()) if ecn else None
        return ParsedAck(delay, ranges[:MAX_RANGES], more >= MAX_RANGES, counts)

    def range(self, last: int) -> tuple[int, int]:
        first = last - self.varint()
        if first < 0:  # `last` below zero too
            raise Malformed
        return first, last


def varint(value: int, least_bytes: int = 1) -> bytes:
    for code, size in enumerate((1, 2, 4, 8)):
        if value < 1 << (8 * size - 2) and size >= least_bytes:
            return (value | code << (8 * size - 2)).to_bytes(size, "big")
    raise ValueError(value)


numbers = st.one_of(st.integers(0, 70), st.integers(0, 2**16), st.integers(0, VARINT_MAX))
varints = st.builds(varint, numbers, st.sampled_from([1, 1, 2, 4, 8]))
acks = st.builds(
    lambda kind, head, pairs, count, tail: (
        bytes([kind]) + head[0] + head[1] + varint(max(0, len(pairs) + count)) + head[2]
        + b"".join(gap + length for gap, length in pairs) + b"".join(tail)
    ),
    st.sampled_from([2, 3]),
    st.tuples(varints, varints, st.builds(varint, st.integers(0, 3))),
    st.lists(
        st.tuples(*2 * [st.builds(varint, st.integers(0, 40), st.sampled_from([1, 2]))]),
        max_size=70,
    ),
    st.sampled_from([0, 0, 0, 0, -1, 1]),
    st.lists(varints, min_size=0, max_size=3),
)  # fmt: skip
datagrams = st.builds(
    lambda data, cut: b"\x31" + varint(max(0, len(data) - cut)) + data,
    st.binary(max_size=80),
    st.sampled_from([0, 0, 0, 1, -1]),
)
frames = st.one_of(
    st.builds(bytes, st.integers(0, 20)),
    st.just(b"\x01"),
    acks,
    datagrams,
    st.builds(lambda data: b"\x30" + data, st.binary(max_size=40)),
    st.binary(max_size=30),
)
payloads = st.one_of(st.lists(frames, max_size=6).map(b"".join), st.binary(max_size=60))


@settings(max_examples=EXAMPLES, deadline=None)
@given(payloads)
def test_parses_as_the_reference_does(payload: bytes) -> None:
    assert parse(payload) == Reference(payload).parse()


def test_frames_of_every_kind_are_reached() -> None:
    """The property above compares nothing if all that it makes is malformed."""
    assert parse(b"") is None
    assert parse(b"\x00") == Parsed()
    assert parse(bytes(1200) + b"\x01") == Parsed(ack_eliciting=True)
    assert parse(b"\x31\x02ab\x00\x30cde") == Parsed(True, None, [(2, 2), (6, 3)])
    assert parse(b"\x30") == Parsed(True, None, [(1, 0)])
    assert parse(b"\x31\x00") == Parsed(True, None, [(2, 0)])
    ecn = parse(b"\x03\x0a\x05\x01\x02\x00\x01\x07\x08\x09")
    assert ecn == Parsed(ack=ParsedAck(5, [(8, 10), (5, 6)], ecn=(7, 8, 9)))


@pytest.mark.parametrize(
    "payload",
    (
        b"\x1e",  # HANDSHAKE_DONE
        b"\x40\x01",  # PING, longer than it need be
        b"\x40\x30data",
        b"\x02\x05\x00\x00\x00\x02\x05\x00\x00\x00",  # two ACKs
        b"\x02\x05\x00\x00\x06",  # below zero
        b"\x02\x05\x00\x01\x04\x00\x00",
        b"\x02\x05\x00\x01\x00\x04\x00",
        b"\x02\x05\x00\x3f\x00",  # fewer ranges than it says
        b"\x02\x05\x00" + varint(VARINT_MAX) + bytes(100),
        b"\x31\x05data",
        b"\x31" + varint(VARINT_MAX) + b"data",
        b"\x00\x01\x08",  # STREAM
    ),
)
def test_aioquics(payload: bytes) -> None:
    assert parse(payload) is None


def test_as_many_datagrams_as_fit() -> None:
    assert len(parse(b"\x31\x00" * MAX_DATAGRAMS).datagrams) == MAX_DATAGRAMS
    assert parse(b"\x31\x00" * (MAX_DATAGRAMS + 1)) is None


def test_more_ranges_than_are_kept_are_checked_all_the_same() -> None:
    many = b"\x02" + varint(1000) + b"\x00" + varint(99) + b"\x00" + b"\x00\x00" * 99
    parsed = parse(many)
    assert parsed.ack.cut
    assert parsed.ack.ranges == [(1000 - 2 * i, 1000 - 2 * i) for i in range(MAX_RANGES)]
    assert parse(many[:-1]) is None
    assert parse(many[:-2] + b"\x40\xff") is None
    below = b"\x02" + varint(190) + b"\x00" + varint(99) + b"\x00" + b"\x00\x00" * 99
    assert parse(below) is None


def test_cut_at_any_byte() -> None:
    payload = (
        b"\x03" + varint(5000) + varint(77) + b"\x02\x05\x01\x02\x40\x80\x03" + b"\x01\x02\x03"
        b"\x31\x03abc\x31" + varint(3, 8) + b"def"
    )
    assert parse(payload).ack.ranges == [(4995, 5000), (4990, 4992), (4857, 4860)]
    for length in range(len(payload)):
        assert parse(payload[:length]) == Reference(payload[:length]).parse()


# ACK frames, both ways.


def ranges_of(pairs: list[tuple[int, int]]) -> Ranges:
    """`pairs`: first and last, largest first."""
    items = (Range * len(pairs))(*pairs)
    made = Ranges(len(pairs), len(pairs), items)
    made.kept = items
    return made


def write_ack(
    pairs: list[tuple[int, int]],
    *,
    delay: int = 0,
    ecn: tuple[int, int, int] | None = None,
    space: int = 2000,
) -> bytes:
    out = room(space)
    counts = EcnCounts(*ecn) if ecn else None
    written = native().zdp_write_ack(
        out, space, ranges_of(pairs), delay, ctypes.byref(counts) if counts else None
    )
    return bytes(out[:written])


def random_ranges(source: random.Random, most: int = MAX_RANGES) -> list[tuple[int, int]]:
    last, pairs = source.choice((90, 10**4, 2**31, VARINT_MAX)), []
    for _ in range(source.randint(1, most)):
        first = last - source.choice((0, 0, source.randint(0, 40), source.randint(0, 2**20)))
        if first < 0:
            break
        pairs.append((first, last))
        last = first - 2 - source.choice((0, source.randint(0, 100), source.randint(0, 2**33)))
        if last < 0:
            break
    return pairs or [(0, 0)]


def test_acks_as_aioquic_writes_them() -> None:
    source = random.Random(1)
    for _ in range(EXAMPLES):
        pairs, delay = random_ranges(source), source.randint(0, 2**20)
        theirs = Buffer(capacity=2000)
        theirs.push_uint8(2)
        push_ack_frame(theirs, RangeSet([range(a, b + 1) for a, b in reversed(pairs)]), delay, 2000)
        assert write_ack(pairs, delay=delay) == theirs.data


def test_acks_as_aioquic_reads_them() -> None:
    source = random.Random(2)
    for _ in range(EXAMPLES):
        pairs, delay = random_ranges(source), source.randint(0, VARINT_MAX)
        written = write_ack(pairs, delay=delay)
        received, read_delay = pull_ack_frame(Buffer(data=written[1:]))
        assert [(one.start, one.stop - 1) for one in reversed(list(received))] == pairs
        assert read_delay == delay
        assert parse(written).ack == ParsedAck(delay, pairs)


def test_acks_in_whatever_room() -> None:
    """As many of the largest as fit; never a byte beside it (AddressSanitizer looks, too)."""
    source = random.Random(3)
    for _ in range(40):
        pairs = random_ranges(source, 12)
        ecn = (
            tuple(source.choice((0, 70, 2**40)) for _ in range(3))
            if source.random() < 0.5
            else None
        )
        whole = write_ack(pairs, ecn=ecn)
        before = 0
        for space in range(len(whole) + 2):
            written = write_ack(pairs, ecn=ecn, space=space)
            assert len(written) <= space
            if not written:
                assert before == 0, "what fitted fits into more room"
                continue
            ack = parse(written).ack
            assert ack.ranges == pairs[: len(ack.ranges)]
            assert ack.ecn == ecn
            assert len(ack.ranges) >= before
            before = len(ack.ranges)
            if len(ack.ranges) < len(pairs):
                first, last = pairs[len(ack.ranges)]
                gap = pairs[len(ack.ranges) - 1][0] - last - 2
                assert len(written) + len(varint(gap)) + len(varint(last - first)) > space
        assert before == len(pairs)
        assert write_ack(pairs, ecn=ecn, space=len(whole)) == whole


def test_nothing_received_is_no_ack() -> None:
    assert write_ack([]) == b""
