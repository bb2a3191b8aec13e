"""Networks behind connectors: who may lead to one, and who of several does.

One prefix may be led to by several connectors, which are replicas of each other: one is active, and
when it cannot be any more the next takes over at once. Networks of different connectors that
overlap without being the same are refused, and so is what overlaps the gateway's own: the pools of
clients and services, and the networks of the host's other interfaces.

A network stays routed into the TUN when its last connector has vanished, and nobody gets its
packets there: they were meant for a private network, and must not leave by the default route. The
kernel's tables know it as a network without a connector, so that who sends there is told. The route
goes when a connector takes the network back in so many words, or loses the right to it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple, Protocol

from zgate_identity.verifier import PeerIdentity
from zgate_protocol.service_capsule import RegistrationCode

from zgate_gateway.net.errors import NetError
from zgate_gateway.services.authorization import IpNetwork, Objection

logger = logging.getLogger(__name__)

#: An agent takes 1024 ranges of us, of which the configuration has its own.
MAX_NETWORKS = 512


class KernelNetworks(Protocol):
    """What is needed of the kernel's tables: `zgate_bpf.services.ServiceTables`."""

    def set_network(self, network: IpNetwork, client_index: int | None) -> None:
        """What lies behind a connector; None: behind none now."""

    def remove_network(self, network: IpNetwork) -> None:
        """It is not known any more."""


class NetworkSteering(Protocol):
    """Which worker gets the packets: `zgate_bpf.steering_tables.AddressOwners`."""

    def assign_network(self, network: IpNetwork, owner: int) -> None:
        """Those into the network go to this worker."""

    def release_network(self, network: IpNetwork, owner: int) -> None:
        """They do no more."""


class HostRoutes(Protocol):
    """The host's routes: `zgate_gateway.net.netstate.GatewayNetwork`."""

    def add_route(self, network: IpNetwork) -> None:
        """Lead a network into the TUN. NetError: it cannot be, or the host has such a route."""

    def remove_route(self, network: IpNetwork) -> None:
        """Not any more."""

    def host_networks(self) -> list[tuple[str, IpNetwork]]:
        """The networks of the host's other interfaces, with the interfaces' names."""


@dataclass(eq=False, slots=True)
class Holder:
    """A connector that may lead to a network.

    :ivar is_usable: whether it may be active: heard, and not drained.
    :ivar is_last_resort: whether it may be if nobody else can: a drained one, until its deadline.
    """

    identity: PeerIdentity
    client_index: int
    worker_index: int
    is_usable: bool = True
    is_last_resort: bool = False

    @property
    def client(self) -> str:
        """The connector's name."""
        return self.identity.name


@dataclass(eq=False, slots=True)
class Route:
    """A network; `holders` in the order in which they came.

    :ivar active: who leads there now; None: nobody, and who sends there is told so.
    :ivar last_holder: who came last, also when it has gone.
    :ivar changed_at: since when it is so.
    """

    network: IpNetwork
    last_holder: Holder
    holders: list[Holder] = field(default_factory=list)
    active: Holder | None = None
    changed_at: datetime = field(default_factory=lambda: datetime.now(UTC))


class Handover(NamedTuple):
    """Another one is active than before."""

    network: IpNetwork
    before: Holder | None
    now: Holder | None


