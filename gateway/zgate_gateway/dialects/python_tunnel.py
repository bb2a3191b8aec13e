"""A tunnel whose every packet goes through Python, whatever the engine is."""

from __future__ import annotations

from zgate_datapath.engine import DirectPath
from zgate_datapath.tunnel import Tunnel
from zgate_protocol.drop_reason import DropReason


class PythonTunnel(Tunnel):
    """The native engine reads the TUN for it, and leaves every read to be judged."""

    def _begin_direct(self) -> DirectPath | None:
        # It holds the addresses, and is not told to carry.
        return self.connection.engine.direct

    def send_read(self, read: bytes, *, is_too_big: bool) -> DropReason:  # noqa: ARG002
        """Send the packets that a read of the TUN stands for, or say why not all of them."""
        from zgate_datapath import _native  # who has read a vnet header has it

        packets = _native.segments(read, self.mtu_bytes)
        if not packets:
            reason = DropReason.TOO_BIG if packets is None else DropReason.BAD_LENGTH
            self.count(reason)
            return reason
        reason = DropReason.NONE
        for packet in packets:
            reason = self.send(packet) or reason
        return reason
