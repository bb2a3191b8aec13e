"""Dialling: the gateways in their order, each one's addresses, until one gives a session.

The order is the configuration's, each time anew: who was away comes back to the first one that
answers. A gateway that has said that it drains is tried last for a while.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from zgate_config.dialling import GatewayAddress
from zgate_datapath.client import ClientConfig, TunnelError, TunnelState
from zgate_datapath.offers import Notices
from zgate_host.resolve import ResolveError
from zgate_host.status_socket import FailedAddress
from zgate_protocol.dns_capsule import DnsAssign
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.service_capsule import ObservedAddress

from zgate_agent.config import AgentConfig
from zgate_agent.plan import IpAddress
from zgate_agent.routing import PhysicalPath

logger = logging.getLogger(__name__)

#: How long a gateway that drains is tried after the others.
DRAINED_S = 300.0


class TunnelLike(Protocol):
    """What the agent needs of a `zgate_datapath.client.TunnelClient`."""

    async def connect(self, timeout_s: float) -> TunnelState:
        """Dial; raises TunnelError."""

    async def wait_closed(self) -> str:
        """Wait for the end; returns why."""

    async def close(self, reason: str = "") -> None:
        """End it; safe to call twice."""

    def let_go(self) -> None:
        """Read the TUN no more."""

    def take_over(self) -> None:
        """Read the TUN from now on."""

    def rebind(self) -> None:
        """Go on from a new socket."""

    def statistics(self) -> dict[str, float]:
        """Counters."""

    def drops(self) -> dict[DropReason, int]:
        """Packets dropped, by reason."""


class MakeTunnel(Protocol):
    """Makes a tunnel that has not dialled yet; one that stands by leaves the TUN to another."""

    def __call__(
        self,
        config: ClientConfig,
        on_change: Callable[[TunnelState], None],
        notices: Notices,
        /,
        *,
        stands_by: bool,
    ) -> TunnelLike:
        """Make it."""


Resolve = Callable[[str], Awaitable[Sequence[IpAddress]]]


class DialFailed(Exception):
    """No gateway gave a session; the text says why, of each."""


@dataclass(eq=False, slots=True)
class Line:
    """One attempt at one address of a gateway, and the session that it gives.

    Attributes:
        path: the physical way that leads there.
        state: the session's, once there is one.
        observed, dns: what the gateway has said last.
        is_draining: it has said that it is to stop.
    """

    attempt: int
    gateway: GatewayAddress
    address: IpAddress
    tunnel: TunnelLike
    path: PhysicalPath | None = None
    state: TunnelState | None = None
    observed: ObservedAddress | None = None
    dns: DnsAssign | None = None
    is_draining: bool = False


class LineOwner(Protocol):
    """Who is told of a line, and has the host's network. Called in the event loop."""

    async def pin(self, addresses: Sequence[IpAddress]) -> None:
        """Keep these addresses out of the tunnel, of which routes may be in force."""

    async def path_to(self, address: IpAddress) -> PhysicalPath | None:
        """The physical way to an address."""

    def line_begun(self, line: Line) -> None:
        """This one is dialled now."""

    def line_changed(self, line: Line, state: TunnelState) -> None:
        """The session is another: addresses, routes, or MTU."""

    def names_changed(self, line: Line) -> None:
        """The gateway has said which names it answers."""

    def gateway_drains(self, line: Line) -> None:
        """The gateway is to stop, and wants its clients to go elsewhere."""


