"""A client's connection where dialects are served: which one it speaks is found out here."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from zgate_datapath.connection import Connection, Headers
from zgate_datapath.endpoint import ServerEndpoint
from zgate_datapath.peer_authentication import ServerQuicConnection
from zgate_datapath.tunnel import Tunnel
from zgate_protocol.connect_ip import ConnectIpSession
from zgate_protocol.dialects import ztna_v1
from zgate_protocol.dialects.stream import StreamSession, is_stream_request

from zgate_gateway.client_connection import ClientConnection
from zgate_gateway.dialects.stream_tunnel import StreamTunnel
from zgate_gateway.dialects.ztna_connection import ZtnaConnection
from zgate_gateway.sessions import SessionTable

STREAM = "stream"
ZTNA_V1 = ztna_v1.ALPN


class DialectConnection(ClientConnection):
    """RFC 9484's connection, unless the client asks for a dialect that is served."""

    def __init__(
        self,
        dialects: Iterable[str],
        table: SessionTable,
        endpoint: ServerEndpoint,
        connection: Connection,
        quic: ServerQuicConnection,
    ) -> None:
        super().__init__(table, endpoint, connection, quic)
        self._dialects = frozenset(dialects)
        self._make_ztna = partial(ZtnaConnection, table, endpoint, connection, quic)

    def handshake_completed(self) -> None:
        """The protocol is known: the handler is another where it is not HTTP/3."""
        if self.connection.application_protocol == ZTNA_V1:
            handler = self._make_ztna()
            handler.trace = self.trace
            self.connection.set_handler(handler)
            handler.handshake_completed()
        else:
            super().handshake_completed()

    def make_session(self, stream_id: int, headers: Headers) -> ConnectIpSession:
        """What reads a request with these headers."""
        if STREAM in self._dialects and is_stream_request(headers):
            if self.trace is not None:
                self.trace.dialect = STREAM
            return StreamSession(stream_id)
        return super().make_session(stream_id, headers)

    def make_tunnel(self, session: ConnectIpSession) -> Tunnel:
        """What carries the packets of a session that is granted."""
        if isinstance(session, StreamSession):
            return StreamTunnel(self.connection, session, session.stream_id)
        return super().make_tunnel(session)
