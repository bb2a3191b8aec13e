"""The UDP port: QUIC connections from clients that prove who they are.

Everything a stranger can reach before the handshake is done lives here and in
`zgate_datapath.endpoint`; nothing else of the daemon sees a peer without an identity.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from aioquic.quic.configuration import QuicConfiguration
from aioquic.tls import AlertDescription
from zgate_datapath.client import CIPHER_SUITES, CONTROL_PACKET_BYTES, MAX_DATAGRAM_FRAME_BYTES
from zgate_datapath.congestion import algorithm_name
from zgate_datapath.connection import HTTP3, Connection, ConnectionHandler
from zgate_datapath.connection_ids import CONNECTION_ID_BYTES, ConnectionIds
from zgate_datapath.endpoint import ServerEndpoint
from zgate_datapath.peer_authentication import (
    PeerRefused,
    ServerQuicConnection,
    load_own_certificate,
)
from zgate_datapath.udp import UdpSocket
from zgate_identity.refusal import CertificateRefused
from zgate_identity.reload import ReloadingClientVerifier
from zgate_identity.verifier import PeerIdentity

if TYPE_CHECKING:
    from zgate_gateway.tracing.watch import SetupWatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    """What the port needs to know; files are PEM.

    Attributes:
        protocols: that a client may ask for (ALPN), those that we like better first.
    """

    certificate_file: Path
    key_file: Path
    engine: str
    congestion: str
    idle_timeout_s: float
    max_udp_payload_bytes: int
    queue_packets: int = 512
    protocols: tuple[str, ...] = (HTTP3,)


class Listener:
    """Accepts connections and gives each verified one a handler.

    `make_handler` is called for each new connection, before anything is known of its peer;
    `on_refused` with the reason and the text for each certificate that is refused.
    `connection_ids` and `retry_key`: see `ServerEndpoint`. `traces` follows some set-ups.
    """

    def __init__(
        self,
        settings: ListenerSettings,
        verifier: ReloadingClientVerifier,
        *,
        make_handler: Callable[[Listener, Connection, ServerQuicConnection], ConnectionHandler],
        on_refused: Callable[[Connection, str, str], None],
        connection_ids: ConnectionIds | None = None,
        retry_key: bytes | None = None,
        traces: SetupWatch | None = None,
    ) -> None:
        self._settings = settings
        self._verifier = verifier
        self._make_handler = make_handler
        self._on_refused = on_refused
        self._connection_ids = connection_ids
        self._retry_key = retry_key
        self._traces = traces
        self._quic_configuration = self._load_configuration()
        self.endpoint: ServerEndpoint | None = None

    def _load_configuration(self) -> QuicConfiguration:
        settings = self._settings
        configuration = QuicConfiguration(
            is_client=False,
            alpn_protocols=list(settings.protocols),
            cipher_suites=CIPHER_SUITES,
            connection_id_length=CONNECTION_ID_BYTES,
            congestion_control_algorithm=algorithm_name(settings.congestion),
            idle_timeout=settings.idle_timeout_s,
            max_datagram_frame_size=MAX_DATAGRAM_FRAME_BYTES,
            max_datagram_size=CONTROL_PACKET_BYTES,
        )
        load_own_certificate(configuration, settings.certificate_file, settings.key_file)
        return configuration

    def open(self, udp: UdpSocket, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to accept on a bound socket, which is the listener's from now on."""
        self.endpoint = ServerEndpoint(
            udp,
            loop,
            configuration=self._quic_configuration,
            make_connection=self._make_connection,
            engine=self._settings.engine,
            connection_ids=self._connection_ids,
            retry_key=self._retry_key,
        )
        self.endpoint.start()

    def reload_certificate(self) -> None:
        """New connections get what the files hold now; those that are up keep theirs.

        Raises:
            OSError, ValueError: a file cannot be used; the old certificate stays.
        """
        fresh = self._load_configuration()
        self._quic_configuration.certificate = fresh.certificate
        self._quic_configuration.certificate_chain = fresh.certificate_chain
        self._quic_configuration.private_key = fresh.private_key

    def stop_accepting(self) -> None:
        """No new connection; those that are up go on."""
        if self.endpoint is not None:
            self.endpoint.accepting = False

    def close(self) -> None:
        """Close the port."""
        if self.endpoint is not None:
            self.endpoint.close()
            self.endpoint = None

    def _make_connection(
        self, original_cid: bytes, retry_cid: bytes | None, now: float
    ) -> Connection:
        assert self.endpoint is not None

        def verify(leaf_der: bytes | None, chain_der: Sequence[bytes]) -> PeerIdentity:
            return self._verify(connection, leaf_der, chain_der)

        quic = ServerQuicConnection(
            verify_peer=verify,
            connection_ids=self.endpoint.connection_ids,
            configuration=self._quic_configuration,
            original_destination_connection_id=original_cid,
            retry_source_connection_id=retry_cid,
        )
        connection = Connection(
            quic,
            udp=self.endpoint.udp,
            carrier=self.endpoint.carrier,
            max_udp_payload_bytes=self._settings.max_udp_payload_bytes,
            queue_packets=self._settings.queue_packets,
            now=now,
        )
        # aioquic's event comes when somebody asks for events, and by then the client may be using
        # the ID: a packet with an ID that we do not know is answered with a stateless reset.
        quic.on_issued = connection.issued_ids.append
        connection.set_handler(self._make_handler(self, connection, quic))
        return connection

    def _look_at(
        self, connection: Connection, leaf_der: bytes | None, chain_der: Sequence[bytes]
    ) -> PeerIdentity:
        began_s = time.monotonic()
        try:
            return self._verifier.verify(leaf_der, chain_der, datetime.now(UTC))
        finally:
            if self._traces is not None and (trace := self._traces.of(connection)) is not None:
                trace.verified(began_s)

    def _verify(
        self, connection: Connection, leaf_der: bytes | None, chain_der: Sequence[bytes]
    ) -> PeerIdentity:
        try:
            return self._look_at(connection, leaf_der, chain_der)
        except CertificateRefused as refused:
            if self.endpoint is not None:
                self.endpoint.handshake_refused(connection)
            self._on_refused(connection, str(refused.reason), refused.text)
            # The peer learns the alert, not the text: that is for our log.
            raise PeerRefused(
                AlertDescription(refused.reason.tls_alert), "certificate refused"
            ) from refused
