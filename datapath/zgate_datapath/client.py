"""The client's end of a tunnel: dial, prove both ends, ask for IP, carry packets."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from pathlib import Path
from urllib.parse import urlsplit

from aioquic.h3.connection import ErrorCode
from aioquic.quic.configuration import QuicConfiguration
from aioquic.tls import AlertDescription, CipherSuite
from zgate_identity.files import IdentityError
from zgate_identity.refusal import CertificateRefused
from zgate_identity.server_verifier import ServerVerifier
from zgate_identity.tls_files import check_ca_file
from zgate_protocol import events
from zgate_protocol.connect_ip import ConnectIpSession, Role
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.icmp import TokenBucket, error_for_drop
from zgate_protocol.ip_range import IpRange
from zgate_protocol.service_capsule import OfferState, OfferStatus
from zgate_protocol.uri_template import Scope, default_template

from zgate_datapath.congestion import algorithm_name
from zgate_datapath.connection import Connection, Ending, Headers
from zgate_datapath.connection_ids import CONNECTION_ID_BYTES
from zgate_datapath.endpoint import Endpoint
from zgate_datapath.offers import ClientOffers, Notices, Offering
from zgate_datapath.path_mtu import PathMtuState
from zgate_datapath.peer_authentication import (
    ClientQuicConnection,
    PeerRefused,
    VerifyGateway,
    load_own_certificate,
)
from zgate_datapath.tun import VNET_HEADER_BYTES, Tun
from zgate_datapath.tunnel import Tunnel, add_drops
from zgate_datapath.udp import Address, PathError, UdpSocket, udp_overhead_bytes

logger = logging.getLogger(__name__)

# AES-128 first: as strong as needed, and the fastest where the CPU has AES instructions.
CIPHER_SUITES = [
    CipherSuite.AES_128_GCM_SHA256,
    CipherSuite.AES_256_GCM_SHA384,
    CipherSuite.CHACHA20_POLY1305_SHA256,
]
# aioquic's own packets (handshake, streams, ACKs) stay small enough for any IPv6 path;
# only the tunnel's datagrams use what path MTU discovery finds.
CONTROL_PACKET_BYTES = 1232
MAX_DATAGRAM_FRAME_BYTES = 65535
_TUN_BATCH_PACKETS = 64
_QUEUE_PACKETS = 512
_ICMP_PER_S = 100
_NO_NOTICES = Notices()


class TunnelError(Exception):
    """A tunnel could not be made, or broke; the text names the cause."""

    def explain(self) -> str:
        """What failed, in words that say on which side the cure is."""
        return str(self)


class GatewayCertificateRefused(TunnelError):
    """The gateway did not prove who it is; nothing was sent to it."""

    def explain(self) -> str:
        """See `TunnelError.explain`."""
        return f"the gateway's certificate is refused: {self}"


class ClientCertificateRefused(TunnelError):
    """The gateway refused our certificate."""

    def explain(self) -> str:
        """See `TunnelError.explain`."""
        return f"the gateway refuses our certificate: {self}"


class ConnectTimeout(TunnelError):
    """The gateway did not answer in time."""


class SessionRefused(TunnelError):
    """The gateway answered the CONNECT-IP request with a status that is not 2xx."""

    def __init__(self, status: int, proxy_status: str) -> None:
        detail = f" ({proxy_status})" if proxy_status else ""
        super().__init__(f"the gateway refused the session: status {status}{detail}")
        self.status = status
        self.proxy_status = proxy_status


class ConnectionLost(TunnelError):
    """The connection ended before the session was up."""


class PathTooSmall(TunnelError):
    """The path does not carry what an inner IPv6 packet of 1280 bytes needs (RFC 9484 §7.2)."""


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """What a tunnel needs to know; files are PEM."""

    host: str
    port: int
    server_name: str
    ca_file: str
    certificate_file: str
    key_file: str
    mtu_bytes: int = 1420
    idle_timeout_s: float = 30.0
    keepalive_s: float = 10.0
    engine: str = "auto"
    congestion: str = "cubic"
    max_udp_payload_bytes: int = 1452
    local_port: int = 0
    """0: any."""


@dataclass(frozen=True, slots=True)
class TunnelState:
    """What the gateway gave us, and where both ends are."""

    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    routes: tuple[IpRange, ...]
    gateway_address: Address
    local_address: Address
    mtu_bytes: int


def _nobody(read: bytes) -> None:
    """All that the TUN has is the one session's: nothing comes here."""


