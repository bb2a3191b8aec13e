"""The stream dialect: packets in capsules, behind the gate of RFC 9484's session."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from zgate_protocol.capsule import AssignedAddress
from zgate_protocol.dialects.stream import StreamSession, encode_packet, is_stream_request
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.errors import H3Error
from zgate_protocol.events import (
    DatagramReceived,
    Event,
    PeerClosed,
    RequestReceived,
    RequestRefused,
    StreamAborted,
)
from zgate_protocol.http_message import Header
from zgate_protocol.ip_range import EVERYTHING
from zgate_protocol.limits import Limits
from zgate_protocol.service_capsule import Drain
from zgate_protocol.uri_template import Scope

REQUEST: list[Header] = [
    (b":method", b"CONNECT"),
    (b":authority", b"gateway.example"),
    (b"protocol", b"connect-ip"),
]
ADDRESSES = [
    AssignedAddress(0, ip_network("10.100.0.7/32")),
    AssignedAddress(0, ip_network("fd00::7/128")),
]


def opened(limits: Limits | None = None) -> StreamSession:
    session = StreamSession(0, limits=limits or Limits())
    session.receive_headers(REQUEST)
    session.accept()
    session.assign(ADDRESSES)
    session.advertise(EVERYTHING)
    return session


def packet(source: str = "10.100.0.7", size_bytes: int = 100) -> bytes:
    return bytes(IP(src=source, dst="192.0.2.7") / UDP() / bytes(size_bytes - 28))


def packets(events: list[Event]) -> list[bytes]:
    return [event.payload[1:] for event in events if isinstance(event, DatagramReceived)]


def test_a_request_and_its_answer() -> None:
    session = StreamSession(0)
    (event,) = session.receive_headers(REQUEST)
    assert event == RequestReceived(Scope(), "gateway.example", "", False)
    assert session.accept() == [(b":status", b"200")]
    assert session.is_open


def test_an_empty_pool() -> None:
    session = StreamSession(0)
    session.receive_headers(REQUEST)
    assert session.refuse(503)[0] == (b":status", b"503")
    assert session.is_closed


@pytest.mark.parametrize(
    ("headers", "is_ours"),
    [
        (REQUEST, True),
        ([*REQUEST, (b":scheme", b"https"), (b":path", b"/")], True),
        ([*REQUEST[:2], (b":protocol", b"connect-ip"), REQUEST[2]], False),
        (REQUEST[:2], False),
        ([(b":method", b"GET"), *REQUEST[1:]], False),
        ([*REQUEST[:2], (b"protocol", b"connect-udp")], False),
    ],
)
def test_which_requests_are_of_the_dialect(headers: list[Header], is_ours: bool) -> None:
    assert is_stream_request(headers) is is_ours


@pytest.mark.parametrize(
    "headers",
    [
        [(b":method", b"CONNECT"), (b"protocol", b"connect-ip")],
        [REQUEST[0], (b":authority", b"a b"), REQUEST[2]],
        [REQUEST[0], (b":authority", "ö".encode()), REQUEST[2]],
        [*REQUEST, (b":scheme", b"https")],
        [*REQUEST, (b"Upper", b"x")],
        [*REQUEST, (b"connection", b"x")],
    ],
)
def test_requests_that_are_malformed(headers: list[Header]) -> None:
    (event,) = StreamSession(0).receive_headers(headers)
    assert isinstance(event, RequestRefused)
    assert (event.status, event.error_code) == (400, H3Error.MESSAGE_ERROR)


def test_the_bytes_of_an_assignment() -> None:
    """Type 1; a count; request ID, version, address, prefix length."""
    session = opened()
    value = "02" + "00 04 0a640007 20" + "00 06 fd000000000000000000000000000007 80"
    assert session.assign(ADDRESSES) == bytes.fromhex("01 1b" + value)


def test_the_bytes_of_a_packet() -> None:
    assert encode_packet(b"x" * 70) == b"\x40\x40" + b"\x40\x46" + b"x" * 70


def test_packets_pass_the_gate() -> None:
    session = opened()
    mine, other = packet(), packet(source="10.100.0.8")
    received = session.receive_data(encode_packet(mine) + encode_packet(other))
    assert packets(received) == [mine, other]
    payloads = [event.payload for event in received if isinstance(event, DatagramReceived)]
    assert session.unwrap(payloads[0]) == mine
    assert session.unwrap(payloads[1]) is DropReason.SOURCE_NOT_ASSIGNED
    answer = bytes(IP(src="192.0.2.7", dst="10.100.0.7") / UDP())
    assert session.check_outgoing(answer) is DropReason.NONE


def test_the_pieces_they_come_in_do_not_matter() -> None:
    session = opened()
    data = encode_packet(packet()) + b"\x3f\x03abc" + encode_packet(packet(size_bytes=1400))
    received = [event for byte in data for event in session.receive_data(bytes((byte,)))]
    assert packets(received) == [packet(), packet(size_bytes=1400)]


def test_capsules_that_are_not_packets_are_skipped() -> None:
    """RFC 9484's as well: what they hold is not looked at, so that it cannot be malformed."""
    session = opened()
    others = b"".join(bytes((kind, 3)) + b"\xff\xff\xff" for kind in range(0x20))
    assert packets(session.receive_data(others + encode_packet(packet()))) == [packet()]
    assert session.is_open


def test_packets_that_nobody_could_carry_are_skipped() -> None:
    session = opened(Limits(max_datagram_capsule_bytes=1000))
    data = encode_packet(b"\x45" * 1001) + encode_packet(packet())
    received = [
        event for at in range(0, len(data), 7) for event in session.receive_data(data[at : at + 7])
    ]
    assert packets(received) == [packet()]


def test_what_is_held_is_bounded() -> None:
    session = opened()
    session.receive_data(b"\x40\x40" + b"\xff" * 8 + bytes(100_000))
    assert session._decoder.buffered_bytes == 0
    session = opened(Limits(max_datagram_capsule_bytes=1000))
    session.receive_data(b"\x40\x40\x43\xe8" + bytes(999))
    assert session._decoder.buffered_bytes == 1003


def test_the_end_of_the_stream() -> None:
    assert opened().receive_data(b"", fin=True) == [PeerClosed()]
    for cut in (1, 3, 50):
        (event,) = opened().receive_data(encode_packet(packet())[:cut], fin=True)
        assert isinstance(event, StreamAborted)
        assert event.error_code is H3Error.MESSAGE_ERROR


def test_nothing_is_said_that_the_dialect_does_not_know() -> None:
    assert opened().send_capsule(Drain(1)) == b""
    assert opened().advertise(EVERYTHING) == b""


@given(st.lists(st.binary(max_size=30), max_size=8))
def test_random_streams(pieces: list[bytes]) -> None:
    whole, cut = opened(), opened()
    together = whole.receive_data(b"".join(pieces))
    assert [event for piece in pieces for event in cut.receive_data(piece)] == together
