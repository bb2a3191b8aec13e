"""The gateway's life: what is set up in which order, what goes on meanwhile, how it ends.

    start   store, certificates, policy, audit       nothing of the kernel's is touched yet
            BPF programs loaded, policy in them      empty maps deny
            leftovers of a killed predecessor away
            TUN; programs attached, addresses, nftables, link up   (`zgate_gateway.net`)
            sessions, Unix socket, UDP port, XDP before it (`zgate_gateway.edge`), ready
    stop    not ready, no new sessions; sessions told and closed; UDP port; kernel objects;
            audit and store flushed

A step that fails takes back the ones before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from zgate_bpf.edge import Owners
from zgate_bpf.kernel_policy import BpfLoadError, KernelPolicy
from zgate_config import ConfigError
from zgate_control.store import Store, StoreError
from zgate_datapath import aioquic_private
from zgate_datapath.connection import Connection
from zgate_datapath.engine import engine_name
from zgate_datapath.peer_authentication import ServerQuicConnection
from zgate_datapath.tun import Tun
from zgate_datapath.udp import format_address
from zgate_identity.files import IdentityError
from zgate_identity.gateway_identity import ensure_gateway_identity
from zgate_identity.refusal import CertificateRefused
from zgate_identity.reload import ReloadingClientVerifier
from zgate_identity.tls_files import check_server_files
from zgate_protocol.icmp import TokenBucket
from zgate_protocol.ip_range import IpRange, normalize_ranges
from zgate_protocol.uri_template import default_template

from zgate_gateway.alerts import MapAlerts
from zgate_gateway.api.server import ApiServer, ApiSocketError
from zgate_gateway.audit import AuditError, AuditLog
from zgate_gateway.audit_head import HeadKeeper
from zgate_gateway.config import GatewayConfig
from zgate_gateway.edge import Edge, EdgeError
from zgate_gateway.forwarder import Forwarder
from zgate_gateway.journal import Journal
from zgate_gateway.kernel import Kernel, KernelError
from zgate_gateway.listener import Listener, ListenerSettings
from zgate_gateway.net.errors import NetError
from zgate_gateway.net.netstate import GatewayNetwork, NetworkSettings
from zgate_gateway.policy_keeper import PolicyKeeper
from zgate_gateway.pool import AddressPool
from zgate_gateway.sessions import ClientConnection, SessionSettings, SessionTable

logger = logging.getLogger(__name__)

_STOP_DEADLINE_S = 2.0
_UPKEEP_INTERVAL_S = 0.25
_LEASE_INTERVAL_S = 60.0
_RENEW_INTERVAL_S = 3600.0
_REFUSAL_RECORDS_PER_S = 10
_REFUSAL_RECORDS_BURST = 50


class StartError(Exception):
    """The gateway cannot start; one line with the cause and, where known, the cure."""

    def __init__(self, text: str, *, is_bad_input: bool = False) -> None:
        super().__init__(text)
        self.is_bad_input = is_bad_input


class Gateway:
    """One gateway process."""

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.version = version("zgate")
        self.started_at = datetime.now(UTC)
        self.state = "starting"
        self.certificates_refused: dict[str, int] = {}
        self._undo = contextlib.ExitStack()
        self._stop_requested = asyncio.Event()
        self._stop_cause = ""
        self._exit_status = 0
        self._refusal_bucket = TokenBucket(
            rate_per_s=_REFUSAL_RECORDS_PER_S, burst=_REFUSAL_RECORDS_BURST
        )
        self._refusals_left_out = 0
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
                aioquic_private.IncompatibleAioquic,
            ) as error:
                raise StartError(
                    str(error), is_bad_input=isinstance(error, ConfigError | IdentityError)
                ) from error
            loop.add_signal_handler(signal.SIGHUP, self._reload_soon)
            await self._serve()
        finally:
            await self._stop()
        return self._exit_status

    def _request_stop(self, cause: str) -> None:
        self._stop_cause = self._stop_cause or cause
        self._stop_requested.set()

    async def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        aioquic_private.check()
        try:
            engine_name(self.config.engine)
        except ValueError as error:
            raise StartError(str(error), is_bad_input=True) from error
        self._make_directories()
        self._open_state()
        self._open_kernel(loop)
        self._open_network()
        self._open_sessions(loop)
        await self._open_api()
        self._open_port(loop)
        self._open_edge()
        self.state = "ready"
        self.audit.gateway_started(
            version=self.version, pid=os.getpid(), listen=[self.listener.local_address]
        )
        logger.info(
            "ready: UDP %s, policy revision %d, engine %s",
            self.listener.local_address,
            self.kernel.revision,
            self.engine_name,
        )

    def _make_directories(self) -> None:
        for directory in (self.config.state_dir, self.config.runtime_dir):
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)

    def _open_state(self) -> None:
        """Store, certificates, policy file, audit log: what may be wrong without root."""
        config = self.config
        now = datetime.now(UTC)
        self.policy = PolicyKeeper(policy_file=config.policy_file, state_dir=config.state_dir)
        self.store = self._undo.enter_context(Store(config.state_dir / "zgate.db"))
        self._find_certificates(now)
        self.verifier = ReloadingClientVerifier(self.ca_file, self.crl_file, now)
        self.audit = AuditLog(
            config.audit.path or config.state_dir / "audit.jsonl",
            keeper=HeadKeeper(config.state_dir),
            max_bytes=config.audit.max_bytes,
        )
        self._undo.callback(self.audit.close)
        self.pools = [
            AddressPool(network, self.store) for network in (config.pool.ipv4, config.pool.ipv6)
        ]

    def _find_certificates(self, now: datetime) -> None:
        pki = self.config.pki
        self.crl_file: Path | None
        if pki is None:
            own = ensure_gateway_identity(self.config.state_dir, self.config.server_names, now)
            self.ca_file, self.crl_file = own.ca_file, own.crl_file
            self.certificate_file, self.key_file = own.certificate_file, own.key_file
        else:
            self.ca_file, self.crl_file = pki.ca, pki.crl
            self.certificate_file, self.key_file = pki.certificate, pki.key
        check_server_files(self.certificate_file, self.key_file, now)

    def _open_kernel(self, loop: asyncio.AbstractEventLoop) -> None:
        limits = self.config.limits
        programs = KernelPolicy(max_clients=limits.max_clients, max_flows=limits.max_flows)
        self._undo.callback(programs.close)
        self.kernel = Kernel(programs, max_clients=limits.max_clients)
        self.alerts = MapAlerts(programs.map_usage)
        self.journal = Journal(self.audit, self.store, self.kernel, loop)
        self.policy.start(store=self.store, kernel=self.kernel, audit=self.audit)

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
            )
        )
        for line in self.network.prepare():
            logger.warning("leftovers: %s", line)
        self.tun = Tun.open(config.tun.name, has_vnet_header=self.engine_name == "native")
        self._undo.callback(self.tun.close)
        programs = self.kernel.programs
        self.network.open(programs.ingress_fd, programs.egress_fd)
        self._undo.callback(self._close_network)

    def _close_network(self) -> None:
        try:
            self.network.close()
        except NetError as error:
            logger.error("not everything could be taken back: %s", error)

    def _open_sessions(self, loop: asyncio.AbstractEventLoop) -> None:
        config = self.config
        routes = normalize_ranges(IpRange.of(network) for network in config.routes)
        self.sessions = SessionTable(
            SessionSettings(
                newest_wins=config.sessions.per_identity == "newest",
                max_sessions=config.sessions.max,
                routes=routes,
                template=default_template("gateway"),
            ),
            pools=self.pools,
            kernel=self.kernel,
            listener=self.journal,
            write_tun=self.tun.write,
            loop=loop,
        )

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
        self._api = server

    def _open_port(self, loop: asyncio.AbstractEventLoop) -> None:
        config = self.config
        self.listener = Listener(
            ListenerSettings(
                address=str(config.listen.address),
                port=config.listen.port,
                certificate_file=self.certificate_file,
                key_file=self.key_file,
                engine=config.engine,
                congestion=config.quic.congestion,
                idle_timeout_s=config.sessions.idle_timeout_s,
                max_udp_payload_bytes=config.quic.max_datagram_bytes,
            ),
            self.verifier,
            make_handler=self._make_handler,
            on_refused=self._certificate_refused,
        )
        self.listener.open(loop)
        self._undo.callback(self.listener.close)
        assert self.listener.endpoint is not None
        self.forwarder = Forwarder(
            self.tun, self.sessions, self.listener.endpoint, loop, on_lost=self._tun_lost
        )
        self.forwarder.start()
        self._undo.callback(self.forwarder.stop)

    def _open_edge(self) -> None:
        """Last: the port is bound, so no other living gateway has an edge before it."""
        config = self.config
        endpoint = self.listener.endpoint
        assert endpoint is not None
        ids = endpoint.connection_ids
        self.edge = Edge(
            config.edge,
            listen=config.listen.address,
            port=endpoint.udp.local_address[1],
            uplink=config.uplink.interface,
            owners=Owners(ids.mask.factor, ids.mask.offset, ids.owners),
        )
        self._undo.callback(self.edge.close)
        self.edge.open()

    def _tun_lost(self) -> None:
        """Nothing can be carried any more: end, so that whoever watches starts us anew."""
        self._exit_status = 1
        self._request_stop("the TUN device is gone")

    def _make_handler(
        self, listener: Listener, connection: Connection, quic: ServerQuicConnection
    ) -> ClientConnection:
        assert listener.endpoint is not None
        return ClientConnection(self.sessions, listener.endpoint, connection, quic)

    def _certificate_refused(self, connection: Connection, reason: str, text: str) -> None:
        self.certificates_refused[reason] = self.certificates_refused.get(reason, 0) + 1
        # Strangers can come by the hundred: their records must not fill the disk.
        if not self._refusal_bucket.allow(time.monotonic()):
            self._refusals_left_out += 1
            return
        if self._refusals_left_out:
            self.audit.rate_limited(client=None, suppressed=self._refusals_left_out)
            self._refusals_left_out = 0
        peer = format_address(connection.peer_address)
        self.audit.session_refused(peer=peer, reason=reason, text=text)

    # Meanwhile.

    async def _serve(self) -> None:
        tasks = [
            asyncio.create_task(self._keep_events()),
            asyncio.create_task(self._keep_certificates()),
            asyncio.create_task(self._keep_leases()),
            asyncio.create_task(self.audit.run()),
            asyncio.create_task(self.policy.watch()),
            asyncio.create_task(self.alerts.watch()),
            asyncio.create_task(self.edge.keep()),
        ]
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
        finally:
            loop.remove_reader(fd)

    def poll_events(self) -> None:
        """Give the kernel's waiting events to the audit log."""
        self.kernel.poll_events(self.journal.flow)
        lost = self.kernel.programs.lost_events()
        if lost > self._events_lost_told:
            self.audit.events_lost(count=lost - self._events_lost_told)
            self._events_lost_told = lost

    async def _keep_certificates(self) -> None:
        """Revocation acts at once: the files are looked at four times a second."""
        renew_at = self.sessions.loop.time() + _RENEW_INTERVAL_S
        while True:
            await asyncio.sleep(_UPKEEP_INTERVAL_S)
            self.check_certificates()
            if self.config.pki is None and self.sessions.loop.time() >= renew_at:
                renew_at += _RENEW_INTERVAL_S
                self._renew_own_identity()

    def _renew_own_identity(self) -> None:
        """The embedded CA: sign the revocation list anew, and our certificate, in time."""
        try:
            self._find_certificates(datetime.now(UTC))
            self.listener.reload_certificate()
        except (IdentityError, OSError, ValueError) as error:
            logger.error("own certificates not renewed: %s", error)

    def check_certificates(self) -> None:
        """Read changed CA and CRL files; close the sessions of the revoked and the expired."""
        now = datetime.now(UTC)
        try:
            self.verifier.reload_if_changed(now)
        except IdentityError as error:
            logger.error("certificates not reloaded, the old ones stay: %s", error)
        for session in list(self.sessions.by_client.values()):
            try:
                self.verifier.recheck(session.identity, now)
            except CertificateRefused as refused:
                self.sessions.close(session, f"certificate {refused.reason}")

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(_LEASE_INTERVAL_S)
            self.sessions.touch_leases()

    def _reload_soon(self) -> None:
        """SIGHUP: policy, certificates, audit file, the edge's blocklist."""
        self.audit.reopen()
        self.check_certificates()
        self.edge.reload()
        task = asyncio.get_running_loop().create_task(self.policy.reload_and_log())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    # End.

    async def _stop(self) -> None:
        was_ready = self.state == "ready"
        self.state = "draining"
        if was_ready:
            self.sessions.accepting = False
            self.listener.stop_accepting()
            await self._close_sessions()
            self.poll_events()
            self.audit.gateway_stopped(cause=self._stop_cause or "error")
        if hasattr(self, "_api"):
            self.journal.feed.close()
            await self._api.stop()
        if hasattr(self, "policy"):
            await self.policy.close()
        self._undo.close()
        self.state = "stopped"
        if was_ready:
            logger.info("stopped")

    async def _close_sessions(self) -> None:
        """Tell every client, and give the goodbyes a moment to leave."""
        for session in list(self.sessions.by_client.values()):
            self.sessions.close(session, "the gateway is shutting down")
        endpoint = self.listener.endpoint
        if endpoint is None:
            return
        endpoint.flush_touched()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_DEADLINE_S):
                await endpoint.wait_empty()
