"""A gateway's UDP side and its clients over loopback, in one event loop and without root.

Real: sockets, QUIC, TLS, certificates, HTTP/3, CONNECT-IP, the session table, the forwarder.
Fake: what needs the kernel (TUN, policy tables, raw sockets) and the store (address pools).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aioquic.h3.connection import ErrorCode
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography import x509
from zgate_datapath.address_discovery import DiscoveringQuicConnection
from zgate_datapath.client import CIPHER_SUITES, ClientConfig, TunnelClient, TunnelState
from zgate_datapath.connection import HTTP3, Connection, Ending, Headers
from zgate_datapath.connection_ids import CONNECTION_ID_BYTES, ConnectionIds
from zgate_datapath.endpoint import Endpoint, ServerEndpoint
from zgate_datapath.offers import ClientOffers, Notices
from zgate_datapath.udp import UdpSocket
from zgate_gateway.admission import Admission, Answer, Applicant, Reached, Refusal
from zgate_gateway.client_connection import ClientConnection
from zgate_gateway.dialects.connection import ZTNA_V1, DialectConnection
from zgate_gateway.forwarder import Forwarder
from zgate_gateway.listener import Listener, ListenerSettings
from zgate_gateway.pool import PoolExhausted
from zgate_gateway.registry import Registry, RegistrySettings, SessionRecord
from zgate_gateway.sessions import Session, SessionSettings, SessionTable
from zgate_identity.authority import CertificateAuthority
from zgate_identity.profile import Usage
from zgate_identity.reload import ReloadingClientVerifier
from zgate_protocol.capsule import Capsule, CapsuleDecoder
from zgate_protocol.icmp import checksum
from zgate_protocol.ip_range import IpRange
from zgate_protocol.service_capsule import OfferStatus, Register
from zgate_protocol.uri_template import default_template

HOST = "gateway.test"
POOLS = ("10.100.0.0/29", "fd7a:7a67:6174:65::/125")
GATEWAY_V4, GATEWAY_V6 = ip_address("10.100.0.1"), ip_address("fd7a:7a67:6174:65::1")
ROUTES = ("0.0.0.0/0", "::/0")
OFFICE_V4, OFFICE_V6 = "10.20.0.5", "fd00:20::5"
WAIT_S = 5.0


async def eventually(condition: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """Wait until the condition holds, and return its value."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not (value := condition()):
        assert asyncio.get_running_loop().time() < deadline, "it did not come to pass"
        await asyncio.sleep(0.002)
    return value


# Packets.


def udp_packet(source: object, destination: object, data: bytes = b"hello", ttl: int = 64) -> bytes:
    """A UDP packet of either family; the UDP checksum is left out."""
    one, other = ip_address(str(source)), ip_address(str(destination))
    upper = b"\x30\x39\x00\x35" + (8 + len(data)).to_bytes(2, "big") + b"\0\0" + data
    if one.version == 6:
        head = b"\x60\0\0\0" + len(upper).to_bytes(2, "big") + bytes((17, ttl))
        return head + one.packed + other.packed + upper
    head = b"\x45\0" + (20 + len(upper)).to_bytes(2, "big") + b"\0\1\0\0" + bytes((ttl, 17))
    total = checksum(head + b"\0\0" + one.packed + other.packed).to_bytes(2, "big")
    return head + total + one.packed + other.packed + upper


def sized_packet(source: object, destination: object, size_bytes: int) -> bytes:
    """A UDP packet of exactly this size."""
    return udp_packet(
        source, destination, bytes(size_bytes - len(udp_packet(source, destination, b"")))
    )


def icmp_type_and_code(packet: bytes) -> tuple[int, int]:
    offset = 20 if packet[0] >> 4 == 4 else 40
    return packet[offset], packet[offset + 1]


# Certificates.


@dataclass(frozen=True)
class Identity:
    """Files of one certificate and its key."""

    certificate: Path
    key: Path
    serial: str = ""


