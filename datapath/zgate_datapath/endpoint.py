"""A UDP socket and the connections on it, driven by asyncio's readiness callbacks.

One readable socket is drained in batches; each connection that the batch touched is flushed
once. That, and not the work per packet, is what a naive loop gets wrong.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE, QuicConfiguration
from aioquic.quic.crypto import CryptoError, CryptoPair  # type: ignore[attr-defined]
from aioquic.quic.packet import (
    QuicHeader,
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from zgate_protocol.goodbye import CONNECTION_LOST
from zgate_protocol.icmp import TokenBucket

from zgate_datapath import aioquic_private as private
from zgate_datapath.connection import Connection
from zgate_datapath.connection_ids import (
    CONNECTION_ID_BYTES,
    ConnectionIds,
    StatelessResets,
    ends_with_token,
)
from zgate_datapath.engine import EngineOwner, engine_name
from zgate_datapath.udp import Address, PathError, UdpSocket

if TYPE_CHECKING:
    from zgate_datapath.native_carrier import NativeCarrier

logger = logging.getLogger(__name__)

_LEAST_INITIAL_ID_BYTES = 8
_RECEIVE_CALLS = 16
# No deadline is nearer than aioquic's ACK delay.
_TIMER_SLACK_S = 0.001
# Linux forgets what it was told of a path's MTU (net.ipv4.route.mtu_expires, the same for IPv6).
_KERNEL_FORGETS_S = 600.0
# For how long one Retry packet shows that first packets have to be proved.
_RETRY_STATE_S = 1.0


class Endpoint:
    """Connections by connection ID, their timers, and the socket they share.

    Attributes:
        carrier: the native engine's loop; None: the engine is the Python one.
    """

    def __init__(
        self,
        udp: UdpSocket,
        loop: asyncio.AbstractEventLoop,
        *,
        engine: str = "python",
        on_path_error: Callable[[PathError], None] | None = None,
    ) -> None:
        self.udp = udp
        self.carrier: NativeCarrier | None = None
        if engine_name(engine) == "native":
            from zgate_datapath.native_carrier import NativeCarrier

            self.carrier = NativeCarrier(udp, loop, self)
        self._on_path_error = on_path_error
        self.loop = loop
        self.connections: set[Connection] = set()
        self.unknown_packets = 0
        self.last_path_error: PathError | None = None
        self._belief: asyncio.TimerHandle | None = None
        self._by_id: dict[bytes, Connection] = {}
        self._touched: set[Connection] = set()
        self._timers: dict[Connection, tuple[float, asyncio.TimerHandle]] = {}
        self._empty = asyncio.Event()
        # What a batch set off may be answered by the time it is done: whoever can tell cheaply
        # adds its packets to the same flush.
        self.after_batch: Callable[[], None] | None = None

    async def wait_empty(self) -> None:
        """Wait until the last connection has ended."""
        while self.connections:
            self._empty.clear()
            await self._empty.wait()

    def start(self) -> None:
        """Begin to receive."""
        if self.carrier is not None:
            self.carrier.start()
        else:
            self.loop.add_reader(self.udp.fileno(), self._on_readable)

    def close(self) -> None:
        """Stop receiving, forget all connections, close the socket."""
        self._stop_reading()
        if self._belief is not None:
            self._belief.cancel()
        for connection in list(self.connections):
            self.forget(connection)
        self.udp.close()

    def _stop_reading(self) -> None:
        if self.carrier is not None:
            self.carrier.stop()
        elif self.udp.fileno() >= 0:
            self.loop.remove_reader(self.udp.fileno())

    def replace_socket(self, udp: UdpSocket) -> None:
        """Go on with another socket: the local address has changed."""
        if self.carrier is not None:
            self.carrier.replace_socket(udp)
        else:
            self._stop_reading()
        self.udp.close()
        self.udp = udp
        for connection in self.connections:
            connection.udp = udp
        self.start()

    def add(self, connection: Connection, *connection_ids: bytes) -> None:
        """Route packets for these connection IDs to `connection`."""
        self.connections.add(connection)
        for connection_id in connection_ids:
            connection.connection_ids.add(connection_id)
            self._by_id[connection_id] = connection

    def forget(self, connection: Connection) -> None:
        """No packet and no timer reaches the connection any more."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()
        self._touched.discard(connection)
        for connection_id in connection.connection_ids:
            if self._by_id.get(connection_id) is connection:
                del self._by_id[connection_id]
        timer = self._timers.pop(connection, None)
        if timer is not None:
            timer[1].cancel()

    def touch(self, connection: Connection) -> None:
        """The connection has something to send: flush it at the end of this batch."""
        self._touched.add(connection)

    def flush_touched(self) -> None:
        """Flush each touched connection once, follow its IDs, re-arm its timer."""
        while self._touched:
            connection = self._touched.pop()
            # Asked each time: flushing the carrier may bring in packets, and an acknowledgement
            # cannot be sent before what it acknowledges was received.
            connection.flush(self.loop.time())
            self._follow(connection)
            if self.carrier is not None and not self._touched:
                self.carrier.flush()

    def flush(self, connection: Connection) -> None:
        """Flush this connection now."""
        self._touched.add(connection)
        self.flush_touched()

    def _follow(self, connection: Connection) -> None:
        for connection_id in connection.issued_ids:
            connection.connection_ids.add(connection_id)
            self._by_id[connection_id] = connection
        connection.issued_ids.clear()
        for connection_id in connection.retired_ids:
            connection.connection_ids.discard(connection_id)
            self._by_id.pop(connection_id, None)
        connection.retired_ids.clear()
        if not connection.is_terminated:
            self._arm(connection)
        if connection.is_terminated:
            self.forget(connection)

    def _arm(self, connection: Connection) -> None:
        now = self.loop.time()
        armed = self._timers.get(connection)
        if armed is not None and armed[0] <= now + _TIMER_SLACK_S:
            return  # it asks again then
        at = connection.next_timer(now)
        if armed is not None:
            # An earlier alarm than needed is harmless and cheaper than cancelling each
            # time an idle timeout moves on.
            if at is not None and armed[0] <= at and not armed[1].cancelled():
                return
            armed[1].cancel()
        if at is None:
            self._timers.pop(connection, None)
            return
        self._timers[connection] = (at, self.loop.call_at(at, self._on_timer, connection))

    def _on_timer(self, connection: Connection) -> None:
        self._timers.pop(connection, None)
        if connection not in self.connections:
            return
        connection.handle_timer(self.loop.time())
        self.flush(connection)

    # What the native carrier tells (CarrierOwner).

    def carrier_received(self, packets: list[bytes], address: Address) -> None:
        """Packets that are aioquic's."""
        self._dispatch(packets, address, self.loop.time())

    def carrier_touched(self, owner: EngineOwner) -> None:
        """The carrier has told a connection something."""
        assert isinstance(owner, Connection)
        self._touched.add(owner)

    def carrier_done(self, *, error_pending: bool) -> None:
        """A run of the carrier is over."""
        if (error_pending or self.udp.error_pending) and (errors := self.udp.path_errors()):
            self._heed(errors, self.loop.time())
        if self._touched:
            self.flush_touched()
        elif self.carrier is not None:
            self.carrier.flush()

    def _on_readable(self) -> None:
        now = self.loop.time()
        is_empty = True
        for packets, address in self.udp.receive_batch(_RECEIVE_CALLS):
            is_empty = False
            self._dispatch(packets, address, now)
        if (is_empty or self.udp.error_pending) and (errors := self.udp.path_errors()):
            self._heed(errors, now)
        if self.after_batch is not None:
            self.after_batch()
        self.flush_touched()

    def _heed(self, errors: Sequence[PathError], now: float) -> None:
        """Lower the path MTU towards the hosts that ICMP named; one look at each connection.

        Anybody can forge these messages: their number must not multiply the work.
        """
        self.last_path_error = errors[-1]
        if not self.udp.believes_kernel and self._belief is None:
            self._belief = self.loop.call_later(_KERNEL_FORGETS_S, self._believe_kernel)
        if self._on_path_error is not None:
            self._on_path_error(errors[-1])
        limits: dict[str, int] = {}
        for error in errors:
            if error.mtu_bytes is not None:
                host = str(error.address[0])
                limits[host] = min(error.mtu_bytes, limits.get(host, error.mtu_bytes))
        if not limits:
            return
        for connection in self.connections:
            address = connection.peer_address
            mtu_bytes = limits.get(str(address[0])) if address is not None else None
            if mtu_bytes is not None:
                connection.path_too_big(mtu_bytes, now)
                self._touched.add(connection)

    def _believe_kernel(self) -> None:
        self._belief = None
        self.udp.believe_kernel()

    def _dispatch(self, packets: list[bytes], address: Address, now: float) -> None:
        """Give runs of packets with one connection ID to their connection."""
        run: list[bytes] = []
        run_id = b""
        for packet in packets:
            if packet[0:1] >= b"\x80":
                self._receive_run(run_id, run, address, now)
                run = []
                self._receive_long_header(packet, address, now)
                continue
            connection_id = packet[1 : 1 + CONNECTION_ID_BYTES]
            if connection_id != run_id:
                self._receive_run(run_id, run, address, now)
                run = []
                run_id = connection_id
            run.append(packet)
        self._receive_run(run_id, run, address, now)

    def _receive_run(
        self, connection_id: bytes, run: list[bytes], address: Address, now: float
    ) -> None:
        if not run:
            return
        connection = self._by_id.get(connection_id)
        if connection is None:
            self.unknown_packets += len(run)
            self._receive_unknown(run, address)
            return
        self._touched.add(connection)
        connection.receive(run, address, now)

    def _receive_unknown(self, run: list[bytes], address: Address) -> None:  # noqa: ARG002
        """Packets with short headers and a connection ID that is none of ours.

        A stateless reset is one: the peer has lost the connection (RFC 9000 section 10.3.1).
        """
        for connection in list(self.connections):
            token = private.peer_reset_token(connection.quic)
            if any(ends_with_token(packet, token) for packet in run):
                connection.drop(CONNECTION_LOST)
                self._touched.add(connection)

    def _receive_long_header(self, packet: bytes, address: Address, now: float) -> None:
        """A handshake packet: a client knows only its own connection."""
        connection = self._by_id.get(_long_header_destination(packet))
        if connection is None:
            self.unknown_packets += 1
            return
        self._touched.add(connection)
        connection.receive([packet], address, now)


