"""The packet engine in pure Python: batches, header protection in one call per batch.

A packet's way in: `open` -> header protection of the whole batch (one AES-ECB call) -> packet
number -> AEAD -> DATAGRAM frames -> the caller; the packet numbers go to aioquic's ACK queue.
A packet's way out: `seal` -> packet number from aioquic's counter -> AEAD -> header protection
of the whole batch -> registered in aioquic's recovery, so that its ACK, RTT, PTO and congestion
code run unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from aioquic import tls
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicPacketType, decode_packet_number
from aioquic.quic.packet_builder import QuicDeliveryState
from cryptography.exceptions import InvalidTag
from zgate_protocol.drop_reason import DropReason

from zgate_datapath import aioquic_private as private
from zgate_datapath.engine import Carried, DirectPath, EngineCounters, Opened, ProbeResult
from zgate_datapath.send_queue import SendQueue
from zgate_datapath.udp import Address

TAG_BYTES = 16
_SAMPLE_BYTES = 16
_PACKET_NUMBER_BYTES = 4
_SPIN_BIT = 0x20
_RESERVED_BITS = 0x18
_KEY_PHASE_BIT = 0x04
_FRAME_PADDING = 0x00
_FRAME_PING = 0x01
_FRAME_DATAGRAM = 0x30
_FRAME_DATAGRAM_WITH_LENGTH = 0x31

# A burst of a batch may overtake another on the path; aioquic's own window of 128 packets
# would take the overtaken ones for duplicates.
_REPLAY_WINDOW_PACKETS = 4096
# The idle timer (seconds long) restarts this often at most: computing it costs per packet.
_IDLE_RESTART_INTERVAL_S = 0.1
# aioquic's own bound (`MAX_ACK_RANGES`).
_MAX_ACK_RANGES = 64
# Acknowledge at once when this many wait; fewer wait for aioquic's ACK timer (1 ms or so).
_ACK_AT_ONCE_PACKETS = 16
# RFC 9001 section 6.6: AES-GCM keys seal at most 2^23 packets. Update well before.
_KEY_UPDATE_PACKETS = 1 << 22


class _SentDatagrams:
    """What aioquic's recovery wants to know of a sent packet (duck-typed QuicSentPacket)."""

    __slots__ = ("packet_number", "sent_bytes", "sent_time")

    epoch: ClassVar[tls.Epoch] = tls.Epoch.ONE_RTT
    packet_type: ClassVar[QuicPacketType] = QuicPacketType.ONE_RTT
    in_flight: ClassVar[bool] = True
    is_ack_eliciting: ClassVar[bool] = True
    is_crypto_packet: ClassVar[bool] = False
    # A lost datagram is lost: nothing is sent again (RFC 9221 section 5.2).
    delivery_handlers: ClassVar[tuple[Any, ...]] = ()

    def __init__(self, packet_number: int, sent_time: float, sent_bytes: int) -> None:
        self.packet_number = packet_number
        self.sent_time = sent_time
        self.sent_bytes = sent_bytes


class _SentProbe:
    """A path MTU probe: its loss says nothing about congestion (RFC 9000 section 14.4)."""

    __slots__ = ("delivery_handlers", "packet_number", "sent_bytes", "sent_time")

    epoch: ClassVar[tls.Epoch] = tls.Epoch.ONE_RTT
    packet_type: ClassVar[QuicPacketType] = QuicPacketType.ONE_RTT
    in_flight: ClassVar[bool] = False
    is_ack_eliciting: ClassVar[bool] = True
    is_crypto_packet: ClassVar[bool] = False

    def __init__(
        self, packet_number: int, sent_time: float, sent_bytes: int, on_result: ProbeResult
    ) -> None:
        self.packet_number = packet_number
        self.sent_time = sent_time
        self.sent_bytes = sent_bytes

        def deliver(state: QuicDeliveryState) -> None:
            on_result(state is QuicDeliveryState.ACKED, sent_bytes)

        self.delivery_handlers = [(deliver, ())]


class _DirectionKeys:
    """The AEAD and header protection of one direction, unwrapped once per key."""

    __slots__ = ("_context", "aead", "iv", "mask_batch")

    def __init__(self) -> None:
        self._context: Any = None
        self.mask_batch: Callable[[list[bytes]], bytes]

    def follow(self, context: Any) -> bool:
        """Take the keys of aioquic's crypto context; True when they are new ones."""
        if context.aead is self._context:
            return False
        self._context = context.aead
        self.aead = context.aead._aead
        self.iv: int = context.aead._iv
        protection = context.hp
        encryptor = protection._encryptor
        if protection._is_chacha20:
            self.mask_batch = lambda samples: b"".join(
                bytes(protection._mask(sample)).ljust(_SAMPLE_BYTES, b"\0") for sample in samples
            )
        else:
            self.mask_batch = lambda samples: encryptor.update(b"".join(samples))
        return True


