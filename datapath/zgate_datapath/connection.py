"""One QUIC connection with its HTTP/3 layer, packet engine, send queue and timers.

Both ends use it. Nothing that the peer sends raises out of it: an exception inside aioquic or
in the handler ends this connection, and only this one. Nothing that the peer sends grows without
bound either: aioquic's flow control follows whatever a peer sends, so the bounds are here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from aioquic.h3.connection import ErrorCode
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic import events as quic_events
from aioquic.quic.connection import QuicConnection, QuicConnectionState
from aioquic.quic.packet import QuicErrorCode
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.errors import ConnectionFailure, H3Error
from zgate_protocol.http_datagram import parse_http_datagram
from zgate_protocol.icmp import TokenBucket
from zgate_protocol.service_capsule import ObservedAddress

from zgate_datapath import aioquic_private as private
from zgate_datapath.address_discovery import DiscoveringQuicConnection
from zgate_datapath.engine import PacketEngine, make_engine
from zgate_datapath.h3 import DatagramH3Connection
from zgate_datapath.path_mtu import PathMtu, PathMtuState
from zgate_datapath.udp import Address, UdpSocket, udp_overhead_bytes

if TYPE_CHECKING:
    from zgate_datapath.native_carrier import NativeCarrier

logger = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]

HTTP3 = "h3"

# First byte, 4 bytes of packet number, tag, and the DATAGRAM frame's type.
_PACKET_OVERHEAD_BYTES = 1 + 4 + 16 + 1
_TLS_ALERT_MAX = 0xFF
# What a peer can make us hold: HTTP/3 events before its SETTINGS, and stream bytes behind a gap.
_MAX_HELD_EVENTS = 64
_MAX_BACKLOG_BYTES = 1 << 18
# Round trips that are measured at once.
_MAX_PINGS = 64
# How often a native engine without room is asked again.
_LOOK_AGAIN_S = 0.005
# Tracebacks about peers, of the whole process: who can provoke one can provoke thousands.
_FAULT_LOG = TokenBucket(rate_per_s=0.1, burst=5)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a connection ended.

    Attributes:
        is_transport: the code is QUIC's (RFC 9000 section 20.1); else HTTP/3's, whose numbers
            overlap with those that carry TLS alerts.
    """

    error_code: int
    reason: str
    is_transport: bool = False

    @property
    def tls_alert(self) -> int | None:
        """The TLS alert that ended the handshake (RFC 9001 section 4.8)."""
        alert = self.error_code - QuicErrorCode.CRYPTO_ERROR
        return alert if self.is_transport and 0 <= alert <= _TLS_ALERT_MAX else None

    def __str__(self) -> str:
        return self.reason or f"error 0x{self.error_code:x}"


class ConnectionHandler(Protocol):
    """What a connection tells its owner."""

    def handshake_completed(self) -> None:
        """The peer is proved; HTTP/3 begins."""

    def settings_received(self) -> None:
        """The peer's SETTINGS are known; requests may be sent."""

    def headers_received(self, stream_id: int, headers: Headers, ended: bool) -> None:
        """A HEADERS frame."""

    def data_received(self, stream_id: int, data: bytes, ended: bool) -> None:
        """DATA frame bytes."""

    def stream_reset(self, stream_id: int, error_code: int) -> None:
        """The peer reset the stream or asked us to stop."""

    def datagrams_received(self, payloads: Sequence[bytes]) -> None:
        """DATAGRAM frame payloads, quarter stream ID first, in order of arrival."""

    def mtu_changed(self) -> None:
        """`Connection.max_frame_payload_bytes` is another, or the path is unusable."""

    def can_send(self) -> None:
        """The send queue, once full, has room again."""

    def tun_read(self, read: bytes, is_too_big: bool) -> None:
        """A read of the TUN, with its vnet header, that the engine leaves to be judged."""

    def terminated(self, ending: Ending) -> None:
        """The connection has ended; nothing follows."""


