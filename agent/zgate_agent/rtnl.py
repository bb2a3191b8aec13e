"""The kernel's routing tables as plain values, and the calls that change them (pyroute2).

pyroute2's synchronous calls run an event loop of their own, so none of this may be called from a
thread in which one runs: the daemon calls it through `asyncio.to_thread`.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, TypeVar

from pyroute2 import IPRoute, NetlinkError
from zgate_host.netwatch import AGENT_ROUTES

from zgate_agent.plan import IpAddress, IpInterface, IpNetwork

Result = TypeVar("Result")

ROUTE_PROTOCOL = AGENT_ROUTES
"""Marks every route that an agent makes."""
MAIN_TABLE = 254
UNICAST, UNREACHABLE = 1, 7
SCOPE_UNIVERSE, SCOPE_LINK = 0, 253
FLAG_DEAD, FLAG_ONLINK, FLAG_LINKDOWN = 1, 4, 16
_FLAG_CLONED = 0x200
_ADDRESS_NO_DAD = 0x02
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_NO_WAY = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ENETDOWN}
_CURES = {
    errno.EPERM: "the agent needs the capability CAP_NET_ADMIN",
    errno.EACCES: "the agent needs the capability CAP_NET_ADMIN",
}


class RoutingError(Exception):
    """The host's network could not be read or set up; the text names the cause."""


class TunGone(RoutingError):
    """Somebody removed the TUN; only a new start brings it back."""


@dataclass(frozen=True, slots=True)
class Route:
    """One route of the main table.

    Attributes:
        via: the next router; None when the destination is on the link.
        interface: index of the interface; None for an unreachable route.
        source: the address that the kernel is told to prefer.
        kind: UNICAST, UNREACHABLE, or another of the kernel's types.
        flags: FLAG_* of the next hop.
    """

    destination: IpNetwork
    metric: int
    via: IpAddress | None = None
    interface: int | None = None
    source: IpAddress | None = None
    kind: int = UNICAST
    protocol: int = ROUTE_PROTOCOL
    flags: int = 0

    @property
    def key(self) -> tuple[IpNetwork, int]:
        """What the kernel tells routes of one table apart by."""
        return self.destination, self.metric


@dataclass(frozen=True, slots=True)
class Link:
    """What matters of an interface."""

    index: int
    mtu_bytes: int
    is_up: bool


class Rtnl:
    """One netlink socket; open it with `open_rtnl`."""

    def __init__(self, route: Any) -> None:
        self._route = route

    # Reading.

    def link(self, name: str) -> Link:
        """The interface with that name; TunGone when there is none."""
        indexes = self._route.link_lookup(ifname=name)
        if not indexes:
            raise TunGone(f"the interface {name} is gone: somebody removed it")
        row = self._route.get_links(indexes[0])[0]
        return Link(int(row["index"]), int(row.get_attr("IFLA_MTU")), row["state"] == "up")

    def addresses(self, index: int) -> frozenset[IpInterface]:
        """Addresses of an interface."""
        rows = self._route.get_addr(index=index)
        return frozenset(ip_interface(f"{_own_address(row)}/{row['prefixlen']}") for row in rows)

    def routes(self) -> list[Route]:
        """The main table, both families.

        Without what the kernel itself cloned from it: when a path's MTU becomes known, IPv6 lists
        a copy of the route for that one destination, protocol number and all.
        """
        return [
            route
            for family in _FAMILIES
            for row in self._route.get_routes(family=family, table=MAIN_TABLE)
            if not int(row["flags"]) & _FLAG_CLONED
            for route in _read_routes(row)
        ]

    def way_to(self, address: IpAddress) -> Route | None:
        """How the kernel would send a packet there now; None when it would not."""
        try:
            rows = self._route.route("get", dst=str(address))
        except NetlinkError as error:
            if error.code in _NO_WAY:
                return None
            raise
        return next((route for row in rows for route in _read_routes(row)), None)

    # Changing.

    def set_mtu(self, index: int, mtu_bytes: int) -> None:
        """Set an interface's MTU."""
        self._route.link("set", index=index, mtu=mtu_bytes)

    def set_up(self, index: int) -> None:
        """Bring an interface up."""
        self._route.link("set", index=index, state="up")

    def add_address(self, index: int, address: IpInterface) -> None:
        """Give an interface an address; no duplicate address detection: it has no neighbours."""
        flags = _ADDRESS_NO_DAD if address.version == 6 else 0
        self._route.addr(
            "replace",
            index=index,
            address=str(address.ip),
            prefixlen=address.network.prefixlen,
            flags=flags,
        )

    def remove_address(self, index: int, address: IpInterface) -> None:
        """Take an address off an interface; no error when it is gone."""
        with _Ignoring(errno.EADDRNOTAVAIL):
            self._route.addr(
                "del", index=index, address=str(address.ip), prefixlen=address.network.prefixlen
            )

    def put_route(self, route: Route) -> None:
        """Add a route, or replace the one with the same destination and metric."""
        self._route.route("replace", **_route_arguments(route))

    def remove_route(self, route: Route) -> None:
        """Remove a route that an agent made; no error when it is gone."""
        with _Ignoring(errno.ESRCH):
            self._route.route(
                "del",
                dst=str(route.destination),
                table=MAIN_TABLE,
                proto=ROUTE_PROTOCOL,
                priority=route.metric,
                type=route.kind,
                # A route without next hop is found by "no scope at all" only.
                **({"scope": 255} if route.destination.version == 4 else {}),
            )


