"""The native packet engine of one connection: keeps the C session and aioquic in step.

The C session owns the 1-RTT packet numbers, the ACKs, loss detection and congestion control of
datagrams; aioquic keeps the handshake, streams, path validation and key updates. They share one
packet number space: `enter_aioquic` and `leave_aioquic` stand around every call that lets aioquic
receive, send, or handle a timer.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Sequence

from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoContext
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.tls import CipherSuite
from zgate_protocol.drop_reason import DropReason

from zgate_datapath import _native
from zgate_datapath import aioquic_private as private
from zgate_datapath.congestion import choice_of
from zgate_datapath.engine import (
    Carried,
    DirectPath,
    EngineCounters,
    EngineOwner,
    Opened,
    Prefix,
    ProbeResult,
)
from zgate_datapath.native_carrier import NativeCarrier
from zgate_datapath.udp import Address

_CIPHERS = {
    CipherSuite.AES_128_GCM_SHA256: _native.AES_128_GCM,
    CipherSuite.AES_256_GCM_SHA384: _native.AES_256_GCM,
    CipherSuite.CHACHA20_POLY1305_SHA256: _native.CHACHA20_POLY1305,
}
_CONTROLLERS = {
    "auto": _native.CONGESTION_MODEL,
    "model": _native.CONGESTION_MODEL,
    "cubic": _native.CONGESTION_CUBIC,
    "reno": _native.CONGESTION_CUBIC,
    "none": _native.CONGESTION_NONE,
}
# What aioquic tells its peers, and takes theirs to be (RFC 9000 section 18.2's default).
_ACK_DELAY_EXPONENT = 3
# After how many packets a session asks for new keys, for whoever wants it sooner than the AEAD: the
# soak test, say.
KEY_UPDATE_VARIABLE = "ZGATE_KEY_UPDATE_PACKETS"
# RFC 9000 section 17.4: who spins must not do so on one connection in 16, chosen at random.
_ONE_WITHOUT_SPIN_IN = 16
# RFC 9001 section 6.5: old keys are kept for three PTOs, for packets that were overtaken.
_PREVIOUS_KEY_PTOS = 3


class _ReceivedPackets:
    """Which packets aioquic takes for duplicates: the engine's window is that of both.

    aioquic's own holds 128 numbers, and any number of the engine's packets lie between two of its:
    one that was overtaken would be a duplicate.
    """

    def __init__(self, session: _native.Session) -> None:
        self._session = session
        self._fresh: set[int] = set()

    def add(self, packet_number: int) -> None:
        """aioquic has taken it."""
        self._fresh.add(packet_number)

    def __contains__(self, packet_number: int) -> bool:
        if packet_number in self._fresh:
            return True
        return self._session.is_open and self._session.has_received(packet_number)

    def hand_over(self) -> None:
        """Let the engine know what aioquic has taken since the last time, the newest first."""
        for number in sorted(self._fresh, reverse=True):
            self._session.note_received(number, number, False)
        self._fresh.clear()


class NativeEngine:
    """`zgate_datapath.engine.PacketEngine` and `DirectPath` over `zgate_datapath._native`."""

    name = "native"

    def __init__(self, quic: QuicConnection, owner: EngineOwner, carrier: NativeCarrier) -> None:
        self._quic = quic
        self.owner = owner
        self._carrier = carrier
        self._session: _native.Session | None = None
        self._receive_context: object = None
        self._send_context: object = None
        self._header_keys: tuple[bytes, bytes] = (b"", b"")
        self._cids: set[bytes] = set()
        self._path: Address | None = None
        self._limits = (0, 0)
        self._previous_key_until: float | None = None
        self._on_probe: ProbeResult | None = None
        self._told: dict[str, int] = {}
        self._key_updates = 0
        self._received: _ReceivedPackets | None = None
        self._last_counters: dict[str, int] = {}
        self._addresses: set[bytes] = set()
        self._networks: set[Prefix] = set()

    # Life.

    def start(self, now: float) -> None:
        """See `PacketEngine.start`."""
        quic = self._quic
        loss = private.recovery(quic)
        session = _native.Session(
            self._carrier.native,
            is_client=quic.configuration.is_client,
            congestion=_CONTROLLERS[choice_of(quic.configuration.congestion_control_algorithm)],
            max_packet_bytes=quic.configuration.max_datagram_size,
            initial_rtt_ns=int(private.smoothed_rtt_s(quic) * 1e9),
            peer_max_ack_delay_ns=int(loss.max_ack_delay * 1e9),
            peer_ack_delay_exponent=_ACK_DELAY_EXPONENT,
        )
        session.spin_is_off = secrets.randbelow(_ONE_WITHOUT_SPIN_IN) == 0
        if packets := _key_update_packets():
            session.key_update_packets = packets
        self._session = session
        self._carrier.add(session, self)
        if self._limits[0]:
            session.set_limits(*self._limits)
        session.next_number = quic._packet_number
        space = private.application_space(quic)
        # What aioquic took before us is no less known than what it takes from now on.
        for number in range(space.expected_packet_number):
            if number in space.received_packets:
                session.note_received(number, number, False)
        self._received = _ReceivedPackets(session)
        space.received_packets = self._received  # type: ignore[assignment]
        self.leave_aioquic(now)

    def close(self) -> int:
        """See `PacketEngine.close`."""
        session, self._session = self._session, None
        if session is None:
            return 0
        waiting = session.statistics()["queued_packets"]
        self._last_counters = session.counters()
        # aioquic may have a last word, under a number that nobody has used.
        self._quic._packet_number = max(self._quic._packet_number, session.next_number)
        self._carrier.remove(session)
        session.close()
        return int(waiting)

    # aioquic.

    def enter_aioquic(self, now: float) -> None:
        """See `PacketEngine.enter_aioquic`."""
        session, quic = self._session, self._quic
        if session is None:
            return
        # Never backwards: numbers that aioquic has used for packets it then failed to finish.
        quic._packet_number = max(quic._packet_number, session.next_number)
        quic._spin_bit = session.spin
        space = private.application_space(quic)
        expected = session.expected_number
        space.expected_packet_number = max(space.expected_packet_number, expected)
        # A packet from a new address moves the path only if none is newer (RFC 9000 section 9.3).
        space.largest_received_packet = max(space.largest_received_packet, expected - 1)
        if session.unproved_bytes and (path := private.active_path(quic)) is not None:
            # RFC 9000 section 8.1: what the engine took counts as well.
            path.bytes_received += session.unproved_bytes
            session.unproved_bytes = 0
        if quic._close_at is not None and not private.is_ending(quic):
            seen_at = max(session.last_received_s, session.first_sent_s)
            quic._close_at = max(quic._close_at, seen_at + quic._idle_timeout())
        if self._previous_key_until is not None and now >= self._previous_key_until:
            self._previous_key_until = None
            session.drop_previous_key()

    def leave_aioquic(self, now: float) -> None:
        """See `PacketEngine.leave_aioquic`."""
        session, quic = self._session, self._quic
        if session is None:
            return
        session.next_number = max(session.next_number, quic._packet_number)
        space = private.application_space(quic)
        # Keys first: the newest of what was received says where their phase begins.
        self._follow_keys(session, now)
        self._take_received(session, space)
        session.foreign_in_flight = space.ack_eliciting_in_flight > 0
        self._follow_ids(session)
        self._follow_path(session)

    def _take_received(self, session: _native.Session, space: QuicPacketSpace) -> None:
        """What aioquic has received is acknowledged by the engine, which writes every ACK."""
        if self._received is not None:
            self._received.hand_over()
        if not len(space.ack_queue):
            return
        is_eliciting = space.ack_at is not None
        for numbers in space.ack_queue:
            session.note_received(numbers.start, numbers.stop - 1, is_eliciting)
        space.ack_queue = RangeSet()
        space.ack_at = None

    def _follow_keys(self, session: _native.Session, now: float) -> None:
        pair = private.crypto_pair(self._quic)
        if pair.recv.aead is not self._receive_context and pair.recv.aead is not None:
            is_update = self._receive_context is not None
            self._receive_context = pair.recv.aead
            session.set_receive_key(*self._keys(pair.recv, 0, is_update=is_update))
            # Made ahead of time (RFC 9001 section 6.3): a forged packet of the other phase is
            # found out by the engine, and never costs aioquic a key derivation.
            session.set_next_receive_key(
                *self._keys(private.next_phase(pair.recv), 0, is_update=True)
            )
            if is_update:
                self._key_updates += 1
                probe_timeout_s = private.recovery(self._quic).get_probe_timeout()
                self._previous_key_until = now + _PREVIOUS_KEY_PTOS * probe_timeout_s
        if pair.send.aead is not self._send_context and pair.send.aead is not None:
            is_update = self._send_context is not None
            self._send_context = pair.send.aead
            session.set_send_key(*self._keys(pair.send, 1, is_update=is_update))

    def _keys(
        self, context: CryptoContext, direction: int, *, is_update: bool
    ) -> tuple[int, bytes, bytes, bytes, int]:
        """Cipher, key, IV, header key, phase; the header key stays (RFC 9001 section 6)."""
        key, iv, header_key = private.derive_keys(context)
        if is_update:
            header_key = self._header_keys[direction]
        elif direction == 0:
            self._header_keys = header_key, self._header_keys[1]
        else:
            self._header_keys = self._header_keys[0], header_key
        assert context.cipher_suite is not None
        return _CIPHERS[context.cipher_suite], key, iv, header_key, context.key_phase

    def _follow_ids(self, session: _native.Session) -> None:
        """A server's peer that uses another ID may be migrating: that is aioquic's to see first."""
        quic = self._quic
        if quic.configuration.is_client:
            ours = {issued.cid for issued in quic._host_cids}
        else:
            ours = {quic.host_cid}
        if ours != self._cids:
            for cid in self._cids - ours:
                session.remove_cid(cid)
            for cid in ours - self._cids:
                session.add_cid(cid)
            self._cids = ours
        session.set_peer_cid(quic._peer_cid.cid)

    def _follow_path(self, session: _native.Session) -> None:
        path = private.active_path(self._quic)
        if path is None:
            return
        if path.addr != self._path:
            if self._path is not None:
                session.path_changed()
            self._path = path.addr
            session.unproved_bytes = 0
            session.set_path(path.addr)
        session.may_send = path.is_validated and not private.is_ending(self._quic)

    # Receive.

    def open(
        self,
        packets: Sequence[bytes],
        address: Address,  # noqa: ARG002
        now: float,  # noqa: ARG002
    ) -> Opened:
        """See `PacketEngine.open`: what comes here is what the C session has left."""
        return Opened(rest=list(packets))

    def opened(self, datagrams: Sequence[bytes], now: float) -> None:
        """The carrier has DATAGRAM frames that Python must judge."""
        self.owner.engine_opened(datagrams, now)

    def read(self, read: bytes, now: float, *, is_too_big: bool) -> None:
        """The carrier has a read of the TUN that Python must judge."""
        self.owner.engine_read(read, is_too_big, now)

    def failed(self, error_code: int, reason: str) -> None:
        """The carrier has found a breach of protocol."""
        self.owner.engine_failed(error_code, reason)

    def probe_ended(self, acknowledged: bool, udp_payload_bytes: int) -> None:
        """The carrier knows what became of a probe."""
        on_probe, self._on_probe = self._on_probe, None
        if on_probe is not None:
            on_probe(acknowledged, udp_payload_bytes)

    def update_key(self, phase: int, now: float) -> None:
        """The sending key of this phase has sealed enough (RFC 9001 section 6.6)."""
        pair = private.crypto_pair(self._quic)
        if pair.send.key_phase != phase or private.is_ending(self._quic):
            return  # the peer was first: its update has changed our key, too
        self._quic.request_key_update()
        if pair._update_key_requested:
            pair._update_key("local_update")
        self.leave_aioquic(now)

    # Send.

    def enqueue(self, frame: bytes) -> DropReason:
        """See `PacketEngine.enqueue`."""
        if self._session is None:
            return DropReason.NO_SESSION
        return _reason(self._session.send_frame(frame[1:]))

    def queued_packets(self) -> int:
        """See `PacketEngine.queued_packets`."""
        return int(self._session.statistics()["queued_packets"]) if self._session else 0

    def send_queued(self, most_bytes: int, now: float) -> list[bytes]:  # noqa: ARG002
        """See `PacketEngine.send_queued`: the carrier's flush sends."""
        return []

    def seal_probe(
        self,
        udp_payload_bytes: int,
        on_result: ProbeResult,
        now: float,  # noqa: ARG002
    ) -> bytes:
        """See `PacketEngine.seal_probe`."""
        if self._session is None:
            return b""
        self._on_probe = on_result
        return self._session.seal_probe(udp_payload_bytes)

    def path_changed(self) -> None:
        """See `PacketEngine.path_changed`."""
        if self._session is not None:
            self._session.path_changed()

    def window_bytes(self) -> int:
        """See `PacketEngine.window_bytes`."""
        return self._session.window_bytes if self._session is not None else 0

    def set_frame_limit(self, frame_payload_bytes: int, udp_payload_bytes: int) -> None:
        """See `PacketEngine.set_frame_limit`."""
        self._limits = (udp_payload_bytes, frame_payload_bytes)
        if self._session is not None:
            self._session.set_limits(*self._limits)

    # DirectPath.

    @property
    def direct(self) -> DirectPath | None:
        """See `PacketEngine`: there is a way where the carrier has a TUN."""
        return self if self._session is not None and self._carrier.has_tun else None

    def carry(self, prefix: bytes) -> None:
        """See `DirectPath.carry`."""
        if self._session is not None:
            self._session.set_prefix(prefix)
            self._session.is_direct = True

    def take_all(self) -> None:
        """See `DirectPath.take_all`."""
        if self._session is not None:
            self._carrier.native.set_only(self._session)

    def hold(self, addresses: Iterable[bytes], networks: Iterable[Prefix]) -> None:
        """See `DirectPath.hold`."""
        session = self._session
        if session is None:
            return
        addresses, networks = set(addresses), set(networks)
        for address in self._addresses - addresses:
            session.remove_address(address)
        for network in self._networks - networks:
            session.remove_network(*network)
        # Those that stay, too: another session may have taken and left them meanwhile.
        for address in addresses:
            session.add_address(address)
        for network in networks:
            session.add_network(*network)
        self._addresses, self._networks = addresses, networks

    def allow_inbound(self, pair: bytes) -> None:
        """See `DirectPath.allow_inbound`."""
        if self._session is not None:
            self._session.allow_inbound(pair)

    def allow_outbound(self, pair: bytes) -> None:
        """See `DirectPath.allow_outbound`."""
        if self._session is not None:
            self._session.allow_outbound(pair)

    def forget_pairs(self) -> None:
        """See `DirectPath.forget_pairs`."""
        if self._session is not None:
            self._session.forget_pairs()

    def send_read(self, read: bytes) -> DropReason:
        """See `DirectPath.send_read`."""
        if self._session is None:
            return DropReason.NO_SESSION
        return _reason(self._session.send_read(read))

    # Numbers.

    def _counters(self) -> dict[str, int]:
        return self._session.counters() if self._session is not None else self._last_counters

    @property
    def counters(self) -> EngineCounters:
        """See `PacketEngine.counters`."""
        now = self._counters()
        return EngineCounters(
            opened_packets=now.get("opened_packets", 0),
            sealed_packets=now.get("sealed_packets", 0),
            forged_packets=now.get("forged_packets", 0),
            duplicate_packets=now.get("duplicate_packets", 0),
        )

    @property
    def carried(self) -> Carried:
        """See `PacketEngine.carried`."""
        now = self._counters()
        return Carried(
            received_packets=now.get("received_packets", 0),
            received_bytes=now.get("received_bytes", 0),
            sent_packets=now.get("sent_packets", 0),
            sent_bytes=now.get("sent_bytes", 0),
        )

    @property
    def last_received_s(self) -> float:
        """See `PacketEngine.last_received_s`."""
        return self._session.last_received_s if self._session is not None else 0.0

    @property
    def first_packet_s(self) -> float:
        """See `PacketEngine.first_packet_s`."""
        return self._session.first_packet_s if self._session is not None else 0.0

    def take_drops(self) -> list[tuple[DropReason, int]]:
        """See `PacketEngine.take_drops`."""
        drops = []
        now = self._counters()
        for name, reason in (
            ("queue_dropped", DropReason.CONGESTED),
            ("too_big", DropReason.TOO_BIG),
            ("unsendable", DropReason.BAD_LENGTH),
        ):
            count = now.get(name, 0)
            if count > self._told.get(name, 0):
                drops.append((reason, count - self._told.get(name, 0)))
                self._told[name] = count
        return drops

    def statistics(self) -> dict[str, float]:
        """Numbers of recovery and queue, by name; empty before the start and after the end."""
        if self._session is None:
            return {}
        return {**self._session.statistics(), "key_updates": self._key_updates}


def _key_update_packets() -> int:
    """What the environment says; 0: nothing, and the engine's own number holds.

    Raises:
        ValueError: it is no number of packets.
    """
    text = os.environ.get(KEY_UPDATE_VARIABLE, "0")
    if not text.isdecimal():
        raise ValueError(f"{KEY_UPDATE_VARIABLE}={text}: expected a number of packets")
    return int(text)


def _reason(result: int) -> DropReason:
    """A result of sending; what the session itself has dropped it has counted, too."""
    return DropReason.TOO_BIG if result == _native.SEND_TOO_BIG else DropReason.NONE
