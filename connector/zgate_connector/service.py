"""The real connector put together: planes, sessions, health checks, status socket, signals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

from zgate_config.dialling import MetricsSettings
from zgate_config.logs import set_level
from zgate_datapath.client import ClientConfig, TunnelClient, TunnelState
from zgate_datapath.engine import engine_name
from zgate_datapath.offers import ClientOffers, Notices
from zgate_datapath.tun import Tun
from zgate_host.backoff import Backoff
from zgate_host.identity_watch import IdentityFiles, watch_identity
from zgate_host.netwatch import NetWatch
from zgate_host.resolve import resolve
from zgate_host.runtime_dir import RuntimeDir
from zgate_host.status_socket import StatusServer
from zgate_host.supervised import supervised

from zgate_connector.config import ConnectorConfig
from zgate_connector.daemon import Connector
from zgate_connector.health import HealthChecks
from zgate_connector.network_plane import BothPlane, NetworksPlane, in_thread
from zgate_connector.networks import HostNetwork
from zgate_connector.plane import Plane, ServicesPlane
from zgate_connector.session import GatewaySession
from zgate_connector.status import ConnectorStatus

logger = logging.getLogger(__name__)

#: Settings that need a restart, but for the log's level.
_FIXED = ("runtime_dir", "log", "metrics")

Reload = Callable[[], ConnectorConfig]
"""Reads the configuration again; an exception, whose text is one line, if it is no good."""


async def serve(config: ConnectorConfig, directory: RuntimeDir, reload: Reload) -> int:
    """Run a connector until it is told to stop; returns the exit code.

    Raises:
        PlaneError: nothing can be served here; cause and cure.
        TunError: a TUN cannot be made.
        OSError: the status socket cannot be made.
    """
    reloads = _Reloads(config, reload)
    with _signals(reloads):
        telling = _status_server(directory, config.metrics, reloads.status)
        async with telling as listen, _told(reloads) as tell:
            while not reloads.is_stopped:
                async with _running(reloads.take(), directory) as connector:
                    reloads.watch(connector)
                    await listen()
                    await tell()
                    await connector.run()
    return 0


class _Reloads:
    """What signals ask for: the end, or another configuration."""

    def __init__(self, config: ConnectorConfig, reload: Reload) -> None:
        self.config = config
        self.is_stopped = False
        self._is_other = False
        self._reload = reload
        self._current: Connector | None = None
        self._reason = ""

    def take(self) -> ConnectorConfig:
        """The configuration that a connector is made of now."""
        self._is_other = False
        return self.config

    def watch(self, connector: Connector) -> None:
        """From now on this one is meant; a signal may have come while it was being made."""
        self._current = connector
        if self.is_stopped or self._is_other:
            connector.stop(self._reason)

    def status(self) -> ConnectorStatus:
        """What the connector says; the socket listens only when there is one."""
        assert self._current is not None
        return self._current.status()

    def stop(self, reason: str) -> None:
        self.is_stopped = True
        self._end(reason)

    def _end(self, reason: str) -> None:
        self._reason = reason
        if self._current is not None:
            self._current.stop(reason)

    def reload(self) -> None:
        """Take another configuration; with the same one, only dial where we wait."""
        try:
            config = self._reload()
        except Exception as error:
            logger.error(
                "the configuration is not taken: %(error)s",
                {"event": "configuration_refused", "error": error},
            )
            return
        set_level(config.log.level)
        log = self.config.log.model_copy(update={"level": config.log.level})
        self.config = self.config.model_copy(update={"log": log})
        fixed = {name: getattr(self.config, name) for name in _FIXED}
        if keys := [name for name in _FIXED if getattr(config, name) != fixed[name]]:
            logger.warning(
                "changed in the configuration, and applied by a restart only: %(keys)s",
                {"event": "restart_needed", "keys": keys},
            )
        config = config.model_copy(update=fixed)
        if config == self.config:
            logger.info("the configuration has not changed", {"event": "configuration_unchanged"})
            if self._current is not None:
                self._current.reconnect()
            return
        self.config, self._is_other = config, True
        self._end("another configuration")


@contextlib.asynccontextmanager
async def _running(config: ConnectorConfig, directory: RuntimeDir) -> AsyncIterator[Connector]:
    """Everything of one configuration."""
    health = HealthChecks(config.services)
    async with contextlib.AsyncExitStack() as stack:
        network = None
        if config.networks:
            network = HostNetwork(config.tun.prefix, config.networks, directory.leftovers_file)
            await in_thread(lambda: network.install(len(config.all_gateways)))
            stack.push_async_callback(asyncio.to_thread, network.remove)
        health.start()
        stack.push_async_callback(health.close)
        planes = [
            _plane(config, health, network, number) for number in range(len(config.all_gateways))
        ]
        for plane in planes:
            stack.push_async_callback(plane.close)
            # Here and now: what this host does not allow is told at once, and not in a log.
            await plane.open()
        sessions = [
            GatewaySession(
                gateway,
                config,
                plane=plane,
                make_tunnel=_make_tunnel,
                resolve=resolve,
                backoff=Backoff(random.random),
            )
            for gateway, plane in zip(config.all_gateways, planes, strict=True)
        ]
        connector = Connector(config, sessions, lambda: _notes(planes))
        health.add_listener(lambda _: connector.health_changed())
        stack.callback(NetWatch(0, connector.network_changed).close)
        files = IdentityFiles(config.ca, config.certificate, config.key)
        watch = asyncio.create_task(watch_identity(files, connector.identity_changed))
        stack.callback(watch.cancel)
        yield connector


def _plane(
    config: ConnectorConfig, health: HealthChecks, network: HostNetwork | None, number: int
) -> Plane:
    is_native = engine_name(config.engine) == "native"
    services = None
    if config.services:
        services = ServicesPlane(
            config.services,
            config.limits,
            health,
            mtu_bytes=config.tun.mtu_bytes,
            # Two TUNs are joined by copying super-packets, whatever the engine.
            has_vnet_header=is_native or network is not None,
        )
    if network is None:
        assert services is not None
        return services
    networks = NetworksPlane(network, number, has_vnet_header=is_native)
    return networks if services is None else BothPlane(services, networks, network, number)


def _notes(planes: Sequence[Plane]) -> list[str]:
    return list(dict.fromkeys(note for plane in planes for note in plane.notes))


def _make_tunnel(
    config: ClientConfig,
    tun: Tun,
    on_change: Callable[[TunnelState], None],
    offers: ClientOffers,
    notices: Notices,
) -> TunnelClient:
    return TunnelClient(config=config, tun=tun, on_change=on_change, offers=offers, notices=notices)


@contextlib.asynccontextmanager
async def _status_server(
    directory: RuntimeDir, metrics: MetricsSettings, current: Callable[[], ConnectorStatus]
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Status socket and metrics port; they listen as soon as there is something to say."""
    server = StatusServer(directory.socket_file, current)
    async with contextlib.AsyncExitStack() as stack:
        is_listening = False

        async def listen() -> None:
            nonlocal is_listening
            if not is_listening:
                is_listening = True
                await server.start()
                stack.callback(server.close)
                await stack.enter_async_context(_metrics(metrics, current))

        yield listen


@contextlib.asynccontextmanager
async def _metrics(
    settings: MetricsSettings, current: Callable[[], ConnectorStatus]
) -> AsyncIterator[None]:
    if settings.port is None:
        yield
        return
    # Not without need: it is a library more.
    from zgate_host.metrics_port import serving_metrics

    from zgate_connector.metrics import families

    address = str(settings.address)
    async with serving_metrics(address, settings.port, lambda: families(current())):
        yield


@contextlib.asynccontextmanager
async def _told(reloads: _Reloads) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """The service manager, from when there is something to say until the end."""
    async with contextlib.AsyncExitStack() as stack:
        is_told = False

        async def tell() -> None:
            nonlocal is_told
            if not is_told:
                is_told = True
                await stack.enter_async_context(supervised(lambda: reloads.status().summary))

        yield tell


@contextlib.contextmanager
def _signals(reloads: _Reloads) -> Iterator[None]:
    """SIGTERM and SIGINT end the connector, whatever it is doing; SIGHUP: read the file again."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, reloads.stop, "SIGTERM")
    loop.add_signal_handler(signal.SIGINT, reloads.stop, "SIGINT")
    loop.add_signal_handler(signal.SIGHUP, reloads.reload)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
