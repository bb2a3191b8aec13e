"""What every connection of a client has, whatever it speaks: a peer that has proved who it is.

Who does not ask for a session in time only takes up room.
"""

from __future__ import annotations

import asyncio

from aioquic.h3.connection import ErrorCode
from zgate_datapath.connection import Connection
from zgate_datapath.endpoint import ServerEndpoint
from zgate_datapath.local_address import local_host
from zgate_datapath.peer_authentication import ServerQuicConnection
from zgate_datapath.udp import format_address
from zgate_identity.verifier import PeerIdentity

from zgate_gateway.admission import PeerPath
from zgate_gateway.sessions import Session, SessionTable
from zgate_gateway.tracing.setup import SetupTrace

_SESSION_TIMEOUT_S = 10.0


class ProvedConnection:
    """The base of those that speak something (`zgate_datapath` ConnectionHandler).

    :cvar nothing_asked: code and reason for who asks for nothing.
    :cvar dialect: what is spoken, for traces.
    :ivar trace: notes the steps of the session's set-up; None: nobody follows it.
    """

    nothing_asked: tuple[int, str]
    dialect: str

    def __init__(
        self,
        table: SessionTable,
        endpoint: ServerEndpoint,
        connection: Connection,
        quic: ServerQuicConnection,
    ) -> None:
        self.connection = connection
        self.trace: SetupTrace | None = None
        self._table = table
        self._endpoint = endpoint
        self._quic = quic
        self._identity: PeerIdentity | None = None
        self._session: Session | None = None
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def peer(self) -> str:
        """The client's outer address and port."""
        return format_address(self.connection.peer_address)

    def path(self) -> PeerPath:
        """Where the client is, and which of our connection IDs and addresses it sends to."""
        address = self.connection.peer_address or ("-", 0)
        host, port = str(address[0]), int(address[1])
        return PeerPath(host, port, self._quic.host_cid, local_host(address))

    def handshake_completed(self) -> None:
        """No identity, no session: nothing of the client's is heard before it."""
        self._endpoint.handshake_completed(self.connection)
        if not self._quic.is_authenticated():
            self.connection.close(ErrorCode.H3_REQUEST_REJECTED, "not authenticated")
            return
        self._identity = self._quic.peer_identity
        if self.trace is not None:
            self.trace.proved(self._identity.name, self.dialect)
        self._deadline = self._table.loop.call_later(_SESSION_TIMEOUT_S, self._overdue)

    def _overdue(self) -> None:
        if self._session is None and not self.connection.is_terminated:
            self.connection.close(*self.nothing_asked)
            self._endpoint.flush(self.connection)

    def _no_deadline(self) -> None:
        """The connection has ended."""
        if self._deadline is not None:
            self._deadline.cancel()
