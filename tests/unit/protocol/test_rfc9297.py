"""HTTP datagrams and the Capsule Protocol (RFC 9297): one test per row of the conformance table."""

import pytest
from zgate_protocol.capsule import AddressAssign, CapsuleDecoder, DatagramCapsule
from zgate_protocol.connect_ip import ConnectIpSession, Role
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.errors import ConnectionFailure, H3Error, MalformedCapsule
from zgate_protocol.events import (
    AddressesAssigned,
    Established,
    RequestReceived,
    RequestRefused,
    StreamAborted,
)
from zgate_protocol.http_datagram import (
    MAX_QUARTER_STREAM_ID,
    DatagramNotExpected,
    DatagramStreams,
    datagram_prefix,
)
from zgate_protocol.http_message import Header, build_request, build_success
from zgate_protocol.limits import Limits
from zgate_protocol.varint import encode_varint
from zgate_protocol.wire import encode_capsule

PATH = "/.well-known/masque/ip/*/*/"
REQUEST = build_request("gateway.example", PATH)


def streams_with(stream_id: int) -> DatagramStreams[str]:
    streams: DatagramStreams[str] = DatagramStreams()
    streams.open(stream_id, "session")
    return streams


def open_proxy(limits: Limits | None = None) -> ConnectIpSession:
    session = ConnectIpSession(Role.PROXY, 0, limits=limits or Limits())
    session.receive_headers(REQUEST)
    session.accept()
    return session


def open_client() -> ConnectIpSession:
    session = ConnectIpSession(Role.CLIENT, 0)
    session.request("gateway.example", PATH)
    session.receive_headers(build_success())
    return session


@pytest.mark.parametrize(
    "payload",
    [encode_varint(MAX_QUARTER_STREAM_ID + 1), b"\xff" * 8, b"", b"\x40", b"\x80\0\0", b"\xc0" * 7],
)
def test_9297_s2_1_bad_quarter_stream_id_ends_the_connection(payload: bytes) -> None:
    with pytest.raises(ConnectionFailure) as caught:
        streams_with(0).find(payload)
    assert caught.value.error_code is H3Error.DATAGRAM_ERROR


def test_9297_s2_1_datagram_of_an_unknown_stream_is_dropped() -> None:
    assert streams_with(0).find(datagram_prefix(4)) is DropReason.UNKNOWN_STREAM
    largest = datagram_prefix(MAX_QUARTER_STREAM_ID * 4)
    assert streams_with(0).find(largest) is DropReason.UNKNOWN_STREAM


def test_9297_s2_1_datagram_after_close_is_dropped() -> None:
    streams = streams_with(0)
    streams.close(0)
    assert streams.find(datagram_prefix(0)) is DropReason.SESSION_CLOSED
    session = open_proxy()
    session.receive_data(b"", fin=True)
    assert session.unwrap(b"\0E") is DropReason.SESSION_CLOSED


def test_9297_s2_datagram_on_a_request_without_datagrams_aborts_the_stream() -> None:
    streams = streams_with(0)
    streams.open_without_datagrams(4)
    with pytest.raises(DatagramNotExpected) as caught:
        streams.find(datagram_prefix(4) + b"x")
    assert caught.value.error_code is H3Error.DATAGRAM_ERROR
    assert caught.value.stream_id == 4
    assert streams.find(datagram_prefix(0)) == ("session", b"\0")


@pytest.mark.parametrize("n", [0, 1, 1000])
def test_9297_s3_2_unknown_capsule_type_is_skipped_silently(n: int) -> None:
    """Types 0x29 * N + 0x17 are reserved for just this test (section 5.4)."""
    grease = encode_capsule(0x29 * n + 0x17, b"anything at all")
    session = open_client()
    events = session.receive_data(grease + AddressAssign(()).encode() + grease)
    assert events == [AddressesAssigned((), ())]
    assert session.is_open


@pytest.mark.parametrize("name", [b"content-length", b"content-type", b"transfer-encoding"])
def test_9297_s3_2_content_fields_make_the_message_malformed(name: bytes) -> None:
    proxy = ConnectIpSession(Role.PROXY, 0)
    (event,) = proxy.receive_headers([*REQUEST, (name, b"0")])
    assert isinstance(event, RequestRefused)
    assert event.error_code is H3Error.MESSAGE_ERROR
    client = ConnectIpSession(Role.CLIENT, 0)
    client.request("gateway.example", PATH)
    (abort,) = client.receive_headers([*build_success(), (name, b"0")])
    assert isinstance(abort, StreamAborted)
    assert abort.error_code is H3Error.MESSAGE_ERROR


