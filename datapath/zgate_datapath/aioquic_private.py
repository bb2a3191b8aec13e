"""Every private name of aioquic that zgate touches, in one place.

aioquic keeps the handshake, streams, acknowledgements, loss recovery, path validation and
key updates; the packet engines send and receive DATAGRAM packets beside it, and so read and
advance its state. The version is pinned (`pyproject.toml`), `missing_names` is checked at
start, and each name has a test: an upgrade breaks a test and not a network.
"""

from __future__ import annotations

from typing import Any

from aioquic import tls
from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import FrameType, H3Connection, encode_frame
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionState, QuicNetworkPath
from aioquic.quic.crypto import (
    CryptoContext,
    CryptoPair,
    derive_key_iv_hp,
    next_key_phase,
)
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace
from aioquic.quic.retry import QuicRetryTokenHandler
from aioquic.quic.stream import QuicStream
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

END_STATES = frozenset(
    {
        QuicConnectionState.CLOSING,
        QuicConnectionState.DRAINING,
        QuicConnectionState.TERMINATED,
    }
)

CONNECTION_NAMES = (
    "_QuicConnection__frame_handlers",
    "_ack_delay",
    "_ack_eliciting_sent_since_receipt",
    "_close_at",
    "_close_event",
    "_close_pending",
    "_cryptos",
    "_handshake_complete",
    "_host_cids",
    "_idle_timeout",
    "_initialize",
    "_local_initial_source_connection_id",
    "_local_max_data",
    "_loss",
    "_network_paths",
    "_on_ping_delivery",
    "_packet_number",
    "_parse_transport_parameters",
    "_peer_cid",
    "_peer_cid_available",
    "_remote_max_datagram_frame_size",
    "_replenish_connection_ids",
    "_serialize_transport_parameters",
    "_spaces",
    "_spin_bit",
    "_spin_highest_pn",
    "_state",
    "_streams",
    "_write_connection_limits",
)
SPACE_NAMES = (
    "ack_at",
    "ack_eliciting_in_flight",
    "ack_queue",
    "expected_packet_number",
    "largest_received_packet",
    "largest_received_time",
    "received_packets",
    "sent_packets",
)
WINDOW_NAMES = ("_size",)
STREAM_NAMES = ("receiver", "sender")
STREAM_RECEIVER_NAMES = ("_buffer", "is_finished")
STREAM_SENDER_NAMES = ("_buffer", "_buffer_fin", "is_finished")
RETRY_NAMES = ("_aead",)
H3_NAMES = (
    "_decoder",
    "_get_local_settings",
    "_is_done",
    "_local_control_stream_id",
    "_stream",
)
RECOVERY_NAMES = ("_cc", "_rtt_smoothed", "_rtt_min", "_time_of_last_sent_ack_eliciting_packet")
CRYPTO_PAIR_NAMES = ("_update_key", "_update_key_requested", "recv", "send", "key_phase")
CRYPTO_CONTEXT_NAMES = ("aead", "cipher_suite", "hp", "key_phase", "secret", "version")
TLS_NAMES = (
    "_client_handle_certificate_verify",
    "_request_client_certificate",
    "_peer_certificate",
    "_peer_certificate_chain",
    "_server_handle_certificate",
    "_session_resumed",
)


class IncompatibleAioquic(RuntimeError):
    """This aioquic lacks a private name that zgate relies on: install the pinned version."""


