"""Which packets may pass between the two ends of a session (RFC 9484 sections 4.6 to 7.2).

A gate knows two tables: what the *peer* stands for (addresses that it may send from and
that may be sent to it) and what *this end* stands for. Every packet goes the same way:

1. ``unwrap`` or ``check_outgoing`` looks the pair of its addresses up in a set of pairs that
   were judged before. One slice, one lookup, the length field: this is all that most
   packets see.
2. ``_judge`` decides the rest: version and lengths, link-local, source, destination, and
   the IP protocol where a route or a scope is limited to one.
3. A pair for which every protocol may pass is remembered. The set is bounded, emptied when
   it is full, and emptied when a table changes.

Nothing here raises, whatever the bytes: a bad packet is a drop with a reason.
"""

from collections.abc import Callable, Iterable
from typing import Final

from zgate_protocol.drop_reason import DropReason
from zgate_protocol.errors import PacketError
from zgate_protocol.http_datagram import IP_CONTEXT, parse_context
from zgate_protocol.icmp import InvokingPacket, invoking_packet, is_icmp_error
from zgate_protocol.ip_header import check_packet, is_host_only, is_link_local, parse_ip
from zgate_protocol.ip_range import ICMP, ICMPV6, IpRange, Match, RouteTable

_PASS: Final = DropReason.NONE