class Pki:
    """An authority with a gateway's certificate; clients' are made when asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = CertificateAuthority.create(directory / "ca", now=datetime.now(UTC))
        self.gateway = self.issue("gateway", usage=Usage.SERVER, dns_names=[HOST])
        self._clients: dict[str, Identity] = {}

    @property
    def ca_file(self) -> Path:
        return self.authority.ca_file

    def issue(self, name: str, **more: Any) -> Identity:
        now = datetime.now(UTC)
        issued = self.authority.issue(name, **{"now": now, **more})
        serial = issued.issued.serial_text
        identity = Identity(
            self.directory / f"{serial}.crt", self.directory / f"{serial}.key", serial
        )
        identity.certificate.write_bytes(issued.certificate_pem)
        identity.key.write_bytes(issued.key_pem)
        return identity

    def client(self, name: str) -> Identity:
        if name not in self._clients:
            self._clients[name] = self.issue(name, groups=["staff"])
        return self._clients[name]

    def issuer_certificate(self) -> x509.Certificate:
        return self.authority.certificate


# What the kernel and the store would do.


class FakeTun:
    """A TUN made of a socket pair: what the test injects, the other side reads."""

    def __init__(self) -> None:
        self._ours, self._kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._ours, self._kernels):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.name = "fake0"
        self.has_vnet_header = False
        self.is_gone = False
        self.takes = True
        self.written: list[bytes] = []

    @property
    def fd(self) -> int:
        return self._ours.fileno()

    def inject(self, packet: bytes) -> None:
        """The kernel routes a packet into the device."""
        self._kernels.send(packet)

    def read_batch(self, limit: int) -> list[bytes]:
        packets: list[bytes] = []
        while len(packets) < limit:
            try:
                packets.append(self._ours.recv(65535))
            except BlockingIOError:
                break
        return packets

    def write(self, packet: bytes) -> bool:
        if self.takes:
            self.written.append(packet)
        return self.takes

    def close(self) -> None:
        self._ours.close()
        self._kernels.close()


class FakeKernel:
    """Which clients the kernel knows; `fails` is raised by the next call."""

    def __init__(self) -> None:
        self.clients: dict[str, tuple[IPv4Address | IPv6Address, ...]] = {}
        self.groups: dict[str, tuple[str, ...]] = {}
        self.reaches: dict[str, Sequence[str] | None] = {}
        self.calls: list[str] = []
        self.counted: dict[str, tuple[int, int]] = {}
        self.fails: Exception | None = None

    def _fail(self) -> None:
        error, self.fails = self.fails, None
        if error is not None:
            raise error

    def add_client(
        self,
        name: str,
        groups: Sequence[str],
        addresses: Sequence[IPv4Address | IPv6Address],
        reaches: Sequence[str] | None,
    ) -> None:
        self._fail()
        self.calls.append(f"add {name}")
        self.clients[name] = tuple(addresses)
        self.groups[name] = tuple(groups)
        self.reaches[name] = reaches

    def remove_client(self, name: str) -> None:
        self._fail()
        self.calls.append(f"remove {name}")
        self.clients.pop(name, None)

    def client_bytes(self, name: str) -> tuple[int, int]:
        return self.counted.get(name, (0, 0))


@dataclass
class FakeLease:
    address: IPv4Address | IPv6Address


class FakePool:
    """Hands out addresses in order; a client keeps its own."""

    def __init__(self, network: str) -> None:
        self.network = ip_network(network)
        self.family = self.network.version
        self.gateway = self.network[1]
        self.leases: dict[str, Any] = {}
        self.held: list[str] = []

    def acquire(self, client: str, now: datetime) -> FakeLease:
        if client not in self.leases:
            offset = 2 + len(self.leases)
            if offset >= self.network.num_addresses - 1:
                raise PoolExhausted(f"all addresses of {self.network} are leased")
            self.leases[client] = self.network[offset]
        self.held.append(client)
        return FakeLease(self.leases[client])

    def release(self, client: str, now: datetime) -> None:
        if client in self.held:
            self.held.remove(client)

    def touch_connected(self, now: datetime) -> None:
        return None


class FakeIcmp:
    """Collects what would leave by raw sockets."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def send(self, packet: bytes) -> None:
        self.sent.append(packet)

    def close(self) -> None:
        self.closed = True


class Record:
    """The audit log's side (`SessionListener`), in the order of what happened."""

    def __init__(self) -> None:
        self.up: list[str] = []
        self.down: list[tuple[str, str]] = []
        self.refused: list[tuple[str, str, str]] = []
        self.fails: Exception | None = None

    def session_up(self, session: SessionRecord) -> None:
        self.up.append(session.client)

    def session_down(self, session: SessionRecord, cause: str) -> None:
        if self.fails is not None:
            raise self.fails
        self.down.append((session.client, cause))

    def session_refused(self, client: str, peer: str, reason: str, text: str) -> None:
        self.refused.append((client, reason, text))


