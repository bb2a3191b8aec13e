"""The gateway's life: what is set up in which order, what goes on meanwhile, how it ends.

    start   worker processes, BPF programs           begun at once, and attached to nothing
                                                     (`zgate_gateway.head_start`)
            store, certificates, policy, audit       what may be wrong without root
            policy in the programs                   empty maps deny
            leftovers of a killed predecessor away
            TUN; programs attached, addresses, nftables, link up   (`zgate_gateway.net`)
            sessions, UDP port, Unix socket, workers at work, XDP before the port
            (`zgate_gateway.edge`), ready
    stop    not ready, no new sessions; sessions told and closed; workers; UDP port; kernel
            objects; audit and store flushed

A step that fails takes back the ones before it.

This process is the supervisor: it holds what all share. The packets are the workers'
(`zgate_gateway.worker`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from zgate_bpf.edge import Owners
from zgate_bpf.kernel_policy import BpfLoadError, KernelPolicy
from zgate_bpf.services import MAX_OFFERS
from zgate_bpf.steering import Steering
from zgate_config import ConfigError
from zgate_control.store import KeptStore, StoreError
from zgate_datapath.connection_ids import SECRET_BYTES, OwnerMask
from zgate_datapath.engine import engine_name
from zgate_datapath.tun import Tun
from zgate_datapath.udp import format_address
from zgate_host import systemd
from zgate_identity.files import PRIVATE_MODE, IdentityError, read_file, write_file
from zgate_protocol import goodbye
from zgate_protocol.structured_field import ProxyError

from zgate_gateway.admission import PeerPath, Refusal
from zgate_gateway.alerts import MapAlerts
from zgate_gateway.api.server import ApiServer, ApiSocketError
from zgate_gateway.audit import AuditError, AuditLog
from zgate_gateway.audit_head import HeadKeeper
from zgate_gateway.certificates import CertificateKeeper
from zgate_gateway.config import GatewayConfig
from zgate_gateway.dns.access import Access
from zgate_gateway.dns.responder import DnsResponder
from zgate_gateway.drain import GatewayDrain
from zgate_gateway.edge import Edge, EdgeError
from zgate_gateway.flow_memory import FlowMemory
from zgate_gateway.head_start import HeadStart
from zgate_gateway.journal import Journal
from zgate_gateway.keep_going import keep_going
from zgate_gateway.kernel import Kernel, KernelError
from zgate_gateway.log_level import RunningLevel
from zgate_gateway.loop_lag import LoopLag
from zgate_gateway.net.errors import NetError
from zgate_gateway.net.links import interface_names
from zgate_gateway.net.netstate import GatewayNetwork, NetworkSettings
from zgate_gateway.path_memory import PathMemory
from zgate_gateway.policy.service_names import ServicePools
from zgate_gateway.policy_keeper import PolicyKeeper
from zgate_gateway.pool import AddressPool
from zgate_gateway.port import UdpPort
from zgate_gateway.problems import Problems
from zgate_gateway.registry import Registry, RegistrySettings
from zgate_gateway.service_manager import ServiceManager, describe
from zgate_gateway.services.desk import ServiceDesk
from zgate_gateway.steady_clock import SteadyClock
from zgate_gateway.upkeep import Upkeep
from zgate_gateway.worker import messages
from zgate_gateway.worker.crew import Crew, WorkerError
from zgate_gateway.worker.process import WorkerProcess

logger = logging.getLogger(__name__)

_UPKEEP_INTERVAL_S = 0.25
_SEEN_INTERVAL_S = 5.0
#: Leases every minute: nobody is after one before an hour is over.
_LEASE_INTERVALS = 12
#: How long the workers of a killed predecessor may take to die.
_PREDECESSOR_S = 2.0
_RETRY_KEY_BYTES = 16


class StartError(Exception):
    """The gateway cannot start; one line with the cause and, where known, the cure."""

    def __init__(self, text: str, *, is_bad_input: bool = False) -> None:
        super().__init__(text)
        self.is_bad_input = is_bad_input


class Gateway:
    """One gateway: the supervisor's side of it (`zgate_gateway.worker.crew.CrewOwner`).

    `read_again` gives what the configuration says at SIGHUP; it raises `ConfigError`.
    """

    def __init__(
        self,
        config: GatewayConfig,
        port: UdpPort,
        head_start: HeadStart,
        read_again: Callable[[], GatewayConfig],
    ) -> None:
        self.config = config
        self._read_again = read_again
        self.log_level = RunningLevel(
            config.log.level, lambda level: self.crew.tell(messages.SetLogLevel(level))
        )
        self._port = port
        self._head_start = head_start
        self.version = version("zgate")
        self.started_at = datetime.now(UTC)
        self.started_s = time.monotonic()
        self.loop_lag = LoopLag()
        self.state = "starting"
        self.problems = Problems()
        self.clock = SteadyClock()
        self._holds = False
        self.local_address = "-"
        self.manager = ServiceManager(self._describe)
        self._undo = contextlib.ExitStack()
        self._undo.callback(head_start.close)
        self._undo.callback(port.close)
        self._stop_requested = asyncio.Event()
        self._stop_cause = ""
        self._exit_status = 0
        self._events_lost_told = 0
        self._reloads: set[asyncio.Task[None]] = set()

    @property
    def engine_name(self) -> str:
        """The packet engine that new connections get."""
        return engine_name(self.config.engine)

    # Life.

    async def run(self) -> int:
        """Start, serve until SIGTERM or SIGINT, stop; the process's exit status.

        Raises:
            StartError: a step of the start failed; everything before it is taken back.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._request_stop, number.name)
        try:
            try:
                await self._start(loop)
            except (
                ApiSocketError,
                AuditError,
                BpfLoadError,
                ConfigError,
                EdgeError,
                IdentityError,
                KernelError,
                NetError,
                OSError,
                StoreError,
                WorkerError,
            ) as error:
                raise StartError(
                    str(error), is_bad_input=isinstance(error, ConfigError | IdentityError)
                ) from error
            await self._serve()
        finally:
            await self._stop()
        return self._exit_status

    def _request_stop(self, cause: str) -> None:
        self._stop_cause = self._stop_cause or cause
        self._stop_requested.set()

    async def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            engine_name(self.config.engine)
        except ValueError as error:
            raise StartError(str(error), is_bad_input=True) from error
        self._make_directories()
        self.manager.opening_state()
        self._open_state()
        self.crew = Crew(self.config.worker_count, self, loop)
        self.crew.spawn(self._head_start.workers())
        self.manager.loading_programs()
        self._open_kernel(loop, await asyncio.to_thread(self._head_start.programs))
        await self._predecessor_gone()
        self._open_network()
        self._open_sessions(loop)
        self._open_dns(loop)
        self._bind_port()
        await self._open_api()
        self.manager.starting_workers()
        await self.crew.work()
        self.edge.open()
        self.crew.end_lost(self.path_memory.take_over())
        self.state = "ready"
        # Before anybody is told: a SIGHUP without a handler ends the process.
        loop.add_signal_handler(signal.SIGHUP, self._reload_soon)
        self.manager.ready()
        self.audit.gateway_started(
            version=self.version, pid=os.getpid(), listen=[self.local_address]
        )
        logger.info(
            "ready: UDP %(listen)s, policy revision %(revision)d, engine %(engine)s, "
            "%(workers)d workers",
            {
                "event": "gateway_ready",
                "listen": self.local_address,
                "revision": self.kernel.revision,
                "engine": self.engine_name,
                "workers": self.config.worker_count,
            },
        )

    def _make_directories(self) -> None:
        # Who was let in, and the authority's key, are nobody's business; the socket is the group's.
        for directory, mode in ((self.config.state_dir, 0o700), (self.config.runtime_dir, 0o755)):
            directory.mkdir(mode=mode, parents=True, exist_ok=True)

    def _open_state(self) -> None:
        """Store, certificates, policy file, audit log: what may be wrong without root."""
        config = self.config
        now = datetime.now(UTC)
        self.policy = PolicyKeeper(
            policy_file=config.policy_file,
            state_dir=config.state_dir,
            pools=ServicePools(config.services.ipv4, config.services.ipv6),
        )
        self.store = self._undo.enter_context(KeptStore(config.state_dir / "zgate.db"))
        self.certificates = CertificateKeeper(config, self.problems, now)
        self._undo.callback(self.certificates.close)
        self.audit = AuditLog(
            config.audit.path or config.state_dir / "audit.jsonl",
            keeper=HeadKeeper(config.state_dir),
            max_bytes=config.audit.max_bytes,
        )
        self._undo.callback(self.audit.close)
        self.services = ServiceDesk(config, self.store)
        self.pools = [
            AddressPool(network, self.store) for network in (config.pool.ipv4, config.pool.ipv6)
        ]
        self._secret = self._find_secret()
        self._retry_key = os.urandom(_RETRY_KEY_BYTES)

    def _find_secret(self) -> bytes:
        """The secret of connection IDs and reset tokens: the same after a restart.

        So that clients of the last life learn at once that their connections are no more.
        """
        file = self.config.state_dir / "quic.key"
        if file.exists():
            secret = read_file(file)
            if len(secret) == SECRET_BYTES:
                return secret
            logger.warning(
                "%(path)s does not hold %(wanted_bytes)d bytes: made anew",
                {"event": "quic_key_replaced", "path": file, "wanted_bytes": SECRET_BYTES},
            )
        secret = os.urandom(SECRET_BYTES)
        write_file(file, secret, PRIVATE_MODE)
        return secret

    def _open_kernel(self, loop: asyncio.AbstractEventLoop, programs: KernelPolicy) -> None:
        limits = self.config.limits
        self._undo.callback(programs.close)
        self.kernel = Kernel(programs, max_clients=limits.max_clients)
        self.alerts = MapAlerts(programs.map_usage, self.problems)
        self.journal = Journal(self.audit, self.store, self.kernel, loop)
        pool = self.config.pool
        programs.services.set_own_addresses([pool.ipv4[1], pool.ipv6[1]])
        self.services.directory.on_change = self.policy.services_changed
        self.policy.start(
            store=self.store,
            kernel=self.kernel,
            audit=self.audit,
            services=self.services.directory,
        )
        mask = OwnerMask.derive(self._secret)
        self.steering = Steering(
            workers=self.config.worker_count,
            mask_factor=mask.factor,
            mask_offset=mask.offset,
            max_addresses=len(self.pools) * (limits.max_clients + MAX_OFFERS),
        )
        self._undo.callback(self.steering.close)

    async def _predecessor_gone(self) -> None:
        """Wait for the workers of a killed gateway: its device goes with the last of them."""
        deadline = asyncio.get_running_loop().time() + _PREDECESSOR_S
        while self.config.tun.name in interface_names():
            if asyncio.get_running_loop().time() >= deadline:
                return  # whose it is says the next step
            await asyncio.sleep(0.02)

    def _open_network(self) -> None:
        config = self.config
        self.network = GatewayNetwork(
            NetworkSettings(
                tun_name=config.tun.name,
                mtu_bytes=config.tun.mtu_bytes,
                ipv4_pool=config.pool.ipv4,
                ipv6_pool=config.pool.ipv6,
                state_file=config.runtime_dir / "sysctls.json",
                masquerade=config.uplink.masquerade,
                uplink=config.uplink.interface,
                service_pools=self.services.directory.pools,
            )
        )
        for line in self.network.prepare():
            logger.warning("leftovers: %(what)s", {"event": "leftovers_removed", "what": line})
        self._queues = Tun.open_queues(
            config.tun.name,
            config.worker_count,
            has_vnet_header=self.engine_name == "native",
        )
        for queue in self._queues:
            self._undo.callback(queue.close)
        self._queues[0].steer(self.steering.tun_fd)
        programs = self.kernel.programs
        self.network.open(programs.ingress_fd, programs.egress_fd)
        self._undo.callback(self._close_network)

    def _close_network(self) -> None:
        try:
            self.network.close(hold=self._holds)
        except NetError as error:
            logger.error(
                "not everything could be taken back: %(error)s",
                {"event": "network_not_undone", "error": error},
            )

    def _open_sessions(self, loop: asyncio.AbstractEventLoop) -> None:
        sessions = self.config.sessions
        self.sessions = Registry(
            RegistrySettings(
                newest_wins=sessions.per_identity == "newest", max_sessions=sessions.max
            ),
            pools=self.pools,
            kernel=self.kernel,
            steering=self.steering.owners,
            listener=self.journal,
            recheck=self.certificates.verifier.recheck,
            loop=loop,
            lease_clock=self.clock.now,
        )
        self.certificates.open(
            sessions=self.sessions, tell_workers=self.crew.tell, clock=self.clock
        )
        self.path_memory = PathMemory(self.config.runtime_dir / "clients.json")
        pool = self.config.pool
        self.flow_memory = FlowMemory(self.kernel.programs, (pool.ipv4, pool.ipv6))
        self.sessions.on_arrival = self.flow_memory.recall
        self.drain = GatewayDrain(
            self.sessions,
            self.crew,
            self.audit,
            self._set_state,
            lambda session_id: session_id in self.services.connectors.by_session,
        )
        self.services.open(
            kernel=self.kernel,
            steering=self.steering.owners,
            host=self.network,
            sessions=self.sessions,
            workers=self.crew,
            audit=self.audit,
            loop=loop,
        )

    def _set_state(self, state: str) -> None:
        if not self._stop_requested.is_set():
            self.state = state

    def _open_dns(self, loop: asyncio.AbstractEventLoop) -> None:
        """Names of services, for the tunnel's clients. Without them the rest goes on."""
        pool = self.config.pool
        self.dns = DnsResponder(
            tun_name=self.config.tun.name,
            addresses=(pool.ipv4[1], pool.ipv6[1]),
            domain=self.config.services.domain,
            access=Access(
                session_at=self.sessions.by_address.get,
                policy_set=lambda: self.kernel.policy_set,
                time_s=loop.time,
            ),
            loop=loop,
        )
        self._undo.callback(self.dns.close)
        self.dns.open()

    async def _open_api(self) -> None:
        from zgate_gateway.administration import Administration

        metrics = self.config.metrics
        server = ApiServer(
            Administration(self),
            socket_path=self.config.socket_path,
            socket_group=self.config.socket_group,
            metrics_address=(str(metrics.address), metrics.port) if metrics.port else None,
        )
        await server.start()
        self.api = server

    def _bind_port(self) -> None:
        config = self.config
        self._sockets = self._port.open()
        for sock in self._sockets:
            self._undo.callback(sock.close)
        self.steering.steer_sockets([sock.fileno() for sock in self._sockets])
        self._port.close()
        self.local_address = format_address(self._sockets[0].local_address)
        mask = OwnerMask.derive(self._secret)
        # After the port: it is bound, so no other living gateway has an edge before it.
        self.edge = Edge(
            config.edge,
            listen=config.listen.address,
            port=self._sockets[0].local_address[1],
            uplink=config.uplink.interface,
            owners=Owners(mask.factor, mask.offset, config.worker_count),
        )
        self._undo.callback(self.edge.close)

    # The workers (`CrewOwner`).

    def configuration(self, index: int) -> tuple[messages.Configure, Sequence[int]]:
        """See `CrewOwner.configuration`."""
        config, files = self.config, self.certificates.files
        configure = messages.Configure(
            worker=index,
            workers=config.worker_count,
            log_level=self.log_level.level,
            log_format=config.log.format,
            secret=self._secret,
            retry_key=self._retry_key,
            certificate_file=files.certificate,
            key_file=files.key,
            ca_file=files.ca,
            crl_file=files.crl,
            engine=self.engine_name,
            congestion=config.quic.congestion,
            idle_timeout_s=config.sessions.idle_timeout_s,
            max_udp_payload_bytes=config.quic.max_datagram_bytes,
            tun_name=config.tun.name,
            routes=self.services.agent_routes(),
            networks=self.services.networks(),
            gateway_ipv4=config.pool.ipv4[1],
            gateway_ipv6=config.pool.ipv6[1],
            pools=(str(config.pool.ipv4), str(config.pool.ipv6)),
            service_pools=(str(config.services.ipv4), str(config.services.ipv6)),
            dns_domain=config.services.domain,
            dialects=config.dialects,
            tracing=config.tracing.settings() if config.tracing is not None else None,
        )
        sock, queue = self._sockets[index], self._queues[index]
        owners = self.steering.owners
        own = (sock.fileno(), queue.fd, owners.fd, owners.networks_fd)
        return configure, (*own, *self.certificates.descriptors)

    def message(self, process: WorkerProcess, message: messages.Message) -> None:
        """See `CrewOwner.message`."""
        match message:
            case messages.Apply():
                self._admit(process, message)
            case messages.SessionEstablished(session_id):
                self.sessions.established(session_id, process)
            case messages.SessionEnded(session_id, cause):
                self.sessions.ended(session_id, process, cause)
            case messages.ClientMoved(session_id, path):
                self.sessions.moved(session_id, process, path)
            case messages.RequestRefused(client, peer, status, error, text):
                refusal = Refusal(status, ProxyError(error), text)
                self.sessions.count_refused(client, peer, refusal)
            case messages.CertificateRefused(peer, reason, text, left_out):
                if left_out:
                    self.audit.rate_limited(client=None, suppressed=left_out)
                self.audit.session_refused(peer=peer, reason=reason, text=text)
            case (
                messages.OfferServices()
                | messages.OfferStates()
                | messages.OfferRoutes()
                | messages.ConnectorSilent()
            ):
                self.services.message(process, message)
            case messages.ReachService(request_id, session_id, service):
                found = self.services.reach(process, session_id, service)
                process.send(messages.ServiceReached(request_id, found))
            case messages.TunLost():
                self._tun_lost()
            case _:
                logger.error(
                    "worker %(worker)d makes no sense: killed",
                    {"event": "worker_nonsense", "worker": process.index},
                )
                process.kill()

    def _admit(self, process: WorkerProcess, message: messages.Apply) -> None:
        try:
            session = self.sessions.admit(message.applicant, process)
        except Refusal as refusal:
            answer: messages.Message = messages.Denied(
                message.request_id, refusal.status, str(refusal.error.value), str(refusal)
            )
        else:
            answer = messages.Admitted(
                message.request_id,
                session.session_id,
                session.addresses,
                session.admission_s if self.config.tracing is not None else (),
            )
        process.send(answer)

    def worker_lost(self, process: WorkerProcess, cause: str) -> list[PeerPath]:
        """See `CrewOwner.worker_lost`."""
        return self.sessions.worker_lost(process, cause) if hasattr(self, "sessions") else []

    def _tun_lost(self) -> None:
        """Nothing can be carried any more: end, so that whoever watches starts us anew."""
        self._exit_status = 1
        self._request_stop("the TUN device is gone")

    def worker_answered(self) -> None:
        """See `CrewOwner.worker_answered`."""
        self.manager.alive()

    # Meanwhile.

    def _describe(self) -> str:
        return describe(
            state=self.state,
            sessions=len(self.sessions.by_client),
            revision=self.kernel.revision,
            problems=[one.name for one in self.problems.active()],
        )

    async def _serve(self) -> None:
        works = {
            "reading the kernel's events": self._keep_events,
            "touching leases": self._keep_leases,
            "syncing the audit log": self.audit.run,
            "watching the policy file": self.policy.watch,
            "watching the workers": self.crew.watch,
            "watching the kernel's tables": self.alerts.watch,
            "measuring the event loop": self.loop_lag.watch,
            "keeping the edge": self.edge.keep,
            "keeping the DNS responder": self.dns.keep,
            "telling the service manager": self.manager.keep,
            "loading the API": self.api.load,
            **Upkeep(self).works,
        }
        tasks = [asyncio.create_task(keep_going(what, work)) for what, work in works.items()]
        try:
            await self._stop_requested.wait()
        finally:
            tasks += self._reloads
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_events(self) -> None:
        """Read the kernel's events when there are some; look now and then all the same."""
        loop = asyncio.get_running_loop()
        fd = self.kernel.programs.event_fd
        loop.add_reader(fd, self.poll_events)
        try:
            while True:
                await asyncio.sleep(_UPKEEP_INTERVAL_S)
                self.poll_events()
                self.services.upkeep()
        finally:
            loop.remove_reader(fd)

    def poll_events(self) -> None:
        """Give the kernel's waiting events to the audit log."""
        self.kernel.poll_events(self.journal.flow)
        lost = self.kernel.programs.lost_events()
        if lost > self._events_lost_told:
            self.audit.events_lost(count=lost - self._events_lost_told)
            self._events_lost_told = lost

    async def _keep_leases(self) -> None:
        while True:
            for _ in range(_LEASE_INTERVALS):
                await asyncio.sleep(_SEEN_INTERVAL_S)
                self.journal.write_seen()
            self.sessions.touch_leases()

    def _write_seen(self) -> None:
        """Who is there and who was, to the store: not with each session, but now and then."""
        self.sessions.touch_leases()
        self.journal.write_seen()

    def _reload_soon(self) -> None:
        """SIGHUP: policy, certificates, audit file, the edge's blocklist, the log's level."""
        self.manager.reloading()
        self.log_level.read_again(self.config, self._read_again)
        self.audit.reopen()
        self.certificates.reload()
        self.edge.reload()
        task = asyncio.get_running_loop().create_task(self.policy.reload_and_log())
        self._reloads.add(task)
        task.add_done_callback(self._reloaded)

    def _reloaded(self, task: asyncio.Task[None]) -> None:
        self._reloads.discard(task)
        if not self._reloads:
            self.manager.ready()

    # End.

    async def _stop(self) -> None:
        was_ready = self.state in ("ready", "draining")
        self.state = "draining"
        self.manager.stopping(self._stop_cause or "error")
        try:
            await self._end(was_ready=was_ready)
        finally:  # whatever went wrong: the host's network is to be as it was
            self._undo.close()
        self.state = "stopped"
        if was_ready:
            logger.info("stopped", {"event": "gateway_stopped"})

    async def _end(self, *, was_ready: bool) -> None:
        if was_ready:
            self.sessions.accepting = False
            self.crew.tell(messages.StopAccepting())
            self.drain.close()
            self.log_level.close()
            # Whoever stopped us by hand wants to have everything back as it was.
            self._holds = bool(self.sessions.by_client) and systemd.is_watched()
            for session in list(self.sessions.by_id.values()):
                self.sessions.close(session, goodbye.STOPPING)
            await self.flow_memory.close()
            self.path_memory.forget()
        ends = [self.crew.stop()] if hasattr(self, "crew") else []
        if hasattr(self, "api"):
            self.journal.feed.close()
            ends.append(self.api.stop())
        await asyncio.gather(*ends)
        if was_ready:
            self._write_seen()
            self.poll_events()
            self.audit.gateway_stopped(cause=self._stop_cause or "error")
        if hasattr(self, "policy"):
            await self.policy.close()