class PacketGate:
    """The packet checks of one session, for either role.

    Whoever keeps a copy of the remembered pairs (the native packet engine) sets ``on_forget``,
    and drops its copy when it is called.
    """

    def __init__(self, *, is_proxy: bool, max_cached_pairs: int) -> None:
        self._is_proxy = is_proxy
        self._max_cached_pairs = max_cached_pairs
        self._inbound_pairs: set[bytes] = set()
        self._outbound_pairs: set[bytes] = set()
        self._peer = RouteTable()
        self._here = RouteTable()
        self._is_scoped = False
        self._closed_reason: DropReason = DropReason.NO_SESSION
        self.on_forget: Callable[[], None] = _nothing

    def open(self, *, is_scoped: bool) -> None:
        """Packets may pass from now on; ``is_scoped``: the request limits target or protocol."""
        self._is_scoped = is_scoped
        self._closed_reason = DropReason.NONE

    def close(self) -> None:
        """No packet passes any more."""
        self._closed_reason = DropReason.SESSION_CLOSED
        self._forget()

    def set_tables(self, *, peer: Iterable[IpRange], here: Iterable[IpRange]) -> None:
        """Replace what the peer and what this end stand for."""
        self._peer = RouteTable(peer)
        self._here = RouteTable(here)
        self._forget()

    @property
    def cached_pairs(self) -> int:
        """How many pairs are remembered, of both directions."""
        return len(self._inbound_pairs) + len(self._outbound_pairs)

    def _forget(self) -> None:
        self._inbound_pairs.clear()
        self._outbound_pairs.clear()
        self.on_forget()

    def remembers_inbound(self, pair: bytes) -> bool:
        """Whether ``unwrap`` passes every protocol from and to this pair of addresses."""
        return pair in self._inbound_pairs

    def remembers_outbound(self, pair: bytes) -> bool:
        """Whether ``check_outgoing`` passes every protocol from and to this pair."""
        return pair in self._outbound_pairs

    # From the peer.

    def unwrap(self, payload: bytes) -> bytes | DropReason:
        """Return the IP packet in an HTTP datagram payload, or the reason to drop it."""
        length = len(payload)
        if length > 20 and payload[0] == 0:
            first = payload[1]
            if first == 0x45:
                if (
                    payload[13:21] in self._inbound_pairs
                    and (payload[3] << 8 | payload[4]) == length - 1
                ):
                    return payload[1:]
            elif (
                first >> 4 == 6
                and payload[9:41] in self._inbound_pairs
                and (payload[5] << 8 | payload[6]) == length - 41
            ):
                return payload[1:]
        return self._unwrap_unknown(payload)

    def _unwrap_unknown(self, payload: bytes) -> bytes | DropReason:
        if self._closed_reason:
            return self._closed_reason
        parsed = parse_context(payload)
        if parsed is None:
            return DropReason.BAD_DATAGRAM
        context_id, packet = parsed
        if context_id != IP_CONTEXT:
            return DropReason.UNKNOWN_CONTEXT
        return self._judge_inbound(packet) or packet

    def _judge_inbound(self, packet: bytes) -> DropReason:
        reason = check_packet(packet)
        if reason:
            return reason
        source, destination = _addresses(packet)
        if is_link_local(destination) and len(destination) == 16:
            return DropReason.LINK_LOCAL_PEER
        if is_link_local(source) or is_link_local(destination):
            return DropReason.LINK_LOCAL
        if is_host_only(source):
            return DropReason.SOURCE_NOT_ASSIGNED
        if is_host_only(destination):
            return DropReason.DESTINATION_NOT_ROUTED
        if self._is_proxy and not self._peer.holds(source):
            return DropReason.SOURCE_NOT_ASSIGNED
        if self._peer.all_protocols(source) and self._here.all_protocols(destination):
            self._remember(self._inbound_pairs, source + destination)
            return _PASS
        return self._judge_inbound_protocol(packet, source, destination)

    def _judge_inbound_protocol(
        self, packet: bytes, source: bytes, destination: bytes
    ) -> DropReason:
        protocol = _protocol(packet)
        if isinstance(protocol, DropReason):
            return protocol
        match = self._peer.match(source, protocol)
        # A proxy drops unknown sources above, whatever they send. A client is here: its
        # proxy's network has routers that no route names, and they send ICMP.
        if match is Match.NO_RANGE and not _is_icmp(packet, protocol):
            return DropReason.SOURCE_NOT_ASSIGNED
        if match is Match.OTHER_PROTOCOL:
            return DropReason.PROTOCOL_OUT_OF_SCOPE
        missing = (
            DropReason.DESTINATION_NOT_ROUTED
            if self._is_proxy
            else DropReason.DESTINATION_NOT_ASSIGNED
        )
        return _reason_of(self._here.match(destination, protocol), missing)

    # To the peer.

    def check_outgoing(self, packet: bytes) -> DropReason:
        """Say whether ``packet`` may be sent to the peer; NONE (false) means yes."""
        length = len(packet)
        if length >= 20:
            first = packet[0]
            if first == 0x45:
                if packet[12:20] in self._outbound_pairs and (packet[2] << 8 | packet[3]) == length:
                    return _PASS
            elif (
                first >> 4 == 6
                and packet[8:40] in self._outbound_pairs
                and (packet[4] << 8 | packet[5]) == length - 40
            ):
                return _PASS
        return self._closed_reason or self._judge_outbound(packet)

    def _judge_outbound(self, packet: bytes) -> DropReason:
        reason = check_packet(packet)
        if reason:
            return reason
        source, destination = _addresses(packet)
        if is_link_local(source) or is_link_local(destination):
            return DropReason.LINK_LOCAL
        if is_host_only(source):
            return DropReason.SOURCE_NOT_ASSIGNED
        if self._peer.all_protocols(destination) and self._source_is_free(source):
            self._remember(self._outbound_pairs, source + destination)
            return _PASS
        return self._judge_outbound_protocol(packet, source, destination)

    def _source_is_free(self, source: bytes) -> bool:
        """Say whether ``source`` may send any protocol, so that the pair may be remembered."""
        if self._is_proxy:
            return not self._is_scoped
        return self._here.all_protocols(source)

    def _judge_outbound_protocol(
        self, packet: bytes, source: bytes, destination: bytes
    ) -> DropReason:
        protocol = _protocol(packet)
        if isinstance(protocol, DropReason):
            return protocol
        missing = (
            DropReason.DESTINATION_NOT_ASSIGNED
            if self._is_proxy
            else DropReason.DESTINATION_NOT_ROUTED
        )
        reason = self._judge_outbound_source(packet, source, protocol)
        return reason or _reason_of(self._peer.match(destination, protocol), missing)

    def _judge_outbound_source(self, packet: bytes, source: bytes, protocol: int) -> DropReason:
        if self._source_is_free(source):
            return _PASS
        if self._is_proxy and _is_icmp(packet, protocol):
            return self._judge_scoped_icmp(packet)
        return _reason_of(self._here.match(source, protocol), DropReason.SOURCE_NOT_ASSIGNED)

    def _judge_scoped_icmp(self, packet: bytes) -> DropReason:
        """Pass ICMP from anywhere, but an error only to the client whose packet it is about.

        Clients with different scopes may share an address (RFC 9484 section 11).
        """
        if not is_icmp_error(packet):
            return _PASS
        about = invoking_packet(packet)
        if about is not None and self._is_within_scope(about):
            return _PASS
        return DropReason.PROTOCOL_OUT_OF_SCOPE

    def _is_within_scope(self, about: InvokingPacket) -> bool:
        return self._peer.lookup(about.source, about.protocol) and self._here.lookup(
            about.destination, about.protocol
        )

    def _remember(self, pairs: set[bytes], pair: bytes) -> None:
        if len(pairs) >= self._max_cached_pairs:
            pairs.clear()
        pairs.add(pair)


def _nothing() -> None:
    """Nobody keeps a copy."""


def address_pair(packet: bytes) -> bytes:
    """Source and destination of an IP packet that has passed, as a gate remembers them."""
    return packet[12:20] if packet[0] >> 4 == 4 else packet[8:40]


def _addresses(packet: bytes) -> tuple[bytes, bytes]:
    if packet[0] >> 4 == 4:
        return packet[12:16], packet[16:20]
    return packet[8:24], packet[24:40]


def _protocol(packet: bytes) -> int | DropReason:
    try:
        return parse_ip(packet).upper_protocol
    except PacketError as error:
        return error.reason


def _is_icmp(packet: bytes, protocol: int) -> bool:
    return protocol == (ICMP if packet[0] >> 4 == 4 else ICMPV6)


def _reason_of(match: Match, missing: DropReason) -> DropReason:
    if match is Match.NO_RANGE:
        return missing
    if match is Match.OTHER_PROTOCOL:
        return DropReason.PROTOCOL_OUT_OF_SCOPE
    return _PASS
