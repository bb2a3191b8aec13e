"""Packets in raw QUIC datagrams, their addresses exchanged: `zgate_protocol.dialects.ztna_v1`."""

from __future__ import annotations

from zgate_datapath.connection import Connection
from zgate_protocol.dialects.ztna_v1 import ZtnaSession
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.errors import PacketError

from zgate_gateway.dialects.python_tunnel import PythonTunnel
from zgate_gateway.dialects.translation import Translation

_NO_STREAM = 0
_IP_CONTEXT = b"\0"
_DATAGRAM_FRAME = b"\x30"


class ZtnaTunnel(PythonTunnel):
    """A session of the ztna-v1 dialect."""

    def __init__(
        self, connection: Connection, session: ZtnaSession, translation: Translation
    ) -> None:
        super().__init__(connection, session, _NO_STREAM)
        self.translation = translation

    def send(self, packet: bytes) -> DropReason:
        """Queue an IP packet towards the client; the reason when it is dropped instead."""
        reason = self._send(packet)
        if reason:
            self.count(reason)
        return reason

    def _send(self, packet: bytes) -> DropReason:
        reason = self.session.check_outgoing(packet)
        if reason:
            return reason
        if len(packet) > self.mtu_bytes:
            return DropReason.TOO_BIG
        try:
            translated = self.translation.to_client(packet)
        except PacketError as error:
            return error.reason
        if isinstance(translated, DropReason):
            return translated
        return self.connection.enqueue(_DATAGRAM_FRAME + translated)

    def take(self, packet: bytes, service: str | None) -> bytes | DropReason:
        """A client's packet as the kernel is to see it, or why it is dropped."""
        translated = self.translation.from_client(packet, service)
        if not isinstance(translated, DropReason):
            translated = self.session.unwrap(_IP_CONTEXT + translated)
        if isinstance(translated, DropReason):
            self.count(translated)
        return translated
