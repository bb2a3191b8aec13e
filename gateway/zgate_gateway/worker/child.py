"""A worker: one core's listener, sessions and packets.

It decides nothing that another worker would have to know: for that it asks the supervisor, and
goes on with other packets until the answer comes. It ends when the supervisor ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import TYPE_CHECKING

from zgate_bpf.steering_tables import OwnerLookup
from zgate_config.logs import set_level
from zgate_datapath import aioquic_private
from zgate_datapath.connection import HTTP3, Connection
from zgate_datapath.connection_ids import ConnectionIds
from zgate_datapath.engine import engine_name
from zgate_datapath.peer_authentication import ServerQuicConnection
from zgate_datapath.tun import Tun
from zgate_datapath.udp import UdpSocket, format_address
from zgate_identity.files import IdentityError
from zgate_identity.reload import ReloadingClientVerifier
from zgate_protocol.icmp import TokenBucket
from zgate_protocol.ip_range import IpRange, normalize_ranges
from zgate_protocol.service_capsule import OfferStatus, Register, Registered, RegistrationAnswer
from zgate_protocol.structured_field import ProxyError
from zgate_protocol.uri_template import default_template

from zgate_gateway.admission import Admission, Answer, Applicant, PeerPath, Reached, Refusal
from zgate_gateway.client_connection import ClientConnection
from zgate_gateway.copies import path_of
from zgate_gateway.dialects.connection import ZTNA_V1, DialectConnection
from zgate_gateway.forwarder import Forwarder
from zgate_gateway.keep_going import keep_going
from zgate_gateway.listener import Listener, ListenerSettings
from zgate_gateway.loop_lag import LoopLag
from zgate_gateway.prefixes import IpNetwork
from zgate_gateway.sessions import Session, SessionSettings, SessionTable
from zgate_gateway.tracing.setup import Result
from zgate_gateway.worker import messages
from zgate_gateway.worker.channel import Channel
from zgate_gateway.worker.messages import BATCH_ENTRIES, Configure, Message

if TYPE_CHECKING:
    from zgate_gateway.tracing.watch import SetupWatch

logger = logging.getLogger(__name__)

_LOOK_INTERVAL_S = 0.25
_LOOKS_PER_UPKEEP = 4
_GOODBYE_S = 2.0
_REFUSALS_PER_S = 10
_REFUSALS_BURST = 50
#: So that the clients of a dead worker do not all come back in the same moment.
_RESETS_PER_S = 500
_RESET_INTERVAL_S = 0.02


class Remote:
    """The supervisor, as the session table knows it (`Registrar`)."""

    def __init__(self) -> None:
        self.channel: Channel | None = None
        self._requests = itertools.count(1)
        self._answers: dict[int, Answer] = {}
        self._reached: dict[int, Reached] = {}

    def send(self, message: Message) -> None:
        """Say something."""
        if self.channel is not None:
            self.channel.send(message)

    def apply(self, applicant: Applicant, answer: Answer) -> None:
        """See `Registrar.apply`."""
        request_id = next(self._requests)
        self._answers[request_id] = answer
        self.send(messages.Apply(request_id, applicant))

    def answered(self, message: messages.Admitted | messages.Denied) -> None:
        """The supervisor has decided. Its next message may be about the same session."""
        answer = self._answers.pop(message.request_id)
        if isinstance(message, messages.Admitted):
            answer(Admission(message.session_id, message.addresses, message.timing_s))
        else:
            answer(Refusal(message.status, ProxyError(message.error), message.text))

    def reach_service(self, session_id: str, service: str, answer: Reached) -> None:
        """See `Registrar.reach_service`."""
        request_id = next(self._requests)
        self._reached[request_id] = answer
        self.send(messages.ReachService(request_id, session_id, service))

    def reached(self, message: messages.ServiceReached) -> None:
        """The supervisor knows the service, or does not."""
        self._reached.pop(message.request_id)(message.addresses)

    def established(self, session_id: str) -> None:
        """See `Registrar.established`."""
        self.send(messages.SessionEstablished(session_id))

    def ended(self, session_id: str, cause: str) -> None:
        """See `Registrar.ended`."""
        self.send(messages.SessionEnded(session_id, cause))

    def offer_services(self, session_id: str, register: Register) -> None:
        """See `Registrar.offer_services`."""
        for part, is_last in messages.in_parts(register.services):
            self.send(messages.OfferServices(session_id, register.revision, part, is_last))

    def offer_states(self, session_id: str, statuses: Sequence[OfferStatus]) -> None:
        """See `Registrar.offer_states`."""
        for part, _ in messages.in_parts(statuses):
            self.send(messages.OfferStates(session_id, part))

    def offer_routes(self, session_id: str, networks: tuple[str, ...]) -> None:
        """See `Registrar.offer_routes`."""
        self.send(messages.OfferRoutes(session_id, networks))

    def connector_silent(self, session_id: str, is_silent: bool) -> None:
        """See `Registrar.connector_silent`."""
        self.send(messages.ConnectorSilent(session_id, is_silent))

    def refused(self, client: str, peer: str, refusal: Refusal) -> None:
        """See `Registrar.refused`."""
        self.send(
            messages.RequestRefused(
                client, peer, refusal.status, str(refusal.error.value), str(refusal)
            )
        )


class Worker:
    """The parts of one worker, and what the supervisor may want of them."""

    def __init__(
        self,
        sock: socket.socket,
        configure: Configure,
        descriptors: Sequence[int],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        udp_fd, tun_fd, owners_fd, networks_fd, *copies = descriptors
        self._configure = configure = _with_copies(configure, copies)
        self._loop = loop
        self._ended = asyncio.Event()
        self._status = 0
        self._remote = Remote()
        self._owners = OwnerLookup(owners_fd, networks_fd)
        self._udp = UdpSocket(socket.socket(fileno=udp_fd))
        self._tun = Tun(tun_fd, configure.tun_name, has_vnet_header=configure.engine == "native")
        self._refusals = TokenBucket(rate_per_s=_REFUSALS_PER_S, burst=_REFUSALS_BURST)
        self._refusals_left_out = 0
        self._certificates_refused: dict[str, int] = {}
        self._loop_lag = LoopLag()
        self._traces = _traces_of(configure)
        self._answers: messages.Parts[RegistrationAnswer] = messages.Parts()
        self._tasks: set[asyncio.Task[None]] = set()
        self._channel = Channel(
            sock, loop, on_message=self._on_message, on_lost=self._supervisor_lost
        )
        self._remote.channel = self._channel

    # Life.

    async def run(self) -> int:
        """Work until told to stop, or left alone; the exit status."""
        try:
            self._open()
        except (IdentityError, OSError, ValueError, aioquic_private.IncompatibleAioquic) as error:
            self._remote.send(messages.Failed(str(error)))
            return 1
        self._remote.send(messages.Ready(engine_name(self._configure.engine)))
        upkeep = self._loop.create_task(keep_going("looking after sessions", self._keep_up))
        try:
            await self._ended.wait()
        finally:
            for task in (upkeep, *self._tasks):
                task.cancel()
            if self._traces is not None:
                await self._traces.close()
            self._forwarder.stop()
            self._listener.close()
            self._channel.close()
        return self._status

    def _open(self) -> None:
        configure = self._configure
        aioquic_private.check()
        engine_name(configure.engine)
        self._verifier = ReloadingClientVerifier(
            configure.ca_file, configure.crl_file, datetime.now(UTC)
        )
        self._table = SessionTable(
            SessionSettings(
                routes=_ranges(configure.routes),
                template=default_template("gateway"),
                gateway_addresses=(configure.gateway_ipv4.packed, configure.gateway_ipv6.packed),
                worker=configure.worker,
                pools=_ranges(configure.pools),
                service_pools=_ranges(configure.service_pools),
                networks=_networks(configure.networks),
                dns_domain=configure.dns_domain,
            ),
            registrar=self._remote,
            write_tun=self._tun.write,
            owner_of=self._owners.owner_of,
            loop=self._loop,
        )
        self._listener = Listener(
            ListenerSettings(
                certificate_file=configure.certificate_file,
                key_file=configure.key_file,
                engine=configure.engine,
                congestion=configure.congestion,
                idle_timeout_s=configure.idle_timeout_s,
                max_udp_payload_bytes=configure.max_udp_payload_bytes,
                protocols=(HTTP3, ZTNA_V1) if ZTNA_V1 in configure.dialects else (HTTP3,),
            ),
            self._verifier,
            make_handler=self._make_handler,
            on_refused=self._certificate_refused,
            connection_ids=ConnectionIds(configure.secret, configure.worker, configure.workers),
            retry_key=configure.retry_key,
            traces=self._traces,
        )
        self._listener.open(self._udp, self._loop)
        assert self._listener.endpoint is not None
        self._endpoint = self._listener.endpoint
        self._forwarder = Forwarder(
            self._tun, self._table, self._endpoint, self._loop, on_lost=self._tun_lost
        )
        self._forwarder.start()

    def _make_handler(
        self, listener: Listener, connection: Connection, quic: ServerQuicConnection
    ) -> ClientConnection:
        endpoint = listener.endpoint
        assert endpoint is not None
        if dialects := self._configure.dialects:
            made: ClientConnection = DialectConnection(
                dialects, self._table, endpoint, connection, quic
            )
        else:
            made = ClientConnection(self._table, endpoint, connection, quic)
        if self._traces is not None:
            made.trace = self._traces.begin(connection)
        return made

    def _end(self, status: int) -> None:
        self._status = status
        self._ended.set()

    def _supervisor_lost(self, reason: str) -> None:
        """Nobody to ask, nobody who would take the kernel's entries away: no session may go on."""
        logger.error(
            "worker %(worker)d ends, for the supervisor is gone: %(reason)s",
            {"event": "worker_orphaned", "worker": self._configure.worker, "reason": reason},
        )
        self._end(1)

    def _tun_lost(self) -> None:
        self._remote.send(messages.TunLost())

    async def _keep_up(self) -> None:
        for looks in itertools.count(1):
            due = self._loop.time() + _LOOK_INTERVAL_S
            await asyncio.sleep(_LOOK_INTERVAL_S)
            now = self._loop.time()
            self._loop_lag.note(max(0.0, now - due), now)
            self._table.look()
            if self._traces is not None:
                self._traces.look()
            if looks % _LOOKS_PER_UPKEEP == 0:
                self._tell_moved()

    def _tell_moved(self) -> None:
        for session in self._table.upkeep():
            self._remote.send(messages.ClientMoved(session.session_id, session.path))

    # What the supervisor says.

    def _on_message(self, message: Message) -> None:
        match message:
            case messages.Admitted() | messages.Denied():
                self._remote.answered(message)
            case messages.ServiceReached():
                self._remote.reached(message)
            case messages.CloseSession(session_id, cause):
                self._table.closed(session_id, cause)
            case messages.OffersAnswered() | messages.Grant() | messages.DrainSession():
                self._on_offers(message)
            case messages.DrainAll(deadline_ms):
                self._table.drain_all(deadline_ms)
            case messages.Routes(routes, networks):
                self._table.set_networks(_networks(networks))
                self._table.set_routes(_ranges(routes))
            case messages.ServiceAgent(session_id, service, addresses):
                self._table.agent_changed(session_id, service, addresses)
            case messages.AskReport():
                self._report(message)
            case messages.PingSession(request_id, session_id):
                self._ping(request_id, session_id)
            case messages.ReloadTrust():
                self._reload_trust()
            case messages.ReloadCertificate():
                self._reload_certificate()
            case messages.SetLogLevel(level):
                set_level(level)
            case messages.EndLost(paths):
                task = self._loop.create_task(self._end_lost(paths))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case messages.StopAccepting():
                self._listener.stop_accepting()
            case messages.Stop():
                self._tasks.add(self._loop.create_task(self._stop()))
            case _:
                logger.error(
                    "worker ends: the supervisor makes no sense: %(what)s",
                    {"event": "supervisor_nonsense", "what": message},
                )
                self._end(1)

    def _on_offers(
        self, message: messages.OffersAnswered | messages.Grant | messages.DrainSession
    ) -> None:
        match message:
            case messages.OffersAnswered(session_id, revision, part, is_last):
                answers = self._answers.add(session_id, part, is_last)
                if answers is not None:
                    self._table.answered(session_id, Registered(revision, answers))
            case messages.Grant(session_id, addresses, networks):
                self._table.granted(session_id, addresses, _networks(networks))
            case messages.DrainSession(session_id, deadline_ms):
                self._table.drain(session_id, deadline_ms)

    def _reload_trust(self) -> None:
        try:
            self._verifier.reload(datetime.now(UTC))
        except IdentityError as error:
            # The supervisor checks again whom it admits.
            logger.error(
                "certificates not reloaded, the old ones stay: %(error)s",
                {"event": "trust_not_reloaded", "error": error},
            )

    def _reload_certificate(self) -> None:
        try:
            self._listener.reload_certificate()
        except (OSError, ValueError) as error:
            logger.error(
                "own certificate not reloaded, the old one stays: %(error)s",
                {"event": "certificate_not_reloaded", "error": error},
            )

    async def _end_lost(self, paths: Sequence[PeerPath]) -> None:
        """Tell clients whose connections died with our predecessor."""
        per_turn = max(1, round(_RESETS_PER_S * _RESET_INTERVAL_S))
        for start in range(0, len(paths), per_turn):
            for path in paths[start : start + per_turn]:
                packet = self._endpoint.resets.make(path.connection_id)
                address = self._udp.peer_at(path.host, path.port, path.local_host)
                self._udp.send_batch([packet], address)
            await asyncio.sleep(_RESET_INTERVAL_S)

    async def _stop(self) -> None:
        """The supervisor has closed all sessions: let the goodbyes leave."""
        self._listener.stop_accepting()
        self._endpoint.flush_touched()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                await self._endpoint.wait_empty()
        self._end(0)

    # What it is told.

    def _certificate_refused(self, connection: Connection, reason: str, text: str) -> None:
        count = self._certificates_refused
        count[reason] = count.get(reason, 0) + 1
        if self._traces is not None and (trace := self._traces.of(connection)) is not None:
            trace.refused(Result.CERTIFICATE_REFUSED, reason)
        # Strangers can come by the hundred: their records must not fill the disk.
        if not self._refusals.allow(self._loop.time()):
            self._refusals_left_out += 1
            return
        peer = format_address(connection.peer_address)
        self._remote.send(messages.CertificateRefused(peer, reason, text, self._refusals_left_out))
        self._refusals_left_out = 0

    def _ping(self, request_id: int, session_id: str) -> None:
        session = self._table.by_id.get(session_id)
        if session is None:
            self._remote.send(messages.SessionPinged(request_id, None))
            return
        connection = session.owner.connection
        connection.measure_round_trip(
            lambda rtt_s: self._remote.send(messages.SessionPinged(request_id, rtt_s)),
            self._loop.time(),
        )
        self._endpoint.flush(connection)

    def _report(self, asked: messages.AskReport) -> None:
        self._tell_moved()
        request_id, by_id = asked.request_id, self._table.by_id
        if not asked.with_sessions:
            found: list[Session] = []
        elif asked.only:
            found = [by_id[one] for one in asked.only if one in by_id]
        else:
            found = list(by_id.values())
        entries = [self._report_on(one) for one in found]
        starts = range(0, max(1, len(entries)), BATCH_ENTRIES)
        for start in starts:
            self._remote.send(
                messages.Report(
                    request_id,
                    is_last=start + BATCH_ENTRIES >= len(entries),
                    sessions=tuple(entries[start : start + BATCH_ENTRIES]),
                    counters=self._counters(),
                    drops={reason.name: n for reason, n in self._table.total_drops().items()},
                    certificates_refused=self._certificates_refused,
                    retry_active=self._endpoint.retry_active,
                    handshakes=dict(self._endpoint.handshakes),
                    retry_tokens=dict(self._endpoint.retry_tokens),
                    loop_lag_s=self._loop_lag.worst_s(self._loop.time()),
                )
            )

    def _report_on(self, session: Session) -> messages.SessionReport:
        return messages.SessionReport(
            session_id=session.session_id,
            rtt_s=session.owner.connection.statistics()["smoothed_rtt_s"],
            mtu_bytes=session.tunnel.mtu_bytes,
            last_packet_s=session.last_packet_s,
            drops={reason.name: count for reason, count in session.tunnel.drops.items()},
        )

    def _counters(self) -> dict[str, int]:
        endpoint, carrier = self._endpoint, self._endpoint.carrier
        carried = carrier.counters() if carrier is not None else {}
        return {
            "unknown_packets": endpoint.unknown_packets,
            "initials_refused": endpoint.refused_initials,
            "resets_sent": endpoint.resets.sent,
            "udp_send_drops": self._udp.dropped_on_send + carried.get("send_dropped", 0),
            "tun_write_drops": carried.get("tun_failed_packets", 0),
            "lost_reports": carried.get("lost_reports", 0),
            "misdirected_packets": endpoint.misdirected_packets + self._table.misdirected_packets,
            **(self._traces.counters() if self._traces is not None else {}),
        }


def _traces_of(configure: Configure) -> SetupWatch | None:
    """Who follows set-ups; None, and nothing of it is imported, where nobody wants that."""
    if configure.tracing is None:
        return None
    from zgate_gateway.tracing.exporter import SpanSink
    from zgate_gateway.tracing.watch import SetupWatch

    sink = SpanSink(configure.tracing, worker=configure.worker, engine=configure.engine)
    return SetupWatch(sink, configure.tracing.sample_ratio)


def _with_copies(configure: Configure, descriptors: Sequence[int]) -> Configure:
    if not descriptors:
        return configure
    certificate, key, ca, *crl = map(path_of, descriptors)
    return replace(
        configure,
        certificate_file=certificate,
        key_file=key,
        ca_file=ca,
        crl_file=crl[0] if crl else None,
    )


def _networks(networks: Sequence[str]) -> tuple[IpNetwork, ...]:
    return tuple(ip_network(one) for one in networks)


def _ranges(networks: Sequence[str]) -> tuple[IpRange, ...]:
    return normalize_ranges(IpRange.of(ip_network(one)) for one in networks)
