"""The responder's sockets: UDP and TCP port 53 on the gateway's virtual IPs, and on the TUN only.

In the supervisor's event loop, which has more important things to do. So everything is bounded:
queries per client and in all, datagrams per turn, connections in all and per client, and a
connection's life, queries and silence. What is beyond is dropped and counted. Port 53 may be taken
(a resolver that listens everywhere): then names are not answered, the log says so, and it is tried
again; everything else goes on.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address

from zgate_gateway.admission import IpAddress
from zgate_gateway.dns.access import Access
from zgate_gateway.dns.quota import Bucket, ClientQuotas
from zgate_gateway.dns.zone import MAX_TCP_BYTES, Reply, Zone
from zgate_gateway.registry import SessionRecord

logger = logging.getLogger(__name__)

DNS_PORT = 53
STRANGER = "stranger"
RATE_LIMITED = "rate_limited"
OVERLOADED = "overloaded"
UNSENT = "unsent"
NO_ROOM = "no_room"
CUT_OFF = "cut_off"
INTERNAL = "internal"

_RETRY_S = 5.0
#: Longer than any query that makes sense; what is beyond is cut off, and then malformed.
_MAX_QUERY_BYTES = 4096
#: A socket of which so many were read at once, and more wait, is left alone for a while: whoever
#: floods it fills the kernel's buffer, and not the supervisor's time.
_DATAGRAMS_PER_TURN = 32
_PAUSE_S = 0.005
_BACKLOG = 16
#: What waits in the kernel while the loop does something else.
_RECEIVE_BUFFER_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True)
class DnsLimits:
    """What is answered. An answer takes some 0.3 ms of the supervisor's time.

    :ivar queries_per_client_per_s: and ``burst_per_client`` at once.
    :ivar queries_per_s: of all clients together, and as many at once.
    :ivar connection_s: how long one may stay; ``silence_s`` without a query.
    """

    queries_per_client_per_s: float = 50.0
    burst_per_client: int = 100
    queries_per_s: int = 500
    connections: int = 64
    connections_per_client: int = 4
    queries_per_connection: int = 100
    connection_s: float = 30.0
    silence_s: float = 5.0


class DnsResponder:
    """Answers the tunnel's clients.

    :ivar counters: queries by what became of them (`zone.Outcome`, and the names above).
    :ivar problem: why not every address is answered at; None: every one is.
    """

    def __init__(
        self,
        *,
        tun_name: str,
        addresses: Iterable[IpAddress],
        domain: str,
        access: Access,
        loop: asyncio.AbstractEventLoop,
        limits: DnsLimits | None = None,
        port: int = DNS_PORT,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.problem: str | None = None
        self._tun_name, self._port = tun_name, port
        self._addresses = tuple(addresses)
        self._zone, self._access = Zone(domain), access
        self._loop = loop
        self._limits = limits or DnsLimits()
        self._quotas = ClientQuotas(
            self._limits.queries_per_client_per_s, self._limits.burst_per_client
        )
        self._all = Bucket(self._limits.queries_per_s, self._limits.queries_per_s)
        self._sockets: dict[tuple[IpAddress, socket.SocketKind], socket.socket] = {}
        self._connections: dict[asyncio.Task[None], str] = {}

    # Life.

    def open(self) -> None:
        """Listen wherever that is possible; `problem` says where it is not."""
        problem = None
        for address in self._addresses:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                if (address, kind) in self._sockets:
                    continue
                try:
                    self._listen(address, kind)
                except OSError as error:
                    problem = self._problem(address, kind, error)
        if problem is not None and problem != self.problem:
            logger.error(
                "services have no names: %(problem)s", {"event": "dns_down", "problem": problem}
            )
        elif problem is None and self.problem is not None:
            logger.info("services have names again", {"event": "dns_up"})
        self.problem = problem

    async def keep(self) -> None:
        """Try again where it was not possible; forever."""
        while True:
            await asyncio.sleep(_RETRY_S)
            if self.problem is not None:
                self.open()

    def close(self) -> None:
        """End all connections, and listen no more."""
        for sock in self._sockets.values():
            self._loop.remove_reader(sock)
            sock.close()
        self._sockets.clear()
        for task in self._connections:
            task.cancel()

    def _listen(self, address: IpAddress, kind: socket.SocketKind) -> None:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._tun_name.encode())
            if kind is socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            sock.bind((str(address), self._port))
            if kind is socket.SOCK_STREAM:
                sock.listen(_BACKLOG)
        except BaseException:
            sock.close()
            raise
        read = self._read if kind is socket.SOCK_DGRAM else self._accept
        self._loop.add_reader(sock, self._guarded, read, sock)
        self._sockets[address, kind] = sock

    def _problem(self, address: IpAddress, kind: socket.SocketKind, error: OSError) -> str:
        transport = "UDP" if kind is socket.SOCK_DGRAM else "TCP"
        text = f"{transport} port {self._port} of {address}: {error.strerror}"
        return f"{text}; let no other DNS server listen on all addresses, and it is tried again"

    def _guarded(self, work: Callable[[socket.socket], None], sock: socket.socket) -> None:
        try:
            work(sock)
        except OSError as error:
            logger.warning("DNS: %(error)s", {"event": "dns_socket_error", "error": error})

    # Who, and how often.

    def _may_ask(self, session: SessionRecord) -> bool:
        now_s = self._loop.time()
        if not self._quotas.take(session.client, now_s):
            self.counters[RATE_LIMITED] += 1
            return False
        if not self._all.take(now_s):
            self.counters[OVERLOADED] += 1
            return False
        return True

    def _session_of(self, peer: tuple[str, int]) -> SessionRecord | None:
        session = self._access.session_at(ip_address(peer[0].partition("%")[0]))
        if session is None:
            self.counters[STRANGER] += 1
        return session

    def _answer(
        self, data: bytes, session: SessionRecord, max_bytes: int | None = None
    ) -> bytes | None:
        """What to send to a client that may ask; None: nothing."""
        addresses = partial(self._access.addresses, session)
        try:
            reply: Reply = self._zone.answer(data, addresses, max_bytes=max_bytes)
        except Exception:
            # A mistake of ours: whoever has found it shall not fill the log with it.
            if not self.counters[INTERNAL]:
                logger.exception(
                    "a question of %(client)s for a name was not answered",
                    {"event": "dns_question_fault", "client": session.client},
                )
            self.counters[INTERNAL] += 1
            return None
        self.counters[reply.outcome] += 1
        return reply.data

    # UDP.

    def _read(self, sock: socket.socket) -> None:
        for _ in range(_DATAGRAMS_PER_TURN):
            try:
                data, peer = sock.recvfrom(_MAX_QUERY_BYTES)
            except BlockingIOError:
                return
            session = self._session_of(peer)
            if session is None or not self._may_ask(session):
                continue
            answer = self._answer(data, session)
            if answer is None:
                continue
            try:
                sock.sendto(answer, peer)
            except OSError:  # its buffer is full, or the client is gone: it asks again
                self.counters[UNSENT] += 1
        self._loop.remove_reader(sock)
        self._loop.call_later(_PAUSE_S, self._resume, sock)

    def _resume(self, sock: socket.socket) -> None:
        if sock.fileno() >= 0:  # else closed meanwhile
            self._loop.add_reader(sock, self._guarded, self._read, sock)

    # TCP (RFC 7766): queries one after the other, each behind its length.

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_BACKLOG):
            try:
                sock, peer = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            session = self._session_of(peer)
            if session is None or not self._has_room(session.client):
                sock.close()
                continue
            sock.setblocking(False)
            task = self._loop.create_task(self._serve(sock, session))
            self._connections[task] = session.client
            task.add_done_callback(self._connections.pop)

    def _has_room(self, client: str) -> bool:
        held = sum(other == client for other in self._connections.values())
        limits = self._limits
        if len(self._connections) < limits.connections and held < limits.connections_per_client:
            return True
        self.counters[NO_ROOM] += 1
        return False

    async def _serve(self, sock: socket.socket, session: SessionRecord) -> None:
        with sock:
            try:
                async with asyncio.timeout(self._limits.connection_s):
                    for _ in range(self._limits.queries_per_connection):
                        if not await self._serve_one(sock, session):
                            return
            except (TimeoutError, OSError):
                pass
            self.counters[CUT_OFF] += 1

    async def _serve_one(self, sock: socket.socket, session: SessionRecord) -> bool:
        """Whether the connection goes on."""
        async with asyncio.timeout(self._limits.silence_s):
            prefix = await self._receive(sock, 2)
            length = int.from_bytes(prefix)
            if not prefix or length > _MAX_QUERY_BYTES:
                return False
            data = await self._receive(sock, length)
            if len(data) < length or session.closed or not self._may_ask(session):
                return False
            answer = self._answer(data, session, MAX_TCP_BYTES)
            if answer is None:
                return False
            await self._loop.sock_sendall(sock, len(answer).to_bytes(2) + answer)
        return True

    async def _receive(self, sock: socket.socket, count: int) -> bytes:
        """So many bytes; none if the client ends before."""
        data = b""
        while len(data) < count:
            more = await self._loop.sock_recv(sock, count - len(data))
            if not more:
                return b""
            data += more
        return data
