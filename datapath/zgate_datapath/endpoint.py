"""A UDP socket and the connections on it, driven by asyncio's readiness callbacks.

One readable socket is drained in batches; each connection that the batch touched is flushed
once. That, and not the work per packet, is what a naive loop gets wrong.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE, QuicConfiguration
from aioquic.quic.packet import (
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler

from zgate_datapath.connection import Connection
from zgate_datapath.udp import Address, PathError, UdpSocket

logger = logging.getLogger(__name__)

CONNECTION_ID_BYTES = 8
_RECEIVE_CALLS = 16


class Endpoint:
    """Connections by connection ID, their timers, and the socket they share."""

    def __init__(self, udp: UdpSocket, loop: asyncio.AbstractEventLoop) -> None:
        self.udp = udp
        self.loop = loop
        self.connections: set[Connection] = set()
        self.unknown_packets = 0
        self.last_path_error: PathError | None = None
        self._by_id: dict[bytes, Connection] = {}
        self._touched: set[Connection] = set()
        self._timers: dict[Connection, tuple[float, asyncio.TimerHandle]] = {}
        self._empty = asyncio.Event()

    async def wait_empty(self) -> None:
        """Wait until the last connection has ended."""
        while self.connections:
            self._empty.clear()
            await self._empty.wait()

    def start(self) -> None:
        """Begin to receive."""
        self.loop.add_reader(self.udp.fileno(), self._on_readable)

    def close(self) -> None:
        """Stop receiving, forget all connections, close the socket."""
        self._stop_reading()
        for connection in list(self.connections):
            self.forget(connection)
        self.udp.close()

    def _stop_reading(self) -> None:
        if self.udp.fileno() >= 0:
            self.loop.remove_reader(self.udp.fileno())

    def replace_socket(self, udp: UdpSocket) -> None:
        """Go on with another socket: the local address has changed."""
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
        now = self.loop.time()
        while self._touched:
            connection = self._touched.pop()
            connection.flush(now)
            self._follow(connection)

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
        if connection.is_terminated:
            self.forget(connection)
            return
        self._arm(connection)

    def _arm(self, connection: Connection) -> None:
        at = connection.next_timer()
        armed = self._timers.get(connection)
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

    def _on_readable(self) -> None:
        now = self.loop.time()
        for packets, address in self.udp.receive_batch(_RECEIVE_CALLS):
            self._dispatch(packets, address, now)
        for error in self.udp.path_errors():
            self.last_path_error = error
            if error.mtu_bytes is not None:
                for connection in self.connections:
                    if _same_host(connection.peer_address, error.address):
                        connection.path_too_big(error.mtu_bytes, now)
                        self._touched.add(connection)
        self.batch_received()
        self.flush_touched()

    def batch_received(self) -> None:
        """Called after each drained batch, before the flush; for subclasses."""

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
            return
        self._touched.add(connection)
        connection.receive(run, address, now)

    def _receive_long_header(self, packet: bytes, address: Address, now: float) -> None:
        """A handshake packet: a client knows only its own connection."""
        connection = self._by_id.get(_long_header_destination(packet))
        if connection is None:
            self.unknown_packets += 1
            return
        self._touched.add(connection)
        connection.receive([packet], address, now)


class ServerEndpoint(Endpoint):
    """An endpoint that accepts connections.

    Half-open connections are bounded; above half the bound each new client first proves its
    address with a Retry packet (RFC 9000 section 8.1.2).
    """

    def __init__(
        self,
        udp: UdpSocket,
        loop: asyncio.AbstractEventLoop,
        *,
        configuration: QuicConfiguration,
        make_connection: Callable[[bytes, bytes | None, float], Connection],
        max_half_open: int = 512,
    ) -> None:
        super().__init__(udp, loop)
        self._configuration = configuration
        self._make_connection = make_connection
        self._retry = QuicRetryTokenHandler()
        self._max_half_open = max_half_open
        self._half_open: set[Connection] = set()
        self.accepting = True
        self.retries_sent = 0
        self.refused_initials = 0

    def forget(self, connection: Connection) -> None:
        """See `Endpoint.forget`."""
        self._half_open.discard(connection)
        super().forget(connection)

    def handshake_completed(self, connection: Connection) -> None:
        """The connection no longer counts as half open."""
        self._half_open.discard(connection)

    def _receive_long_header(self, packet: bytes, address: Address, now: float) -> None:
        connection = self._by_id.get(_long_header_destination(packet))
        if connection is not None:
            self._touched.add(connection)
            connection.receive([packet], address, now)
            return
        try:
            header = pull_quic_header(Buffer(data=packet), host_cid_length=CONNECTION_ID_BYTES)
        except ValueError:
            self.unknown_packets += 1
            return
        if header.version not in self._configuration.supported_versions:
            # Never in answer to Version Negotiation itself (version 0), nor to packets
            # that are too small to begin a connection: no loop, no amplification.
            if header.version and len(packet) >= SMALLEST_MAX_DATAGRAM_SIZE:
                self.udp.send_batch(
                    [
                        encode_quic_version_negotiation(
                            source_cid=header.destination_cid,
                            destination_cid=header.source_cid,
                            supported_versions=self._configuration.supported_versions,
                        )
                    ],
                    address,
                )
            return
        if (
            header.packet_type is not QuicPacketType.INITIAL
            or len(packet) < SMALLEST_MAX_DATAGRAM_SIZE
        ):
            self.unknown_packets += 1
            return
        if not self.accepting or len(self._half_open) >= self._max_half_open:
            self.refused_initials += 1
            return
        original_cid, retry_cid = header.destination_cid, None
        if header.token:
            try:
                original_cid = self._retry.validate_token(
                    address=address,
                    destination_cid=header.destination_cid,
                    token=header.token,
                    now=now,
                )
                retry_cid = header.destination_cid
            except ValueError:
                # Perhaps a token of our last life: go on without it.
                self.refused_initials += 1
                return
        elif len(self._half_open) * 2 >= self._max_half_open:
            self._send_retry(header.version or 0, header.source_cid, original_cid, address, now)
            return
        connection = self._make_connection(original_cid, retry_cid, now)
        self._half_open.add(connection)
        self.add(connection, header.destination_cid, connection.quic.host_cid)
        self._touched.add(connection)
        connection.receive([packet], address, now)

    def _send_retry(
        self, version: int, peer_cid: bytes, original_cid: bytes, address: Address, now: float
    ) -> None:
        source_cid = os.urandom(CONNECTION_ID_BYTES)
        token = self._retry.create_token(
            address=address,
            original_destination_connection_id=original_cid,
            retry_source_connection_id=source_cid,
            now=now,
        )
        self.retries_sent += 1
        self.udp.send_batch(
            [
                encode_quic_retry(
                    version=version,
                    source_cid=source_cid,
                    destination_cid=peer_cid,
                    original_destination_cid=original_cid,
                    retry_token=token,
                )
            ],
            address,
        )


def _long_header_destination(packet: bytes) -> bytes:
    """The destination connection ID of a long header (RFC 8999 section 5.1); b"" if cut off."""
    if len(packet) < 6:
        return b""
    return packet[6 : 6 + packet[5]]


def _same_host(one: Address | None, other: Address) -> bool:
    return one is not None and one[:2] == other[:2]
