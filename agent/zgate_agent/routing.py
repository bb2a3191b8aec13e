"""Bring the host's network to a plan, and back. Blocking calls: see `zgate_agent.rtnl`.

1. The pins go first: from then on the tunnel's packets cannot fall into the tunnel.
2. MTU, addresses, link up.
3. Routes: now traffic goes into the tunnel.
4. What is no longer wanted goes, in the opposite order.
5. The kernel's state is read back, and compared with the plan.

The steps are the difference between what is there and what is wanted, so a plan applied twice
changes nothing the second time, and what somebody else removed comes back. If a step fails,
everything is taken back, and `RoutingError` says what failed.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

from zgate_agent import leftovers
from zgate_agent.config import MIN_MTU_BYTES
from zgate_agent.physical import pins
from zgate_agent.plan import IpAddress, IpInterface, IpNetwork, NetworkPlan
from zgate_agent.rtnl import FLAG_ONLINK, ROUTE_PROTOCOL, Route, RoutingError, Rtnl, with_rtnl

logger = logging.getLogger(__name__)

NOTHING = NetworkPlan(mtu_bytes=0)
"""An MTU of 0: as it is."""
ROUTE_METRIC = 50
# The kernel takes routes away by itself when an interface loses its last address of a family:
# the second round puts them back.
_MAX_ROUNDS = 3
_IPV6_SETTINGS = Path("/proc/sys/net/ipv6/conf")
# The TUN has no neighbours: no link-local address and no router to listen to.
_TUN_SYSCTLS = {"addr_gen_mode": "1", "accept_ra": "0"}


@dataclass(frozen=True, slots=True)
class TunState:
    """What is, or should be, programmed."""

    mtu_bytes: int
    is_up: bool
    addresses: frozenset[IpInterface]
    routes: frozenset[Route]
    """Into the TUN."""
    pins: frozenset[Route]
    """Host routes past the TUN."""


@dataclass(frozen=True, slots=True)
class PhysicalPath:
    """The way that packets to the gateway take; when it changes, the session has to move."""

    interface: int
    via: IpAddress | None
    source: IpAddress | None


@dataclass(frozen=True, slots=True)
class Step:
    """One change: `put` or `remove`, and of what."""

    verb: str
    what: Route | IpInterface | int | None = None


def steps(actual: TunState, wanted: TunState) -> Iterator[Step]:
    """What to do, in order, to get from one state to the other."""
    yield from _missing(actual.pins, wanted.pins)
    if actual.mtu_bytes != wanted.mtu_bytes:
        yield Step("set mtu", wanted.mtu_bytes)
    for address in sorted(wanted.addresses - actual.addresses, key=_order):
        yield Step("put", address)
    if wanted.is_up and not actual.is_up:
        yield Step("set up")
    yield from _missing(actual.routes, wanted.routes)
    yield from _superfluous(actual.routes, wanted.routes)
    for address in sorted(actual.addresses - wanted.addresses, key=_order):
        yield Step("remove", address)
    yield from _superfluous(actual.pins, wanted.pins)


def _order(one: IpInterface) -> tuple[int, bytes]:
    return one.version, one.packed


def _route_order(route: Route) -> tuple[int, bytes, int, int]:
    network = route.destination
    return network.version, network.network_address.packed, network.prefixlen, -route.metric


def _missing(actual: frozenset[Route], wanted: frozenset[Route]) -> Iterator[Step]:
    # By falling metric: the backstop before the pin, so that there is no moment without one.
    return (Step("put", route) for route in sorted(wanted - actual, key=_route_order))


def _superfluous(actual: frozenset[Route], wanted: frozenset[Route]) -> Iterator[Step]:
    replaced = {route.key for route in wanted}
    gone = (route for route in actual - wanted if route.key not in replaced)
    return (Step("remove", route) for route in sorted(gone, key=_route_order, reverse=True))


class Router:
    """The host's network, as far as it is one agent's. Not thread-safe: one call at a time.

    Attributes:
        wanted: what was asked for last.
        plan: the part of it that this host can have, and that is programmed.
    """

    def __init__(self, tun_name: str, leftovers_file: Path) -> None:
        self._tun_name = tun_name
        self._leftovers_file = leftovers_file
        self.wanted = self.plan = NOTHING

    def clean_up_leftovers(self) -> int:
        """Remove what a killed agent left behind; return how many routes. RoutingError."""
        what = f"cannot remove the routes listed in {self._leftovers_file}"
        with _as_routing_error(what):
            addresses = leftovers.recall(self._leftovers_file)
            removed = 0
            if addresses:
                removed = with_rtnl(what, lambda rtnl: leftovers.remove_pins(rtnl, addresses))
            self._leftovers_file.unlink(missing_ok=True)
        return removed

    def prepare(self) -> None:
        """See that the TUN makes no address of its own. RoutingError if it cannot be."""
        settings = _IPV6_SETTINGS / self._tun_name
        if not settings.exists():
            return  # no IPv6: nothing to switch off
        for key, value in _TUN_SYSCTLS.items():
            with _as_routing_error(f"cannot set {settings / key}"):
                (settings / key).write_text(value)

    def has_ipv6(self) -> bool:
        """Whether the host lets the TUN speak IPv6."""
        try:
            setting = (_IPV6_SETTINGS / self._tun_name / "disable_ipv6").read_text()
        except OSError:
            return False
        return setting.strip() == "0"

    def apply(self, plan: NetworkPlan) -> NetworkPlan:
        """Bring the host's network to `plan`; returns the part of it that this host can have.

        Raises:
            RoutingError: it could not be done, and nothing of it, nor of an earlier plan, is left.
        """
        self.wanted = possible = plan
        try:
            with_rtnl(f"cannot set up {self._tun_name}", lambda rtnl: self._wake_ipv6(rtnl, plan))
            if not self.has_ipv6():
                possible = plan.without_version(6)
            with _as_routing_error(f"cannot write {self._leftovers_file}"):
                leftovers.remember(self._leftovers_file, {*self.plan.pins, *possible.pins})
            with_rtnl(
                f"cannot set up {self._tun_name}", lambda rtnl: self._bring_to(rtnl, possible)
            )
            with _as_routing_error(f"cannot write {self._leftovers_file}"):
                leftovers.remember(self._leftovers_file, possible.pins)
        except RoutingError:
            self._take_back({*self.plan.pins, *possible.pins})
            raise
        self.plan = possible
        return possible

    def withdraw(self) -> None:
        """Take everything back; the TUN stays. Never raises: what cannot go is logged."""
        self._take_back(set(self.plan.pins))

    def path_to(self, address: IpAddress) -> PhysicalPath | None:
        """The physical way to an address as it is now; None when there is none."""

        def look(rtnl: Rtnl) -> PhysicalPath | None:
            tun = rtnl.link(self._tun_name).index
            way = rtnl.way_to(address)
            if way is None or way.interface is None or way.interface == tun:
                return None
            return PhysicalPath(way.interface, way.via, way.source)

        return with_rtnl(f"cannot find the way to {address}", look)

    def _wake_ipv6(self, rtnl: Rtnl, plan: NetworkPlan) -> None:
        """Undo an MTU that is too small for IPv6, with which the kernel has switched it off."""
        link = rtnl.link(self._tun_name)
        if link.mtu_bytes < MIN_MTU_BYTES <= plan.mtu_bytes:
            rtnl.set_mtu(link.index, plan.mtu_bytes)
        self.prepare()

    def _bring_to(self, rtnl: Rtnl, plan: NetworkPlan) -> None:
        for _ in range(_MAX_ROUNDS):
            todo = self._difference(rtnl, plan)
            if not todo:
                return
            index = rtnl.link(self._tun_name).index
            for step in todo:
                _take(step, rtnl, index)
        left = self._difference(rtnl, plan)
        if left:
            raise RoutingError(f"{self._tun_name}: somebody keeps undoing it: {left[0]}")

    def _difference(self, rtnl: Rtnl, plan: NetworkPlan) -> list[Step]:
        """Read the kernel's state and compare."""
        link = rtnl.link(self._tun_name)
        table = rtnl.routes()
        ours = [route for route in table if route.protocol == ROUTE_PROTOCOL]
        past = {*self.plan.pins, *plan.pins}
        actual = TunState(
            mtu_bytes=link.mtu_bytes,
            is_up=link.is_up,
            addresses=rtnl.addresses(link.index),
            routes=frozenset(
                replace(route, flags=0) for route in ours if route.interface == link.index
            ),
            pins=frozenset(
                replace(route, flags=route.flags & FLAG_ONLINK)
                for route in ours
                if route.interface != link.index
                and _is_host_route(route.destination)
                and route.destination.network_address in past
            ),
        )
        wanted = TunState(
            mtu_bytes=plan.mtu_bytes or link.mtu_bytes,
            is_up=True,
            addresses=frozenset(plan.addresses),
            routes=frozenset(
                Route(network, ROUTE_METRIC, interface=link.index) for network in plan.routes
            ),
            pins=frozenset(route for one in plan.pins for route in pins(one, table, link.index)),
        )
        return list(steps(actual, wanted))

    def _take_back(self, addresses: set[IpAddress]) -> None:
        """Remove TUN routes and addresses, then pins, each even if the other fails."""
        self.wanted = NOTHING
        self.plan = replace(NOTHING, pins=tuple(addresses))
        try:
            with_rtnl(f"cannot clear {self._tun_name}", lambda rtnl: self._bring_to(rtnl, NOTHING))
        except RoutingError as error:
            # The TUN itself may be gone, and its routes with it; the pins are not.
            logger.warning("%(error)s", {"event": "routing_not_undone", "error": error})
        try:
            with_rtnl("cannot remove pins", lambda rtnl: leftovers.remove_pins(rtnl, addresses))
            self._leftovers_file.unlink(missing_ok=True)
        except (RoutingError, OSError) as error:
            logger.warning(
                "%(error)s; the next start tries again",
                {"event": "routing_record_not_removed", "error": error},
            )
        self.plan = NOTHING


def _is_host_route(network: IpNetwork) -> bool:
    return network.prefixlen == network.max_prefixlen


def _take(step: Step, rtnl: Rtnl, index: int) -> None:
    match step:
        case Step("put", Route() as route):
            rtnl.put_route(route)
        case Step("remove", Route() as route):
            rtnl.remove_route(route)
        case Step("set mtu", int() as mtu_bytes):
            rtnl.set_mtu(index, mtu_bytes)
        case Step("set up"):
            rtnl.set_up(index)
        case Step("put", (IPv4Interface() | IPv6Interface()) as address):
            rtnl.add_address(index, address)
        case Step("remove", (IPv4Interface() | IPv6Interface()) as address):
            rtnl.remove_address(index, address)


@contextlib.contextmanager
def _as_routing_error(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RoutingError(f"{what}: {error.strerror or error}") from error
