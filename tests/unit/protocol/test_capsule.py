"""Capsules: round trips, every cut of the stream, limits."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_protocol.capsule import (
    AddressAssign,
    AddressRequest,
    AssignedAddress,
    Capsule,
    CapsuleDecoder,
    DatagramCapsule,
    RouteAdvertisement,
    encode_capsule,
)
from zgate_protocol.errors import H3Error, MalformedCapsule
from zgate_protocol.ip_range import IpNetwork, IpRange, normalize_ranges
from zgate_protocol.limits import Limits
from zgate_protocol.service_capsule import is_service_capsule
from zgate_protocol.varint import MAX_VARINT


def v4_prefixes() -> st.SearchStrategy[IPv4Network]:
    return st.builds(
        lambda number, bits: IPv4Network((number >> (32 - bits) << (32 - bits), bits)),
        st.integers(0, 2**32 - 1),
        st.integers(0, 32),
    )


def v6_prefixes() -> st.SearchStrategy[IPv6Network]:
    return st.builds(
        lambda number, bits: IPv6Network((number >> (128 - bits) << (128 - bits), bits)),
        st.integers(0, 2**128 - 1),
        st.integers(0, 128),
    )


prefixes: st.SearchStrategy[IpNetwork] = st.one_of(v4_prefixes(), v6_prefixes())
assigned = st.builds(AssignedAddress, st.integers(0, MAX_VARINT), prefixes)
requested = st.builds(AssignedAddress, st.integers(1, MAX_VARINT), prefixes)
routes = st.builds(IpRange.of, prefixes, st.integers(0, 255))
capsules: st.SearchStrategy[Capsule] = st.one_of(
    st.builds(AddressAssign, st.lists(assigned, max_size=5).map(tuple)),
    st.builds(AddressRequest, st.lists(requested, min_size=1, max_size=5).map(tuple)),
    st.builds(RouteAdvertisement, st.lists(routes, max_size=5).map(normalize_ranges)),
    st.builds(DatagramCapsule, st.binary(max_size=60)),
)
# hypothesis tries the numbers that stand in the code, too.
unknown_types = st.integers(4, MAX_VARINT).filter(lambda kind: not is_service_capsule(kind))


def decode(data: bytes, limits: Limits | None = None) -> list[Capsule]:
    return CapsuleDecoder(limits or Limits()).feed(data, fin=True)


@given(st.lists(capsules, max_size=6))
def test_round_trip(sent: list[Capsule]) -> None:
    assert decode(b"".join(capsule.encode() for capsule in sent)) == sent


@given(st.lists(capsules, max_size=4), st.data())
def test_the_pieces_of_the_stream_do_not_matter(sent: list[Capsule], data: st.DataObject) -> None:
    stream = b"".join(capsule.encode() for capsule in sent)
    decoder, found, rest = CapsuleDecoder(), [], stream
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        found += decoder.feed(rest[:size])
        rest = rest[size:]
    assert found + decoder.feed(b"", fin=True) == sent


@given(capsules)
def test_one_byte_at_a_time_holds_no_more_than_one_entry(sent: Capsule) -> None:
    decoder, found = CapsuleDecoder(), []
    for byte in sent.encode():
        found += decoder.feed(bytes((byte,)))
        assert decoder.buffered_bytes < 40
    assert found == [sent]


@given(capsules)
def test_truncated_at_every_byte(sent: Capsule) -> None:
    stream = sent.encode()
    for length in range(1, len(stream)):
        decoder = CapsuleDecoder()
        assert decoder.feed(stream[:length]) == []
        with pytest.raises(MalformedCapsule) as caught:
            decoder.feed(b"", fin=True)
        assert caught.value.error_code is H3Error.MESSAGE_ERROR


@given(capsules.filter(lambda c: not isinstance(c, DatagramCapsule)), st.binary(max_size=3))
def test_a_value_cut_inside_its_entries_is_malformed(sent: Capsule, after: bytes) -> None:
    """The length field says less than the entries need."""
    value = sent.encode()[2:]
    if sent.encode()[1] >= 0x40 or not value:
        return
    kind = sent.encode()[0]
    entry_ends = set(_entry_ends(sent))
    for length in range(1, len(value)):
        if length not in entry_ends:
            with pytest.raises(MalformedCapsule):
                decode(bytes((kind, length)) + value[:length] + after)


def _entry_ends(capsule: Capsule) -> list[int]:
    assert not isinstance(capsule, DatagramCapsule)
    ends, total = [], 0
    if isinstance(capsule, RouteAdvertisement):
        sizes = [2 + 2 * item.start.max_prefixlen // 8 for item in capsule.ranges]
    else:
        entries = capsule.addresses if isinstance(capsule, AddressAssign) else capsule.requests
        sizes = [len(entry.encode()) for entry in entries]
    for size in sizes:
        total += size
        ends.append(total)
    return ends


@given(st.binary(max_size=200))
def test_random_bytes_are_capsules_or_malformed(data: bytes) -> None:
    try:
        decode(data)
    except MalformedCapsule as error:
        assert error.error_code in (H3Error.MESSAGE_ERROR, H3Error.EXCESSIVE_LOAD)


@given(st.lists(capsules, min_size=1, max_size=3), st.data())
def test_mutated_capsules_are_capsules_or_malformed(
    sent: list[Capsule], data: st.DataObject
) -> None:
    stream = bytearray(b"".join(capsule.encode() for capsule in sent))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    try:
        CapsuleDecoder().feed(bytes(stream))
    except MalformedCapsule as error:
        assert error.reason


@given(unknown_types, st.binary(max_size=100), capsules)
def test_unknown_types_are_skipped(kind: int, value: bytes, known: Capsule) -> None:
    assert decode(encode_capsule(kind, value) + known.encode()) == [known]


def test_a_skipped_value_is_not_held() -> None:
    decoder = CapsuleDecoder()
    decoder.feed(bytes.fromhex("20") + (0xC000000000000000 | 10**9).to_bytes(8, "big"))
    for _ in range(100):
        decoder.feed(bytes(10_000))
        assert decoder.buffered_bytes == 0


def test_the_wire_format_of_each_capsule() -> None:
    network = ip_network("192.0.2.11/32")
    assert AddressAssign((AssignedAddress(1, network),)).encode() == bytes.fromhex(
        "0107 01 04 c000020b 20"
    )
    assert AddressRequest((AssignedAddress(64, ip_network("::/128")),)).encode() == bytes.fromhex(
        "0214 4040 06" + "00" * 16 + "80"
    )
    item = IpRange(ip_address("192.0.2.0"), ip_address("192.0.2.41"), 17)
    assert RouteAdvertisement((item,)).encode() == bytes.fromhex("030a 04 c0000200 c0000229 11")
    assert DatagramCapsule(b"\0E").encode() == bytes.fromhex("0002 0045")


def test_empty_lists() -> None:
    assert decode(b"\x01\x00\x03\x00") == [AddressAssign(()), RouteAdvertisement(())]


MALFORMED = {
    "version 5": "0107 01 05 c000020b 20",
    "prefix of 33 bits": "0107 01 04 c000020b 21",
    "prefix of 129 bits": "0113 01 06" + "00" * 16 + "81",
    "host bits set": "0107 01 04 c000020b 18",
    "trailing byte": "0108 01 04 c000020b 20 00",
    "request ID 0": "0207 00 04 00000000 20",
    "no request": "0200",
    "route that ends before it starts": "030a 04 c0000229 c0000200 00",
    "route of version 0": "030a 00 c0000200 c0000229 00",
}


@pytest.mark.parametrize("encoded", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed(encoded: str) -> None:
    with pytest.raises(MalformedCapsule) as caught:
        CapsuleDecoder().feed(bytes.fromhex(encoded))
    assert caught.value.error_code is H3Error.MESSAGE_ERROR


def test_too_many_entries() -> None:
    limits = Limits(max_addresses=2, max_routes=2)
    entry = AssignedAddress(1, ip_network("192.0.2.0/24"))
    ranges = normalize_ranges(IpRange.of(ip_network(f"10.{i * 2}.0.0/16")) for i in range(3))
    for capsule in (AddressAssign((entry,) * 3), RouteAdvertisement(ranges)):
        with pytest.raises(MalformedCapsule) as caught:
            decode(capsule.encode(), limits)
        assert caught.value.error_code is H3Error.EXCESSIVE_LOAD
    assert decode(AddressAssign((entry,) * 2).encode(), limits) == [AddressAssign((entry,) * 2)]


def test_an_impossible_length_is_refused_before_its_value() -> None:
    for kind in (1, 2, 3):
        with pytest.raises(MalformedCapsule) as caught:
            CapsuleDecoder().feed(bytes((kind,)) + b"\xff" * 8)
        assert caught.value.error_code is H3Error.EXCESSIVE_LOAD


def test_an_over_long_datagram_is_skipped() -> None:
    limits = Limits(max_datagram_capsule_bytes=10)
    stream = DatagramCapsule(bytes(11)).encode() + DatagramCapsule(bytes(10)).encode()
    assert decode(stream, limits) == [DatagramCapsule(bytes(10))]


@pytest.mark.parametrize(
    ("prefix", "expected"), [("192.0.2.0/24", "0.0.0.0/32"), ("2001:db8::/64", "::/128")]
)
def test_refusals(prefix: str, expected: str) -> None:
    refusal = AssignedAddress(7, ip_network(prefix)).refusal()
    assert refusal == AssignedAddress(7, ip_network(expected))
    assert refusal.is_refusal
    assert not AssignedAddress(7, ip_network("0.0.0.0/0")).is_refusal
