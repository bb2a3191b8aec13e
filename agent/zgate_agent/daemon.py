"""The running agent: carries out what the state machine decides, and tells it what happens.

One task takes events from a queue, one after the other. A second one, for each attempt, dials the
gateway and then waits for the session's end. Changes to the host's network are made in one thread
of their own, in the order in which they were asked for, so that what an abandoned attempt began
never comes after what takes it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Protocol, TypeVar

from zgate_config.dialling import GatewayAddress
from zgate_datapath.client import (
    ClientCertificateRefused,
    ClientConfig,
    GatewayCertificateRefused,
    TunnelError,
    TunnelState,
)
from zgate_datapath.engine import engine_name
from zgate_datapath.offers import Notices
from zgate_host.backoff import Backoff
from zgate_host.resolve import ResolveError
from zgate_host.status_socket import FailedAddress
from zgate_protocol.dns_capsule import DnsAssign
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.service_capsule import ObservedAddress

from zgate_agent.config import AgentConfig, DnsMode
from zgate_agent.machine import (
    Command,
    Connect,
    ConnectFailed,
    Disconnect,
    Event,
    Machine,
    PathChanged,
    Program,
    ProgramFailed,
    Quit,
    Rebind,
    ReconnectAsked,
    Started,
    State,
    StopAsked,
    TunnelChanged,
    TunnelClosed,
    TunnelUp,
    WakeUp,
    Withdraw,
)
from zgate_agent.plan import IpAddress, IpNetwork, NetworkPlan, make_plan
from zgate_agent.routing import PhysicalPath
from zgate_agent.rtnl import RoutingError, TunGone
from zgate_agent.split_dns import NOTHING as NO_NAMES
from zgate_agent.split_dns import DnsState
from zgate_agent.status import AgentStatus, DnsStatus

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

EXIT_FAILED = 1
CLOSE_TIMEOUT_S = 2.0


class TunnelLike(Protocol):
    """What the agent needs of a `zgate_datapath.client.TunnelClient`."""

    async def connect(self, timeout_s: float) -> TunnelState:
        """Dial; raises TunnelError."""

    async def wait_closed(self) -> str:
        """Wait for the end; returns why."""

    async def close(self, reason: str = "") -> None:
        """End it; safe to call twice."""

    def rebind(self) -> None:
        """Go on from a new socket."""

    def statistics(self) -> dict[str, float]:
        """Counters."""

    def drops(self) -> dict[DropReason, int]:
        """Packets dropped, by reason."""


class HostNetwork(Protocol):
    """What the agent needs of a `zgate_agent.routing.Router`. Called in one thread only."""

    @property
    def wanted(self) -> NetworkPlan:
        """What was asked for last."""

    @property
    def plan(self) -> NetworkPlan:
        """The part of it that this host can have, and that is programmed."""

    def apply(self, plan: NetworkPlan) -> NetworkPlan:
        """Bring the host's network to a plan; raises RoutingError."""

    def withdraw(self) -> None:
        """Take everything back."""

    def path_to(self, address: IpAddress) -> PhysicalPath | None:
        """The physical way to an address."""


class HostNames(Protocol):
    """What the agent needs of a `zgate_agent.split_dns.SplitDns`. Called in the same one thread."""

    @property
    def state(self) -> DnsState:
        """What is in force."""

    def apply(self, dns: DnsAssign, versions: Sequence[int]) -> DnsState:
        """Let these names be asked there, and no others."""

    def withdraw(self) -> None:
        """Put everything back."""


MakeTunnel = Callable[[ClientConfig, Callable[[TunnelState], None], Notices], TunnelLike]
CompareServices = Callable[[DnsAssign], Awaitable[Sequence[str]]]
"""What the configuration says of services and the gateway does not, in one line each."""
Resolve = Callable[[str], Awaitable[Sequence[IpAddress]]]


class _Look:
    """Queued when the host's network may have changed."""


class _NamesChanged:
    """Queued when the gateway has said which names it answers."""


_Item = Event | _Look | _NamesChanged


