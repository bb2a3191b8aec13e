"""TCP services: connections accepted in the chamber, each joined with one to its backend."""

from __future__ import annotations

import asyncio
import logging
import socket

from zgate_connector.backends import BackendNames, close_with_reset, connect_tcp
from zgate_connector.config import LimitSettings
from zgate_connector.limits import FlowLedger, Refusal, ServiceCounters
from zgate_connector.pipes import PipePool
from zgate_connector.poller import Poller
from zgate_connector.tcp_flow import TcpFlow

logger = logging.getLogger(__name__)

_ACCEPTS_PER_PIECE = 32
_PAUSE_S = 0.1


class TcpPort:
    """One listening socket: an offer's address and port.

    Attributes:
        flows: those that came in here and are not over.
        is_queued: see `Job`.
    """

    def __init__(
        self,
        relay: TcpRelay,
        listener: socket.socket,
        host: str,
        port: int,
        counters: ServiceCounters,
    ) -> None:
        self.flows: set[TcpFlow] = set()
        self.is_queued = False
        self._relay = relay
        self._listener: socket.socket | None = listener
        self._host = host
        self._port = port
        self._counters = counters
        relay.poller.watch(listener.fileno(), self, for_writing=False)

    def ready(self, _events: int) -> None:
        """See `Watcher.ready`."""
        self._relay.poller.queue(self)

    def work(self) -> bool:
        """Accept what waits."""
        for _ in range(_ACCEPTS_PER_PIECE):
            if self._listener is None:
                return False
            try:
                accepted, source = self._listener.accept()
            except BlockingIOError:
                return False
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._relay.no_resources(error)
                # What waits goes on waiting; the socket does not become ready for it again.
                asyncio.get_running_loop().call_later(_PAUSE_S, self.ready, 0)
                return False
            accepted.setblocking(False)
            self._begin(accepted, str(source[0]))
        return True

    def stop_listening(self) -> None:
        """Accept no more, but what the kernel has accepted already; flows go on."""
        if self._listener is None:
            return
        while self.work():
            pass
        self._relay.poller.forget(self._listener.fileno())
        self._listener.close()
        self._listener = None

    def abort(self) -> None:
        """See `Job.abort`: other connections may yet be accepted."""

    def close(self) -> None:
        """Accept no more, and reset the flows."""
        if self._listener is not None:
            self._relay.poller.forget(self._listener.fileno())
            self._listener.close()
            self._listener = None
        for flow in list(self.flows):
            flow.abort()

    def _begin(self, accepted: socket.socket, client: str) -> None:
        relay = self._relay
        if not relay.ledger.open(client):
            close_with_reset(accepted)
            return
        counters = self._counters
        counters.open_flows += 1
        counters.total_flows += 1
        flow = TcpFlow(
            client,
            accepted,
            poller=relay.poller,
            pipes=relay.pipes,
            counters=counters,
            on_closed=self._ended,
        )
        self.flows.add(flow)
        relay.connect(flow, self._host, self._port)

    def _ended(self, flow: TcpFlow) -> None:
        self.flows.discard(flow)
        self._counters.open_flows -= 1
        self._relay.ended(flow)


class TcpRelay:
    """What all TCP ports of a chamber share."""

    def __init__(
        self, poller: Poller, names: BackendNames, ledger: FlowLedger, limits: LimitSettings
    ) -> None:
        self.poller = poller
        self.ledger = ledger
        self.pipes = PipePool(limits.buffer_bytes_per_flow)
        self._names = names
        self._connect_timeout_s = limits.connect_timeout_s
        self._connecting: dict[TcpFlow, asyncio.Task[None]] = {}

    def connect(self, flow: TcpFlow, host: str, port: int) -> None:
        """Give the flow its backend, or reset it."""
        task = asyncio.get_running_loop().create_task(self._connect(flow, host, port))
        self._connecting[flow] = task

    def ended(self, flow: TcpFlow) -> None:
        """The flow is over: nobody waits for its backend."""
        self.ledger.close(flow.client)
        task = self._connecting.pop(flow, None)
        if task is not None:
            task.cancel()

    def no_resources(self, error: OSError) -> None:
        """A connection could not be accepted."""
        self.ledger.refused[Refusal.NO_RESOURCES] += 1
        logger.debug("cannot accept: %(error)s", {"event": "accept_failed", "error": error})

    def close(self) -> None:
        """After all ports are closed."""
        self.pipes.close()

    async def _connect(self, flow: TcpFlow, host: str, port: int) -> None:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                backend = await connect_tcp(self._names.addresses(host), port)
        except OSError as error:  # TimeoutError is one
            self._connecting.pop(flow, None)
            self.ledger.refused[Refusal.BACKEND] += 1
            logger.debug(
                "backend %(backend)s port %(port)d: %(error)s",
                {"event": "backend_refused", "backend": host, "port": port, "error": error},
            )
            flow.abort()
        else:
            self._connecting.pop(flow, None)
            flow.connected(backend)