def with_rtnl(what: str, function: Callable[[Rtnl], Result]) -> Result:
    """Call `function` with an open socket; RoutingError begins with `what`."""
    try:
        with IPRoute() as route:
            return function(Rtnl(route))
    except NetlinkError as error:
        raise RoutingError(_explain(what, error, error.code)) from error
    except OSError as error:
        raise RoutingError(_explain(what, error, error.errno)) from error


def _explain(what: str, error: Exception, code: int | None) -> str:
    cure = _CURES.get(code or 0)
    return f"{what}: {error}" + (f" ({cure})" if cure else "")


class _Ignoring:
    """Like contextlib.suppress, for one error number of the kernel."""

    def __init__(self, code: int) -> None:
        self._code = code

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        return isinstance(error, NetlinkError) and error.code == self._code


def _own_address(row: Any) -> str:
    # On a point-to-point link IFA_ADDRESS is the other end.
    return str(row.get_attr("IFA_LOCAL") or row.get_attr("IFA_ADDRESS"))


def _read_routes(row: Any) -> Iterator[Route]:
    """A row of the table as routes: as many as it has next hops."""
    version = 4 if row["family"] == socket.AF_INET else 6
    anywhere = "0.0.0.0" if version == 4 else "::"  # noqa: S104 - the default route's address
    destination = ip_network(f"{row.get_attr('RTA_DST') or anywhere}/{row['dst_len']}")
    source = row.get_attr("RTA_PREFSRC")
    for hop in row.get_attr("RTA_MULTIPATH") or [row]:
        interface = hop["oif"] if hop is not row else row.get_attr("RTA_OIF")
        kind = int(row["type"])
        yield Route(
            destination=destination,
            metric=int(row.get_attr("RTA_PRIORITY") or 0),
            via=_next_router(hop),
            interface=interface if kind == UNICAST else None,
            source=ip_address(source) if source else None,
            kind=kind,
            protocol=int(row["proto"]),
            flags=int(hop["flags"]) & (FLAG_DEAD | FLAG_ONLINK | FLAG_LINKDOWN),
        )


def _next_router(hop: Any) -> IpAddress | None:
    router = hop.get_attr("RTA_GATEWAY")
    if router is None:
        other = hop.get_attr("RTA_VIA")  # an IPv4 route by an IPv6 router (RFC 5549)
        router = other["addr"] if other else None
    return ip_address(router) if router else None


def _route_arguments(route: Route) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "dst": str(route.destination),
        "table": MAIN_TABLE,
        "proto": ROUTE_PROTOCOL,
        "priority": route.metric,
        "type": route.kind,
    }
    if route.interface is not None:
        arguments["oif"] = route.interface
        if route.destination.version == 4 and route.via is None:
            arguments["scope"] = SCOPE_LINK
    if route.via is not None:
        if route.via.version == route.destination.version:
            arguments["gateway"] = str(route.via)
        else:
            arguments["via"] = {"family": int(socket.AF_INET6), "addr": str(route.via)}
    if route.source is not None:
        arguments["prefsrc"] = str(route.source)
    if route.flags & FLAG_ONLINK:
        arguments["flags"] = ["onlink"]
    return arguments
