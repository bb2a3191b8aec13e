"""Probe packets are what a client would send."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_gateway.probe_packet import ICMP, ICMPV6, SCTP, TCP, UDP, build_probe_packet
from zgate_protocol.ip_header import parse_ip

PAIRS = [
    (ip_address("10.100.0.2"), ip_address("10.20.0.5")),
    (ip_address("fd00::2"), ip_address("fd00:20::5")),
]
EXTENSION_HEADERS = {0, 43, 44, 50, 51, 60, 135, 139, 140, 253, 254}


@pytest.mark.parametrize(("source", "destination"), PAIRS)
@pytest.mark.parametrize("protocol", [TCP, UDP, SCTP])
def test_the_destination_port_is_where_it_belongs(
    source: object, destination: object, protocol: int
) -> None:
    packet = build_probe_packet(source, destination, protocol, 443)  # type: ignore[arg-type]
    header = parse_ip(packet)
    assert header.upper_protocol == protocol
    assert packet[header.upper_offset + 2 : header.upper_offset + 4] == b"\x01\xbb"
    assert ip_address(header.source) == source
    assert ip_address(header.destination) == destination


def test_tcp_is_a_first_segment() -> None:
    packet = build_probe_packet(*PAIRS[0], TCP, 22)
    flags = packet[20 + 13]
    assert flags == 0x02


@pytest.mark.parametrize(("pair", "protocol", "kind"), [(0, ICMP, 8), (1, ICMPV6, 128)])
def test_icmp_is_an_echo_request(pair: int, protocol: int, kind: int) -> None:
    packet = build_probe_packet(*PAIRS[pair], protocol, None)
    header = parse_ip(packet)
    assert packet[header.upper_offset] == kind


@given(
    st.sampled_from(PAIRS),
    st.sampled_from(sorted(set(range(256)) - EXTENSION_HEADERS)),
    st.none() | st.integers(min_value=0, max_value=65535),
)
def test_every_protocol_makes_a_packet_that_parses(
    pair: tuple[object, object], protocol: int, port: int | None
) -> None:
    packet = build_probe_packet(*pair, protocol, port)  # type: ignore[arg-type]
    assert parse_ip(packet).total_length_bytes == len(packet)


def test_two_families_are_an_error() -> None:
    with pytest.raises(ValueError, match="two IP versions"):
        build_probe_packet(PAIRS[0][0], PAIRS[1][1], TCP, 1)