class FakeSteering:
    """Which worker gets the packets for an address."""

    def __init__(self) -> None:
        self.owners: dict[bytes, int] = {}

    def assign(self, address: IPv4Address | IPv6Address, owner: int) -> None:
        self.owners[address.packed] = owner

    def release(self, address: IPv4Address | IPv6Address, owner: int) -> None:
        if self.owners.get(address.packed) == owner:
            del self.owners[address.packed]


class Near:
    """Supervisor and worker in one process: `Registrar` and `WorkerLink` without messages.

    `delays`: answers wait in `held` until `release` is called, as they do between processes.
    What sessions offer is kept in `offered`, and who fell silent in `silences`, in order.
    `reachable` are the services that everybody may reach, by name.
    """

    def __init__(self, registry: Registry, index: int = 0) -> None:
        self.registry = registry
        self.index = index
        self.table: SessionTable | None = None
        self.delays = False
        self.held: list[Callable[[], None]] = []
        self.offered: list[tuple[str, Any]] = []
        self.silences: list[tuple[str, bool]] = []
        self.reachable: dict[str, tuple[IPv4Address | IPv6Address, ...]] = {}

    def release(self) -> None:
        held, self.held = self.held, []
        for each in held:
            each()

    def _later(self, action: Callable[[], None]) -> None:
        if self.delays:
            self.held.append(action)
        else:
            action()

    def apply(self, applicant: Applicant, answer: Answer) -> None:
        try:
            session = self.registry.admit(applicant, self)
        except Refusal as refusal:
            refused = refusal
            self._later(lambda: answer(refused))
        else:
            admission = Admission(session.session_id, session.addresses)
            self._later(lambda: answer(admission))

    def established(self, session_id: str) -> None:
        self.registry.established(session_id, self)

    def ended(self, session_id: str, cause: str) -> None:
        self.registry.ended(session_id, self, cause)

    def refused(self, client: str, peer: str, refusal: Refusal) -> None:
        self.registry.count_refused(client, peer, refusal)

    def offer_services(self, session_id: str, register: Register) -> None:
        self.offered.append((session_id, register))

    def offer_states(self, session_id: str, statuses: Sequence[OfferStatus]) -> None:
        self.offered.append((session_id, tuple(statuses)))

    def offer_routes(self, session_id: str, networks: tuple[str, ...]) -> None:
        self.offered.append((session_id, networks))

    def reach_service(self, session_id: str, service: str, answer: Reached) -> None:
        addresses = self.reachable.get(service, ())
        self._later(lambda: answer(addresses))

    def connector_silent(self, session_id: str, is_silent: bool) -> None:
        self.silences.append((session_id, is_silent))

    def close_session(self, session_id: str, cause: str) -> None:
        assert self.table is not None
        table = self.table
        self._later(lambda: table.closed(session_id, cause))


# Both ends.


