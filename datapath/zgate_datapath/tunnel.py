"""One CONNECT-IP session on one connection: packets in and out, with a reason for every drop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zgate_protocol.connect_ip import ConnectIpSession
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.errors import ConnectionFailure
from zgate_protocol.http_datagram import parse_http_datagram
from zgate_protocol.packet_gate import address_pair
from zgate_protocol.varint import encode_varint

from zgate_datapath.connection import Connection
from zgate_datapath.engine import DirectPath, Prefix
from zgate_datapath.tun import VNET_HEADER_BYTES


class Tunnel:
    """Packets between a session's stream and whoever holds the TUN.

    Attributes:
        drops: packets dropped here, by reason.
    """

    def __init__(self, connection: Connection, session: ConnectIpSession, stream_id: int) -> None:
        self.connection = connection
        self.session = session
        self.stream_id = stream_id
        self.drops: dict[DropReason, int] = {}
        # RFC 9221 section 4: frame type 0x30, a DATAGRAM that reaches to the packet's end.
        self._frame_prefix = b"\x30" + session.wrap_prefix
        self._quarter_id = encode_varint(stream_id // 4)
        self.payload_prefix = session.wrap_prefix
        self._direct: DirectPath | None = None
        self._holder: DirectPath | None = None

    def carry(self) -> None:
        """Let the engine carry packets without Python, where it can: all that the TUN has.

        The gate goes on deciding: once for each pair of addresses.
        """
        if (direct := self._begin_direct()) is not None:
            direct.take_all()

    def carry_for(self, addresses: Sequence[bytes], networks: Sequence[Prefix] = ()) -> None:
        """The same, for what the TUN has for these addresses (packed) and in these networks.

        The full list: called again, it replaces the earlier one.

        Raises:
            ValueError: the engine cannot hold them.
        """
        if (direct := self._begin_direct()) is not None:
            self._holder = direct
            direct.hold(addresses, networks)

    def let_go(self) -> None:
        """Nothing that the TUN has is this session's any more."""
        if self._holder is not None:
            self._holder.hold((), ())

    def _begin_direct(self) -> DirectPath | None:
        if self._direct is None and (direct := self.connection.engine.direct) is not None:
            self._direct = direct
            self.session.gate.on_forget = direct.forget_pairs
            direct.carry(self.payload_prefix)
        return self._direct

    @property
    def mtu_bytes(self) -> int:
        """The largest IP packet that fits the path now; 0 before the handshake."""
        return max(0, self.connection.max_frame_payload_bytes + 1 - len(self._frame_prefix))

    def send(self, packet: bytes) -> DropReason:
        """Queue an IP packet towards the peer; the reason when it is dropped instead."""
        reason = self.session.check_outgoing(packet)
        if not reason:
            if len(packet) > self.mtu_bytes:
                reason = DropReason.TOO_BIG
            else:
                reason = self.connection.enqueue(self._frame_prefix + packet)
        if reason:
            self.count(reason)
        return reason

    def send_read(self, read: bytes, *, is_too_big: bool) -> DropReason:
        """Send what a read of the TUN gave (vnet header, packet), or say why not."""
        assert self._direct is not None
        packet = read[VNET_HEADER_BYTES:]
        reason = DropReason.TOO_BIG if is_too_big else self.session.check_outgoing(packet)
        if not reason:
            pair = address_pair(packet)
            if self.session.gate.remembers_outbound(pair):
                self._direct.allow_outbound(pair)
            reason = self._direct.send_read(read)
        if reason:
            self.count(reason)
        return reason

    def reply(self, packet: bytes) -> None:
        """Queue a packet of our own making: an ICMP error, an echo's answer."""
        if len(packet) <= self.mtu_bytes:
            self.connection.enqueue(self._frame_prefix + packet)

    def owns(self, payload: bytes) -> bool:
        """Whether a DATAGRAM frame's payload is this session's."""
        return payload.startswith(self._quarter_id)

    def shorten(self, payload: bytes) -> bytes | None:
        """A payload that is ours by a longer encoding of the quarter stream ID, in the short one.

        RFC 9000 section 16 lets a peer encode longer than needed. None: it is not ours.
        """
        try:
            quarter_stream_id, rest = parse_http_datagram(payload)
        except ConnectionFailure:
            return None
        return self._quarter_id + rest if quarter_stream_id == self.stream_id // 4 else None

    def receive(self, payload: bytes) -> bytes | DropReason:
        """The IP packet in a DATAGRAM frame's payload, or why there is none."""
        packet = self.session.unwrap(payload[len(self._quarter_id) :])
        if isinstance(packet, DropReason):
            self.count(packet)
        elif self._direct is not None:
            pair = address_pair(packet)
            if self.session.gate.remembers_inbound(pair):
                self._direct.allow_inbound(pair)
        return packet

    def restore(self, payload: bytes) -> bytes:
        """The frame payload that a DATAGRAM capsule's value would have come in."""
        return self._quarter_id + payload

    def count(self, reason: DropReason) -> None:
        """One more packet was dropped for this reason."""
        self.drops[reason] = self.drops.get(reason, 0) + 1


def add_drops(total: dict[DropReason, int], more: Iterable[tuple[DropReason, int]]) -> None:
    """Add up drop counters."""
    for reason, count in more:
        total[reason] = total.get(reason, 0) + count
