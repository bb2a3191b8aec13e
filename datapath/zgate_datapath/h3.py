"""HTTP/3 as CONNECT-IP needs it: aioquic's connection with HTTP datagrams switched on."""

from __future__ import annotations

from aioquic.h3.connection import H3Connection, Setting


class DatagramH3Connection(H3Connection):
    """aioquic advertises SETTINGS_H3_DATAGRAM only together with WebTransport; we do without."""

    def _get_local_settings(self) -> dict[int, int]:
        settings: dict[int, int] = super()._get_local_settings()
        settings[Setting.H3_DATAGRAM] = 1
        return settings

    def peer_settings_known(self) -> bool:
        """Whether the peer's SETTINGS frame has arrived."""
        return self.received_settings is not None

    def peer_takes_datagrams(self) -> bool:
        """SETTINGS_H3_DATAGRAM = 1 received (RFC 9297 section 2.1.1)."""
        return (self.received_settings or {}).get(Setting.H3_DATAGRAM) == 1

    def peer_takes_extended_connect(self) -> bool:
        """SETTINGS_ENABLE_CONNECT_PROTOCOL = 1 received (RFC 9220 section 3)."""
        return (self.received_settings or {}).get(Setting.ENABLE_CONNECT_PROTOCOL) == 1
