"""QUIC address discovery (draft-ietf-quic-address-discovery-01)."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_protocol.address_discovery import (
    MAX_FRAME_BYTES,
    OBSERVED_IPV4,
    OBSERVED_IPV6,
    DiscoveryMode,
    decode_observed_address,
    encode_observed_address,
    parse_discovery_mode,
    seen_address,
)
from zgate_protocol.service_capsule import ObservedAddress
from zgate_protocol.varint import MAX_VARINT, Truncated, decode_varint

V4 = ObservedAddress(5, ip_address("192.0.2.7"), 4433)
V6 = ObservedAddress(MAX_VARINT, ip_address("2001:db8::7"), 65535)


def test_the_bytes_of_a_frame() -> None:
    """Section 4.1: type, sequence number, address, port."""
    assert encode_observed_address(V4).hex() == "809f81a605c00002071151"


@pytest.mark.parametrize("observed", [V4, V6], ids=["v4", "v6"])
def test_round_trip_and_truncation(observed: ObservedAddress) -> None:
    frame = encode_observed_address(observed)
    frame_type, offset = decode_varint(frame)
    assert frame_type == (OBSERVED_IPV4 if observed is V4 else OBSERVED_IPV6)
    assert len(frame) <= MAX_FRAME_BYTES
    assert decode_observed_address(frame_type, frame + b"\1", offset) == (observed, len(frame))
    for end in range(offset, len(frame)):
        with pytest.raises(Truncated):
            decode_observed_address(frame_type, frame[:end], offset)


@given(st.sampled_from([OBSERVED_IPV4, OBSERVED_IPV6]), st.binary(max_size=40))
def test_random_frames(frame_type: int, data: bytes) -> None:
    try:
        observed, end = decode_observed_address(frame_type, data)
    except Truncated:
        return
    assert end <= len(data)
    assert decode_varint(encode_observed_address(observed))[0] == frame_type


@pytest.mark.parametrize(
    ("value", "provides", "receives"),
    [(b"\0", True, False), (b"\1", False, True), (b"\2", True, True)],
)
def test_modes(value: bytes, provides: bool, receives: bool) -> None:
    """Section 3: 0 provides, 1 receives, 2 does both."""
    mode = parse_discovery_mode(value)
    assert (mode.provides, mode.receives) == (provides, receives)


@pytest.mark.parametrize("value", [b"", b"\3", b"\x40", b"\0\0", b"\xff" * 8])
def test_other_values_are_errors(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"varint|after the value|is not a valid"):
        parse_discovery_mode(value)


def test_a_longer_encoding_of_a_mode_is_the_mode() -> None:
    assert parse_discovery_mode(b"\x40\1") is DiscoveryMode.RECEIVES


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_the_address_of_a_socket(host: str, address: str) -> None:
    assert seen_address(host) == ip_address(address)