class PythonEngine:
    """`zgate_datapath.engine.PacketEngine` without native code."""

    name = "python"
    direct: DirectPath | None = None
    carried = Carried()
    first_packet_s = 0.0

    def __init__(self, quic: QuicConnection) -> None:
        self._quic = quic
        self._queue = SendQueue()
        self._receive_keys = _DirectionKeys()
        self._send_keys = _DirectionKeys()
        self._keys_since_packet = 0
        self._unacknowledged = 0
        self._idle_restarted_at = float("-inf")
        self.last_received_s = float("-inf")
        self.counters = EngineCounters()

    # Receive.

    def open(self, packets: Sequence[bytes], address: Address, now: float) -> Opened:
        """See `PacketEngine.open`."""
        opened = Opened()
        quic = self._quic
        path = private.active_path(quic)
        if (
            path is None
            or path.addr != address
            or not path.is_validated
            or not quic._handshake_complete
            or private.is_ending(quic)
        ):
            opened.rest = list(packets)
            return opened
        context = private.crypto_pair(quic).recv
        self._receive_keys.follow(context)
        cid = quic.host_cid
        number_offset = 1 + len(cid)
        least_bytes = number_offset + _PACKET_NUMBER_BYTES + _SAMPLE_BYTES
        ours: list[bytes] = []
        for packet in packets:
            # Short header, known connection ID, long enough for a sample.
            if (
                len(packet) >= least_bytes
                and packet[0] & 0xC0 == 0x40
                and packet[1:number_offset] == cid
            ):
                ours.append(packet)
            else:
                opened.rest.append(packet)
        if ours:
            numbers = self._open_ours(ours, number_offset, context.key_phase, opened)
            if numbers:
                self._register_received(numbers, now)
        return opened

    def _open_ours(
        self, packets: list[bytes], number_offset: int, key_phase: int, opened: Opened
    ) -> list[int]:
        sample_offset = number_offset + _PACKET_NUMBER_BYTES
        sample_end = sample_offset + _SAMPLE_BYTES
        masks = self._receive_keys.mask_batch([p[sample_offset:sample_end] for p in packets])
        decrypt, iv = self._receive_keys.aead.decrypt, self._receive_keys.iv
        space = private.application_space(self._quic)
        window = space.received_packets
        window._size = _REPLAY_WINDOW_PACKETS
        expected = space.expected_packet_number
        phase_bits = key_phase << 2
        numbers: list[int] = []
        spin = 0
        for index, packet in enumerate(packets):
            mask_offset = index * _SAMPLE_BYTES
            first = packet[0] ^ (masks[mask_offset] & 0x1F)
            if first & (_RESERVED_BITS | _KEY_PHASE_BIT) != phase_bits:
                # Another key phase or reserved bits: aioquic's business.
                opened.rest.append(packet)
                continue
            number_bytes = (first & 0x03) + 1
            header_end = number_offset + number_bytes
            truncated = int.from_bytes(packet[number_offset:header_end], "big") ^ int.from_bytes(
                masks[mask_offset + 1 : mask_offset + 1 + number_bytes], "big"
            )
            number = decode_packet_number(truncated, number_bytes * 8, expected)
            if number in window:
                self.counters.duplicate_packets += 1
                continue
            header = (
                first.to_bytes(1, "big")
                + packet[1:number_offset]
                + truncated.to_bytes(number_bytes, "big")
            )
            try:
                plain = decrypt((iv ^ number).to_bytes(12, "big"), packet[header_end:], header)
            except InvalidTag:
                # Forged or damaged: it has cost one AEAD and must not cost a second.
                self.counters.forged_packets += 1
                continue
            if not _append_datagrams(plain, opened.datagrams):
                opened.rest.append(packet)
                continue
            window.add(number)
            numbers.append(number)
            if number >= expected:
                expected = number + 1
                spin = first & _SPIN_BIT
        if numbers:
            self._follow_spin(numbers[-1], bool(spin))
        self.counters.opened_packets += len(numbers)
        return numbers

    def _follow_spin(self, number: int, spin: bool) -> None:
        quic = self._quic
        if number > quic._spin_highest_pn:
            quic._spin_bit = not spin if quic.configuration.is_client else spin
            quic._spin_highest_pn = number

    def _register_received(self, numbers: list[int], now: float) -> None:
        """Tell aioquic what arrived, so that one received set writes every ACK."""
        self.last_received_s = now
        quic = self._quic
        space = private.application_space(quic)
        start = previous = numbers[0]
        for number in numbers[1:]:
            if number != previous + 1:
                space.ack_queue.add(start, previous + 1)
                start = number
            previous = number
        space.ack_queue.add(start, previous + 1)
        while len(space.ack_queue) > _MAX_ACK_RANGES:
            space.ack_queue.shift()
        largest = max(numbers)
        if largest > space.largest_received_packet:
            space.largest_received_packet = largest
            space.largest_received_time = now
            space.expected_packet_number = max(space.expected_packet_number, largest + 1)
        if space.ack_at is None:
            self._unacknowledged = 0
            space.ack_at = now + quic._ack_delay
        self._unacknowledged += len(numbers)
        if self._unacknowledged >= _ACK_AT_ONCE_PACKETS:
            space.ack_at = now
        if now >= self._idle_restarted_at + _IDLE_RESTART_INTERVAL_S:
            self._idle_restarted_at = now
            quic._close_at = now + quic._idle_timeout()
        quic._ack_eliciting_sent_since_receipt = False

    # Send.

    def start(self, now: float) -> None:
        """See `PacketEngine.start`."""

    def enqueue(self, frame: bytes) -> DropReason:
        """See `PacketEngine.enqueue`."""
        self._queue.append(frame)
        return DropReason.NONE

    def queued_packets(self) -> int:
        """See `PacketEngine.queued_packets`."""
        return len(self._queue)

    def send_queued(self, most_bytes: int, now: float) -> list[bytes]:
        """See `PacketEngine.send_queued`."""
        if not self._queue:
            return []
        overhead_bytes = 1 + len(self._quic._peer_cid.cid) + _PACKET_NUMBER_BYTES + TAG_BYTES
        payloads = self._queue.take(self.window_bytes(), most_bytes, overhead_bytes)
        return self.seal(payloads, now) if payloads else []

    def set_frame_limit(self, frame_payload_bytes: int, udp_payload_bytes: int) -> None:
        """See `PacketEngine.set_frame_limit`: here every call says it."""

    def enter_aioquic(self, now: float) -> None:
        """See `PacketEngine.enter_aioquic`: here all state is aioquic's."""

    def leave_aioquic(self, now: float) -> None:
        """See `PacketEngine.leave_aioquic`."""

    def statistics(self) -> dict[str, float]:
        """See `PacketEngine.statistics`."""
        return {}

    def path_changed(self) -> None:
        """See `PacketEngine.path_changed`: aioquic's congestion control learns it by itself."""

    def take_drops(self) -> list[tuple[DropReason, int]]:
        """See `PacketEngine.take_drops`."""
        too_big, self._queue.too_big = self._queue.too_big, 0
        return [(DropReason.TOO_BIG, too_big)] if too_big else []

    def close(self) -> int:
        """See `PacketEngine.close`."""
        return self._queue.clear()

    def window_bytes(self) -> int:
        """See `PacketEngine.window_bytes`."""
        quic = self._quic
        path = private.active_path(quic)
        if path is None or not quic._handshake_complete or private.is_ending(quic):
            return 0
        pair = private.crypto_pair(quic)
        if pair.send.aead is None:
            return 0
        loss = private.recovery(quic)
        window = loss.congestion_window - loss.bytes_in_flight
        if not path.is_validated:
            # RFC 9000 section 8: three times what came from an address nobody proved.
            window = min(window, path.bytes_received * 3 - path.bytes_sent)
        return max(0, window)

    def seal(self, payloads: Sequence[bytes], now: float) -> list[bytes]:
        """Make one UDP payload of each packet payload (whole frames), and register them as sent.

        The caller has asked `window_bytes`; sealing beyond it breaks congestion control.
        """
        quic = self._quic
        first_number = quic._packet_number
        packets = self._protect(payloads)
        space = private.application_space(quic)
        sent = space.sent_packets
        total_bytes = 0
        for number, packet in enumerate(packets, first_number):
            size = len(packet)
            total_bytes += size
            sent[number] = _SentDatagrams(number, now, size)  # type: ignore[assignment]
        space.ack_eliciting_in_flight += len(packets)
        self._register_sent(first_number, total_bytes, now)
        self.counters.sealed_packets += len(packets)
        return packets

    def seal_probe(self, udp_payload_bytes: int, on_result: ProbeResult, now: float) -> bytes:
        """See `PacketEngine.seal_probe`."""
        quic = self._quic
        number = quic._packet_number
        overhead = 1 + len(quic._peer_cid.cid) + _PACKET_NUMBER_BYTES + TAG_BYTES
        payload = bytes([_FRAME_PING]).ljust(udp_payload_bytes - overhead, b"\0")
        (packet,) = self._protect([payload])
        space = private.application_space(quic)
        probe = _SentProbe(number, now, len(packet), on_result)
        space.sent_packets[number] = probe  # type: ignore[assignment]
        space.ack_eliciting_in_flight += 1
        private.recovery(quic)._time_of_last_sent_ack_eliciting_packet = now
        self._count_path_bytes(len(packet), now)
        return packet

    def _protect(self, payloads: Sequence[bytes]) -> list[bytes]:
        quic = self._quic
        pair = private.crypto_pair(quic)
        if pair._update_key_requested:
            pair._update_key("local_update")
        if self._send_keys.follow(pair.send):
            self._keys_since_packet = quic._packet_number
        encrypt, iv = self._send_keys.aead.encrypt, self._send_keys.iv
        number = quic._packet_number
        cid = quic._peer_cid.cid
        first = 0x40 | (_PACKET_NUMBER_BYTES - 1) | (pair.key_phase << 2)
        if quic._spin_bit:
            first |= _SPIN_BIT
        head = bytes([first]) + cid
        headers: list[bytes] = []
        bodies: list[bytes] = []
        for payload in payloads:
            header = head + (number & 0xFFFFFFFF).to_bytes(4, "big")
            headers.append(header)
            bodies.append(encrypt((iv ^ number).to_bytes(12, "big"), payload, header))
            number += 1
        masks = self._send_keys.mask_batch([body[:_SAMPLE_BYTES] for body in bodies])
        header_bytes = len(head) + 4
        first_shift = 8 * (header_bytes - 1)
        packets: list[bytes] = []
        offset = 0
        for header, body in zip(headers, bodies, strict=True):
            masked = (
                int.from_bytes(header, "big")
                ^ (masks[offset] & 0x1F) << first_shift
                ^ int.from_bytes(masks[offset + 1 : offset + 5], "big")
            )
            packets.append(masked.to_bytes(header_bytes, "big") + body)
            offset += _SAMPLE_BYTES
        quic._packet_number = number
        return packets

    def _register_sent(self, number: int, total_bytes: int, now: float) -> None:
        loss = private.recovery(self._quic)
        # One call for the batch: the controllers only add up the bytes.
        loss._cc.on_packet_sent(packet=_SentDatagrams(number, now, total_bytes))  # type: ignore[arg-type]
        loss._time_of_last_sent_ack_eliciting_packet = now
        self._count_path_bytes(total_bytes, now)
        if self._quic._packet_number - self._keys_since_packet >= _KEY_UPDATE_PACKETS:
            self._quic.request_key_update()

    def _count_path_bytes(self, total_bytes: int, now: float) -> None:
        quic = self._quic
        path = private.active_path(quic)
        if path is not None:
            path.bytes_sent += total_bytes
        # RFC 9000 section 10.1: the idle timer restarts on the first packet sent since
        # the last one received.
        if not quic._ack_eliciting_sent_since_receipt:
            quic._close_at = now + quic._idle_timeout()
            quic._ack_eliciting_sent_since_receipt = True


def _append_datagrams(plain: bytes, datagrams: list[bytes]) -> bool:
    """Append the DATAGRAM frames of a packet; False (and nothing appended) if it holds others.

    Frame layouts: RFC 9221 section 4; type 0x30 goes to the packet's end, 0x31 has a length.
    """
    if plain[:1] == b"\x30":
        datagrams.append(plain[1:])
        return True
    found: list[bytes] = []
    offset, end = 0, len(plain)
    while offset < end:
        kind = plain[offset]
        offset += 1
        if kind == _FRAME_DATAGRAM_WITH_LENGTH and offset < end:
            prefix = plain[offset]
            length_bytes = 1 << (prefix >> 6)
            start = offset + length_bytes
            mask = (1 << (8 * length_bytes - 2)) - 1
            length = int.from_bytes(plain[offset:start], "big") & mask
            offset = start + length
            if offset > end:
                return False
            found.append(plain[start:offset])
        elif kind == _FRAME_DATAGRAM:
            found.append(plain[offset:])
            offset = end
        elif kind != _FRAME_PADDING:
            return False
    datagrams.extend(found)
    return bool(found)