class Gateway:
    """Listener, session table and forwarder on a port of loopback."""

    def __init__(
        self,
        pki: Pki,
        *,
        engine: str = "auto",
        identity: Identity | None = None,
        newest_wins: bool = True,
        max_sessions: int = 100,
        queue_packets: int = 512,
        routes: Sequence[str] = ROUTES,
        pools: Sequence[str] = POOLS,
        idle_timeout_s: float = 30.0,
        address: str = "127.0.0.1",
        port: int = 0,
        connection_ids: ConnectionIds | None = None,
        retry_key: bytes | None = None,
        client_pools: Sequence[str] = (),
        service_pools: Sequence[str] = (),
        dns_domain: str = "",
        dialects: Sequence[str] = (),
    ) -> None:
        self.pki = pki
        self.dialects = tuple(dialects)
        loop = asyncio.get_running_loop()
        self.kernel, self.record, self.tun, self.icmp = (
            FakeKernel(),
            Record(),
            FakeTun(),
            FakeIcmp(),
        )
        self.pools = [FakePool(network) for network in pools]
        self.refusals: list[str] = []
        self.handlers: list[ClientConnection] = []
        self.tun_lost = 0
        identity = identity or pki.gateway
        self.verifier = ReloadingClientVerifier(
            pki.ca_file, pki.authority.crl_file, datetime.now(UTC)
        )
        self.steering = FakeSteering()
        self.registry = Registry(
            RegistrySettings(newest_wins=newest_wins, max_sessions=max_sessions),
            pools=self.pools,  # type: ignore[arg-type]
            kernel=self.kernel,
            steering=self.steering,
            listener=self.record,
            recheck=self.verifier.recheck,
            loop=loop,
        )
        self.link = Near(self.registry)
        self.table = self.link.table = SessionTable(
            SessionSettings(
                routes=tuple(IpRange.of(ip_network(each)) for each in routes),
                template=default_template("gateway"),
                gateway_addresses=(GATEWAY_V4.packed, GATEWAY_V6.packed),
                pools=tuple(IpRange.of(ip_network(each)) for each in client_pools),
                service_pools=tuple(IpRange.of(ip_network(each)) for each in service_pools),
                dns_domain=dns_domain,
            ),
            registrar=self.link,
            write_tun=self.tun.write,
            owner_of=self.steering.owners.get,
            loop=loop,
        )
        self.listener = Listener(
            ListenerSettings(
                certificate_file=identity.certificate,
                key_file=identity.key,
                engine=engine,
                congestion="cubic",
                idle_timeout_s=idle_timeout_s,
                max_udp_payload_bytes=1452,
                queue_packets=queue_packets,
                protocols=(HTTP3, ZTNA_V1) if ZTNA_V1 in self.dialects else (HTTP3,),
            ),
            self.verifier,
            make_handler=self._make_handler,
            on_refused=lambda connection, reason, text: self.refusals.append(reason),
            connection_ids=connection_ids,
            retry_key=retry_key,
        )
        self.listener.open(UdpSocket.bind(address, port), loop)
        self.forwarder = Forwarder(
            self.tun,  # type: ignore[arg-type]
            self.table,
            self.endpoint,
            loop,
            icmp=self.icmp,
            on_lost=self._lost,
        )
        self.forwarder.start()

    def _lost(self) -> None:
        self.tun_lost += 1

    def _make_handler(self, listener: Listener, connection: Any, quic: Any) -> ClientConnection:
        handler = (
            DialectConnection(self.dialects, self.table, self.endpoint, connection, quic)
            if self.dialects
            else ClientConnection(self.table, self.endpoint, connection, quic)
        )
        self.handlers.append(handler)
        return handler

    @property
    def endpoint(self) -> ServerEndpoint:
        assert self.listener.endpoint is not None
        return self.listener.endpoint

    @property
    def port(self) -> int:
        return int(self.endpoint.udp.local_address[1])

    def session(self, name: str) -> Session:
        return self.table.by_client[name]

    def close(self) -> None:
        for session in list(self.table.by_client.values()):
            self.table.close(session, "the test is over")
        self.endpoint.flush_touched()
        self.forwarder.stop()
        self.listener.close()
        self.tun.close()

    def kill(self) -> None:
        """End as SIGKILL would: nobody is told, and the port is free."""
        self.endpoint.connections.clear()
        self.forwarder.stop()
        self.endpoint.close()

    def assert_holds_nothing(self) -> None:
        """No session, no address, no kernel entry, no connection is left."""
        endpoint, table = self.endpoint, self.table
        assert not table.by_client and not table.by_address and not table.by_id
        assert not table.by_network and not table.services
        assert not self.registry.by_client and not self.registry.by_id
        assert not self.steering.owners
        assert self.kernel.clients == {}
        assert [pool.held for pool in self.pools] == [[] for _ in self.pools]
        assert not endpoint.connections and not endpoint._by_id
        assert not endpoint._timers and not endpoint._touched and not endpoint.half_open


@dataclass
class Client:
    """A TunnelClient with what it reads, writes and says."""

    tunnel: TunnelClient
    tun: FakeTun
    changes: list[TunnelState] = field(default_factory=list)

    @property
    def connection(self) -> Connection:
        assert self.tunnel._connection is not None
        return self.tunnel._connection

    @property
    def endpoint(self) -> Endpoint:
        assert self.tunnel._endpoint is not None
        return self.tunnel._endpoint


