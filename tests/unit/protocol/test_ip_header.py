"""Headers against scapy, an implementation that is not ours."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.errors import PacketError
from zgate_protocol.icmp import checksum
from zgate_protocol.ip_header import (
    MAX_EXTENSION_HEADERS,
    check_packet,
    decrement_hop_limit,
    is_host_only,
    is_link_local,
    is_multicast,
    parse_ip,
    quick_destination,
    quick_source,
)

V4 = bytes(IP(src="10.0.0.1", dst="192.0.2.7", ttl=9) / UDP(sport=1, dport=2) / b"abc")
V4_OPTIONS = bytes(IP(src="10.0.0.1", dst="192.0.2.7", options=b"\x01" * 8) / TCP())
V6 = bytes(IPv6(src="fd00::1", dst="2001:db8::7", hlim=9) / UDP(sport=1, dport=2) / b"abc")
V6_CHAIN = bytes(
    IPv6(src="fd00::1", dst="2001:db8::7")
    / IPv6ExtHdrHopByHop()
    / IPv6ExtHdrRouting(addresses=["2001:db8::8"])
    / IPv6ExtHdrDestOpt()
    / TCP()
)
PACKETS = [V4, V4_OPTIONS, V6, V6_CHAIN]
NAMES = ["v4", "v4 options", "v6", "v6 chain"]
addresses_v4 = st.ip_addresses(v=4)
addresses_v6 = st.ip_addresses(v=6)


def reason_of(packet: bytes) -> DropReason:
    with pytest.raises(PacketError) as caught:
        parse_ip(packet)
    return caught.value.reason


@given(addresses_v4, addresses_v4, st.integers(0, 255), st.integers(0, 255), st.binary(max_size=40))
def test_ipv4(source: object, destination: object, ttl: int, protocol: int, data: bytes) -> None:
    packet = bytes(IP(src=str(source), dst=str(destination), ttl=ttl, proto=protocol)) + data
    packet = packet[:2] + len(packet).to_bytes(2, "big") + packet[4:]
    header = parse_ip(packet)
    assert (header.version, header.hop_limit, header.upper_protocol) == (4, ttl, protocol)
    assert ip_address(header.source) == source
    assert ip_address(header.destination) == destination
    assert header.upper_offset == 20
    assert header.total_length_bytes == len(packet)


@given(addresses_v6, addresses_v6, st.integers(0, 255), st.binary(max_size=40))
def test_ipv6(source: object, destination: object, hop_limit: int, data: bytes) -> None:
    packet = bytes(IPv6(src=str(source), dst=str(destination), hlim=hop_limit, nh=17) / data)
    header = parse_ip(packet)
    assert (header.version, header.hop_limit, header.upper_protocol) == (6, hop_limit, 17)
    assert ip_address(header.source) == source
    assert ip_address(header.destination) == destination
    assert header.upper_offset == 40


def test_ipv4_options_are_stepped_over() -> None:
    assert parse_ip(V4_OPTIONS).upper_offset == 28


def test_ipv6_extension_headers_are_walked() -> None:
    header = parse_ip(V6_CHAIN)
    assert header.upper_protocol == 6
    assert len(V6_CHAIN) - header.upper_offset == 20


def test_authentication_header_has_its_own_unit() -> None:
    packet = bytes(
        IPv6(src="fd00::1", dst="fd00::2") / AH(icv=bytes(12), payloadlen=4, nh=17) / UDP()
    )
    header = parse_ip(packet)
    assert (header.upper_protocol, len(packet) - header.upper_offset) == (17, 8)


@pytest.mark.parametrize(("mf", "offset"), [(1, 0), (1, 185), (0, 185)])
def test_fragments(mf: int, offset: int) -> None:
    v4 = parse_ip(bytes(IP(flags="MF" if mf else "", frag=offset, proto=17) / bytes(16)))
    v6 = parse_ip(bytes(IPv6() / IPv6ExtHdrFragment(m=mf, offset=offset, nh=17) / bytes(16)))
    for header in (v4, v6):
        assert header.is_fragment
        assert header.fragment_offset_bytes == offset * 8
        assert header.upper_protocol == 17


def test_whole_packets_are_no_fragments() -> None:
    assert not parse_ip(bytes(IP(flags="DF") / UDP())).is_fragment
    assert not parse_ip(V6).is_fragment


def test_a_later_fragment_ends_the_walk() -> None:
    """What follows is data, even if its number is that of an extension header."""
    header = parse_ip(bytes(IPv6() / IPv6ExtHdrFragment(offset=10, nh=60) / (b"\xff" * 16)))
    assert (header.upper_protocol, header.upper_offset) == (60, 48)


@pytest.mark.parametrize("packet", PACKETS, ids=NAMES)
def test_truncated_at_every_byte(packet: bytes) -> None:
    for length in range(len(packet)):
        assert reason_of(packet[:length]) is DropReason.BAD_LENGTH
        assert check_packet(packet[:length]) is DropReason.BAD_LENGTH
        for quick in (quick_source, quick_destination):
            with pytest.raises(PacketError):
                quick(packet[:length])


@pytest.mark.parametrize("packet", PACKETS, ids=NAMES)
def test_bytes_after_the_packet_are_no_part_of_it(packet: bytes) -> None:
    assert reason_of(packet + b"\0") is DropReason.BAD_LENGTH
    with pytest.raises(PacketError):
        quick_destination(packet + b"\0")


def test_truncated_ipv6_chain_at_every_byte() -> None:
    """The fixed header's length field agrees, the chain does not fit."""
    for length in range(40, parse_ip(V6_CHAIN).upper_offset):
        packet = V6_CHAIN[:4] + (length - 40).to_bytes(2, "big") + V6_CHAIN[6:length]
        assert reason_of(packet) is DropReason.BAD_LENGTH


