"""The real agent put together: TUN, router, network watch, status socket, signals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

from zgate_config.logs import set_level
from zgate_config.reread import read_again
from zgate_datapath.client import ClientConfig, TunnelClient, TunnelState
from zgate_datapath.engine import engine_name
from zgate_datapath.offers import Notices
from zgate_datapath.tun import Tun
from zgate_host.backoff import Backoff
from zgate_host.identity_watch import IdentityFiles, watch_identity
from zgate_host.netwatch import NetWatch
from zgate_host.resolve import resolve
from zgate_host.runtime_dir import RuntimeDir
from zgate_host.status_socket import StatusServer
from zgate_host.supervised import supervised

from zgate_agent.config import AgentConfig
from zgate_agent.daemon import Agent
from zgate_agent.known_services import compare
from zgate_agent.routing import Router
from zgate_agent.split_dns import SplitDns, watch_names

logger = logging.getLogger(__name__)


async def serve(config: AgentConfig, directory: RuntimeDir, load: Callable[[], AgentConfig]) -> int:
    """Run an agent until it is told to stop; returns the exit code.

    `load` gives what the configuration says at SIGHUP; it raises `ConfigError`.

    Raises:
        TunError: the TUN cannot be made.
        RoutingError: what a killed agent left cannot be removed.
        OSError: the status socket cannot be made.
    """
    router = Router(config.tun.name, directory.leftovers_file)
    removed = await asyncio.to_thread(router.clean_up_leftovers)
    if removed:
        logger.warning(
            "removed %(routes)d routes that a killed agent left behind",
            {"event": "leftovers_removed", "routes": removed},
        )
    is_native = engine_name(config.engine) == "native"
    with contextlib.closing(Tun.open(config.tun.name, has_vnet_header=is_native)) as tun:
        router.prepare()
        names = SplitDns(config.dns, config.resolv_conf, config.tun.name)
        if await asyncio.to_thread(names.clean_up_leftovers):
            logger.warning(
                "put back the resolv.conf that a killed agent had changed",
                {"event": "resolv_conf_restored"},
            )

        def make_tunnel(
            client: ClientConfig,
            on_change: Callable[[TunnelState], None],
            notices: Notices,
            *,
            stands_by: bool,
        ) -> TunnelClient:
            return TunnelClient(
                config=client,
                tun=tun,
                on_change=on_change,
                notices=notices,
                stands_by=stands_by,
            )

        agent = Agent(
            config,
            network=router,
            names=names,
            make_tunnel=make_tunnel,
            resolve=resolve,
            compare_services=partial(compare, config.services),
            backoff=Backoff(random.random),
        )
        tun_index = socket.if_nametoindex(config.tun.name)
        async with _status_server(directory, agent), _metrics(config, agent):
            watch = NetWatch(tun_index, agent.network_changed)
            files = IdentityFiles(config.ca, config.certificate, config.key)
            watches = [
                asyncio.create_task(watch_identity(files, agent.identity_changed)),
                asyncio.create_task(watch_names(names, agent.network_changed)),
            ]
            try:
                with (
                    _signals(agent, partial(_follow_level, config, load)),
                    contextlib.closing(watch),
                ):
                    async with supervised(lambda: agent.status().summary):
                        return await agent.run()
            finally:
                for task in watches:
                    task.cancel()


@contextlib.asynccontextmanager
async def _status_server(directory: RuntimeDir, agent: Agent) -> AsyncIterator[None]:
    server = StatusServer(directory.socket_file, agent.status)
    await server.start()
    try:
        yield
    finally:
        server.close()


@contextlib.asynccontextmanager
async def _metrics(config: AgentConfig, agent: Agent) -> AsyncIterator[None]:
    if config.metrics.port is None:
        yield
        return
    # Not without need: it is a library more.
    from zgate_host.metrics_port import serving_metrics

    from zgate_agent.metrics import families

    address, port = str(config.metrics.address), config.metrics.port
    async with serving_metrics(address, port, lambda: families(agent.status())):
        yield


def _follow_level(running: AgentConfig, load: Callable[[], AgentConfig]) -> None:
    """The log's level is what the configuration says now."""
    read_again(running, load, lambda found: set_level(found.log.level))


@contextlib.contextmanager
def _signals(agent: Agent, follow_level: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT end the agent, whatever it is doing; SIGHUP: another session."""
    loop = asyncio.get_running_loop()

    def hang_up() -> None:
        follow_level()
        agent.reconnect()

    loop.add_signal_handler(signal.SIGTERM, agent.stop, "SIGTERM")
    loop.add_signal_handler(signal.SIGINT, agent.stop, "SIGINT")
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
