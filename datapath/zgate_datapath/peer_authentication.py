"""QUIC connections that prove who their peer is, or do not complete the handshake.

Server: aioquic asks a client for a certificate only "for test purposes" and checks nothing but the
signature: an expired self-signed certificate, and no certificate at all, both complete its
handshake. Here the check stands inside the TLS handshake, before the client's Finished is
accepted, so that no application data of an unproved peer is ever looked at and the client
gets the TLS alert that names the reason (RFC 8446 section 6.2). Sessions are never resumed:
a ticket would skip the certificate.

Client: aioquic checks chain, dates and name, but not what the certificate is for: any client of
the same authority whose certificate names the gateway could stand in for it. The check of usage
stands inside the handshake too, before our own certificate is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aioquic import tls
from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnectionId
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from zgate_protocol.address_discovery import DiscoveryMode

from zgate_datapath.address_discovery import DiscoveringQuicConnection
from zgate_datapath.connection_ids import ConnectionIds


def load_own_certificate(
    configuration: QuicConfiguration, certificate_file: Path, key_file: Path
) -> None:
    """Give a configuration the certificate chain and the key of two PEM files.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file does not hold what it should; the text says which.
    """
    try:
        configuration.load_cert_chain(certificate_file)
    except (IndexError, TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{certificate_file} holds no certificate in PEM: {error}") from error
    try:
        configuration.load_cert_chain(certificate_file, key_file)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        # TypeError: the key is encrypted.
        raise ValueError(f"{key_file} holds no usable private key in PEM: {error}") from error


VerifyPeer = Callable[[bytes | None, Sequence[bytes]], Any]
"""(leaf DER or None, chain DER) -> identity; raises `PeerRefused`."""


class PeerRefused(tls.Alert):
    """The peer's certificate is refused; `description` is the alert that it is told."""

    def __init__(self, description: tls.AlertDescription, text: str) -> None:
        super().__init__(text)
        self.description = description


class ServerQuicConnection(DiscoveringQuicConnection):
    """A server connection with mandatory client authentication.

    `connection_ids` gives its connection IDs and their reset tokens.

    Attributes:
        on_issued: called with each further connection ID that we make, before the peer hears of it.
        peer_identity: what `verify_peer` returned; None until the certificate was accepted.
        refusal: why the peer was refused, if it was.
    """

    discovery_mode = DiscoveryMode.PROVIDES

    def __init__(
        self,
        *,
        verify_peer: VerifyPeer,
        connection_ids: ConnectionIds | None = None,
        **arguments: Any,
    ) -> None:
        for forbidden in ("session_ticket_fetcher", "session_ticket_handler"):
            if arguments.get(forbidden) is not None:
                raise ValueError(f"{forbidden}: a resumed session would skip the certificate")
        super().__init__(**arguments)
        self._connection_ids = connection_ids or ConnectionIds()
        self._name(self._host_cids[0])
        self.host_cid = self._local_initial_source_connection_id = self._host_cids[0].cid
        self.on_issued: Callable[[bytes], None] = lambda _: None
        self._verify_peer = verify_peer
        self.peer_identity: Any = None
        self.refusal: PeerRefused | None = None

    def _name(self, made: QuicConnectionId) -> None:
        """Put an ID of ours in the place of one that aioquic has made, before anybody sees it."""
        made.cid = self._connection_ids.issue()
        made.stateless_reset_token = self._connection_ids.reset_token(made.cid)

    def _replenish_connection_ids(self) -> None:
        known = len(self._host_cids)
        super()._replenish_connection_ids()
        for made in self._host_cids[known:]:
            self._name(made)
            self.on_issued(made.cid)

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        context = self.tls
        context._request_client_certificate = True
        handle_certificate = context._server_handle_certificate

        def handle_and_verify(input_buf: Buffer) -> None:
            handle_certificate(input_buf)
            self._accept_or_refuse()

        context._server_handle_certificate = handle_and_verify  # type: ignore[method-assign]

    def _accept_or_refuse(self) -> None:
        leaf = self.tls._peer_certificate
        chain = self.tls._peer_certificate_chain
        try:
            self.peer_identity = self._verify_peer(
                leaf.public_bytes(Encoding.DER) if leaf is not None else None,
                [certificate.public_bytes(Encoding.DER) for certificate in chain],
            )
        except PeerRefused as refusal:
            self.refusal = refusal
            raise
        if self.peer_identity is None:
            self.refusal = PeerRefused(
                tls.AlertDescription.certificate_required, "no client certificate"
            )
            raise self.refusal

    def is_authenticated(self) -> bool:
        """Whether the handshake completed with a verified certificate, not by resumption.

        Belt and braces: what a listener asks before it looks at application data.
        """
        return (
            self._handshake_complete
            and self.peer_identity is not None
            and self.refusal is None
            and not self.tls._session_resumed
        )


VerifyGateway = Callable[[bytes, Sequence[bytes]], None]
"""(leaf DER, chain DER); raises `PeerRefused`."""


class ClientQuicConnection(DiscoveringQuicConnection):
    """A client connection that asks `verify_gateway` before it sends its own certificate.

    Attributes:
        refusal: why the gateway was refused, if it was.
    """

    discovery_mode = DiscoveryMode.RECEIVES

    def __init__(self, *, verify_gateway: VerifyGateway, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._verify_gateway = verify_gateway
        self.refusal: PeerRefused | None = None

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        context = self.tls
        handle_certificate_verify = context._client_handle_certificate_verify

        def handle_and_verify(input_buf: Buffer) -> None:
            handle_certificate_verify(input_buf)
            leaf = context._peer_certificate
            assert leaf is not None
            chain = context._peer_certificate_chain
            try:
                self._verify_gateway(
                    leaf.public_bytes(Encoding.DER),
                    [certificate.public_bytes(Encoding.DER) for certificate in chain],
                )
            except PeerRefused as refusal:
                self.refusal = refusal
                raise

        context._client_handle_certificate_verify = handle_and_verify  # type: ignore[method-assign]
