"""ICMP errors and probes, read back by scapy."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_Redirect,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.packet import Packet
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.icmp import (
    IcmpError,
    InvokingPacket,
    TokenBucket,
    answer_echo,
    build_icmp_error,
    build_probe,
    checksum,
    error_for_drop,
    invoking_packet,
    is_icmp_error,
    is_probe_reply,
)
from zgate_protocol.ip_header import parse_ip


def packed(text: str) -> bytes:
    return ip_address(text).packed


GATEWAY_V4, GATEWAY_V6 = packed("10.100.0.1"), packed("fd00::1")
SOURCES = (GATEWAY_V4, GATEWAY_V6)
V4 = bytes(IP(src="10.100.0.5", dst="192.0.2.7") / UDP(sport=1, dport=2) / b"abc")
V6 = bytes(IPv6(src="fd00::5", dst="2001:db8::7") / UDP(sport=1, dport=2) / b"abc")


def check_checksums(raw: bytes) -> None:
    """scapy computes the checksums anew; they must be the ones that are there."""
    parsed: Packet = IP(raw) if raw[0] >> 4 == 4 else IPv6(raw)
    again = parsed.copy()
    layer = again
    while layer and layer.name not in ("IP in ICMP", "IPv6 in ICMPv6"):
        for name in ("chksum", "cksum"):
            if name in layer.fields:
                del layer.fields[name]
        layer = layer.payload
        if layer.name.startswith(("ICMP", "ICMPv6")):
            for name in ("chksum", "cksum"):
                layer.fields.pop(name, None)
            break
    assert bytes(again) == raw


@pytest.mark.parametrize("kind", IcmpError)
def test_ipv4_error(kind: IcmpError) -> None:
    raw = build_icmp_error(kind, V4, GATEWAY_V4, mtu_bytes=1400)
    assert raw is not None
    error = IP(raw)
    assert (error.src, error.dst, error.proto) == ("10.100.0.1", "10.100.0.5", 1)
    assert (error[ICMP].type, error[ICMP].code) == kind.value[0]
    assert raw[28:] == V4
    check_checksums(raw)


@pytest.mark.parametrize("kind", IcmpError)
def test_ipv6_error(kind: IcmpError) -> None:
    raw = build_icmp_error(kind, V6, GATEWAY_V6, mtu_bytes=1400)
    assert raw is not None
    error = IPv6(raw)
    assert (error.src, error.dst, error.nh) == ("fd00::1", "fd00::5", 58)
    assert (raw[40], raw[41]) == kind.value[1]
    assert raw[48:] == V6
    check_checksums(raw)


def test_codes_of_rfc_9484() -> None:
    assert IcmpError.SOURCE_POLICY.value[1] == (1, 5)
    assert IcmpError.NO_ROUTE.value[1] == (1, 0)
    assert IcmpError.PROHIBITED.value[1] == (1, 1)
    assert IcmpError.PACKET_TOO_BIG.value == ((3, 4), (2, 0))


def test_the_mtu_is_told() -> None:
    v4 = build_icmp_error(IcmpError.PACKET_TOO_BIG, V4, GATEWAY_V4, mtu_bytes=1380)
    v6 = build_icmp_error(IcmpError.PACKET_TOO_BIG, V6, GATEWAY_V6, mtu_bytes=1380)
    assert v4 is not None
    assert v6 is not None
    assert IP(v4)[ICMP].nexthopmtu == 1380
    assert IPv6(v6)[ICMPv6PacketTooBig].mtu == 1380


@given(st.integers(0, 1500))
def test_no_error_is_longer_than_it_may_be(size: int) -> None:
    v4 = build_icmp_error(
        IcmpError.NO_ROUTE, bytes(IP(src="10.0.0.9") / UDP() / bytes(size)), GATEWAY_V4
    )
    v6 = build_icmp_error(
        IcmpError.NO_ROUTE, bytes(IPv6(src="fd00::9") / UDP() / bytes(size)), GATEWAY_V6
    )
    assert v4 is not None
    assert v6 is not None
    assert len(v4) == min(28 + 28 + size, 576)
    assert len(v6) == min(48 + 48 + size, 1280)


ICMP_ERRORS_V4 = [bytes(IP(src="10.0.0.9") / ICMP(type=t) / bytes(28)) for t in (3, 4, 5, 11, 12)]
ICMP_ERRORS_V6 = [
    bytes(IPv6(src="fd00::9") / ICMPv6DestUnreach() / IPv6()),
    bytes(IPv6(src="fd00::9") / IPv6ExtHdrDestOpt() / ICMPv6PacketTooBig() / IPv6()),
    bytes(IPv6(src="fd00::9") / ICMPv6ND_Redirect()),
]
NEVER = {
    "multicast source": bytes(IP(src="224.1.1.1") / UDP()),
    "unspecified source": bytes(IP(src="0.0.0.0") / UDP()),
    "loopback source": bytes(IP(src="127.0.0.1") / UDP()),
    "reserved source": bytes(IP(src="240.0.0.1") / UDP()),
    "broadcast source": bytes(IP(src="255.255.255.255") / UDP()),
    "multicast": bytes(IP(src="10.0.0.9", dst="224.0.1.1") / UDP()),
    "broadcast": bytes(IP(src="10.0.0.9", dst="255.255.255.255") / UDP()),
    "later fragment": bytes(IP(src="10.0.0.9", frag=10, proto=17) / bytes(8)),
    "no ICMP type": bytes(IP(src="10.0.0.9", proto=1)),
    "IPv6 unspecified source": bytes(IPv6(src="::") / UDP()),
    "IPv6 multicast source": bytes(IPv6(src="ff05::1") / UDP()),
    "IPv6 multicast": bytes(IPv6(src="fd00::9", dst="ff05::1") / UDP()),
    "IPv6 later fragment": bytes(
        IPv6(src="fd00::9") / IPv6ExtHdrFragment(offset=9, nh=17) / bytes(8)
    ),
    "not a packet": b"E\0\0",
    **{f"ICMP error {i}": raw for i, raw in enumerate(ICMP_ERRORS_V4 + ICMP_ERRORS_V6)},
}


@pytest.mark.parametrize("packet", NEVER.values(), ids=NEVER.keys())
def test_never_answered(packet: bytes) -> None:
    assert error_for_drop(DropReason.DESTINATION_NOT_ROUTED, packet, SOURCES) is None


def test_without_an_address_of_its_own_it_is_silent() -> None:
    assert error_for_drop(DropReason.TOO_BIG, V4, (bytes(4), GATEWAY_V6), 1400) is None


def test_ipv6_multicast_senders_are_told_the_mtu() -> None:
    """RFC 4443 section 2.4(e.3): path MTU discovery works for multicast too."""
    packet = bytes(IPv6(src="fd00::9", dst="ff05::1") / UDP())
    assert build_icmp_error(IcmpError.PACKET_TOO_BIG, packet, GATEWAY_V6, 1400)
    ipv4 = bytes(IP(src="10.0.0.9", dst="224.0.1.1") / UDP())
    assert build_icmp_error(IcmpError.PACKET_TOO_BIG, ipv4, GATEWAY_V4, 1400) is None


@pytest.mark.parametrize(
    "packet", [bytes(IP(src="10.0.0.9") / ICMP()), V4, V6], ids=["echo", "v4", "v6"]
)
def test_echo_requests_and_first_fragments_are_answered(packet: bytes) -> None:
    assert error_for_drop(DropReason.DESTINATION_NOT_ROUTED, packet, SOURCES)


REASONS = [
    (DropReason.SOURCE_NOT_ASSIGNED, (1, 5)),
    (DropReason.DESTINATION_NOT_ROUTED, (1, 0)),
    (DropReason.DESTINATION_NOT_ASSIGNED, (1, 0)),
    (DropReason.PROTOCOL_OUT_OF_SCOPE, (1, 1)),
    (DropReason.NO_BACKEND, (1, 1)),
    (DropReason.NO_SESSION, (1, 3)),
    (DropReason.TOO_BIG, (2, 0)),
    (DropReason.TTL_EXPIRED, (3, 0)),
]


@pytest.mark.parametrize(("reason", "type_and_code"), REASONS)
def test_the_error_of_a_drop(reason: DropReason, type_and_code: tuple[int, int]) -> None:
    raw = error_for_drop(reason, V6, SOURCES, 1400)
    assert raw is not None
    assert (raw[40], raw[41]) == type_and_code


@pytest.mark.parametrize(
    "reason",
    [
        DropReason.NONE,
        DropReason.BAD_VERSION,
        DropReason.LINK_LOCAL,
        DropReason.CONGESTED,
        DropReason.RATE_LIMITED,
        DropReason.NEW_FLOW_LIMITED,
    ],
)
def test_reasons_that_are_not_told(reason: DropReason) -> None:
    assert error_for_drop(reason, V6, SOURCES) is None


def test_a_service_that_nobody_offers_is_prohibited_in_version_4() -> None:
    raw = error_for_drop(DropReason.NO_BACKEND, V4, SOURCES)
    assert raw is not None
    assert (raw[20], raw[21]) == (3, 13)


def test_an_empty_packet_has_nobody_to_tell() -> None:
    assert error_for_drop(DropReason.TOO_BIG, b"", SOURCES) is None


@given(st.binary(max_size=60), st.sampled_from(DropReason))
def test_random_bytes_never_surprise(data: bytes, reason: DropReason) -> None:
    error = error_for_drop(reason, data, SOURCES, 1400)
    if error is not None:
        parse_ip(error)
    invoking_packet(data)
    answer_echo(data, GATEWAY_V6)
    assert not is_probe_reply(data, 0)


# The quoted packet.


@pytest.mark.parametrize("original", [V4, V6], ids=["v4", "v6"])
def test_the_invoking_packet_is_read_back(original: bytes) -> None:
    header = parse_ip(original)
    source = GATEWAY_V4 if header.version == 4 else GATEWAY_V6
    error = build_icmp_error(IcmpError.NO_ROUTE, original, source)
    assert error is not None
    assert is_icmp_error(error)
    assert invoking_packet(error) == InvokingPacket(header.source, header.destination, 17)


def test_the_invoking_packets_extension_headers_are_walked() -> None:
    original = bytes(IPv6(src="fd00::5", dst="fd00::6") / IPv6ExtHdrDestOpt() / TCP())
    error = build_icmp_error(IcmpError.NO_ROUTE, original, GATEWAY_V6)
    assert error is not None
    found = invoking_packet(error)
    assert found is not None
    assert found.protocol == 6


@pytest.mark.parametrize("original", [V4, V6], ids=["v4", "v6"])
def test_quotes_truncated_at_every_byte(original: bytes) -> None:
    source = GATEWAY_V4 if original[0] >> 4 == 4 else GATEWAY_V6
    error = build_icmp_error(IcmpError.NO_ROUTE, original, source)
    assert error is not None
    quote_at = len(error) - len(original)
    fixed = 20 if original[0] >> 4 == 4 else 40
    for length in range(quote_at, len(error) + 1):
        cut = _with_length(error[:length])
        assert (invoking_packet(cut) is not None) == (length - quote_at >= fixed)


def _with_length(packet: bytes) -> bytes:
    if packet[0] >> 4 == 4:
        return packet[:2] + len(packet).to_bytes(2, "big") + packet[4:]
    return packet[:4] + (len(packet) - 40).to_bytes(2, "big") + packet[6:]


def test_what_is_no_error_has_no_invoking_packet() -> None:
    assert invoking_packet(V4) is None
    assert invoking_packet(bytes(IP() / ICMP())) is None
    assert not is_icmp_error(bytes(IP() / ICMP()))


# The probe.


def test_the_probe_is_an_ipv6_packet_of_1280_bytes() -> None:
    raw = build_probe(packed("fd00::5"), identifier=7, sequence=3)
    probe = IPv6(raw)
    assert len(raw) == 1280
    assert probe.dst == "ff02::1"
    assert (probe[ICMPv6EchoRequest].id, probe[ICMPv6EchoRequest].seq) == (7, 3)
    assert len(probe[ICMPv6EchoRequest].data) == 1232
    check_checksums(raw)


def test_the_probe_is_answered() -> None:
    reply = answer_echo(build_probe(packed("fd00::5"), 7, 3), GATEWAY_V6)
    assert reply is not None
    parsed = IPv6(reply)
    assert (parsed.src, parsed.dst) == ("fd00::1", "fd00::5")
    assert parsed[ICMPv6EchoReply].id == 7
    check_checksums(reply)
    assert is_probe_reply(reply, 7)
    assert not is_probe_reply(reply, 8)


def test_a_short_reply_proves_nothing() -> None:
    request = bytes(IPv6(src="fd00::5", dst="ff02::1") / ICMPv6EchoRequest(id=7, data=b"x"))
    reply = answer_echo(request, GATEWAY_V6)
    assert reply is not None
    assert not is_probe_reply(reply, 7)


PROBE = build_probe(packed("fd00::5"), 7, 3)
UNANSWERED = {
    "wrong checksum": PROBE[:-1] + b"\x01",
    "a reply": bytes(IPv6(src="fd00::5", dst="ff02::1") / ICMPv6EchoReply()),
    "unspecified source": bytes(IPv6(src="::", dst="ff02::1") / ICMPv6EchoRequest()),
    "multicast source": bytes(IPv6(src="ff02::2", dst="ff02::1") / ICMPv6EchoRequest()),
    "a fragment": bytes(
        IPv6(src="fd00::5", dst="ff02::1") / IPv6ExtHdrFragment(m=1) / ICMPv6EchoRequest()
    ),
    "IPv4": bytes(IP() / ICMP()),
    "UDP": V6,
}


@pytest.mark.parametrize("packet", UNANSWERED.values(), ids=UNANSWERED.keys())
def test_what_is_not_answered(packet: bytes) -> None:
    assert answer_echo(packet, GATEWAY_V6) is None


# Checksums and rates.


@given(st.binary(max_size=200))
def test_checksum_is_that_of_rfc_1071(data: bytes) -> None:
    padded = data + b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(padded[i : i + 2], "big") for i in range(0, len(padded), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert checksum(data) == ~total & 0xFFFF


def test_the_bucket_allows_a_burst_and_then_a_rate() -> None:
    bucket = TokenBucket(rate_per_s=8, burst=3)
    assert [bucket.allow(100.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.allow(100.125)
    assert not bucket.allow(100.125)
    assert [bucket.allow(200.0) for _ in range(4)] == [True, True, True, False]


def test_a_clock_that_goes_back_earns_nothing() -> None:
    bucket = TokenBucket(rate_per_s=10, burst=1)
    assert bucket.allow(100.0)
    assert not bucket.allow(50.0)
