"""HTTP datagrams in QUIC DATAGRAM frames (RFC 9297 section 2.1, RFC 9484 sections 5 and 6).

HTTP/3 Datagram { Quarter Stream ID (i), Context ID (i), Payload (..) }
"""

from typing import Final, Generic, TypeVar

from zgate_protocol.drop_reason import DropReason
from zgate_protocol.errors import ConnectionFailure, H3Error, StreamError
from zgate_protocol.varint import Truncated, decode_varint, encode_varint

MAX_QUARTER_STREAM_ID: Final = (1 << 60) - 1
IP_CONTEXT: Final = 0

# RFC 9484 section 7.2: short header 1, connection ID 20, packet number 4, frame type 1,
# quarter stream ID 8, context ID 1, AEAD tag 16.
QUIC_OVERHEAD_BYTES: Final = 51
MIN_IPV6_MTU_BYTES: Final = 1280
MIN_QUIC_PACKET_BYTES_FOR_IPV6: Final = MIN_IPV6_MTU_BYTES + QUIC_OVERHEAD_BYTES


def datagram_prefix(stream_id: int, context_id: int = IP_CONTEXT) -> bytes:
    """Return the bytes that stand before the payload of a datagram of this request.

    ValueError if the stream is not a client-initiated bidirectional one.
    """
    if stream_id % 4:
        raise ValueError(f"stream {stream_id} is not a request stream")
    return encode_varint(stream_id // 4) + encode_varint(context_id)


def parse_http_datagram(payload: bytes) -> tuple[int, bytes]:
    """Return the quarter stream ID and the HTTP datagram payload.

    ConnectionFailure (DATAGRAM_ERROR) if there is no ID, or if it is above 2^60-1.
    """
    if payload and payload[0] < 0x40:
        return payload[0], payload[1:]
    try:
        quarter_stream_id, offset = decode_varint(payload, 0)
    except Truncated as error:
        raise ConnectionFailure(
            H3Error.DATAGRAM_ERROR, "a datagram ends inside its quarter stream ID"
        ) from error
    if quarter_stream_id > MAX_QUARTER_STREAM_ID:
        raise ConnectionFailure(
            H3Error.DATAGRAM_ERROR, f"quarter stream ID {quarter_stream_id} is above 2^60-1"
        )
    return quarter_stream_id, payload[offset:]


def parse_context(payload: bytes) -> tuple[int, bytes] | None:
    """Return context ID and the rest of an HTTP datagram payload; None if it ends too soon."""
    try:
        context_id, offset = decode_varint(payload, 0)
    except Truncated:
        return None
    return context_id, payload[offset:]


class ContextIds:
    """Hands out context IDs of one request: even from the client, odd from the proxy.

    0 is IP and is never handed out; no ID comes twice (RFC 9484 section 5).
    """

    def __init__(self, *, is_client: bool) -> None:
        self._next = 2 if is_client else 1

    def allocate(self) -> int:
        """Return the next ID of this end."""
        allocated = self._next
        self._next += 2
        return allocated


_Session = TypeVar("_Session")


class DatagramStreams(Generic[_Session]):
    """Which request of one connection a datagram belongs to."""

    def __init__(self) -> None:
        self._sessions: dict[int, _Session] = {}
        self._without_datagrams: set[int] = set()
        self._highest = -1

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, stream_id: int, session: _Session) -> None:
        """The request takes datagrams from now on."""
        self._highest = max(self._highest, stream_id // 4)
        self._without_datagrams.discard(stream_id // 4)
        self._sessions[stream_id // 4] = session

    def open_without_datagrams(self, stream_id: int) -> None:
        """The request is open and has no use for datagrams; one aborts it."""
        self._highest = max(self._highest, stream_id // 4)
        self._without_datagrams.add(stream_id // 4)

    def close(self, stream_id: int) -> None:
        """The request's receive side is closed; later datagrams are dropped."""
        self._sessions.pop(stream_id // 4, None)
        self._without_datagrams.discard(stream_id // 4)

    def find(self, payload: bytes) -> tuple[_Session, bytes] | DropReason:
        """Return the session and its part of a QUIC DATAGRAM payload, or why it is dropped.

        ConnectionFailure if the whole connection must end; DatagramNotExpected if the stream
        that it names must.
        """
        quarter_stream_id, rest = parse_http_datagram(payload)
        session = self._sessions.get(quarter_stream_id)
        if session is not None:
            return session, rest
        if quarter_stream_id in self._without_datagrams:
            raise DatagramNotExpected(quarter_stream_id * 4)
        if quarter_stream_id <= self._highest:
            return DropReason.SESSION_CLOSED
        return DropReason.UNKNOWN_STREAM


class DatagramNotExpected(StreamError):
    """A datagram for a request that has no semantics for datagrams (RFC 9297 section 2)."""

    def __init__(self, stream_id: int) -> None:
        super().__init__(H3Error.DATAGRAM_ERROR, f"stream {stream_id} takes no datagrams")
        self.stream_id = stream_id