class Agent:
    """One agent, from start to stop. Make it in a running event loop."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        network: HostNetwork,
        names: HostNames,
        make_tunnel: MakeTunnel,
        resolve: Resolve,
        compare_services: CompareServices,
        backoff: Backoff,
    ) -> None:
        self._config = config
        self._network = network
        self._names = names
        self._compare_services = compare_services
        self._make_tunnel = make_tunnel
        self._resolve = resolve
        self._loop = asyncio.get_running_loop()
        self._machine = Machine(backoff, config.on_disconnect, self._loop.time())
        self._queue: asyncio.Queue[_Item] = asyncio.Queue()
        self._network_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="network")
        self._exit_code: int | None = None
        self._attempt_task: asyncio.Task[None] | None = None
        self._tunnel: TunnelLike | None = None
        self._tunnel_state: TunnelState | None = None
        self._gateway: IpAddress | None = None
        self._path: PhysicalPath | None = None
        self._known: tuple[IpAddress, ...] = ()
        self._failed: list[FailedAddress] = []
        self._notes: tuple[str, ...] = ()
        self._dns: DnsAssign | None = None
        self._observed: ObservedAddress | None = None
        self._comparing: asyncio.Task[None] | None = None
        self._service_notes: tuple[str, ...] = ()
        self._rebinds = 0

    # What others call.

    async def run(self) -> int:
        """Run until told to stop; returns the exit code. The host's network is as it was, then."""
        self.post(Started())
        try:
            while self._exit_code is None:
                await self._take_in(await self._next_event())
        finally:
            await self._disconnect("the agent ends")
            await self._forget_names()
            await self._in_network_thread(self._network.withdraw)
            self._network_thread.shutdown()
        return self._exit_code

    def post(self, event: Event) -> None:
        """Feed an event, from the loop's thread."""
        self._queue.put_nowait(event)

    def stop(self, reason: str) -> None:
        """End as soon as possible, from whatever is going on."""
        self.post(StopAsked(reason))

    def reconnect(self) -> None:
        """Drop the session, or the wait for it, and dial now."""
        self.post(ReconnectAsked())

    def network_changed(self) -> None:
        """The host's network may have changed: look."""
        self._queue.put_nowait(_Look())

    def status(self) -> AgentStatus:
        """What is true now."""
        machine, plan, tunnel = self._machine, self._network.plan, self._tunnel_state
        now = self._loop.time()
        waits = None if machine.wake_at is None else max(0.0, machine.wake_at - now)
        gateway, seen, names = self._gateway, self._observed, self._names.state
        port = self._config.gateway.port
        return AgentStatus(
            state=machine.state,
            reason=machine.reason,
            since=datetime.fromtimestamp(time.time() - (now - machine.since), UTC),
            gateway=str(self._config.gateway),
            server_name=self._config.expected_name,
            gateway_address=None if gateway is None else _place(gateway, port),
            local_address=str(self._path.source) if self._path and self._path.source else None,
            observed_address=_place(seen.address, seen.port) if seen else None,
            dns=DnsStatus(
                method=names.method,
                servers=[str(one) for one in names.servers],
                domains=list(names.domains),
            ),
            addresses=[str(one) for one in plan.addresses],
            routes=[str(one) for one in plan.routes],
            pinned=[str(one) for one in plan.pins],
            mode=self._config.mode,
            tun=self._config.tun.name,
            engine=engine_name(self._config.engine),
            mtu_bytes=plan.mtu_bytes or None,
            reconnects=machine.reconnects,
            rebinds=self._rebinds,
            next_attempt_s=waits,
            failed_addresses=self._failed,
            notes=[
                *self._notes,
                *_session_notes(tunnel, plan),
                *names.notes,
                *self._service_notes,
            ],
            counters=self._tunnel.statistics() if self._tunnel is not None else {},
            drops=_named(self._tunnel.drops()) if self._tunnel is not None else {},
            pid=os.getpid(),
        )

    # The loop.

    async def _next_event(self) -> _Item:
        try:
            async with asyncio.timeout_at(self._machine.wake_at):
                return await self._queue.get()
        except TimeoutError:
            return WakeUp()

    async def _take_in(self, item: _Item) -> None:
        if isinstance(item, _NamesChanged):
            # The way to the name servers comes first.
            if self._machine.state is State.CONNECTED and self._tunnel_state is not None:
                await self._program(self._machine.attempt, self._tunnel_state)
            return
        event = await self._look() if isinstance(item, _Look) else item
        if event is None:
            return
        before = self._machine.state, self._machine.attempt
        commands = self._machine.handle(event, self._loop.time())
        if before != (self._machine.state, self._machine.attempt):
            self._log_state()
        if self._machine.state is not State.CONNECTED:
            await self._forget_names()
        for command in commands:
            await self._carry_out(command)

    async def _carry_out(self, command: Command) -> None:
        match command:
            case Connect(attempt):
                self._attempt_task = asyncio.create_task(self._attempt(attempt))
            case Disconnect(reason):
                await self._disconnect(reason)
            case Program(attempt, tunnel):
                await self._program(attempt, tunnel)
            case Withdraw():
                await self._in_network_thread(self._network.withdraw)
            case Rebind():
                self._rebinds += 1
                logger.info("the path has changed: the session moves to it")
                if self._tunnel is not None:
                    self._tunnel.rebind()
            case Quit(exit_code):
                self._exit_code = exit_code

    def _log_state(self) -> None:
        machine = self._machine
        match machine.state:
            case State.CONNECTING:
                logger.info("connecting to %s", self._config.gateway)
            case State.CONNECTED:
                logger.info("session up with %s", self._gateway)
            case State.BACKOFF:
                delay_s = (machine.wake_at or machine.since) - machine.since
                logger.warning("not connected: %s; next attempt in %.1f s", machine.reason, delay_s)
            case State.STOPPED:
                logger.info("stopping: %s", machine.reason)

    # One attempt, and the session it gives.

    async def _attempt(self, attempt: int) -> None:
        try:
            tunnel = await self._first_that_answers(attempt)
            if tunnel is None:
                self.post(ConnectFailed(attempt, self._why_none()))
                return
            self.post(TunnelClosed(attempt, await tunnel.wait_closed()))
        except (ResolveError, RoutingError) as error:
            self.post(ConnectFailed(attempt, str(error)))
        except Exception as error:
            # A bug, here or below: this attempt is lost, not the agent.
            logger.exception("attempt %d failed", attempt)
            self.post(ConnectFailed(attempt, f"internal error: {error!r}"))

    async def _first_that_answers(self, attempt: int) -> TunnelLike | None:
        self._failed = []
        candidates = await self._candidates()
        await self._pin(candidates)
        for address in candidates:
            self._gateway = address
            self._path = await self._in_network_thread(lambda: self._network.path_to(address))  # noqa: B023
            self._observed = self._dns = None
            tunnel = self._make_tunnel(
                self._client_config(address),
                lambda state: self.post(TunnelChanged(attempt, state)),
                Notices(on_observed=self._take_observed, on_dns=self._take_dns),
            )
            self._tunnel = tunnel
            try:
                state = await tunnel.connect(self._config.connect_timeout_s)
            except TunnelError as error:
                failed = FailedAddress(address=str(address), error=_describe(error))
                self._failed.append(failed)
                logger.info("no session with %s: %s", address, failed.error)
                continue
            self.post(TunnelUp(attempt, state))
            return tunnel
        return None

    async def _candidates(self) -> tuple[IpAddress, ...]:
        """The gateway's addresses now, that of the last session first.

        While the tunnel's routes are in force the name may be unresolvable, because the name
        server is behind the tunnel; then the addresses known from before are tried.
        """
        host = self._config.gateway.host
        self._notes = ()
        try:
            async with asyncio.timeout(self._config.connect_timeout_s):
                found = tuple(await self._resolve(host))
        except (ResolveError, TimeoutError) as error:
            text = str(error) or f"cannot resolve {host}: no answer from the name server in time"
            if not self._known:
                raise ResolveError(text) from error
            self._notes = (f"{text}; trying the addresses known from before",)
            found = self._known
        self._known = found
        last = self._gateway
        return tuple(sorted(found, key=lambda one: one != last))

    async def _pin(self, candidates: Sequence[IpAddress]) -> None:
        """Keep the addresses out of the tunnel, of which routes may still be in force."""

        def pin() -> None:
            wanted = self._network.wanted
            if wanted.routes:
                self._network.apply(wanted.with_pins(candidates))

        await self._in_network_thread(pin)

    def _client_config(self, address: IpAddress) -> ClientConfig:
        config = self._config
        return ClientConfig(
            host=str(address),
            port=config.gateway.port,
            server_name=config.expected_name,
            ca_file=str(config.ca),
            certificate_file=str(config.certificate),
            key_file=str(config.key),
            mtu_bytes=config.tun.mtu_bytes,
            idle_timeout_s=config.idle_timeout_s,
            keepalive_s=config.keepalive_s,
            engine=config.engine,
            congestion=config.congestion,
        )

    def _why_none(self) -> str:
        return "; ".join(f"{one.address}: {one.error}" for one in self._failed)

    async def _disconnect(self, reason: str) -> None:
        task, self._attempt_task = self._attempt_task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._tunnel is not None:
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._tunnel.close(reason)
            except TimeoutError:
                logger.warning("the session did not close in %g s", CLOSE_TIMEOUT_S)
            except Exception:
                # A bug below must not keep us from taking the routes back.
                logger.exception("the session did not close cleanly")

    # What the gateway says beside addresses and routes.

    def _take_observed(self, observed: ObservedAddress) -> None:
        self._observed = observed

    def _take_dns(self, dns: DnsAssign) -> None:
        self._dns = dns
        self._queue.put_nowait(_NamesChanged())

    async def _apply_names(self) -> None:
        """Let names of services be asked for, once there is a way to the servers."""
        dns, plan = self._dns, self._network.plan
        if dns is None or self._machine.state is not State.CONNECTED:
            return
        versions = sorted({one.version for one in plan.addresses})
        await self._in_network_thread(lambda: self._names.apply(dns, versions))
        if self._comparing is None:
            self._comparing = asyncio.create_task(self._compare(dns))

    async def _compare(self, dns: DnsAssign) -> None:
        self._service_notes = tuple(await self._compare_services(dns))
        for note in self._service_notes:
            logger.warning("%s", note)

    async def _forget_names(self) -> None:
        comparing, self._comparing = self._comparing, None
        if comparing is not None:
            comparing.cancel()
        if self._names.state != NO_NAMES:
            await self._in_network_thread(self._names.withdraw)

    # The host's network.

    async def _program(self, attempt: int, tunnel: TunnelState) -> None:
        assert self._gateway is not None
        gateway = self._gateway
        plan = make_plan(
            addresses=tunnel.addresses,
            advertised=tunnel.routes,
            mtu_bytes=tunnel.mtu_bytes,
            mode=self._config.mode,
            own_routes=self._own_routes(),
            gateway=gateway,
        )
        self._tunnel_state = tunnel
        before = self._network.plan
        failure = await self._apply(attempt, plan)
        if failure is not None:
            self.post(failure)
            return
        applied = self._network.plan
        if applied != before:
            logger.info(
                "network set up: %s; %d routes, MTU %d",
                ", ".join(str(one.ip) for one in applied.addresses) or "no address",
                len(applied.routes),
                applied.mtu_bytes,
            )
        await self._apply_names()

    def _own_routes(self) -> tuple[IpNetwork, ...] | None:
        """What the configuration limits the routes to, and the name servers beside it."""
        routes = self._config.routes
        if routes is None or self._dns is None or self._config.dns is DnsMode.OFF:
            return routes
        return (*routes, *(ip_network(one) for one in self._dns.servers))

    async def _apply(self, attempt: int, plan: NetworkPlan) -> Event | None:
        """Bring the network to a plan; the event to handle if that fails."""
        try:
            await self._in_network_thread(lambda: self._network.apply(plan))
        except TunGone as error:
            return StopAsked(str(error), EXIT_FAILED)
        except RoutingError as error:
            return ProgramFailed(attempt, str(error))
        return None

    async def _look(self) -> Event | None:
        """Put right what is no longer as programmed, and see whether the way is another one."""
        wanted = self._network.wanted
        if wanted.routes or wanted.addresses:
            failure = await self._apply(self._machine.attempt, wanted)
            if failure is not None:
                return failure
            # Whoever configures the host's network may have written its resolv.conf anew.
            await self._apply_names()
        if self._gateway is None:
            # No address yet: whatever has come up may bring the name server with it.
            return PathChanged(True) if self._machine.state is State.BACKOFF else None
        gateway = self._gateway
        try:
            path = await self._in_network_thread(lambda: self._network.path_to(gateway))
        except TunGone as error:
            return StopAsked(str(error), EXIT_FAILED)
        except RoutingError as error:
            logger.warning("%s", error)
            return None
        if path == self._path:
            return None
        self._path = path
        return PathChanged(path is not None)

    async def _in_network_thread(self, function: Callable[[], Result]) -> Result:
        return await self._loop.run_in_executor(self._network_thread, function)


def _describe(error: TunnelError) -> str:
    """What failed, in words that say on which side the cure is."""
    match error:
        case GatewayCertificateRefused():
            return f"the gateway's certificate is refused: {error}"
        case ClientCertificateRefused():
            return f"the gateway refuses our certificate: {error}"
        case _:
            return str(error)


def _place(address: IpAddress, port: int) -> str:
    return str(GatewayAddress(str(address), port))


def _named(drops: dict[DropReason, int]) -> dict[str, int]:
    return {reason.name: count for reason, count in drops.items()}


def _session_notes(tunnel: TunnelState | None, plan: NetworkPlan) -> list[str]:
    """What the gateway gave and the host does not take."""
    if tunnel is None or not plan.mtu_bytes:
        return []
    gave_ipv6 = any(one.version == 6 for one in tunnel.addresses)
    takes_ipv6 = any(one.version == 6 for one in (*plan.addresses, *plan.routes))
    if gave_ipv6 and not takes_ipv6:
        return ["IPv6 is off on this host: the tunnel carries IPv4 only"]
    return []