def missing_names() -> list[str]:
    """The private names that this aioquic lacks; empty with the pinned version."""
    connection = QuicConnection(configuration=QuicConfiguration(is_client=True))
    connection.connect(("192.0.2.1", 443), now=0.0)
    space = application_space(connection)
    pair = crypto_pair(connection)
    stream = QuicStream(stream_id=0)
    holders: list[tuple[str, Any, tuple[str, ...]]] = [
        ("QuicConnection", connection, CONNECTION_NAMES),
        ("QuicPacketSpace", space, SPACE_NAMES),
        ("QuicPacketNumberWindow", space.received_packets, WINDOW_NAMES),
        ("QuicPacketRecovery", recovery(connection), RECOVERY_NAMES),
        ("CryptoPair", pair, CRYPTO_PAIR_NAMES),
        ("CryptoContext", pair.send, CRYPTO_CONTEXT_NAMES),
        ("tls.Context", connection.tls, TLS_NAMES),
        ("QuicStream", stream, STREAM_NAMES),
        ("QuicStreamReceiver", stream.receiver, STREAM_RECEIVER_NAMES),
        ("QuicStreamSender", stream.sender, STREAM_SENDER_NAMES),
        ("H3Connection", H3Connection(connection), H3_NAMES),
        ("QuicRetryTokenHandler", QuicRetryTokenHandler(), RETRY_NAMES),
    ]
    return [
        f"{label}.{name}"
        for label, holder, names in holders
        for name in names
        if not hasattr(holder, name)
    ]


def check() -> None:
    """Refuse to run on an aioquic that lacks a name.

    Raises:
        IncompatibleAioquic: naming what is missing.
    """
    if missing := missing_names():
        raise IncompatibleAioquic(
            f"aioquic lacks {', '.join(missing)}: install the version pinned in requirements.txt"
        )


def application_space(quic: QuicConnection) -> QuicPacketSpace:
    """The packet number space of 1-RTT packets."""
    return quic._spaces[tls.Epoch.ONE_RTT]


def recovery(quic: QuicConnection) -> QuicPacketRecovery:
    """Loss recovery and congestion control."""
    return quic._loss


def crypto_pair(quic: QuicConnection) -> CryptoPair:
    """The 1-RTT keys of both directions."""
    return quic._cryptos[tls.Epoch.ONE_RTT]


def active_path(quic: QuicConnection) -> QuicNetworkPath | None:
    """The path that packets are sent on; None before the first packet."""
    paths = quic._network_paths
    return paths[0] if paths else None


def frame_handlers(quic: QuicConnection) -> dict[int, Any]:
    """By frame type: who handles it, and in which epochs it may come."""
    handlers: dict[int, Any] = quic._QuicConnection__frame_handlers  # type: ignore[attr-defined]
    return handlers


def is_ending(quic: QuicConnection) -> bool:
    """Whether the connection is closing, closed, or about to send its CONNECTION_CLOSE."""
    return quic._close_pending or quic._state in END_STATES


def smoothed_rtt_s(quic: QuicConnection) -> float:
    """The smoothed round-trip time in seconds; 0.0 before the first sample."""
    return recovery(quic)._rtt_smoothed


def derive_keys(context: CryptoContext) -> tuple[bytes, bytes, bytes]:
    """Key, IV and header protection key of one direction (RFC 9001 section 5.1)."""
    assert context.cipher_suite is not None
    assert context.secret is not None
    assert context.version is not None
    keys: tuple[bytes, bytes, bytes] = derive_key_iv_hp(
        cipher_suite=context.cipher_suite, secret=context.secret, version=context.version
    )
    return keys


def next_phase(context: CryptoContext) -> CryptoContext:
    """The keys of the phase after this one (RFC 9001 section 6.1)."""
    return next_key_phase(context)


def peer_reset_token(quic: QuicConnection) -> bytes:
    """The token of a stateless reset for the peer's connection ID in use; b"" if it gave none."""
    return quic._peer_cid.stateless_reset_token


def send_goaway(h3: H3Connection, quic: QuicConnection) -> None:
    """A GOAWAY frame with the first request stream that was not begun (RFC 9114 section 5.2)."""
    begun = [stream_id for stream_id in quic._streams if stream_id % 4 == 0]
    refused = encode_uint_var(max(begun, default=-4) + 4)
    control = h3._local_control_stream_id
    assert control is not None
    quic.send_stream_data(control, encode_frame(FrameType.GOAWAY, refused))


def retry_tokens(key: bytes | None) -> QuicRetryTokenHandler:
    """Makes and checks Retry tokens under `key` (16 bytes), or under a key of its own."""
    handler = QuicRetryTokenHandler()
    if key is not None:
        handler._aead = AESGCM(key)
    return handler