@pytest.mark.parametrize("version", [0, 1, 2, 3, 5, 7, 15])
def test_other_versions(version: int) -> None:
    assert reason_of(bytes((version << 4,)) + V4[1:]) is DropReason.BAD_VERSION


@pytest.mark.parametrize("ihl", [0, 4, 15])
def test_bad_ipv4_header_length(ihl: int) -> None:
    assert reason_of(bytes((0x40 | ihl,)) + V4[1:]) is DropReason.BAD_LENGTH


def test_hop_by_hop_comes_first_or_not_at_all() -> None:
    packet = bytes(IPv6() / IPv6ExtHdrDestOpt() / IPv6ExtHdrHopByHop() / UDP())
    assert reason_of(packet) is DropReason.MALFORMED


def test_a_long_chain_is_refused() -> None:
    def chain(count: int) -> bytes:
        packet = IPv6()
        for _ in range(count):
            packet /= IPv6ExtHdrDestOpt()
        return bytes(packet / UDP())

    assert parse_ip(chain(MAX_EXTENSION_HEADERS)).upper_protocol == 17
    assert reason_of(chain(MAX_EXTENSION_HEADERS + 1)) is DropReason.UNKNOWN_NEXT_HEADER


@pytest.mark.parametrize("packet", PACKETS, ids=NAMES)
def test_quick_functions_agree_with_the_parser(packet: bytes) -> None:
    header = parse_ip(packet)
    assert quick_source(packet) == header.source
    assert quick_destination(packet) == header.destination
    assert check_packet(packet) is DropReason.NONE


def check_no_surprise(data: bytes) -> None:
    for function in (parse_ip, quick_source, quick_destination, decrement_hop_limit):
        try:
            function(data)
        except PacketError as error:
            assert error.reason


@given(st.binary(max_size=100))
def test_random_bytes_never_surprise(data: bytes) -> None:
    check_no_surprise(data)


@given(st.sampled_from(PACKETS), st.data())
def test_mutated_packets_never_surprise(packet: bytes, data: st.DataObject) -> None:
    changed = bytearray(packet)
    changed[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    check_no_surprise(bytes(changed))


@given(st.integers(2, 255), st.integers(0, 255), st.integers(0, 0xFFFF), addresses_v4)
def test_decremented_checksum_is_that_of_a_new_header(
    ttl: int, protocol: int, identification: int, destination: object
) -> None:
    fields = {"dst": str(destination), "src": "10.0.0.1", "id": identification}
    before = bytes(IP(ttl=ttl, proto=protocol, **fields))
    assert decrement_hop_limit(before) == bytes(IP(ttl=ttl - 1, proto=protocol, **fields))
    assert checksum(decrement_hop_limit(before)[:20]) == 0


def test_decremented_ipv6() -> None:
    after = decrement_hop_limit(V6)
    assert after[7] == 8
    assert after[:7] + after[8:] == V6[:7] + V6[8:]


@pytest.mark.parametrize(
    "packet",
    [bytes(IP(ttl=0)), bytes(IP(ttl=1)), bytes(IPv6(hlim=1))],
    ids=["v4 at 0", "v4 at 1", "v6 at 1"],
)
def test_nothing_left_to_decrement(packet: bytes) -> None:
    with pytest.raises(PacketError) as caught:
        decrement_hop_limit(packet)
    assert caught.value.reason is DropReason.TTL_EXPIRED


def packed(text: str) -> bytes:
    return ip_address(text).packed


@pytest.mark.parametrize(
    "text",
    [
        *("169.254.0.1", "224.0.0.251", "255.255.255.255", "fe80::1", "febf::1"),
        *("ff02::1", "ff01::1", "ff12::1", "ff32::8000:1"),
    ],
)
def test_link_local(text: str) -> None:
    assert is_link_local(packed(text))


@pytest.mark.parametrize(
    "text", ["169.253.0.1", "224.0.1.1", "10.0.0.1", "fec0::1", "fd00::1", "ff05::2", "ff0e::1"]
)
def test_not_link_local(text: str) -> None:
    assert not is_link_local(packed(text))


@given(st.ip_addresses())
def test_host_only_and_multicast_as_the_standard_library_says(address: object) -> None:
    from ipaddress import IPv4Address, IPv6Address

    assert isinstance(address, IPv4Address | IPv6Address)
    zero_net = address.version == 4 and address.packed[0] == 0
    host_only = address.is_loopback or address.is_unspecified or zero_net
    assert is_host_only(address.packed) == host_only
    broadcast = address.packed == b"\xff" * 4
    assert is_multicast(address.packed) == (address.is_multicast or broadcast)


def test_icmp_is_a_protocol_like_others() -> None:
    assert parse_ip(bytes(IP() / ICMP())).upper_protocol == 1