class RouteTable:
    """All networks behind connectors.

    `own_pools` are the networks that can never be behind one; `on_networks` is called when there
    are others than before.
    """

    def __init__(
        self,
        kernel: KernelNetworks,
        steering: NetworkSteering,
        host: HostRoutes,
        *,
        own_pools: Sequence[IpNetwork],
        on_networks: Callable[[], None] = lambda: None,
    ) -> None:
        self.routes: dict[IpNetwork, Route] = {}
        self._kernel = kernel
        self._steering = steering
        self._host = host
        self._own_pools = tuple(own_pools)
        self._on_networks = on_networks

    def networks(self) -> tuple[IpNetwork, ...]:
        """All that are led into the TUN."""
        return tuple(self.routes)

    def objection(self, network: IpNetwork, client: str) -> Objection | None:
        """Why this client cannot lead to a network, entitled or not; None: it can.

        Raises:
            NetError: the host's interfaces cannot be read.
        """
        for pool in self._own_pools:
            if overlap(network, pool):
                return _overlaps(f"{pool}, a pool of the gateway's own")
        for route in self.routes.values():
            others = [holder.client for holder in route.holders if holder.client != client]
            if route.network != network and overlap(network, route.network) and others:
                return _overlaps(f"{route.network}, to which {others[0]} leads")
        if network in self.routes:
            return None
        for name, host_network in self._host.host_networks():
            if overlap(network, host_network):
                return _overlaps(f"{host_network} on the gateway's interface {name}")
        if len(self.routes) >= MAX_NETWORKS:
            self.forget_vanished(lambda _: True)
        if len(self.routes) >= MAX_NETWORKS:
            return Objection(
                RegistrationCode.LIMIT, f"{MAX_NETWORKS} networks are behind connectors already"
            )
        return None

    def add(self, network: IpNetwork, holder: Holder) -> Handover | None:
        """One more that may lead there; who is active now, if that has changed.

        Raises:
            NetError, OSError, RuntimeError, ValueError: host or kernel refused; as before.
        """
        route = self.routes.get(network)
        if route is not None:
            route.holders.append(holder)
            try:
                handover = self._settle(route)
            except BaseException:
                route.holders.remove(holder)
                raise
            route.last_holder = holder
            return handover
        route = Route(network, holder, [holder])
        with ExitStack() as undo:
            undo.callback(self._take_out, route)
            # The kernel's tables first: what the route brings is to find them.
            handover = self._settle(route)
            if handover is None:
                self._vacate(network)
            self._host.add_route(network)
            undo.pop_all()
        self.routes[network] = route
        self._on_networks()
        return handover

    def settle(self, network: IpNetwork) -> Handover | None:
        """Have the first who can be active be so; who is it now, if that has changed.

        Raises:
            OSError, RuntimeError, ValueError: the kernel refused. Nobody is active then.
        """
        route = self.routes.get(network)
        return self._settle(route) if route is not None else None

    def remove(self, network: IpNetwork, holder: Holder, *, is_vanished: bool) -> Handover | None:
        """One less; with the last one the route goes, unless it has merely vanished.

        Raises:
            OSError, RuntimeError, ValueError: the kernel refused. Nobody is active then.
        """
        route = self.routes.get(network)
        if route is None or holder not in route.holders:
            return None
        route.holders.remove(holder)
        handover = self._settle(route)
        if not route.holders and not is_vanished:
            self._forget(route)
        return handover

    def forget_vanished(self, is_over: Callable[[Route], bool]) -> None:
        """Of the networks that nobody leads to, forget those of which this is true."""
        for route in list(self.routes.values()):
            if not route.holders and is_over(route):
                self._forget(route)

    def _forget(self, route: Route) -> None:
        try:
            self._host.remove_route(route.network)
        except NetError as error:
            # Its packets go on being dropped; the next who leads there finds the route.
            logger.error(
                "%(network)s stays routed into the TUN: %(error)s",
                {"event": "route_not_removed", "network": route.network, "error": error},
            )
            return
        del self.routes[route.network]
        self._on_networks()
        self._kernel.remove_network(route.network)

    def _settle(self, route: Route) -> Handover | None:
        now = _best(route)
        before = route.active
        if now is before:
            return None
        self._activate(route, now)
        return Handover(route.network, before, now)

    def _activate(self, route: Route, holder: Holder | None) -> None:
        before, route.active = route.active, None
        route.changed_at = datetime.now(UTC)
        network = route.network
        if holder is None:
            self._vacate(network)
            if before is not None:
                self._steering.release_network(network, before.worker_index)
            return
        try:
            self._steering.assign_network(network, holder.worker_index)
            self._kernel.set_network(network, holder.client_index)
        except BaseException:
            self._vacate(network)
            for one in (before, holder):
                if one is not None:
                    self._steering.release_network(network, one.worker_index)
            raise
        route.active = holder

    def _vacate(self, network: IpNetwork) -> None:
        """Nobody leads there now: who sends there is told, or at least reaches nobody."""
        try:
            self._kernel.set_network(network, None)
        except (OSError, RuntimeError, ValueError) as error:
            logger.error(
                "whoever sends to %(network)s is not told that nobody is there: %(error)s",
                {"event": "network_unanswered", "network": network, "error": error},
            )
            self._kernel.remove_network(network)

    def _take_out(self, route: Route) -> None:
        """As if nobody had ever led there."""
        before, route.active = route.active, None
        self._kernel.remove_network(route.network)
        if before is not None:
            self._steering.release_network(route.network, before.worker_index)


def overlap(one: IpNetwork, other: IpNetwork) -> bool:
    """Whether two networks have an address in common."""
    if isinstance(one, IPv4Network) and isinstance(other, IPv4Network):
        return one.overlaps(other)
    return isinstance(one, IPv6Network) and isinstance(other, IPv6Network) and one.overlaps(other)


def _best(route: Route) -> Holder | None:
    """Who is active stays so while it can be: flows into the network stick to it."""
    for candidates in (
        [holder for holder in route.holders if holder.is_usable],
        [holder for holder in route.holders if holder.is_last_resort],
    ):
        if candidates:
            return route.active if route.active in candidates else candidates[0]
    return None


def _overlaps(what: str) -> Objection:
    return Objection(RegistrationCode.OVERLAP, f"it overlaps {what}")
