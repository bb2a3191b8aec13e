"""``stream``: CONNECT-IP with every packet in a capsule on the request stream, no datagrams.

    client -> gateway   HEADERS  :method CONNECT, no :protocol, protocol: connect-ip
    gateway -> client   HEADERS  :status 200
                        0x01 ADDRESS_ASSIGN { Count (i), { Request ID (i), Version (8),
                                              Address (32..128), Prefix Length (8) } ... }
    both                0x40 { IP packet (..) }

Capsule types that are not named here are skipped. The session is that of RFC 9484 in all else:
its states, its events, and its gate.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from zgate_protocol.capsule import AssignedAddress, Capsule, CapsuleType, DatagramCapsule
from zgate_protocol.connect_ip import ConnectIpSession, Role
from zgate_protocol.errors import MalformedCapsule, MalformedMessage
from zgate_protocol.events import Event, RequestReceived
from zgate_protocol.http_message import UPGRADE_TOKEN, Header, parse_classic_connect
from zgate_protocol.ip_range import IpAddress, IpNetwork, IpRange
from zgate_protocol.limits import DEFAULT_LIMITS, Limits
from zgate_protocol.service_capsule import ServiceCapsule
from zgate_protocol.uri_template import Scope
from zgate_protocol.varint import Truncated, decode_varint
from zgate_protocol.wire import encode_capsule, encode_list

IP_PACKET: Final = 0x40
_PROTOCOL_FIELD: Final = b"protocol"
_IP_CONTEXT: Final = b"\0"


def is_stream_request(headers: Sequence[Header]) -> bool:
    """Say whether a header section asks for this dialect; whether it is well-formed is not said."""
    names = [name for name, _ in headers]
    return (
        (b":method", b"CONNECT") in headers
        and b":protocol" not in names
        and (_PROTOCOL_FIELD, UPGRADE_TOKEN) in headers
    )


def encode_packet(packet: bytes) -> bytes:
    """Return the capsule that carries an IP packet."""
    return encode_capsule(IP_PACKET, packet)


class StreamSession(ConnectIpSession):
    """The proxy's side of a session in this dialect.

    A packet of the client's is told as DatagramReceived, as one in a DATAGRAM capsule is.
    """

    needs_datagrams = False

    def __init__(
        self,
        stream_id: int,
        *,
        own_addresses: Iterable[IpAddress] = (),
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """See ConnectIpSession."""
        super().__init__(Role.PROXY, stream_id, own_addresses=own_addresses, limits=limits)
        self._decoder = _PacketDecoder(limits)

    def accept(self, resolved: Iterable[IpNetwork] = ()) -> list[Header]:
        """Return the header section that accepts; the dialect knows no Capsule-Protocol field."""
        super().accept(resolved)
        return [(b":status", b"200")]

    def _receive_request(self, headers: Sequence[Header]) -> Event:
        try:
            authority = parse_classic_connect(headers)
        except MalformedMessage as error:
            return self._turn_away(400, str(error), error.error_code)
        return self._requested(RequestReceived(Scope(), authority, "", capsule_protocol=False))

    def assign(self, addresses: Iterable[AssignedAddress]) -> bytes:
        """See ConnectIpSession; the capsule's value begins with the number of entries."""
        entries = tuple(addresses)
        super().assign(entries)
        value = encode_list([entry.encode() for entry in entries])
        return encode_capsule(CapsuleType.ADDRESS_ASSIGN, value)

    def advertise(self, ranges: Iterable[IpRange]) -> bytes:
        """Set our routes; there is no capsule that would tell them."""
        super().advertise(ranges)
        return b""

    def send_capsule(self, capsule: ServiceCapsule) -> bytes:  # noqa: ARG002
        """Nothing is said about services in this dialect."""
        return b""


class _PacketDecoder:
    """Takes the packets out of the stream, whatever the pieces they come in."""

    def __init__(self, limits: Limits) -> None:
        self._max_packet_bytes = limits.max_datagram_capsule_bytes
        self._rest = b""
        self._skip_bytes = 0

    @property
    def buffered_bytes(self) -> int:
        """Bytes held of an incomplete header or packet."""
        return len(self._rest)

    def feed(self, data: bytes, fin: bool = False) -> list[Capsule]:
        """Take in bytes, and with ``fin`` the end; return packets as DATAGRAM capsules."""
        data = self._rest + data
        packets: list[Capsule] = []
        at = 0
        while at < len(data):
            if self._skip_bytes:
                skipped = min(self._skip_bytes, len(data) - at)
                self._skip_bytes -= skipped
                at += skipped
                continue
            try:
                capsule_type, value_at = decode_varint(data, at)
                length, value_at = decode_varint(data, value_at)
            except Truncated:
                break
            if capsule_type != IP_PACKET or length > self._max_packet_bytes:
                self._skip_bytes, at = length, value_at
                continue
            if value_at + length > len(data):
                break
            at = value_at + length
            packets.append(DatagramCapsule(_IP_CONTEXT + data[value_at:at]))
        self._rest = data[at:]
        if fin and (self._rest or self._skip_bytes):
            raise MalformedCapsule("the stream ends inside a capsule")
        return packets
