"""aioquic's client authentication traps, closed (the identity rules have tests of their own)."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted, StreamDataReceived
from aioquic.tls import AlertDescription, SessionTicket
from zgate_datapath.peer_authentication import (
    PeerRefused,
    ServerQuicConnection,
    load_own_certificate,
)

from .conftest import Credentials, Pair, client_configuration, make_pair, server_configuration

CRYPTO_ERROR = 0x100


def anonymous_configuration(credentials: Credentials) -> QuicConfiguration:
    return QuicConfiguration(
        is_client=True,
        alpn_protocols=["h3"],
        server_name="gateway.test",
        cafile=str(credentials.ca_file),
        verify_mode=ssl.CERT_REQUIRED,
    )


def client_ending(pair: Pair) -> ConnectionTerminated:
    for _ in range(50):
        pair.now += 0.5
        pair.client.handle_timer(pair.now)
        pair.pump()
        for event in pair.client_events:
            if isinstance(event, ConnectionTerminated):
                return event
    raise AssertionError("the client was never told")


def require_leaf(leaf: bytes | None, chain: object) -> str:
    if leaf is None:
        raise PeerRefused(AlertDescription.certificate_required, "none")
    return "client"


def test_a_verified_client_is_authenticated(credentials: Credentials) -> None:
    seen: list[bytes | None] = []

    def verify(leaf: bytes | None, chain: object) -> str:
        seen.append(leaf)
        return "client-1"

    pair = make_pair(credentials, verify_peer=verify)
    pair.pump()
    assert pair.server.is_authenticated()
    assert pair.server.peer_identity == "client-1"
    assert seen[0] is not None


def test_no_certificate_does_not_complete_the_handshake(credentials: Credentials) -> None:
    pair = make_pair(
        credentials, verify_peer=require_leaf, configuration=anonymous_configuration(credentials)
    )
    pair.client.send_stream_data(0, b"early application data")
    pair.pump()
    assert not pair.server.is_authenticated()
    assert not any(isinstance(e, HandshakeCompleted) for e in pair.server_events)
    assert not any(isinstance(e, StreamDataReceived) for e in pair.server_events)
    expected = CRYPTO_ERROR + AlertDescription.certificate_required
    assert client_ending(pair).error_code == expected


def test_a_verifier_that_returns_nothing_refuses(credentials: Credentials) -> None:
    pair = make_pair(credentials, verify_peer=lambda leaf, chain: None)
    pair.pump()
    assert not pair.server.is_authenticated()
    assert not any(isinstance(e, HandshakeCompleted) for e in pair.server_events)


@pytest.mark.parametrize(
    "alert",
    [
        AlertDescription.certificate_expired,
        AlertDescription.certificate_revoked,
        AlertDescription.unknown_ca,
        AlertDescription.unsupported_certificate,
    ],
)
def test_the_client_learns_the_alert(credentials: Credentials, alert: AlertDescription) -> None:
    def refuse(leaf: bytes | None, chain: object) -> None:
        raise PeerRefused(alert, "refused")

    pair = make_pair(credentials, verify_peer=refuse)
    pair.pump()
    assert not pair.server.is_authenticated()
    assert pair.server.refusal is not None
    assert client_ending(pair).error_code == CRYPTO_ERROR + alert


def test_a_certificate_without_its_key_is_refused(credentials: Credentials) -> None:
    configuration = client_configuration(credentials)
    from zgate_identity.profile import new_key

    configuration.private_key = new_key()
    pair = make_pair(credentials, configuration=configuration)
    pair.pump()
    assert not pair.server.is_authenticated()
    assert client_ending(pair).error_code == CRYPTO_ERROR + AlertDescription.decrypt_error


def test_no_ticket_is_issued_and_none_is_accepted(credentials: Credentials) -> None:
    tickets: list[SessionTicket] = []

    def make(configuration: QuicConfiguration) -> Pair:
        client = QuicConnection(configuration=configuration, session_ticket_handler=tickets.append)
        server = ServerQuicConnection(
            verify_peer=lambda leaf, chain: "client",
            configuration=server_configuration(credentials),
            original_destination_connection_id=client.original_destination_connection_id,
        )
        pair = Pair(client, server)
        client.connect(("192.0.2.1", 443), now=pair.now)
        pair.pump()
        return pair

    assert make(client_configuration(credentials)).server.is_authenticated()
    assert tickets == []


@pytest.mark.parametrize("name", ["session_ticket_fetcher", "session_ticket_handler"])
def test_ticket_callbacks_are_an_error(credentials: Credentials, name: str) -> None:
    callback: Callable[..., None] = lambda *arguments: None  # noqa: E731
    with pytest.raises(ValueError, match="skip the certificate"):
        ServerQuicConnection(
            verify_peer=require_leaf,
            configuration=server_configuration(credentials),
            original_destination_connection_id=b"12345678",
            **{name: callback},
        )


@pytest.mark.parametrize("content", [b"", b"not PEM", b"-----BEGIN CERTIFICATE-----\nx"])
def test_files_without_a_certificate_or_a_key(
    credentials: Credentials, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "file.pem"
    file.write_bytes(content)
    configuration = QuicConfiguration(is_client=True)
    with pytest.raises(ValueError, match=r"file\.pem holds no certificate in PEM"):
        load_own_certificate(configuration, file, credentials.client_key)
    with pytest.raises(ValueError, match=r"file\.pem holds no usable private key in PEM"):
        load_own_certificate(configuration, credentials.client_certificate, file)


def test_an_encrypted_key_is_told(credentials: Credentials, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from zgate_identity.profile import new_key

    file = tmp_path / "encrypted.key"
    file.write_bytes(
        new_key().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ValueError, match=r"encrypted\.key holds no usable private key"):
        load_own_certificate(
            QuicConfiguration(is_client=True), credentials.client_certificate, file
        )


def test_a_resumed_session_is_never_authenticated(credentials: Credentials) -> None:
    pair = make_pair(credentials)
    pair.pump()
    assert pair.server.is_authenticated()
    pair.server.tls._session_resumed = True
    assert not pair.server.is_authenticated()
