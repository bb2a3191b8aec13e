import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.errors import ConnectionFailure, H3Error
from zgate_protocol.http_datagram import (
    MAX_QUARTER_STREAM_ID,
    MIN_QUIC_PACKET_BYTES_FOR_IPV6,
    ContextIds,
    DatagramNotExpected,
    DatagramStreams,
    datagram_prefix,
    parse_context,
    parse_http_datagram,
)
from zgate_protocol.varint import MAX_VARINT, encode_varint

quarter_ids = st.integers(0, MAX_QUARTER_STREAM_ID)


@given(quarter_ids, st.integers(0, MAX_VARINT), st.binary(max_size=50))
def test_round_trip(quarter_id: int, context_id: int, payload: bytes) -> None:
    datagram = datagram_prefix(quarter_id * 4, context_id) + payload
    found, rest = parse_http_datagram(datagram)
    assert found == quarter_id
    assert parse_context(rest) == (context_id, payload)


@given(quarter_ids)
def test_truncated_at_every_byte(quarter_id: int) -> None:
    encoded = encode_varint(quarter_id)
    for length in range(len(encoded)):
        with pytest.raises(ConnectionFailure) as caught:
            parse_http_datagram(encoded[:length])
        assert caught.value.error_code is H3Error.DATAGRAM_ERROR


@given(st.integers(0, MAX_VARINT))
def test_context_truncated_at_every_byte(context_id: int) -> None:
    encoded = encode_varint(context_id)
    assert all(parse_context(encoded[:length]) is None for length in range(len(encoded)))


@given(st.integers(MAX_QUARTER_STREAM_ID + 1, MAX_VARINT), st.binary(max_size=4))
def test_ids_that_no_stream_has(quarter_id: int, payload: bytes) -> None:
    with pytest.raises(ConnectionFailure) as caught:
        parse_http_datagram(encode_varint(quarter_id) + payload)
    assert caught.value.error_code is H3Error.DATAGRAM_ERROR


@pytest.mark.parametrize("stream_id", [1, 2, 3, 5])
def test_only_request_streams_have_datagrams(stream_id: int) -> None:
    with pytest.raises(ValueError, match="request stream"):
        datagram_prefix(stream_id)


def test_context_ids_of_the_two_ends_never_meet() -> None:
    client, proxy = ContextIds(is_client=True), ContextIds(is_client=False)
    assert [client.allocate() for _ in range(3)] == [2, 4, 6]
    assert [proxy.allocate() for _ in range(3)] == [1, 3, 5]


def test_the_way_of_a_datagram() -> None:
    streams: DatagramStreams[str] = DatagramStreams()
    datagram = datagram_prefix(8) + b"x"
    assert streams.find(datagram) is DropReason.UNKNOWN_STREAM
    streams.open(8, "session")
    assert streams.find(datagram) == ("session", b"\0x")
    assert streams.find(datagram_prefix(12)) is DropReason.UNKNOWN_STREAM
    streams.close(8)
    assert streams.find(datagram) is DropReason.SESSION_CLOSED
    assert len(streams) == 0


def test_a_request_without_datagrams() -> None:
    streams: DatagramStreams[str] = DatagramStreams()
    streams.open_without_datagrams(4)
    with pytest.raises(DatagramNotExpected) as caught:
        streams.find(datagram_prefix(4))
    assert (caught.value.stream_id, caught.value.error_code) == (4, H3Error.DATAGRAM_ERROR)
    streams.close(4)
    assert streams.find(datagram_prefix(4)) is DropReason.SESSION_CLOSED


@given(st.binary(max_size=20))
def test_random_datagrams_never_surprise(data: bytes) -> None:
    streams: DatagramStreams[str] = DatagramStreams()
    streams.open(0, "session")
    try:
        assert streams.find(data)
    except ConnectionFailure as error:
        assert error.error_code is H3Error.DATAGRAM_ERROR


def test_the_smallest_quic_packet_that_carries_ipv6() -> None:
    assert MIN_QUIC_PACKET_BYTES_FOR_IPV6 == 1331