class Peer:
    """The client's end of a connection that says whatever the test wants (`ConnectionHandler`)."""

    def __init__(self, quic: QuicConnection, udp: UdpSocket, engine: str) -> None:
        self.quic = quic
        loop = asyncio.get_running_loop()
        self.endpoint = Endpoint(udp, loop, engine=engine)
        self.connection = Connection(
            quic,
            udp=udp,
            carrier=self.endpoint.carrier,
            max_udp_payload_bytes=1452,
            queue_packets=512,
            now=loop.time(),
        )
        self.connection.set_handler(self)
        self.is_ready = False
        self.ended: Ending | None = None
        self.headers: dict[int, dict[bytes, bytes]] = {}
        self.capsules: dict[int, list[Capsule]] = {}
        self.fins: set[int] = set()
        self.resets: dict[int, int] = {}
        self.datagrams: list[bytes] = []
        self._decoders: dict[int, CapsuleDecoder] = {}

    async def dial(self, address: tuple[Any, ...]) -> None:
        self.endpoint.add(self.connection, self.quic.host_cid)
        self.endpoint.start()
        self.quic.connect(address, now=self.endpoint.loop.time())
        self.flush()

    def flush(self) -> None:
        # Tests reach into aioquic behind the connection's back.
        self.connection._control_due = True
        self.endpoint.flush(self.connection)

    async def close(self) -> None:
        if self.connection.peer_address is not None and not self.connection.is_terminated:
            self.connection.close(ErrorCode.H3_NO_ERROR, "")
            self.flush()
        self.endpoint.close()

    # What the test says.

    def open_request(
        self,
        target: str = "*",
        ipproto: str = "*",
        *,
        end: bool = False,
        **changes: str | None,
    ) -> int:
        """Send CONNECT-IP headers; `method=...` and so on change a pseudo-header, None omits it."""
        fields: dict[str, str | None] = {
            "method": "CONNECT",
            "protocol": "connect-ip",
            "scheme": "https",
            "authority": HOST,
            "path": f"/.well-known/masque/ip/{target}/{ipproto}/",
            **changes,
        }
        stream_id = self.quic.get_next_available_stream_id()
        headers = [(f":{k}".encode(), v.encode()) for k, v in fields.items() if v is not None]
        self.connection.send_headers(stream_id, [*headers, (b"capsule-protocol", b"?1")], end=end)
        self.flush()
        return stream_id

    def send_data(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        self.connection.send_data(stream_id, data, end=end)
        self.flush()

    def send_datagram(self, payload: bytes) -> None:
        self.connection.enqueue(b"\x30" + payload)
        self.flush()

    async def establish(self) -> int:
        """Ask for a session and wait for its addresses and routes, and where it is seen."""
        stream_id = self.open_request()
        is_told = isinstance(self.quic, DiscoveringQuicConnection)
        least = 2 if is_told else 3
        await eventually(lambda: len(self.capsules.get(stream_id, [])) >= least)
        return stream_id

    def status(self, stream_id: int) -> int:
        return int(self.headers[stream_id][b":status"])

    async def answer(self, stream_id: int) -> tuple[int, str]:
        """Status and Proxy-Status of a request."""
        await eventually(lambda: stream_id in self.headers or self.ended)
        return self.status(stream_id), self.headers[stream_id].get(b"proxy-status", b"").decode()

    # What it hears.

    def handshake_completed(self) -> None:
        return None

    def settings_received(self) -> None:
        self.is_ready = True

    def headers_received(self, stream_id: int, headers: Headers, ended: bool) -> None:
        self.headers[stream_id] = dict(headers)
        if ended:
            self.fins.add(stream_id)

    def tun_read(self, read: bytes, is_too_big: bool) -> None:
        raise AssertionError("no TUN is attached")

    def data_received(self, stream_id: int, data: bytes, ended: bool) -> None:
        decoder = self._decoders.setdefault(stream_id, CapsuleDecoder())
        self.capsules.setdefault(stream_id, []).extend(decoder.feed(data, ended))
        if ended:
            self.fins.add(stream_id)

    def stream_reset(self, stream_id: int, error_code: int) -> None:
        self.resets[stream_id] = error_code

    def datagrams_received(self, payloads: Sequence[bytes]) -> None:
        self.datagrams.extend(payloads)

    def mtu_changed(self) -> None:
        return None

    def can_send(self) -> None:
        return None

    def terminated(self, ending: Ending) -> None:
        self.ended = ending


class Lab:
    """Makes gateways, clients and peers, and takes them away again.

    `engine` is the packet engine of the gateways, `client_engine` that of the others.
    """

    def __init__(self, pki: Pki, engine: str, client_engine: str | None = None) -> None:
        self.pki = pki
        self.engine = engine
        self.client_engine = client_engine or engine
        self._gateways: list[Gateway] = []
        self._clients: list[Client] = []
        self._peers: list[Peer] = []

    def gateway(self, **settings: Any) -> Gateway:
        made = Gateway(self.pki, **{"engine": self.engine, **settings})
        self._gateways.append(made)
        return made

    def make_client(
        self,
        gateway: Gateway,
        name: str = "alice",
        identity: Identity | None = None,
        *,
        offers: ClientOffers | None = None,
        notices: Notices = Notices(),  # noqa: B008 - it is frozen
        **config: Any,
    ) -> Client:
        """A client that has not dialled yet."""
        identity = identity or self.pki.client(name)
        settings = {
            "host": "127.0.0.1",
            "port": gateway.port,
            "server_name": HOST,
            "ca_file": str(self.pki.ca_file),
            "certificate_file": str(identity.certificate),
            "key_file": str(identity.key),
            "engine": self.client_engine,
            **config,
        }
        tun, changes = FakeTun(), []  # type: ignore[var-annotated]
        tunnel = TunnelClient(
            config=ClientConfig(**settings),
            tun=tun,  # type: ignore[arg-type]
            on_change=changes.append,
            offers=offers,
            notices=notices,
        )
        client = Client(tunnel, tun, changes)
        self._clients.append(client)
        return client

    async def connect(
        self, gateway: Gateway, name: str = "alice", **config: Any
    ) -> tuple[Client, TunnelState]:
        client = self.make_client(gateway, name, **config)
        return client, await client.tunnel.connect(WAIT_S)

    def make_peer(
        self,
        gateway: Gateway,
        name: str | None = "alice",
        *,
        identity: Identity | None = None,
        source: str | None = None,
        quic: QuicConnection | None = None,
        **configuration: Any,
    ) -> Peer:
        """A peer that has not dialled yet; without a name it has no certificate."""
        address = gateway.endpoint.udp.local_address
        udp = UdpSocket.towards(address) if source is None else UdpSocket.bind(source, 0)
        if quic is None:
            settings = QuicConfiguration(
                is_client=True,
                **{
                    "alpn_protocols": ["h3"],
                    "cipher_suites": CIPHER_SUITES,
                    "connection_id_length": CONNECTION_ID_BYTES,
                    "max_datagram_frame_size": 65535,
                    "server_name": HOST,
                    "verify_mode": ssl.CERT_REQUIRED,
                    "cafile": str(self.pki.ca_file),
                    **configuration,
                },
            )
            if identity is None and name is not None:
                identity = self.pki.client(name)
            if identity is not None:
                settings.load_cert_chain(identity.certificate, identity.key)
            quic = QuicConnection(configuration=settings)
        peer = Peer(quic, udp, self.client_engine)
        self._peers.append(peer)
        return peer

    async def peer(self, gateway: Gateway, name: str | None = "alice", **more: Any) -> Peer:
        """A peer whose HTTP/3 is up."""
        peer = self.make_peer(gateway, name, **more)
        await peer.dial(gateway.endpoint.udp.local_address)
        await eventually(lambda: peer.is_ready or peer.ended)
        assert peer.is_ready, peer.ended
        return peer

    async def close(self) -> None:
        for client in self._clients:
            await client.tunnel.close("the test is over")
            client.tun.close()
        for peer in self._peers:
            await peer.close()
        for gateway in self._gateways:
            gateway.close()


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(params=["python", "native"])
def engine(request: pytest.FixtureRequest) -> str:
    """Everything holds for both engines; a test that looks into one of them overrides this."""
    name: str = request.param
    return name


#: For a test of what only the Python engine has.
python_engine = pytest.mark.parametrize("engine", ["python"], indirect=True)


@pytest_asyncio.fixture
async def lab(pki: Pki, engine: str) -> AsyncIterator[Lab]:
    made = Lab(pki, engine)
    yield made
    await made.close()