class Dialler:
    """See the module's text.

    Attributes:
        failed: the addresses that gave no session at the last attempt, and why.
        failures: how many did not, since the start.
        notes: what is not as wanted, and did not hinder it.
    """

    def __init__(
        self,
        config: AgentConfig,
        owner: LineOwner,
        *,
        make_tunnel: MakeTunnel,
        resolve: Resolve,
        now: Callable[[], float],
    ) -> None:
        self._config = config
        self._owner = owner
        self._make_tunnel = make_tunnel
        self._resolve = resolve
        self._now = now
        self._known: dict[str, tuple[IpAddress, ...]] = {}
        self._last: dict[GatewayAddress, IpAddress] = {}
        self._drained: dict[GatewayAddress, float] = {}
        self.failed: list[FailedAddress] = []
        self.failures = 0
        self.notes: tuple[str, ...] = ()

    async def dial(self, attempt: int, *, stands_by: bool) -> Line:
        """The first that answers.

        Raises:
            DialFailed: none did.
            RoutingError: the host's network could not be prepared.
        """
        self.failed, self.notes = [], ()
        problems: list[str] = []
        for gateway in self._in_order():
            try:
                candidates = await self._candidates(gateway)
            except ResolveError as error:
                problems.append(str(error))
                continue
            await self._owner.pin(candidates)
            for address in candidates:
                line = await self._try(attempt, gateway, address, stands_by=stands_by)
                if line is not None:
                    self._drained.pop(gateway, None)
                    return line
                problems.append(f"{address}: {self.failed[-1].error}")
        raise DialFailed("; ".join(problems))

    def gateway_drains(self, gateway: GatewayAddress) -> None:
        """Try it after the others for a while."""
        self._drained[gateway] = self._now()

    def _in_order(self) -> list[GatewayAddress]:
        now = self._now()
        recent = {one for one, at in self._drained.items() if now - at < DRAINED_S}
        return sorted(self._config.all_gateways, key=lambda one: one in recent)

    async def _candidates(self, gateway: GatewayAddress) -> tuple[IpAddress, ...]:
        """The gateway's addresses now, that of the last session first.

        While the tunnel's routes are in force the name may be unresolvable, because the name
        server is behind the tunnel; then the addresses known from before are tried.
        """
        host = gateway.host
        try:
            async with asyncio.timeout(self._config.connect_timeout_s):
                found = tuple(await self._resolve(host))
        except (ResolveError, TimeoutError) as error:
            text = str(error) or f"cannot resolve {host}: no answer from the name server in time"
            if host not in self._known:
                raise ResolveError(text) from error
            self.notes = (*self.notes, f"{text}; trying the addresses known from before")
            found = self._known[host]
        self._known[host] = found
        last = self._last.get(gateway)
        return tuple(sorted(found, key=lambda one: one != last))

    async def _try(
        self, attempt: int, gateway: GatewayAddress, address: IpAddress, *, stands_by: bool
    ) -> Line | None:
        path = await self._owner.path_to(address)
        line: Line
        tunnel = self._make_tunnel(
            self._client_config(gateway, address),
            lambda state: self._owner.line_changed(line, state),
            Notices(
                on_observed=lambda observed: setattr(line, "observed", observed),
                on_dns=lambda dns: self._take_dns(line, dns),
                on_drain=lambda _: self._take_drain(line),
            ),
            stands_by=stands_by,
        )
        line = Line(attempt, gateway, address, tunnel, path)
        self._owner.line_begun(line)
        try:
            line.state = await tunnel.connect(self._config.connect_timeout_s)
        except TunnelError as error:
            failed = FailedAddress(address=str(address), error=error.explain())
            self.failed.append(failed)
            self.failures += 1
            logger.info(
                "no session with %(address)s: %(error)s",
                {"event": "no_session", "address": address, "error": failed.error},
            )
            return None
        self._last[gateway] = address
        return line

    def _take_dns(self, line: Line, dns: DnsAssign) -> None:
        line.dns = dns
        self._owner.names_changed(line)

    def _take_drain(self, line: Line) -> None:
        line.is_draining = True
        self.gateway_drains(line.gateway)
        self._owner.gateway_drains(line)

    def _client_config(self, gateway: GatewayAddress, address: IpAddress) -> ClientConfig:
        config = self._config
        return ClientConfig(
            host=str(address),
            port=gateway.port,
            server_name=config.expected_name_of(gateway),
            ca_file=str(config.ca),
            certificate_file=str(config.certificate),
            key_file=str(config.key),
            mtu_bytes=config.tun.mtu_bytes,
            idle_timeout_s=config.idle_timeout_s,
            keepalive_s=config.keepalive_s,
            engine=config.engine,
            congestion=config.congestion,
        )
