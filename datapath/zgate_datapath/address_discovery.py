"""QUIC address discovery on aioquic: draft-ietf-quic-address-discovery-01.

aioquic knows neither the transport parameter nor the frame. The parameter is added to those that
it writes and looked for in those that it reads; the frame is written where aioquic writes
MAX_DATA, in every 1-RTT packet that has something to say, and handled where it handles frames.
"""

from __future__ import annotations

from typing import Any, ClassVar

from aioquic import tls
from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.connection import QuicConnection, QuicConnectionError, QuicReceiveContext
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from zgate_protocol.address_discovery import (
    ADDRESS_DISCOVERY_PARAMETER,
    MAX_FRAME_BYTES,
    OBSERVED_IPV4,
    OBSERVED_IPV6,
    DiscoveryMode,
    decode_observed_address,
    encode_observed_address,
    parse_discovery_mode,
    seen_address,
)
from zgate_protocol.service_capsule import ObservedAddress
from zgate_protocol.varint import Truncated, decode_varint, encode_varint

from zgate_datapath import aioquic_private as private
from zgate_datapath.udp import Address

_EPOCHS = frozenset((tls.Epoch.ONE_RTT,))


class DiscoveringQuicConnection(QuicConnection):
    """A connection that tells its peer the address that it sees, or is told, or both.

    Attributes:
        discovery_mode: what this end does.
        peer_discovery_mode: what the peer does; None: it knows nothing of this.
        observed_address: what the peer said last of us; None: nothing yet.
    """

    discovery_mode: ClassVar[DiscoveryMode]

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.peer_discovery_mode: DiscoveryMode | None = None
        self.observed_address: ObservedAddress | None = None
        self._observations = 0
        self._told_address: Address | None = None
        for frame_type in (OBSERVED_IPV4, OBSERVED_IPV6):
            private.frame_handlers(self)[frame_type] = (self._handle_observed_address, _EPOCHS)

    @property
    def tells_observed_address(self) -> bool:
        """Whether the peer hears of every address that we see it at."""
        peer = self.peer_discovery_mode
        return self.discovery_mode.provides and peer is not None and peer.receives

    # The transport parameter.

    def _serialize_transport_parameters(self) -> bytes:
        value = encode_varint(self.discovery_mode)
        parameter = encode_varint(ADDRESS_DISCOVERY_PARAMETER) + encode_varint(len(value)) + value
        return super()._serialize_transport_parameters() + parameter

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket)
        value = _find_parameter(data, ADDRESS_DISCOVERY_PARAMETER)
        try:
            self.peer_discovery_mode = None if value is None else parse_discovery_mode(value)
        except ValueError as error:
            raise QuicConnectionError(
                error_code=QuicErrorCode.TRANSPORT_PARAMETER_ERROR,
                frame_type=QuicFrameType.CRYPTO,
                reason_phrase=f"address_discovery: {error}",
            ) from error

    # The frame, out.

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        super()._write_connection_limits(builder, space)
        path = private.active_path(self)
        if self.tells_observed_address and path is not None and path.addr != self._told_address:
            self._write_observed_address(builder, path.addr)

    def _write_observed_address(self, builder: QuicPacketBuilder, address: Address) -> None:
        observed = ObservedAddress(self._observations, seen_address(address[0]), address[1])
        frame = encode_observed_address(observed)
        frame_type, begin = decode_varint(frame)
        # Raises when there is no room: then it goes into another packet.
        buffer = builder.start_frame(
            frame_type,
            capacity=MAX_FRAME_BYTES,
            handler=self._on_observed_address_delivery,
            handler_args=(observed.sequence,),
        )
        buffer.push_bytes(frame[begin:])
        self._observations += 1
        self._told_address = address

    def _on_observed_address_delivery(self, state: QuicDeliveryState, sequence: int) -> None:
        """What is lost is not repeated but said anew (section 4.1): it may be another by now."""
        if state is QuicDeliveryState.LOST and sequence == self._observations - 1:
            self._told_address = None

    # The frame, in.

    def _handle_observed_address(
        self,
        context: QuicReceiveContext,  # noqa: ARG002
        frame_type: int,
        buffer: Buffer,
    ) -> None:
        peer = self.peer_discovery_mode
        if not self.discovery_mode.receives or peer is None or not peer.provides:
            raise QuicConnectionError(
                error_code=QuicErrorCode.PROTOCOL_VIOLATION,
                frame_type=frame_type,
                reason_phrase="an observed address that nobody asked for",
            )
        rest = buffer.data_slice(buffer.tell(), buffer.capacity)
        try:
            observed, length = decode_observed_address(frame_type, rest)
        except Truncated as error:
            raise QuicConnectionError(
                error_code=QuicErrorCode.FRAME_ENCODING_ERROR,
                frame_type=frame_type,
                reason_phrase=str(error),
            ) from error
        buffer.seek(buffer.tell() + length)
        if self.observed_address is None or observed.sequence > self.observed_address.sequence:
            self.observed_address = observed


def _find_parameter(data: bytes, wanted: int) -> bytes | None:
    """The value of a transport parameter, of a list that aioquic has parsed without complaint."""
    at = 0
    while at < len(data):
        number, at = decode_varint(data, at)
        length, at = decode_varint(data, at)
        if number == wanted:
            return data[at : at + length]
        at += length
    return None