class TunnelClient:
    """One session; make a new one to connect again. Call from one event loop only.

    `on_change` is called with the new state whenever the gateway changes addresses or routes,
    or the path's MTU changes, after `connect` has returned. `offers` are sent as soon as there is
    a session; `notices` are told what the gateway says of them, and of names and addresses.

    One session at a time reads the TUN. With `stands_by` it is not this one until `take_over`: so
    a new session is made beside an older one, which has let go before. Whoever does not read the
    TUN goes on writing what comes from the gateway into it.
    """

    def __init__(
        self,
        *,
        config: ClientConfig,
        tun: Tun | None,
        on_change: Callable[[TunnelState], None],
        offers: ClientOffers | None = None,
        notices: Notices = _NO_NOTICES,
        stands_by: bool = False,
    ) -> None:
        self._config = config
        self._tun = tun
        self._reads_tun = not stands_by
        self._on_change = on_change
        self._offering = Offering(offers)
        self._notices = notices
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[TunnelState] = self._loop.create_future()
        self._closed: asyncio.Future[str] = self._loop.create_future()
        self._endpoint: Endpoint | None = None
        self._connection: Connection | None = None
        self._tunnel: Tunnel | None = None
        self._addresses: tuple[IPv4Interface | IPv6Interface, ...] | None = None
        self._routes: tuple[IpRange, ...] | None = None
        self._handshake_done = False
        self._tun_paused = True
        self._newest: TunnelState | None = None
        self._told: TunnelState | None = None
        self._keepalive: asyncio.TimerHandle | None = None
        self._received_at = 0.0
        self._carried_packets = 0
        self._packets_up = self._bytes_up = self._packets_down = self._bytes_down = 0
        self._icmp_bucket = TokenBucket(rate_per_s=_ICMP_PER_S, burst=_ICMP_PER_S)

    # Life.

    async def connect(self, timeout_s: float) -> TunnelState:
        """Dial and wait until packets can flow.

        Raises:
            TunnelError: one of its subclasses, by cause. The client is closed then.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._dial()
                await asyncio.shield(self._ready)
        except TimeoutError:
            await self.close("timeout")
            raise ConnectTimeout(self._timeout_text(timeout_s)) from None
        except BaseException:
            await self.close("connect failed")
            raise
        # Not what the future holds: the gateway may have said more before we had our turn.
        assert self._newest is not None
        self._told = state = self._newest
        self._received_at = self._loop.time()
        self._arm_keepalive()
        self._resume_tun()
        return state

    async def _dial(self) -> None:
        config = self._config
        try:
            found = await self._loop.getaddrinfo(config.host, config.port, type=2)
            address: Address = found[0][4]
            udp = UdpSocket.towards(address, local_port=config.local_port)
        except OSError as error:
            raise ConnectionLost(f"cannot reach {config.host}: {error}") from error
        try:
            quic = ClientQuicConnection(
                verify_gateway=self._gateway_check(), configuration=self._quic_configuration()
            )
        except (OSError, ValueError, IdentityError) as error:
            udp.close()
            raise TunnelError(f"certificate or key file: {error}") from error
        now = self._loop.time()
        overhead_bytes = udp_overhead_bytes(address)
        self._endpoint = Endpoint(
            udp, self._loop, engine=config.engine, on_path_error=self._path_error
        )
        self._connection = Connection(
            quic,
            udp=udp,
            carrier=self._endpoint.carrier,
            max_udp_payload_bytes=min(config.max_udp_payload_bytes, 1500 - overhead_bytes),
            queue_packets=_QUEUE_PACKETS,
            now=now,
        )
        self._connection.set_handler(self)
        self._connection.on_observed = self._notices.on_observed
        self._endpoint.add(self._connection, quic.host_cid)
        self._endpoint.start()
        quic.connect(address, now=now)
        self._endpoint.flush(self._connection)

    def _path_error(self, error: PathError) -> None:
        """A closed port need not be waited for. Forged, it costs one attempt, no session."""
        if error.error_number == errno.ECONNREFUSED and not self._handshake_done:
            where = f"{self._config.host}:{self._config.port} (UDP)"
            self._fail(ConnectionLost(f"nobody listens at {where}: is the gateway running?"))

    def _gateway_check(self) -> VerifyGateway:
        authorities = check_ca_file(Path(self._config.ca_file), datetime.now(UTC))
        verifier = ServerVerifier(authorities, self._config.server_name)

        def verify(leaf_der: bytes, chain_der: Sequence[bytes]) -> None:
            try:
                verifier.verify(leaf_der, chain_der, datetime.now(UTC))
            except CertificateRefused as refused:
                raise PeerRefused(
                    AlertDescription(refused.reason.tls_alert), str(refused)
                ) from refused

        return verify

    def _quic_configuration(self) -> QuicConfiguration:
        config = self._config
        configuration = QuicConfiguration(
            is_client=True,
            alpn_protocols=["h3"],
            cipher_suites=CIPHER_SUITES,
            connection_id_length=CONNECTION_ID_BYTES,
            congestion_control_algorithm=algorithm_name(config.congestion),
            idle_timeout=config.idle_timeout_s,
            max_datagram_frame_size=MAX_DATAGRAM_FRAME_BYTES,
            max_datagram_size=CONTROL_PACKET_BYTES,
            server_name=config.server_name,
            verify_mode=ssl.CERT_REQUIRED,
            cafile=config.ca_file,
        )
        if config.certificate_file:
            own = Path(config.certificate_file), Path(config.key_file)
            load_own_certificate(configuration, *own)
        return configuration

    def _timeout_text(self, timeout_s: float) -> str:
        where = f"{self._config.host}:{self._config.port} (UDP)"
        if self._handshake_done:
            return f"{where} answered but gave no session in {timeout_s:g} s"
        error = self._endpoint.last_path_error if self._endpoint is not None else None
        hint = "is UDP open on the way, and the gateway running?"
        if error is not None:
            hint = os.strerror(error.error_number)
        return f"no answer from {where} in {timeout_s:g} s: {hint}"

    async def wait_closed(self) -> str:
        """Wait for the session's end; returns why."""
        return await asyncio.shield(self._closed)

    async def close(self, reason: str = "") -> None:
        """End the session and the connection; safe to call twice."""
        self._pause_tun()
        if self._keepalive is not None:
            self._keepalive.cancel()
        connection, endpoint = self._connection, self._endpoint
        if connection is not None and endpoint is not None and not connection.is_terminated:
            connection.close(ErrorCode.H3_NO_ERROR, reason)
            endpoint.flush(connection)
        if endpoint is not None:
            endpoint.close()
        self._end(reason or "closed by us")

    def _end(self, reason: str) -> None:
        self._pause_tun()
        if not self._closed.done():
            self._closed.set_result(reason)
        if not self._ready.done():
            self._ready.set_exception(ConnectionLost(reason))
            self._ready.exception()  # nobody need wait for it

    def let_go(self) -> None:
        """Read the TUN no more: somebody else takes it over. What was read is still sent."""
        self._reads_tun = False
        self._pause_tun()

    def take_over(self) -> None:
        """Read the TUN from now on; whoever read it has let go."""
        self._reads_tun = True
        self._resume_tun()

    def rebind(self) -> None:
        """Our own address has changed: go on from a new socket (RFC 9000 section 9)."""
        connection, endpoint = self._connection, self._endpoint
        if connection is None or endpoint is None or connection.is_terminated:
            return
        address = connection.peer_address
        if address is None:
            return
        try:
            udp = UdpSocket.towards(address)
        except OSError as error:
            # No route at the moment: the next address change tries again.
            logger.info("cannot rebind yet: %(error)s", {"event": "rebind_waits", "error": error})
            return
        endpoint.replace_socket(udp)
        connection.local_address_changed(self._loop.time())
        endpoint.flush(connection)

    # What a connector sends.

    def offer(self, offers: ClientOffers) -> None:
        """Offer this instead of what was offered before; at once if there is a session."""
        self._offering.replace(offers)
        if self._tunnel is not None and self._tunnel.session.is_open:
            self._send(self._offering.capsules(self._tunnel.session))

    def send_offer_state(self, statuses: Sequence[OfferStatus]) -> bool:
        """Tell how the offered services do: the sign of life. False if there is no session."""
        if self._tunnel is None or not self._tunnel.session.is_open:
            return False
        self._send(self._tunnel.session.send_capsule(OfferState(tuple(statuses))))
        return True

    def _send(self, capsules: bytes) -> None:
        assert self._tunnel is not None
        assert self._endpoint is not None
        connection = self._require_connection()
        if capsules and not connection.is_terminated:
            connection.send_data(self._tunnel.stream_id, capsules)
            self._endpoint.flush(connection)

    def statistics(self) -> dict[str, float]:
        """Packets and bytes inside the tunnel, drops, RTT in seconds."""
        numbers: dict[str, float] = {
            "packets_up": self._packets_up,
            "bytes_up": self._bytes_up,
            "packets_down": self._packets_down,
            "bytes_down": self._bytes_down,
        }
        if self._tunnel is not None:
            numbers["packets_dropped"] = sum(self.drops().values())
        if self._connection is not None:
            carried = self._connection.engine.carried
            numbers["packets_up"] += carried.sent_packets
            numbers["bytes_up"] += carried.sent_bytes
            numbers["packets_down"] += carried.received_packets
            numbers["bytes_down"] += carried.received_bytes
            numbers.update(self._connection.statistics())
        return numbers

    def drops(self) -> dict[DropReason, int]:
        """Packets dropped by this end, by reason."""
        total = dict(self._tunnel.drops) if self._tunnel is not None else {}
        if self._connection is not None:
            add_drops(total, self._connection.dropped.items())
        return total

    # What the connection tells (ConnectionHandler).

    def handshake_completed(self) -> None:
        """The gateway has proved itself; whether it accepts us shows later."""
        self._handshake_done = True

    def settings_received(self) -> None:
        """Ask for IP (RFC 9484 section 4.1)."""
        connection = self._require_connection()
        assert connection.h3 is not None
        if not (
            connection.h3.peer_takes_datagrams() and connection.h3.peer_takes_extended_connect()
        ):
            self._fail(ConnectionLost("the peer is no CONNECT-IP gateway (HTTP/3 settings)"))
            return
        stream_id = connection.quic.get_next_available_stream_id()
        session = ConnectIpSession(Role.CLIENT, stream_id, limits=self._offering.limits)
        self._tunnel = Tunnel(connection, session, stream_id)
        authority = self._config.server_name
        if self._config.port != 443:
            authority = f"{authority}:{self._config.port}"
        path = urlsplit(default_template(authority).expand(Scope())).path
        connection.send_headers(stream_id, session.request(authority, path))

    def headers_received(self, stream_id: int, headers: Headers, ended: bool) -> None:
        """The gateway's answer."""
        if self._tunnel is None or stream_id != self._tunnel.stream_id:
            return
        self._handle(self._tunnel.session.receive_headers(headers))
        if ended:
            self._handle(self._tunnel.session.receive_data(b"", fin=True))

    def data_received(self, stream_id: int, data: bytes, ended: bool) -> None:
        """Capsules."""
        if self._tunnel is not None and stream_id == self._tunnel.stream_id:
            self._handle(self._tunnel.session.receive_data(data, fin=ended))

    def stream_reset(self, stream_id: int, error_code: int) -> None:
        """The gateway took the session away."""
        if self._tunnel is not None and stream_id == self._tunnel.stream_id:
            self._fail(ConnectionLost(f"the gateway ended the session (error 0x{error_code:x})"))

    def datagrams_received(self, payloads: Sequence[bytes]) -> None:
        """Packets from the gateway: into the TUN."""
        tunnel, tun = self._tunnel, self._tun
        if tunnel is None:
            return
        self._received_at = self._loop.time()
        for received in payloads:
            payload = received if tunnel.owns(received) else tunnel.shorten(received) or b""
            if not payload:
                tunnel.count(tunnel.connection.reject_datagram(received))
                continue
            packet = tunnel.receive(payload)
            if isinstance(packet, DropReason):
                continue
            self._packets_down += 1
            self._bytes_down += len(packet)
            if tun is not None and not tun.write(packet):
                tunnel.count(DropReason.TUN_WRITE_FAILED)

    def tun_read(self, read: bytes, is_too_big: bool) -> None:
        """What the engine has read from the TUN and leaves to be judged."""
        tunnel = self._tunnel
        if tunnel is None:
            return
        packet = read[VNET_HEADER_BYTES:]
        reason = tunnel.send_read(read, is_too_big=is_too_big)
        if reason:
            self._answer(packet, reason, tunnel)

    def mtu_changed(self) -> None:
        """Path MTU discovery has news."""
        connection = self._require_connection()
        if connection.path_mtu.state is PathMtuState.UNUSABLE:
            self._fail(PathTooSmall("the path carries no UDP payload of 1331 bytes: no tunnel"))
            return
        self._handle([])

    def can_send(self) -> None:
        """The window has opened."""
        self._resume_tun()

    def terminated(self, ending: Ending) -> None:
        """The connection is gone."""
        if ending.tls_alert is None:
            self._fail(ConnectionLost(str(ending)))
            return
        try:
            name = AlertDescription(ending.tls_alert).name
        except ValueError:
            name = f"alert {ending.tls_alert}"
        text = f"{name}: {ending.reason}" if ending.reason else name
        self._fail(
            ClientCertificateRefused(text)
            if self._handshake_done
            else GatewayCertificateRefused(text)
        )

    # Session events.

    def _handle(self, happened: Sequence[events.Event]) -> None:
        for event in happened:
            self._notices.tell(event)
            if isinstance(event, events.Refused):
                self._fail(SessionRefused(event.status, event.proxy_status))
            elif isinstance(event, events.Established):
                assert self._tunnel is not None
                self._send(self._offering.capsules(self._tunnel.session))
            elif isinstance(event, events.AddressesAssigned):
                self._addresses = tuple(
                    ip_interface(entry.prefix.with_prefixlen)
                    for entry in event.addresses
                    if not entry.is_refusal
                )
            elif isinstance(event, events.RoutesAdvertised):
                self._routes = event.ranges
            elif isinstance(event, events.DatagramReceived):
                assert self._tunnel is not None
                self.datagrams_received([self._tunnel.restore(event.payload)])
            elif isinstance(event, events.StreamAborted):
                assert self._tunnel is not None
                self._require_connection().abort_stream(
                    self._tunnel.stream_id, int(event.error_code)
                )
                self._fail(ConnectionLost(f"the gateway broke the protocol: {event.reason}"))
            elif isinstance(event, events.PeerClosed):
                self._fail(ConnectionLost("the gateway ended the session"))
        self._check_link()
        self._settle()

    def _check_link(self) -> None:
        """RFC 9484 section 7.2: no IPv6 where the gateway takes no packets of 1280 bytes."""
        tunnel = self._tunnel
        if tunnel is None:
            return
        for event in tunnel.session.check_link_mtu(tunnel.mtu_bytes):
            assert isinstance(event, events.StreamAborted)
            self._require_connection().abort_stream(tunnel.stream_id, int(event.error_code))
            self._fail(PathTooSmall(event.reason))

    def _settle(self) -> None:
        """Once all is known say so; later, say what has changed."""
        connection, tunnel = self._connection, self._tunnel
        if connection is None or tunnel is None or not self._addresses or self._routes is None:
            return
        if connection.path_mtu.confirmed_bytes == 0 and not self._ready.done():
            return
        assert self._endpoint is not None
        state = TunnelState(
            addresses=self._addresses,
            routes=self._routes,
            gateway_address=connection.peer_address or (),
            local_address=self._endpoint.udp.local_address,
            mtu_bytes=min(self._config.mtu_bytes, tunnel.mtu_bytes),
        )
        self._newest = state
        if not self._ready.done():
            self._ready.set_result(state)
        elif self._told is not None and state != self._told:
            self._told = state
            self._on_change(state)

    def _fail(self, error: TunnelError) -> None:
        if not self._ready.done():
            self._ready.set_exception(error)
        self._end(str(error))

    def _require_connection(self) -> Connection:
        assert self._connection is not None
        return self._connection

    # The TUN.

    def _resume_tun(self) -> None:
        if self._closed.done() or not self._reads_tun:
            return
        tun, endpoint, tunnel = self._tun, self._endpoint, self._tunnel
        if not self._tun_paused or tun is None or self._told is None:
            return
        self._tun_paused = False
        if tun.has_vnet_header:
            assert endpoint is not None
            assert endpoint.carrier is not None, "only the native engine reads vnet headers"
            assert tunnel is not None
            endpoint.carrier.attach_tun(tun, on_read=_nobody, on_gone=self._tun_gone)
            tunnel.carry()
        else:
            self._loop.add_reader(tun.fd, self._on_tun_readable)

    def _pause_tun(self) -> None:
        if self._tun_paused or self._tun is None:
            return
        self._tun_paused = True
        if self._tun.has_vnet_header:
            assert self._endpoint is not None
            assert self._endpoint.carrier is not None
            self._endpoint.carrier.detach_tun()
        else:
            self._loop.remove_reader(self._tun.fd)

    def _tun_gone(self) -> None:
        assert self._tun is not None
        self._fail(ConnectionLost(f"the TUN device {self._tun.name} is gone"))

    def _on_tun_readable(self) -> None:
        tun, tunnel, endpoint = self._tun, self._tunnel, self._endpoint
        connection = self._connection
        if tun is None or tunnel is None or connection is None or endpoint is None:
            return
        for packet in tun.read_batch(_TUN_BATCH_PACKETS):
            reason = tunnel.send(packet)
            if reason:
                self._answer(packet, reason, tunnel)
            else:
                self._packets_up += 1
                self._bytes_up += len(packet)
        endpoint.flush(connection)
        if tun.is_gone:
            self._tun_gone()
        elif connection.queued_packets() >= connection.queue_packets - _TUN_BATCH_PACKETS:
            # The window is full. What waits, waits in the TUN's own queue, where the
            # kernel's transports see it; `can_send` resumes.
            connection.note_full()
            self._pause_tun()

    def _answer(self, packet: bytes, reason: DropReason, tunnel: Tunnel) -> None:
        """Tell the local sender why its packet went nowhere, at a bounded rate."""
        if self._tun is None or not self._icmp_bucket.allow(self._loop.time()):
            return
        # In the destination's name: the kernel drops what arrives with a source of its own as
        # martian, and what the reverse path filter expects elsewhere; this passes both.
        sources = packet[16:20], packet[24:40]
        error = error_for_drop(reason, packet, sources, tunnel.mtu_bytes)
        if error is not None:
            self._tun.write(error)

    def _arm_keepalive(self) -> None:
        self._keepalive = self._loop.call_later(self._config.keepalive_s, self._keep_alive)

    def _keep_alive(self) -> None:
        connection, endpoint = self._connection, self._endpoint
        if connection is None or endpoint is None or connection.is_terminated:
            return
        carried = connection.engine.carried.received_packets
        if carried != self._carried_packets:
            self._carried_packets = carried
            self._received_at = self._loop.time()
        if self._loop.time() - self._received_at >= self._config.keepalive_s:
            connection.ping()
            endpoint.flush(connection)
        self._arm_keepalive()
