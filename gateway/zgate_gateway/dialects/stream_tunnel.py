"""Packets on the request stream: `zgate_protocol.dialects.stream`."""

from __future__ import annotations

from zgate_protocol.dialects.stream import encode_packet
from zgate_protocol.drop_reason import DropReason

from zgate_gateway.dialects.python_tunnel import PythonTunnel

# What the peer has not acknowledged. Beyond it packets are dropped, as a full queue drops them.
_MAX_BACKLOG_BYTES = 1 << 18
_MAX_PACKET_BYTES = 0xFFFF


class StreamTunnel(PythonTunnel):
    """A session of the stream dialect. The stream carries packets of every size."""

    @property
    def mtu_bytes(self) -> int:
        """The largest IP packet."""
        return _MAX_PACKET_BYTES

    def send(self, packet: bytes) -> DropReason:
        """Queue an IP packet towards the peer; the reason when it is dropped instead."""
        reason = self.session.check_outgoing(packet) or self._queue(packet)
        if reason:
            self.count(reason)
        return reason

    def reply(self, packet: bytes) -> None:
        """Queue a packet of our own making."""
        self._queue(packet)

    def _queue(self, packet: bytes) -> DropReason:
        if self.connection.stream_backlog_bytes(self.stream_id) > _MAX_BACKLOG_BYTES:
            return DropReason.QUEUE_FULL
        self.connection.send_data(self.stream_id, encode_packet(packet))
        return DropReason.NONE