@pytest.mark.parametrize("status", [b"204", b"205", b"206"])
def test_9297_s3_2_statuses_without_capsules_make_the_message_malformed(status: bytes) -> None:
    client = ConnectIpSession(Role.CLIENT, 0)
    client.request("gateway.example", PATH)
    (abort,) = client.receive_headers([(b":status", status), (b"capsule-protocol", b"?1")])
    assert isinstance(abort, StreamAborted)
    assert abort.error_code is H3Error.MESSAGE_ERROR


def test_9297_s3_2_no_content_field_is_sent() -> None:
    sent = {name for name, _ in [*REQUEST, *build_success()]}
    assert sent.isdisjoint({b"content-length", b"content-type", b"transfer-encoding"})


def test_9297_s3_2_capsules_are_not_buffered_whole() -> None:
    """An unknown capsule of a gigabyte, and a known one of many entries, cost no memory."""
    decoder = CapsuleDecoder()
    decoder.feed(encode_varint(0x17) + encode_varint(10**9))
    for _ in range(50):
        decoder.feed(bytes(20_000))
        assert decoder.buffered_bytes == 0
    decoder = CapsuleDecoder(Limits(max_addresses=1000))
    entry = bytes.fromhex("00 04 c0000201 20")
    capsule = encode_capsule(1, entry * 1000)
    for offset in range(0, len(capsule), 5):
        decoder.feed(capsule[offset : offset + 5])
        assert decoder.buffered_bytes < len(entry)


MALFORMED = {
    "a byte after the entries": "0108 00 04 c0000201 20 00",
    "an entry that the capsule cuts off": "0106 00 04 c0000201",
    "a request with a byte after it": "0208 01 04 00000000 20 00",
    "a route with a byte after it": "030b 04 c0000201 c0000202 00 04",
}


@pytest.mark.parametrize("capsule", MALFORMED.values(), ids=MALFORMED.keys())
def test_9297_s3_3_trailing_or_short_fields_are_a_malformed_message(capsule: str) -> None:
    (event,) = open_proxy().receive_data(bytes.fromhex(capsule))
    assert isinstance(event, StreamAborted)
    assert event.error_code is H3Error.MESSAGE_ERROR


@pytest.mark.parametrize("capsule", ["0107 00 04 c0000201 20", "17 05 0000000000", "0003 004500"])
def test_9297_s3_3_capsule_truncated_at_fin_is_a_malformed_message(capsule: str) -> None:
    """Known types, unknown types and DATAGRAM alike, at every byte."""
    whole = bytes.fromhex(capsule)
    for length in range(1, len(whole)):
        (event,) = open_proxy().receive_data(whole[:length], fin=True)
        assert isinstance(event, StreamAborted)
        assert event.error_code is H3Error.MESSAGE_ERROR
    with pytest.raises(MalformedCapsule):
        CapsuleDecoder().feed(whole[:-1], fin=True)


def with_capsule_protocol(*values: bytes) -> list[Header]:
    others = [header for header in REQUEST if header[0] != b"capsule-protocol"]
    return others + [(b"capsule-protocol", value) for value in values]


def test_9297_s3_4_capsule_protocol_is_sent() -> None:
    assert (b"capsule-protocol", b"?1") in REQUEST
    assert (b"capsule-protocol", b"?1") in build_success()


@pytest.mark.parametrize(
    "values", [(), (b"?0",), (b"1",), (b'"?1"',), (b"?1, ?1",), (b"?1", b"?1"), (b"",)]
)
def test_9297_s3_4_capsule_protocol_of_another_type_counts_as_absent(
    values: tuple[bytes, ...],
) -> None:
    """And absence alone is no reason to refuse, in a request or in a response."""
    proxy = ConnectIpSession(Role.PROXY, 0)
    (event,) = proxy.receive_headers(with_capsule_protocol(*values))
    assert isinstance(event, RequestReceived)
    assert not event.capsule_protocol
    client = ConnectIpSession(Role.CLIENT, 0)
    client.request("gateway.example", PATH)
    response = [(b":status", b"200"), *((b"capsule-protocol", value) for value in values)]
    assert client.receive_headers(response) == [Established(200, capsule_protocol=False)]


def test_9297_s3_4_unknown_parameters_are_ignored() -> None:
    proxy = ConnectIpSession(Role.PROXY, 0)
    (event,) = proxy.receive_headers(with_capsule_protocol(b'?1; new="thing"; x'))
    assert isinstance(event, RequestReceived)
    assert event.capsule_protocol


def test_9297_s3_5_over_long_datagram_capsule_is_discarded_unbuffered() -> None:
    session = open_proxy(Limits(max_datagram_capsule_bytes=1500))
    assert session.receive_data(encode_varint(0) + encode_varint(1501)) == []
    for _ in range(1501):
        assert session.receive_data(b"x") == []
        assert session._decoder.buffered_bytes == 0
    assert session.is_open
    (event,) = session.receive_data(DatagramCapsule(bytes(1500)).encode())
    assert event.payload == bytes(1500)  # type: ignore[union-attr]
