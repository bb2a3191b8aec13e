"""HTTP/3 with datagrams: what is offered, what is asked of the peer, and what a peer may cost."""

from __future__ import annotations

import pytest
from aioquic.h3.connection import ErrorCode, FrameType, H3Connection, Setting, encode_frame
from aioquic.h3.connection import encode_settings as encode
from aioquic.h3.events import H3Event, HeadersReceived
from aioquic.quic.events import ConnectionTerminated, QuicEvent
from zgate_datapath.h3 import MAX_HELD_BYTES, DatagramH3Connection

from .conftest import Credentials, Pair, client_configuration, make_pair

REQUEST = [
    (b":method", b"CONNECT"),
    (b":protocol", b"connect-ip"),
    (b":scheme", b"https"),
    (b":authority", b"gateway.test"),
    (b":path", b"/"),
]


@pytest.fixture
def quiet(credentials: Credentials) -> Pair:
    """A pair after its handshake."""
    made = make_pair(credentials)
    made.pump()
    return made


def feed(h3: H3Connection, events: list[QuicEvent]) -> list[H3Event]:
    happened: list[H3Event] = []
    while events:
        happened += h3.handle_event(events.pop(0))
    return happened


def ending(pair: Pair) -> ConnectionTerminated:
    """How the client's connection ended."""
    for _ in range(20):
        pair.pump()
        for event in pair.client_events:
            if isinstance(event, ConnectionTerminated):
                return event
        pair.now += 1.0
        pair.client.handle_timer(pair.now)
    raise AssertionError("the client's connection goes on")


def with_settings(pair: Pair, settings: dict[int, int]) -> DatagramH3Connection:
    """The server's HTTP/3 after the client sent exactly these settings."""
    server = DatagramH3Connection(pair.server)
    stream_id = pair.client.get_next_available_stream_id(is_unidirectional=True)
    frame = encode_frame(FrameType.SETTINGS, encode(settings))
    pair.client.send_stream_data(stream_id, b"\0" + frame)
    pair.pump()
    feed(server, pair.server_events)
    return server


def test_9297_s2_1_1_h3_datagram_setting(quiet: Pair) -> None:
    """Sent as 1 by both ends, without WebTransport, and known when it has arrived."""
    client, server = DatagramH3Connection(quiet.client), DatagramH3Connection(quiet.server)
    assert not client.peer_settings_known() and not server.peer_settings_known()
    assert not client.peer_takes_datagrams() and not client.peer_takes_extended_connect()
    quiet.pump()
    feed(client, quiet.client_events)
    feed(server, quiet.server_events)
    for end in (client, server):
        assert end.peer_settings_known()
        assert end.peer_takes_datagrams()
        assert end.peer_takes_extended_connect()
        settings = end.received_settings
        assert settings is not None
        assert settings[Setting.H3_DATAGRAM] == 1
        assert Setting.ENABLE_WEBTRANSPORT not in settings


@pytest.mark.parametrize("value", [2, 3, 1 << 30])
def test_9297_s2_1_1_other_values_are_a_settings_error(quiet: Pair, value: int) -> None:
    server = with_settings(quiet, {Setting.H3_DATAGRAM: value})
    assert not server.peer_takes_datagrams()
    assert ending(quiet).error_code == ErrorCode.H3_SETTINGS_ERROR


@pytest.mark.parametrize("settings", [{}, {Setting.H3_DATAGRAM: 0}])
def test_9297_s2_1_1_absent_or_zero_means_no_datagrams(
    quiet: Pair, settings: dict[int, int]
) -> None:
    server = with_settings(quiet, settings)
    assert server.peer_settings_known()
    assert not server.peer_takes_datagrams()


def test_9297_s2_1_1_the_setting_needs_the_transport_parameter(credentials: Credentials) -> None:
    configuration = client_configuration(credentials)
    configuration.max_datagram_frame_size = None
    pair = make_pair(credentials, configuration=configuration)
    pair.pump()
    with_settings(pair, {Setting.H3_DATAGRAM: 1})
    assert ending(pair).error_code == ErrorCode.H3_SETTINGS_ERROR


# What a peer may cost.


def test_no_dynamic_table_is_offered(quiet: Pair) -> None:
    client, server = DatagramH3Connection(quiet.client), DatagramH3Connection(quiet.server)
    quiet.pump()
    feed(server, quiet.server_events)
    feed(client, quiet.client_events)
    settings = client.received_settings
    assert settings is not None
    assert settings[Setting.QPACK_MAX_TABLE_CAPACITY] == 0
    assert settings[Setting.QPACK_BLOCKED_STREAMS] == 0
    stream_id = quiet.client.get_next_available_stream_id()
    client.send_headers(stream_id, REQUEST)
    quiet.pump()
    (event,) = feed(server, quiet.server_events)
    assert isinstance(event, HeadersReceived)
    assert event.headers == REQUEST


def test_a_peer_that_uses_a_dynamic_table_all_the_same_is_cut_off(quiet: Pair) -> None:
    """A kilobyte of references to a 4 kB entry would decode to megabytes."""
    server = DatagramH3Connection(quiet.server)
    with_settings(quiet, {Setting.H3_DATAGRAM: 1})
    encoder = quiet.client.get_next_available_stream_id(is_unidirectional=True)
    # Stream type 2; Set Dynamic Table Capacity 4096 (RFC 9204 section 4.3.1).
    quiet.client.send_stream_data(encoder, b"\x02\x3f\xe1\x1f")
    quiet.pump()
    feed(server, quiet.server_events)
    assert ending(quiet).error_code == ErrorCode.QPACK_ENCODER_STREAM_ERROR


@pytest.mark.parametrize("kind", [FrameType.HEADERS, FrameType.SETTINGS])
def test_a_frame_that_is_never_whole_is_not_held(quiet: Pair, kind: FrameType) -> None:
    server = DatagramH3Connection(quiet.server)
    is_control = kind is FrameType.SETTINGS
    stream_id = quiet.client.get_next_available_stream_id(is_unidirectional=is_control)
    head = b"\0" if is_control else b""
    quiet.client.send_stream_data(stream_id, head + bytes([kind]) + b"\x80\x10\0\0")
    sent = 0
    while not server._is_done and sent < 10 * MAX_HELD_BYTES:
        quiet.client.send_stream_data(stream_id, b"\x5a" * 1000)
        sent += 1000
        quiet.pump()
        feed(server, quiet.server_events)
    assert server._is_done
    assert sent < MAX_HELD_BYTES + 3000
    assert ending(quiet).error_code == ErrorCode.H3_EXCESSIVE_LOAD


def test_data_and_unknown_frames_of_any_length_are_not_held(quiet: Pair) -> None:
    client, server = DatagramH3Connection(quiet.client), DatagramH3Connection(quiet.server)
    quiet.pump()
    feed(server, quiet.server_events)
    feed(client, quiet.client_events)
    stream_id = quiet.client.get_next_available_stream_id()
    client.send_headers(stream_id, REQUEST)
    quiet.client.send_stream_data(stream_id, b"\x21\x80\x10\0\0")  # reserved, 1 MB long
    received = 0
    for _ in range(10):
        quiet.client.send_stream_data(stream_id, bytes(10000))
        quiet.pump()
        received += len(feed(server, quiet.server_events))
        assert len(server._stream[stream_id].buffer) < 2000
    assert received == 1  # the headers
