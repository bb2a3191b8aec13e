"""HTTP/3 as CONNECT-IP needs it: aioquic's connection with HTTP datagrams on, and bounds.

aioquic holds a HEADERS frame until it is whole, of whatever length, and a header block may refer
to entries of a dynamic table that are each a thousand times longer than the reference. One
request per session needs neither: no dynamic table is offered, and little is held.
"""

from __future__ import annotations

import pylsqpack
from aioquic.h3.connection import ErrorCode, H3Connection, Setting
from aioquic.h3.events import H3Event
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import QuicEvent, StreamDataReceived

MAX_HELD_BYTES = 1 << 14
"""Of one stream: frames that are not whole. The longest legitimate one is a header block."""


class DatagramH3Connection(H3Connection):
    """aioquic advertises SETTINGS_H3_DATAGRAM only together with WebTransport; we do without."""

    def __init__(self, quic: QuicConnection) -> None:
        super().__init__(quic)
        self._decoder = pylsqpack.Decoder(0, 0)

    def _get_local_settings(self) -> dict[int, int]:
        settings: dict[int, int] = super()._get_local_settings()
        settings[Setting.H3_DATAGRAM] = 1
        settings[Setting.QPACK_MAX_TABLE_CAPACITY] = 0
        settings[Setting.QPACK_BLOCKED_STREAMS] = 0
        return settings

    def handle_event(self, event: QuicEvent) -> list[H3Event]:
        """See `H3Connection.handle_event`; a peer that makes us hold too much is cut off."""
        happened: list[H3Event] = super().handle_event(event)
        if isinstance(event, StreamDataReceived) and not self._is_done:
            stream = self._stream.get(event.stream_id)
            if stream is not None and len(stream.buffer) > MAX_HELD_BYTES:
                self._is_done = True
                self._quic.close(
                    error_code=ErrorCode.H3_EXCESSIVE_LOAD, reason_phrase="a frame is too long"
                )
        return happened

    def peer_settings_known(self) -> bool:
        """Whether the peer's SETTINGS frame has arrived."""
        return self.received_settings is not None

    def peer_takes_datagrams(self) -> bool:
        """SETTINGS_H3_DATAGRAM = 1 received (RFC 9297 section 2.1.1)."""
        return (self.received_settings or {}).get(Setting.H3_DATAGRAM) == 1

    def peer_takes_extended_connect(self) -> bool:
        """SETTINGS_ENABLE_CONNECT_PROTOCOL = 1 received (RFC 9220 section 3)."""
        return (self.received_settings or {}).get(Setting.ENABLE_CONNECT_PROTOCOL) == 1
