"""Which interface the edge stands on, and at which addresses the UDP port is ours."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from zgate_gateway.net.rtnl import rtnl

IpAddress = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Uplink:
    """What the kernel says now.

    :ivar interface: its name and index; None: there is none.
    :ivar is_veth: whether it is one.
    :ivar program: the number of the XDP program on it; 0: there is none.
    :ivar addresses: where packets to the port are for us.
    :ivar problem: why there is no interface.
    """

    interface: tuple[str, int] | None
    addresses: frozenset[IpAddress]
    problem: str = ""
    is_veth: bool = False
    program: int = 0


def find_uplink(listen: IpAddress, configured: str | None) -> Uplink:
    """The configured interface; else that of the address we listen on; else the default route's.

    Raises:
        NetError: the kernel could not be asked.
    """
    return rtnl("looking for the uplink", lambda route: _find(route, listen, configured))


def _find(route: Any, listen: IpAddress, configured: str | None) -> Uplink:
    names = {link["index"]: str(link.get_attr("IFLA_IFNAME")) for link in route.get_links()}
    holders = {
        ip_address(str(one.get_attr("IFA_LOCAL") or one.get_attr("IFA_ADDRESS"))): one["index"]
        for one in route.get_addr()
    }
    addresses = frozenset(one for one in holders if _is_listened_on(one, listen))
    if configured is not None:
        index = next((index for index, name in names.items() if name == configured), None)
        problem = f"there is no interface {configured}"
    elif not listen.is_unspecified:
        index = holders.get(listen)
        problem = f"no interface has the address {listen}"
    else:
        index = _default_route(route)
        problem = "there is no default route; set edge.interface"
    if index is None or index not in names:
        return Uplink(None, addresses, problem)
    link = route.get_links(index)[0]
    info, xdp = link.get_attr("IFLA_LINKINFO"), link.get_attr("IFLA_XDP")
    return Uplink(
        (names[index], index),
        addresses,
        is_veth=info is not None and info.get_attr("IFLA_INFO_KIND") == "veth",
        program=int(xdp.get_attr("IFLA_XDP_PROG_ID") or 0) if xdp is not None else 0,
    )


def _is_listened_on(address: IpAddress, listen: IpAddress) -> bool:
    if address.is_loopback:
        return False
    if listen.is_unspecified:
        return listen.version == 6 or address.version == 4  # "::" takes both
    return address == listen


def _default_route(route: Any) -> int | None:
    """The interface of the best default route, IPv4 before IPv6."""
    for family in (socket.AF_INET, socket.AF_INET6):
        found = [
            (one.get_attr("RTA_PRIORITY") or 0, one.get_attr("RTA_OIF"))
            for one in route.get_default_routes(family=family)
            if one.get_attr("RTA_OIF")
        ]
        if found:
            return int(min(found)[1])
    return None