class Connection:
    """See the module's text. `now` is the event loop's monotonic time everywhere.

    With a `carrier` the engine is the native one, which has the socket itself.

    Attributes:
        h3: once the handshake is complete, unless the protocol is another.
        application_protocol: what the handshake has agreed on (ALPN); known when it is complete.
            A protocol that is not HTTP/3 has datagrams, and no streams.
    """

    def __init__(
        self,
        quic: QuicConnection,
        *,
        udp: UdpSocket,
        carrier: NativeCarrier | None = None,
        max_udp_payload_bytes: int,
        queue_packets: int,
        now: float,
    ) -> None:
        self.quic = quic
        self.udp = udp
        self.engine: PacketEngine = make_engine(quic, self, carrier)
        self.h3: DatagramH3Connection | None = None
        self.application_protocol = HTTP3
        self._is_up = False
        self.path_mtu = PathMtu(max_udp_payload_bytes, now)
        self.queue_packets = queue_packets
        self._has_carrier = carrier is not None
        self.connection_ids: set[bytes] = set()
        self.retired_ids: list[bytes] = []
        self.issued_ids: list[bytes] = []
        self.is_terminated = False
        self._dropped: dict[DropReason, int] = {}
        self._handler: ConnectionHandler | None = None
        self._queue_was_full = False
        self._held_events: list[H3Event] = []
        self._settings_told = False
        self._mtu_told = (0, PathMtuState.SEARCHING)
        self._max_udp_payload_bytes = max_udp_payload_bytes
        self._backlog_checked_at = 0
        self._path_address: Address | None = None
        # Whether aioquic may have something to send. Asking it costs as much as sending a
        # packet, and most batches are datagrams only.
        self._control_due = True
        self._asked_aioquic = True
        self._handshake_unsaid = False
        self._heard_s = now
        # Told what address the peer sees us at, where it speaks QUIC address discovery.
        self.on_observed: Callable[[ObservedAddress], None] = lambda _: None
        self._observed: ObservedAddress | None = None
        # By number: when it was sent, and who waits. Number 0 is nobody's.
        self._pings: dict[int, tuple[float, Callable[[float], None]]] = {}
        self._last_ping = 0

    def set_handler(self, handler: ConnectionHandler) -> None:
        """Whom to tell; once, before the first packet."""
        self._handler = handler

    @property
    def handler(self) -> ConnectionHandler:
        """The owner."""
        assert self._handler is not None, "set_handler comes first"
        return self._handler

    # In.

    def receive(self, packets: Sequence[bytes], address: Address, now: float) -> None:
        """Take in UDP payloads, all from `address`."""
        if self.is_terminated:
            return
        try:
            self._receive(packets, address, now)
        except Exception:
            # aioquic has asserts on what peers send, and a handler may have a fault:
            # neither may touch another session.
            self._abandon("a packet from a peer", now)

    def _receive(self, packets: Sequence[bytes], address: Address, now: float) -> None:
        opened = self.engine.open(packets, address, now)
        datagrams = opened.datagrams
        if opened.rest:
            self._control_due = True
            self.engine.enter_aioquic(now)
            idle_at = self.quic._close_at
            for packet in opened.rest:
                self.quic.receive_datagram(packet, address, now)
            if self.quic._close_at != idle_at:
                self._heard_s = now  # something was authentic: the idle timer began anew
            self.engine.leave_aioquic(now)
            self._process_events(datagrams, now)
            self._follow_observation()
            self._bound_backlog()
            self._follow_path(now)
            self._follow_goodbye()
        self._deliver(datagrams)

    def _deliver(self, datagrams: Sequence[bytes]) -> None:
        if not datagrams:
            return
        if not self._is_up or self.is_terminated:
            self._count(DropReason.NO_SESSION, len(datagrams))
        else:
            self.handler.datagrams_received(datagrams)

    # What the native engine tells (EngineOwner).

    def engine_opened(self, datagrams: Sequence[bytes], now: float) -> None:
        """DATAGRAM frame payloads that the engine leaves to be judged."""
        try:
            self._deliver(datagrams)
        except Exception:
            self._abandon("a datagram from a peer", now)

    def engine_read(self, read: bytes, is_too_big: bool, now: float) -> None:
        """A read of the TUN that the engine leaves to be judged."""
        if self.is_terminated:
            return
        try:
            self.handler.tun_read(read, is_too_big)
        except Exception:
            self._abandon("a packet for a peer", now)

    def engine_failed(self, error_code: int, reason: str) -> None:
        """The peer broke QUIC's rules."""
        if not self.is_terminated:
            self._control_due = True
            self.quic.close(error_code=error_code, frame_type=0, reason_phrase=reason)

    def handle_timer(self, now: float) -> None:
        """The time that `next_timer` gave has come."""
        if self.is_terminated:
            return
        self._control_due = True
        try:
            self.engine.enter_aioquic(now)
            self.quic.get_timer()  # lets aioquic note which of its deadlines is the next
            self.quic.handle_timer(now)
            self.engine.leave_aioquic(now)
            self._process_events([], now)
        except Exception:
            self._abandon("a timer", now)

    def _process_events(self, datagrams: list[bytes], now: float) -> None:
        while (event := self.quic.next_event()) is not None:
            if isinstance(event, quic_events.DatagramFrameReceived):
                datagrams.append(event.data)
            elif isinstance(event, quic_events.ConnectionIdIssued):
                self.issued_ids.append(event.connection_id)
            elif isinstance(event, quic_events.ConnectionIdRetired):
                self.retired_ids.append(event.connection_id)
            elif isinstance(event, quic_events.PingAcknowledged):
                self._ping_answered(event.uid, now)
            elif isinstance(event, quic_events.HandshakeCompleted):
                self.application_protocol = event.alpn_protocol or HTTP3
                if self.application_protocol == HTTP3:
                    self.h3 = DatagramH3Connection(self.quic)
                self._is_up = self._handshake_unsaid = True
                self.engine.start(now)
                self.handler.handshake_completed()
            elif isinstance(event, quic_events.ConnectionTerminated):
                self._terminate(_ending_of(event))
            elif self.h3 is not None:
                self._process_h3(event)
            elif isinstance(event, quic_events.StreamDataReceived):
                self.close(ErrorCode.H3_STREAM_CREATION_ERROR, "this protocol has no streams")

    def _process_h3(self, event: quic_events.QuicEvent) -> None:
        assert self.h3 is not None
        self._held_events.extend(self.h3.handle_event(event))
        if not self.h3.peer_settings_known():
            if len(self._held_events) > _MAX_HELD_EVENTS:
                self._held_events.clear()
                self.close(ErrorCode.H3_EXCESSIVE_LOAD, "requests without SETTINGS")
        else:
            # RFC 9297 section 2.1.1 makes what may be sent depend on SETTINGS, which
            # may arrive after the first request: requests wait for them.
            if not self._settings_told:
                self._settings_told = True
                self.handler.settings_received()
            held, self._held_events = self._held_events, []
            for h3_event in held:
                self._tell(h3_event)
        if isinstance(event, quic_events.StreamReset | quic_events.StopSendingReceived):
            self.handler.stream_reset(event.stream_id, event.error_code)

    def _tell(self, event: H3Event) -> None:
        if isinstance(event, HeadersReceived):
            headers = [(bytes(name), bytes(value)) for name, value in event.headers]
            self.handler.headers_received(event.stream_id, headers, event.stream_ended)
        elif isinstance(event, DataReceived):
            self.handler.data_received(event.stream_id, event.data, event.stream_ended)

    def _bound_backlog(self) -> None:
        """End a connection whose peer leaves gaps in its streams and sends on behind them."""
        received = self.quic._local_max_data.used
        if received - self._backlog_checked_at <= _MAX_BACKLOG_BYTES:
            return
        held = sum(len(stream.receiver._buffer) for stream in self.quic._streams.values())
        if held > _MAX_BACKLOG_BYTES:
            self.close(ErrorCode.H3_EXCESSIVE_LOAD, "too much stream data behind a gap")
        self._backlog_checked_at = received - held

    def _follow_goodbye(self) -> None:
        """The peer has said goodbye: nothing more can come (RFC 9000 section 10.2.2).

        aioquic tells only when the draining period is over, while the peer's addresses and
        the kernel's entries for them wait to be freed.
        """
        if self.quic._state is QuicConnectionState.DRAINING and not self.is_terminated:
            goodbye = self.quic._close_event
            assert goodbye is not None
            self._terminate(_ending_of(goodbye))

    def drop(self, reason: str) -> None:
        """End the connection without a word to the peer; its owner is told."""
        if not self.is_terminated:
            self._terminate(Ending(ErrorCode.H3_NO_ERROR, reason))

    def _abandon(self, what: str, now: float) -> None:
        """An exception came out of aioquic or the handler: end this connection here and now.

        Not by way of aioquic's closing state: what raised once may raise at every timer.
        """
        if _FAULT_LOG.allow(now):
            logger.exception(
                "%(what)s raised; its connection ends", {"event": "connection_fault", "what": what}
            )
        if self.is_terminated:
            return
        try:
            self.quic.close(ErrorCode.H3_INTERNAL_ERROR, reason_phrase="internal error")
            self._send_control(now)
        except Exception as error:
            logger.debug("no goodbye either: %(error)r", {"event": "goodbye_fault", "error": error})
        self._terminate(Ending(ErrorCode.H3_INTERNAL_ERROR, "internal error"))

    def _terminate(self, ending: Ending) -> None:
        self.is_terminated = True
        self._count(DropReason.SESSION_CLOSED, self.engine.close())
        try:
            self.handler.terminated(ending)
        except Exception:
            # Whoever calls has nothing left to close.
            logger.exception("the end of a connection raised", {"event": "connection_end_fault"})

    def _follow_observation(self) -> None:
        quic = self.quic
        if not isinstance(quic, DiscoveringQuicConnection) or self.is_terminated:
            return
        observed = quic.observed_address
        if observed is not None and observed is not self._observed:
            self._observed = observed
            self.on_observed(observed)

    @property
    def tells_observed_address(self) -> bool:
        """Whether QUIC itself tells the peer the address that we see it at."""
        quic = self.quic
        return isinstance(quic, DiscoveringQuicConnection) and quic.tells_observed_address

    @property
    def last_received_s(self) -> float:
        """When the last authentic packet came, whatever it held."""
        return max(self._heard_s, self.engine.last_received_s)

    def _count(self, reason: DropReason, packets: int) -> None:
        if packets:
            self._dropped[reason] = self._dropped.get(reason, 0) + packets

    @property
    def dropped(self) -> dict[DropReason, int]:
        """Packets dropped here or in the engine, by reason."""
        for reason, packets in self.engine.take_drops():
            self._count(reason, packets)
        return self._dropped

    def _follow_path(self, now: float) -> None:
        """A migrated peer's path has an MTU of its own (RFC 9000 section 14.3)."""
        path = private.active_path(self.quic)
        address = path.addr if path is not None else None
        if address != self._path_address:
            if self._path_address is not None:
                self.path_mtu.path_changed(now)
            self._path_address = address

    # Out.

    @property
    def max_frame_payload_bytes(self) -> int:
        """The most a DATAGRAM frame may hold on this path, for this peer (RFC 9221 section 3)."""
        path_limit = (
            self.path_mtu.udp_payload_bytes - _PACKET_OVERHEAD_BYTES - len(self.quic._peer_cid.cid)
        )
        peer_limit = (self.quic._remote_max_datagram_frame_size or 0) - 1
        return max(0, min(path_limit, peer_limit))

    @property
    def peer_address(self) -> Address | None:
        """Where packets go now."""
        path = private.active_path(self.quic)
        return path.addr if path is not None else None

    def has_room(self) -> bool:
        """Whether the send queue takes another packet."""
        return self.engine.queued_packets() < self.queue_packets

    def queued_packets(self) -> int:
        """Packets that wait for the congestion window."""
        return self.engine.queued_packets()

    def note_full(self) -> None:
        """The owner waits for room: `can_send` will be called."""
        self._queue_was_full = True

    def enqueue(self, frame: bytes) -> DropReason:
        """Queue one DATAGRAM frame without length: type byte 0x30, then its payload.

        Sent by the next `flush`. Neither an oversize frame nor a long queue ever reaches
        aioquic's own, which has no bounds.
        """
        if not self.has_room():
            self._queue_was_full = True
            return DropReason.QUEUE_FULL
        return self.engine.enqueue(frame)

    def flush(self, now: float) -> None:
        """Send all that may be sent: datagrams first, then what aioquic has."""
        if self.is_terminated:
            return
        try:
            self._flush(now)
        except Exception:
            self._abandon("sending to a peer", now)

    def _flush(self, now: float) -> None:
        address = self.peer_address
        if address is None:
            return  # a server whose peer has sent nothing that could be read
        if self._handshake_unsaid:
            # 1-RTT packets that arrive before our last handshake message cannot be opened yet.
            self._handshake_unsaid = False
            self._send_control(now)
        # Before the queue, which would take all of the window for as long as there is load.
        self._probe_path(address, now)
        packets = self.engine.send_queued(self.max_frame_payload_bytes + 1, now)
        if packets:
            self.udp.send_batch(packets, address)
        if self._queue_was_full and self.engine.queued_packets() * 2 < self.queue_packets:
            self._queue_was_full = False
            self.handler.can_send()
        self._asked_aioquic = self._control_due or self._acknowledgement_is_due(now)
        if self._asked_aioquic:
            self._control_due = False
            self._send_control(now)

    def _send_control(self, now: float) -> None:
        self.engine.enter_aioquic(now)
        outgoing = self.quic.datagrams_to_send(now)
        self.engine.leave_aioquic(now)
        for data, destination in outgoing:
            self.udp.send_batch([data], destination)

    def _acknowledgement_is_due(self, now: float) -> bool:
        if not self.quic._handshake_complete:
            return True
        ack_at = private.application_space(self.quic).ack_at
        return ack_at is not None and ack_at <= now

    def _may_probe(self) -> bool:
        """Whether a probe may be sent now; on an unproved path it counts as any other packet."""
        return self._is_up and self.engine.window_bytes() >= self._max_udp_payload_bytes

    def _probe_path(self, address: Address, now: float) -> None:
        if not self._is_up:
            return
        due = self.path_mtu.next_at()
        if due is not None and due <= now and self._may_probe():
            self._send_probe(address, now)
        told = (self.max_frame_payload_bytes, self.path_mtu.state)
        if told != self._mtu_told:
            self._mtu_told = told
            self.engine.set_frame_limit(told[0], self.path_mtu.udp_payload_bytes)
            self.handler.mtu_changed()

    def _send_probe(self, address: Address, now: float) -> None:
        probe = self.path_mtu.next_probe(now)
        if probe is not None:
            self._probe_time = now
            packet = self.engine.seal_probe(probe.udp_payload_bytes, self._probe_ended, now)
            if not packet or not self.udp.send_batch([packet], address):
                self.path_mtu.lost(probe.udp_payload_bytes, now)

    def _probe_ended(self, acknowledged: bool, udp_payload_bytes: int) -> None:
        # aioquic tells of it while it handles a packet or a timer; the next probe goes
        # out with the flush that follows at once.
        if acknowledged:
            self.path_mtu.acknowledged(udp_payload_bytes, self._probe_time)
        else:
            self.path_mtu.lost(udp_payload_bytes, self._probe_time)

    def path_too_big(self, path_mtu_bytes: int, now: float) -> None:
        """The kernel or a router said what the path's IP MTU is."""
        address = self.peer_address
        if address is not None:
            self.path_mtu.too_big(path_mtu_bytes - udp_overhead_bytes(address), now)

    def next_timer(self, now: float) -> float | None:
        """When `handle_timer` and `flush` are wanted; None when never, as after the end."""
        if self.is_terminated:
            return None
        try:
            return self._next_timer(now)
        except Exception:
            self._abandon("asking for the next timer", now)
            return None

    def _next_timer(self, now: float) -> float | None:
        timer = self._next_quic_timer()
        # A probe that has no room goes with the flush that follows the next ACK: a timer for
        # it, long due, would spin until then.
        probe = self.path_mtu.next_at() if self._may_probe() else None
        wanted = [at for at in (timer, probe) if at is not None]
        if self._has_carrier and (self._queue_was_full or not self._may_probe()):
            # The native engine takes ACKs by itself: nothing here hears of room.
            wanted.append(now + _LOOK_AGAIN_S)
        return min(wanted, default=None)

    def _next_quic_timer(self) -> float | None:
        """aioquic's next deadline; after a batch of datagrams alone, only what those can move."""
        if self._asked_aioquic or not self.quic._handshake_complete:
            return self.quic.get_timer()
        deadlines = (
            self.quic._close_at,
            private.application_space(self.quic).ack_at,
            private.recovery(self.quic).get_loss_detection_time(amplification_limited=False),
        )
        return min((at for at in deadlines if at is not None), default=None)

    # HTTP/3 and control.

    def send_headers(self, stream_id: int, headers: Headers, *, end: bool = False) -> None:
        """Send a HEADERS frame."""
        self._control_due = True
        assert self.h3 is not None
        self.h3.send_headers(stream_id, headers, end_stream=end)

    def send_data(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        """Send DATA."""
        self._control_due = True
        assert self.h3 is not None
        self.h3.send_data(stream_id, data, end_stream=end)

    def stream_backlog_bytes(self, stream_id: int) -> int:
        """What was given to `send_data` and the peer has not acknowledged."""
        stream = self.quic._streams.get(stream_id)
        return len(stream.sender._buffer) if stream is not None else 0

    def abort_stream(self, stream_id: int, error_code: int) -> None:
        """Reset our side of the stream and ask the peer to stop (RFC 9114 section 4.1.1)."""
        if self.is_terminated or private.is_ending(self.quic):
            return
        stream = self.quic._streams.get(stream_id)
        if stream is not None and not stream.sender.is_finished:
            self._control_due = True
            self.quic.reset_stream(stream_id, error_code)
        self.stop_reading(stream_id, error_code)

    def stop_reading(self, stream_id: int, error_code: int) -> None:
        """Ask the peer to send no more on the stream; what we sent still arrives."""
        if self.is_terminated or private.is_ending(self.quic):
            return
        stream = self.quic._streams.get(stream_id)
        if stream is not None and not stream.receiver.is_finished:
            self._control_due = True
            self.quic.stop_stream(stream_id, error_code)

    def close(self, error_code: int, reason: str) -> None:
        """Say goodbye: one CONNECTION_CLOSE, sent by the next flush (RFC 9114 section 8)."""
        self._control_due = True
        self.quic.close(error_code=error_code, reason_phrase=reason)

    def send_goaway(self) -> None:
        """No request is taken any more but those that came (RFC 9114 section 5.2)."""
        if self.h3 is not None and not self.is_terminated and not private.is_ending(self.quic):
            self._control_due = True
            private.send_goaway(self.h3, self.quic)

    def ping(self) -> None:
        """Ask for a sign of life, sent by the next flush."""
        self._control_due = True
        self.quic.send_ping(0)

    def measure_round_trip(self, on_answer: Callable[[float], None], now: float) -> int:
        """Ask for a sign of life, sent by the next flush; `on_answer` gets how long it took, in s.

        Returns its number, for `forget_round_trip`.

        It is never called if the peer does not answer. The time is with what the peer waits with
        its acknowledgement (RFC 9000 section 13.2.1), and with sending again what was lost.
        """
        if len(self._pings) >= _MAX_PINGS:
            self._pings.pop(next(iter(self._pings)))
        self._last_ping += 1
        self._pings[self._last_ping] = now, on_answer
        self._control_due = True
        self.quic.send_ping(self._last_ping)
        return self._last_ping

    def forget_round_trip(self, number: int) -> None:
        """Nobody waits for it any more."""
        self._pings.pop(number, None)

    def _ping_answered(self, uid: int, now: float) -> None:
        asked = self._pings.pop(uid, None)
        if asked is not None:
            asked_at, on_answer = asked
            on_answer(max(0.0, now - asked_at))

    def local_address_changed(self, now: float) -> None:
        """Our address has changed: use a fresh connection ID, and let the peer see us there.

        The old ID would link both addresses for whoever watches (RFC 9000 section 9.5).
        """
        if self.quic._peer_cid_available:
            self.quic.change_connection_id()
            self.engine.leave_aioquic(now)
        self.engine.path_changed()
        self.ping()
        self.path_mtu.path_changed(now)

    def reject_datagram(self, payload: bytes) -> DropReason:
        """Why a DATAGRAM payload that is no session's is dropped (RFC 9297 sections 2 and 2.1).

        One without a Quarter Stream ID, or with one that no stream can have, ends the connection;
        one for a request that was answered without datagrams aborts that request's stream.
        """
        try:
            quarter_stream_id, _ = parse_http_datagram(payload)
        except ConnectionFailure as failure:
            self.close(int(failure.error_code), failure.reason)
            return DropReason.BAD_DATAGRAM
        stream = self.quic._streams.get(quarter_stream_id * 4)
        if stream is not None and stream.sender._buffer_fin is not None:
            # We have ended our side, and the peer has not ended its own.
            if not stream.receiver.is_finished:
                self.abort_stream(quarter_stream_id * 4, H3Error.DATAGRAM_ERROR)
            return DropReason.SESSION_CLOSED
        return DropReason.UNKNOWN_STREAM

    def statistics(self) -> dict[str, Any]:
        """Numbers for status pages; times in seconds, sizes in bytes."""
        loss = private.recovery(self.quic)
        numbers: dict[str, Any] = {
            "smoothed_rtt_s": private.smoothed_rtt_s(self.quic),
            "congestion_window_bytes": loss.congestion_window,
            "bytes_in_flight": loss.bytes_in_flight,
            "path_udp_payload_bytes": self.path_mtu.udp_payload_bytes,
            "queued_packets": self.engine.queued_packets(),
        }
        numbers.update(self.engine.statistics())
        return numbers


def _ending_of(event: quic_events.ConnectionTerminated) -> Ending:
    return Ending(int(event.error_code), event.reason_phrase, event.frame_type is not None)
