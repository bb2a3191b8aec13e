"""Addresses exchanged: the packet is the one that its sender would have made with the others."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.packet import Packet, Raw
from zgate_protocol.address_translation import translate_addresses
from zgate_protocol.errors import PacketError

A4, B4, C4, D4 = "192.0.2.1", "10.9.0.1", "10.100.0.7", "10.101.0.1"
A6, B6, C6, D6 = "2001:db8::1", "fd00::9", "fd7a:7a67:6174:65::7", "fd7a:7a67:6174:66::1"
TABLE = {
    ip_address(old).packed: ip_address(new).packed
    for old, new in ((A4, C4), (B4, D4), (A6, C6), (B6, D6))
}
BODY = Raw(b"some bytes of an odd length")


def ip4(source: str, destination: str, **fields: object) -> Packet:
    return IP(src=source, dst=destination, id=7, **fields)


def ip6(source: str, destination: str) -> Packet:
    return IPv6(src=source, dst=destination)


def tcp(source: int = 1234) -> Packet:
    return TCP(sport=source, dport=104, seq=5, flags="PA") / BODY


def udp() -> Packet:
    return UDP(sport=1234, dport=53) / BODY


def quoting_4(outer: tuple[str, str], inner: tuple[str, str], upper: Packet) -> Packet:
    """A port that is unreachable, with the quoted packet's checksums as it was sent."""
    quoted = IP(bytes(ip4(*inner) / upper))
    return ip4(*outer) / ICMP(type=3, code=3) / Raw(bytes(quoted)[: 28 + 20])


def quoting_6(outer: tuple[str, str], inner: tuple[str, str], upper: Packet) -> Packet:
    quoted = bytes(ip6(*inner) / upper)
    return ip6(*outer) / ICMPv6DestUnreach(code=4) / Raw(quoted[:88])


CASES = {
    "tcp": lambda a, b: ip4(a[0], b[0]) / tcp(),
    "udp": lambda a, b: ip4(a[0], b[0]) / udp(),
    "udp without a checksum": lambda a, b: ip4(a[0], b[0]) / UDP(chksum=0) / BODY,
    "echo": lambda a, b: ip4(a[0], b[0]) / ICMP() / BODY,
    "options": lambda a, b: ip4(a[0], b[0], options=[b"\x94\x04\0\0"]) / tcp(),
    "gre": lambda a, b: ip4(a[0], b[0], proto=47) / BODY,
    "icmp error": lambda a, b: quoting_4((a[0], b[0]), (b[0], a[0]), tcp()),
    "icmp error about udp": lambda a, b: quoting_4((a[0], b[0]), (b[0], a[0]), udp()),
    "icmp error of a router": lambda a, b: quoting_4(("203.0.113.9", b[0]), (b[0], a[0]), tcp()),
    "tcp 6": lambda a, b: ip6(a[1], b[1]) / tcp(),
    "udp 6": lambda a, b: ip6(a[1], b[1]) / udp(),
    "echo 6": lambda a, b: ip6(a[1], b[1]) / ICMPv6EchoRequest(data=b"odd"),
    "extension headers": lambda a, b: ip6(a[1], b[1]) / IPv6ExtHdrDestOpt() / udp(),
    "icmp error 6": lambda a, b: quoting_6((a[1], b[1]), (b[1], a[1]), tcp()),
    "icmp error about udp 6": lambda a, b: quoting_6((a[1], b[1]), (b[1], a[1]), udp()),
}


@pytest.mark.parametrize("build", CASES.values(), ids=CASES.keys())
def test_every_byte_is_the_senders(build: object) -> None:
    assert callable(build)
    before, expected = bytes(build((A4, A6), (B4, B6))), bytes(build((C4, C6), (D4, D6)))
    assert translate_addresses(before, TABLE) == expected
    back = {new: old for old, new in TABLE.items()}
    assert translate_addresses(expected, back) == before


def test_one_address_of_two() -> None:
    source_only = {ip_address(A4).packed: ip_address(C4).packed}
    translated = translate_addresses(bytes(ip4(A4, B4) / tcp()), source_only)
    assert translated == bytes(ip4(C4, B4) / tcp())


def test_nothing_in_the_table_changes_nothing() -> None:
    packet = bytes(ip4(C4, D4) / tcp())
    assert translate_addresses(packet, TABLE) == packet


def test_a_later_fragment_has_no_upper_checksum() -> None:
    def later(source: str, destination: str) -> bytes:
        return bytes(ip4(source, destination, frag=3, proto=6) / Raw(bytes(range(64))))

    assert translate_addresses(later(A4, B4), TABLE) == later(C4, D4)


def test_a_later_fragment_of_version_6() -> None:
    def later(source: str, destination: str) -> bytes:
        fragment = IPv6ExtHdrFragment(nh=17, offset=5)
        return bytes(ip6(source, destination) / fragment / Raw(bytes(range(64))))

    assert translate_addresses(later(A6, B6), TABLE) == later(C6, D6)


def test_a_quote_of_eight_bytes_is_followed_as_far_as_it_goes() -> None:
    """RFC 792: the IP header and 8 bytes, too few for TCP's checksum."""
    quoted = bytes(ip4(B4, A4) / tcp())[:28]
    packet = translate_addresses(bytes(ip4(A4, B4) / ICMP(type=3, code=1) / Raw(quoted)), TABLE)
    parsed = IP(packet)
    inner = parsed[IPerror]
    assert (inner.src, inner.dst) == (D4, C4)
    assert packet[48:56] == quoted[20:28]
    # The outer checksums are right: scapy computes the same.
    del parsed[ICMP].chksum, parsed.chksum
    assert bytes(parsed) == packet


@given(st.binary(min_size=1, max_size=120))
def test_random_bytes_are_packets_or_errors(data: bytes) -> None:
    try:
        translated = translate_addresses(data, TABLE)
    except PacketError:
        return
    assert len(translated) == len(data)


@given(st.sampled_from([4, 6]), st.sampled_from([1, 6, 17, 44, 50, 58]), st.binary(max_size=80))
def test_random_upper_layers(version: int, protocol: int, rest: bytes) -> None:
    if version == 4:
        packet = bytes(ip4(A4, B4, proto=protocol) / Raw(rest))
    else:
        packet = bytes(IPv6(src=A6, dst=B6, nh=protocol, plen=len(rest))) + rest
    try:
        there = translate_addresses(packet, TABLE)
    except PacketError:
        return
    back = translate_addresses(there, {new: old for old, new in TABLE.items()})
    assert len(back) == len(packet)
    if version == 4:
        assert back[:20] == packet[:20]
