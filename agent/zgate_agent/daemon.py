"""The running agent: carries out what the state machine decides, and tells it what happens.

One task takes events from a queue, one after the other. A second one, for each attempt, dials the
gateways and then waits for the session's end. Changes to the host's network are made in one thread
of their own, in the order in which they were asked for, so that what an abandoned attempt began
never comes after what takes it back.

A session is renewed by a second attempt beside it. The new session stands by until it takes the TUN
over; the one before writes what still comes from the gateway, and is closed a moment later.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Protocol, TypeVar

from zgate_config.dialling import GatewayAddress
from zgate_datapath.client import TunnelState
from zgate_datapath.engine import engine_name
from zgate_host.backoff import Backoff
from zgate_protocol.dns_capsule import DnsAssign
from zgate_protocol.drop_reason import DropReason

from zgate_agent.config import AgentConfig, DnsMode
from zgate_agent.dialler import DialFailed, Dialler, Line, MakeTunnel, Resolve
from zgate_agent.machine import (
    Command,
    Connect,
    ConnectFailed,
    Disconnect,
    Drop,
    Event,
    Machine,
    PathChanged,
    Program,
    ProgramFailed,
    Quit,
    Rebind,
    ReconnectAsked,
    Renew,
    Started,
    State,
    StopAsked,
    Switch,
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
#: How long a session that was replaced may send what it has read, and receive what is under way.
LINGER_S = 0.3


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


CompareServices = Callable[[DnsAssign], Awaitable[Sequence[str]]]
"""What the configuration says of services and the gateway does not, in one line each."""


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
        self._loop = asyncio.get_running_loop()
        self._machine = Machine(backoff, config.on_disconnect, self._loop.time())
        self._queue: asyncio.Queue[_Item] = asyncio.Queue()
        self._network_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="network")
        self._dialler = Dialler(
            config, self, make_tunnel=make_tunnel, resolve=resolve, now=self._loop.time
        )
        self._exit_code: int | None = None
        self._attempts: dict[int, asyncio.Task[None]] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._line: Line | None = None
        self._beside: Line | None = None
        self._comparing: asyncio.Task[None] | None = None
        self._service_notes: tuple[str, ...] = ()
        self._identity_problem = ""
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
            for task in list(self._retiring):
                task.cancel()
            await asyncio.gather(*self._retiring, return_exceptions=True)
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

    def reconnect(self, reason: str = "reconnecting on request") -> None:
        """Dial now: beside the session if there is one, which is closed when another is up."""
        self.post(ReconnectAsked(reason))

    def identity_changed(self, problem: str) -> None:
        """Certificate, key or CA are others; a problem: they cannot be used, and why."""
        self._identity_problem = problem
        if problem:
            logger.error(
                "the session is not renewed: %(problem)s",
                {"event": "renewal_not_begun", "problem": problem},
            )
        else:
            logger.info(
                "certificate, key or CA have changed: the session is renewed",
                {"event": "certificate_changed"},
            )
            self.reconnect("another certificate")

    def network_changed(self) -> None:
        """The host's network may have changed: look."""
        self._queue.put_nowait(_Look())

    def status(self) -> AgentStatus:
        """What is true now."""
        machine, plan, line = self._machine, self._network.plan, self._line
        now = self._loop.time()
        waits = None if machine.wake_at is None else max(0.0, machine.wake_at - now)
        names, config = self._names.state, self._config
        gateway = line.gateway if line is not None else config.gateway
        path = line.path if line is not None else None
        return AgentStatus(
            state=machine.state,
            reason=machine.reason,
            since=datetime.fromtimestamp(time.time() - (now - machine.since), UTC),
            gateway=str(gateway),
            gateways=[str(one) for one in config.all_gateways],
            server_name=config.expected_name_of(gateway),
            gateway_address=None if line is None else _place(line.address, gateway.port),
            local_address=str(path.source) if path and path.source else None,
            observed_address=_seen_at(line),
            dns=DnsStatus(
                method=names.method,
                servers=[str(one) for one in names.servers],
                domains=list(names.domains),
            ),
            addresses=[str(one) for one in plan.addresses],
            routes=[str(one) for one in plan.routes],
            pinned=[str(one) for one in plan.pins],
            mode=config.mode,
            tun=config.tun.name,
            engine=engine_name(config.engine),
            mtu_bytes=plan.mtu_bytes or None,
            reconnects=machine.reconnects,
            rebinds=self._rebinds,
            failures=self._dialler.failures,
            next_attempt_s=waits,
            is_renewing=machine.renewal is not None,
            renewal_problem=machine.renewal_problem or self._identity_problem,
            is_draining=line is not None and line.is_draining,
            failed_addresses=self._dialler.failed,
            notes=[
                *self._dialler.notes,
                *_session_notes(line, plan),
                *names.notes,
                *self._service_notes,
            ],
            counters=line.tunnel.statistics() if line is not None else {},
            drops=_named(line.tunnel.drops()) if line is not None else {},
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
            line = self._line
            if self._machine.state is State.CONNECTED and line is not None and line.state:
                await self._program(line, line.state)
            return
        event = await self._look() if isinstance(item, _Look) else item
        if event is None:
            return
        before = self._machine.state, self._machine.attempt
        commands = self._machine.handle(event, self._loop.time())
        if before != (self._machine.state, self._machine.attempt):
            self._log_state()
        match commands:
            case [Drop(reason), *commands]:
                # Before anything that waits: the attempt beside it goes on meanwhile.
                self._drop(reason)
        if self._machine.state is not State.CONNECTED:
            await self._forget_names()
        for command in commands:
            await self._carry_out(command)

    async def _carry_out(self, command: Command) -> None:
        match command:
            case Connect(attempt):
                self._begin(attempt, stands_by=False)
            case Renew(attempt):
                logger.info("dialling beside the session", {"event": "renewal_begins"})
                self._begin(attempt, stands_by=True)
            case Switch(attempt):
                self._switch(attempt)
            case Disconnect(reason):
                await self._disconnect(reason)
            case Program(_, tunnel):
                if self._line is not None:
                    self._line.tunnel.take_over()  # the only one, if it was not so before
                    await self._program(self._line, tunnel)
            case Withdraw():
                await self._in_network_thread(self._network.withdraw)
            case Rebind():
                self._rebinds += 1
                logger.info(
                    "the path has changed: the session moves to it", {"event": "path_changed"}
                )
                if self._line is not None:
                    self._line.tunnel.rebind()
            case Quit(exit_code):
                self._exit_code = exit_code

    def _log_state(self) -> None:
        machine = self._machine
        match machine.state:
            case State.CONNECTING:
                names = ", ".join(str(one) for one in self._config.all_gateways)
                logger.info("connecting to %(gateway)s", {"event": "connecting", "gateway": names})
            case State.CONNECTED:
                logger.info(
                    "session up with %(address)s",
                    {"event": "session_up", "address": self._line.address if self._line else "-"},
                )
            case State.BACKOFF:
                delay_s = (machine.wake_at or machine.since) - machine.since
                logger.warning(
                    "not connected: %(reason)s; next attempt in %(delay_s).1f s",
                    {"event": "not_connected", "reason": machine.reason, "delay_s": delay_s},
                )
            case State.STOPPED:
                logger.info("stopping: %(reason)s", {"event": "stopping", "reason": machine.reason})

    # One attempt, and the session it gives.

    def _begin(self, attempt: int, *, stands_by: bool) -> None:
        task = asyncio.create_task(self._attempt(attempt, stands_by=stands_by))
        self._attempts[attempt] = task
        task.add_done_callback(lambda _: self._attempts.pop(attempt, None))

    async def _attempt(self, attempt: int, *, stands_by: bool) -> None:
        try:
            line = await self._dialler.dial(attempt, stands_by=stands_by)
            assert line.state is not None
            self.post(TunnelUp(attempt, line.state))
            self.post(TunnelClosed(attempt, await line.tunnel.wait_closed()))
        except (DialFailed, RoutingError) as error:
            if stands_by:
                logger.warning(
                    "the session is not renewed, and stays: %(error)s",
                    {"event": "renewal_failed", "error": error},
                )
            self.post(ConnectFailed(attempt, str(error)))
        except Exception as error:
            # A bug, here or below: this attempt is lost, not the agent.
            logger.exception(
                "attempt %(attempt)d failed", {"event": "attempt_failed", "attempt": attempt}
            )
            self.post(ConnectFailed(attempt, f"internal error: {error!r}"))

    # What the dialler says and wants (`LineOwner`).

    async def pin(self, addresses: Sequence[IpAddress]) -> None:
        """See `LineOwner`: those of the session that there is stay pinned."""
        kept = [self._line.address] if self._line is not None and self._has_session() else []
        wanted_pins = dict.fromkeys([*addresses, *kept])

        def pin() -> None:
            wanted = self._network.wanted
            if wanted.routes:
                self._network.apply(wanted.with_pins(wanted_pins))

        await self._in_network_thread(pin)

    def _has_session(self) -> bool:
        return self._machine.state is State.CONNECTED

    async def path_to(self, address: IpAddress) -> PhysicalPath | None:
        """See `LineOwner`."""
        return await self._in_network_thread(lambda: self._network.path_to(address))

    def line_begun(self, line: Line) -> None:
        """See `LineOwner`."""
        if line.attempt == self._machine.renewal:
            self._beside = line
        else:
            self._line = line

    def line_changed(self, line: Line, state: TunnelState) -> None:
        """See `LineOwner`."""
        line.state = state
        self.post(TunnelChanged(line.attempt, state))

    def names_changed(self, line: Line) -> None:
        """See `LineOwner`; of a session that stands by they are asked for when it takes over."""
        if line is not self._beside:
            self._queue.put_nowait(_NamesChanged())

    def gateway_drains(self, line: Line) -> None:
        """See `LineOwner`: with another gateway we go there; else we stay as long as we may."""
        if line is not self._line or len(self._config.all_gateways) == 1:
            logger.warning(
                "%(gateway)s is to stop soon", {"event": "gateway_drains", "gateway": line.gateway}
            )
            return
        logger.info(
            "%(gateway)s is to stop soon: going to another gateway",
            {"event": "gateway_drains_leaving", "gateway": line.gateway},
        )
        self.reconnect(f"{line.gateway} drains")

    # One session in the place of another, and their ends.

    def _switch(self, attempt: int) -> None:
        """Without a pause: no packet is read between."""
        new, self._beside = self._beside, None
        assert new is not None
        assert new.attempt == attempt
        old, self._line = self._line, new
        if old is not None:
            old.tunnel.let_go()
        new.tunnel.take_over()
        logger.info(
            "session renewed with %(address)s", {"event": "session_renewed", "address": new.address}
        )
        if old is not None:
            self._retire(old, "renewed", LINGER_S)

    def _drop(self, reason: str) -> None:
        """The session is over, and the attempt beside it goes on in its place."""
        old, self._line = self._line, self._beside
        self._beside = None
        if old is not None:
            # Nobody else may read the TUN once the attempt gives a session.
            old.tunnel.let_go()
            self._retire(old, reason)

    def _retire(self, line: Line, reason: str, linger_s: float = 0.0) -> None:
        """Close it after a while, beside whatever else goes on."""

        async def retire() -> None:
            try:
                await asyncio.sleep(linger_s)
            finally:
                await self._close(line, reason)

        task = asyncio.create_task(retire())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _disconnect(self, reason: str) -> None:
        tasks = list(self._attempts.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        beside, self._beside = self._beside, None
        for line in (beside, self._line):
            if line is not None:
                await self._close(line, reason)

    async def _close(self, line: Line, reason: str) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await line.tunnel.close(reason)
        except TimeoutError:
            logger.warning(
                "the session did not close in %(timeout_s)g s",
                {"event": "session_close_late", "timeout_s": CLOSE_TIMEOUT_S},
            )
        except Exception:
            # A bug below must not keep us from taking the routes back.
            logger.exception("the session did not close cleanly", {"event": "session_close_failed"})

    # What the gateway says beside addresses and routes.

    async def _apply_names(self) -> None:
        """Let names of services be asked for, once there is a way to the servers."""
        dns, plan = self._line.dns if self._line is not None else None, self._network.plan
        if dns is None or self._machine.state is not State.CONNECTED:
            return
        versions = sorted({one.version for one in plan.addresses})
        await self._in_network_thread(lambda: self._names.apply(dns, versions))
        if self._comparing is None:
            self._comparing = asyncio.create_task(self._compare(dns))

    async def _compare(self, dns: DnsAssign) -> None:
        self._service_notes = tuple(await self._compare_services(dns))
        for note in self._service_notes:
            logger.warning("%(note)s", {"event": "service_differs", "note": note})

    async def _forget_names(self) -> None:
        comparing, self._comparing = self._comparing, None
        if comparing is not None:
            comparing.cancel()
        if self._names.state != NO_NAMES:
            await self._in_network_thread(self._names.withdraw)

    # The host's network.

    async def _program(self, line: Line, tunnel: TunnelState) -> None:
        plan = make_plan(
            addresses=tunnel.addresses,
            advertised=tunnel.routes,
            mtu_bytes=tunnel.mtu_bytes,
            mode=self._config.mode,
            own_routes=self._own_routes(line.dns),
            gateway=line.address,
        )
        before = self._network.plan
        failure = await self._apply(line.attempt, plan)
        if failure is not None:
            self.post(failure)
            return
        applied = self._network.plan
        if applied != before:
            logger.info(
                "network set up: %(addresses)s; %(routes)d routes, MTU %(mtu_bytes)d",
                {
                    "event": "network_set_up",
                    "addresses": ", ".join(str(one.ip) for one in applied.addresses)
                    or "no address",
                    "routes": len(applied.routes),
                    "mtu_bytes": applied.mtu_bytes,
                },
            )
        await self._apply_names()

    def _own_routes(self, dns: DnsAssign | None) -> tuple[IpNetwork, ...] | None:
        """What the configuration limits the routes to, and the name servers beside it."""
        routes = self._config.routes
        if routes is None or dns is None or self._config.dns is DnsMode.OFF:
            return routes
        return (*routes, *(ip_network(one) for one in dns.servers))

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
        line = self._line
        if line is None:
            # No address yet: whatever has come up may bring the name server with it.
            return PathChanged(True) if self._machine.state is State.BACKOFF else None
        try:
            path = await self.path_to(line.address)
        except TunGone as error:
            return StopAsked(str(error), EXIT_FAILED)
        except RoutingError as error:
            logger.warning("%(error)s", {"event": "path_unknown", "error": error})
            return None
        if path == line.path:
            return None
        line.path = path
        return PathChanged(path is not None)

    async def _in_network_thread(self, function: Callable[[], Result]) -> Result:
        return await self._loop.run_in_executor(self._network_thread, function)


def _place(address: IpAddress, port: int) -> str:
    return str(GatewayAddress(str(address), port))


def _named(drops: dict[DropReason, int]) -> dict[str, int]:
    return {reason.name: count for reason, count in drops.items()}


def _seen_at(line: Line | None) -> str | None:
    seen = line.observed if line is not None else None
    return _place(seen.address, seen.port) if seen is not None else None


def _session_notes(line: Line | None, plan: NetworkPlan) -> list[str]:
    """What the gateway gave and the host does not take."""
    tunnel = line.state if line is not None else None
    if tunnel is None or not plan.mtu_bytes:
        return []
    gave_ipv6 = any(one.version == 6 for one in tunnel.addresses)
    takes_ipv6 = any(one.version == 6 for one in (*plan.addresses, *plan.routes))
    if gave_ipv6 and not takes_ipv6:
        return ["IPv6 is off on this host: the tunnel carries IPv4 only"]
    return []