class ServerEndpoint(Endpoint):
    """An endpoint that accepts connections, and bounds what strangers cost.

    A packet that does not open under the Initial keys leaves nothing behind. A handshake ends
    within `handshake_timeout_s`. Half-open connections are bounded; above half the bound, or
    above `unproved_per_s`, a new client first proves its address with a Retry packet
    (RFC 9000 section 8.1.2), which costs us no memory.

    Attributes:
        handshakes: what became of them: ``completed``, ``refused`` (the certificate),
            ``timed_out``, ``failed``.
        retry_tokens: ``issued``; of those that came back ``accepted``, and ``refused`` ones.

    `connection_ids` and `retry_key` (16 bytes) are shared by all processes of one port; each makes
    its own if none is given. A packet of another process is counted and dropped.
    """

    def __init__(
        self,
        udp: UdpSocket,
        loop: asyncio.AbstractEventLoop,
        *,
        configuration: QuicConfiguration,
        make_connection: Callable[[bytes, bytes | None, float], Connection],
        engine: str = "python",
        connection_ids: ConnectionIds | None = None,
        retry_key: bytes | None = None,
        max_half_open: int = 512,
        max_connections: int = 16384,
        unproved_per_s: int = 100,
        handshake_timeout_s: float = 10.0,
    ) -> None:
        super().__init__(udp, loop, engine=engine)
        self._configuration = configuration
        self._make_connection = make_connection
        self.connection_ids = connection_ids or ConnectionIds()
        self.resets = StatelessResets(self.connection_ids)
        self._retry = private.retry_tokens(retry_key)
        self._max_half_open = max_half_open
        self._max_connections = max_connections
        self._handshake_timeout_s = handshake_timeout_s
        self._counted: set[Connection] = set()
        self._unproved = TokenBucket(rate_per_s=unproved_per_s, burst=2 * unproved_per_s)
        self._half_open: dict[Connection, asyncio.TimerHandle] = {}
        self._retried_s = -_RETRY_STATE_S
        self.accepting = True
        self.handshakes: Counter[str] = Counter()
        self.retry_tokens: Counter[str] = Counter()
        self.refused_initials = 0
        self.misdirected_packets = 0

    @property
    def half_open(self) -> int:
        """Connections whose handshake is under way."""
        return len(self._half_open)

    @property
    def retry_active(self) -> bool:
        """Whether new clients have to prove their address: so it was within the last second."""
        return self._is_crowded() or self.loop.time() - self._retried_s < _RETRY_STATE_S

    def forget(self, connection: Connection) -> None:
        """See `Endpoint.forget`."""
        if connection in self._counted:
            self._counted.discard(connection)
        elif connection in self._half_open:
            self.handshakes["failed"] += 1
        self._end_half_open(connection)
        super().forget(connection)

    def handshake_completed(self, connection: Connection) -> None:
        """The connection no longer counts as half open."""
        self.handshakes["completed"] += 1
        self._end_half_open(connection)

    def handshake_refused(self, connection: Connection) -> None:
        """The peer's certificate is not one that we take; the connection ends by itself."""
        self.handshakes["refused"] += 1
        self._counted.add(connection)

    def _end_half_open(self, connection: Connection) -> None:
        deadline = self._half_open.pop(connection, None)
        if deadline is not None:
            deadline.cancel()

    def _handshake_overdue(self, connection: Connection) -> None:
        """Silently, as an idle connection would end: who stalls does not deserve a packet."""
        self._half_open.pop(connection, None)
        self.handshakes["timed_out"] += 1
        connection.drop("the handshake took too long")
        self.forget(connection)

    def _receive_unknown(self, run: list[bytes], address: Address) -> None:
        """The client holds a connection that we have lost: tell it (RFC 9000 section 10.3)."""
        ids = self.connection_ids
        if ids.owner_of(run[0][1 : 1 + CONNECTION_ID_BYTES]) not in (None, ids.owner):
            self.misdirected_packets += len(run)
            return
        answer = self.resets.answer(run[0], self.loop.time())
        if answer is not None:
            self.udp.send_batch([answer], address)

    def _receive_long_header(self, packet: bytes, address: Address, now: float) -> None:
        connection = self._by_id.get(_long_header_destination(packet))
        if connection is not None:
            self._touched.add(connection)
            connection.receive([packet], address, now)
            return
        buffer = Buffer(data=packet)
        try:
            header = pull_quic_header(buffer, host_cid_length=CONNECTION_ID_BYTES)
        except ValueError:
            self.unknown_packets += 1
            return
        # What is too small to begin a connection is never answered: no amplification.
        if len(packet) < SMALLEST_MAX_DATAGRAM_SIZE:
            self.unknown_packets += 1
        elif header.version not in self._configuration.supported_versions:
            self._negotiate_version(header, address)
        elif (
            header.packet_type is not QuicPacketType.INITIAL
            # RFC 9000 section 7.2; a shorter one could be mistaken for no ID at all.
            or len(header.destination_cid) < _LEAST_INITIAL_ID_BYTES
        ):
            self.unknown_packets += 1
        elif self._may_begin():
            self._receive_initial(header, packet, buffer.tell(), address, now)
        else:
            self.refused_initials += 1

    def _negotiate_version(self, header: QuicHeader, address: Address) -> None:
        """RFC 9000 section 6.1; never in answer to Version Negotiation itself (version 0)."""
        if not header.version:
            self.unknown_packets += 1
            return
        answer = encode_quic_version_negotiation(
            source_cid=header.destination_cid,
            destination_cid=header.source_cid,
            supported_versions=self._configuration.supported_versions,
        )
        self.udp.send_batch([answer], address)

    def _may_begin(self) -> bool:
        return (
            self.accepting
            and len(self._half_open) < self._max_half_open
            and len(self.connections) < self._max_connections
        )

    def _receive_initial(
        self, header: QuicHeader, packet: bytes, payload_offset: int, address: Address, now: float
    ) -> None:
        proved_cid = self._proved_original(header, address, now)
        if proved_cid is None and self._must_prove_address(now):
            self._send_retry(header, address, now)
        elif _opens_with_initial_keys(header, packet, payload_offset):
            self._begin(proved_cid, header, packet, address, now)
        else:
            self.unknown_packets += 1

    def _proved_original(self, header: QuicHeader, address: Address, now: float) -> bytes | None:
        """The connection ID of the client's first packet, out of a valid token; else None.

        An invalid token may be one of our last life: it counts as none (section 8.1.3).
        """
        if not header.token:
            return None
        try:
            original = self._retry.validate_token(
                address=address,
                destination_cid=header.destination_cid,
                token=header.token,
                now=now,
            )
        except ValueError:
            self.retry_tokens["refused"] += 1
            return None
        self.retry_tokens["accepted"] += 1
        return original

    def _must_prove_address(self, now: float) -> bool:
        return self._is_crowded() or not self._unproved.allow(now)

    def _is_crowded(self) -> bool:
        return len(self._half_open) * 2 >= self._max_half_open

    def _begin(
        self,
        proved_cid: bytes | None,
        header: QuicHeader,
        packet: bytes,
        address: Address,
        now: float,
    ) -> None:
        first_cid = header.destination_cid
        if proved_cid is None:
            connection = self._make_connection(first_cid, None, now)
        else:
            connection = self._make_connection(proved_cid, first_cid, now)
        connection.receive([packet], address, now)
        self._half_open[connection] = self.loop.call_later(
            self._handshake_timeout_s, self._handshake_overdue, connection
        )
        self.add(connection, first_cid, connection.quic.host_cid)
        self._touched.add(connection)

    def _send_retry(self, header: QuicHeader, address: Address, now: float) -> None:
        source_cid = self.connection_ids.issue()
        token = self._retry.create_token(
            address=address,
            original_destination_connection_id=header.destination_cid,
            retry_source_connection_id=source_cid,
            now=now,
        )
        self.retry_tokens["issued"] += 1
        self._retried_s = now
        answer = encode_quic_retry(
            version=header.version or 0,
            source_cid=source_cid,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=token,
        )
        self.udp.send_batch([answer], address)


def _opens_with_initial_keys(header: QuicHeader, packet: bytes, payload_offset: int) -> bool:
    """Whether the keys that everybody can compute open a first packet (RFC 9001 section 5.2).

    Noise does not get as far as a connection: one costs a hundred kilobytes, in cycles that
    only the garbage collector takes apart.
    """
    keys = CryptoPair()
    keys.setup_initial(cid=header.destination_cid, is_client=False, version=header.version or 0)
    try:
        keys.decrypt_packet(packet[: header.packet_length], payload_offset, 0)
    except (CryptoError, ValueError):
        return False
    return True


def _long_header_destination(packet: bytes) -> bytes:
    """The destination connection ID of a long header (RFC 8999 section 5.1); b"" if cut off."""
    if len(packet) < 6:
        return b""
    return packet[6 : 6 + packet[5]]
