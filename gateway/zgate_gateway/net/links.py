"""The TUN as a network link: addresses, routes to the pools, and the BPF programs on it.

The order is fail-closed, and `GatewayNetwork` keeps it: the programs are attached while the link
is down and has no address, and the link comes up last.
"""

import errno
import re
import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_network,
)
from pathlib import Path
from typing import Any

from pyroute2 import NetlinkError

from zgate_gateway.net.errors import NetError
from zgate_gateway.net.rtnl import rtnl

Network = IPv4Network | IPv6Network

DEFAULT_QUEUE_PACKETS = 1000

ETH_P_ALL = 0x0003
FILTER_PRIORITY = 1  # nothing can be put before it
FILTER_HANDLE = 1
TCA_BPF_FLAG_ACT_DIRECT = 1
IFA_F_NODAD = 0x02
TCA_BPF_ID = 11  # pyroute2 0.9 does not know this attribute


class Hook(IntEnum):
    """Where on the link a program runs; the value is tc's parent handle (clsact)."""

    INGRESS = 0xFFFFFFF2  # what userspace writes to the TUN: from clients
    EGRESS = 0xFFFFFFF3  # what userspace will read from it: to clients

    @property
    def filter_name(self) -> str:
        """The name that `tc filter show` prints."""
        return f"zgate-{self.name.lower()}"


# Settings of the one interface; they go away with it. It has no neighbours: no link-local address
# (whose packets the program would drop), no router solicitations, no redirects; and what claims to
# come from a client must be routed back to it.
INTERFACE_SYSCTLS = {
    "ipv6/conf/{name}/disable_ipv6": "0",
    "ipv6/conf/{name}/addr_gen_mode": "1",
    "ipv6/conf/{name}/accept_ra": "0",
    "ipv6/conf/{name}/accept_redirects": "0",
    "ipv4/conf/{name}/accept_redirects": "0",
    "ipv4/conf/{name}/send_redirects": "0",
    "ipv4/conf/{name}/rp_filter": "1",
}


class RouteTaken(NetError):
    """The host has a route of its own."""


def gateway_address(pool: Network) -> IPv4Address | IPv6Address:
    """The gateway's own address in a pool: the first host."""
    return pool.network_address + 1


@dataclass(frozen=True, slots=True)
class TunLink:
    """The gateway's TUN, which somebody else has opened and holds open."""

    name: str
    mtu_bytes: int
    ipv4_pool: IPv4Network
    ipv6_pool: IPv6Network
    queue_packets: int = DEFAULT_QUEUE_PACKETS
    service_pools: tuple[Network, ...] = ()

    @property
    def pools(self) -> tuple[IPv4Network, IPv6Network]:
        """Both pools of clients, IPv4 first."""
        return self.ipv4_pool, self.ipv6_pool

    @property
    def led_here(self) -> tuple[Network, ...]:
        """What is routed to the link as long as it is up: the pools of clients and of services."""
        return *self.pools, *self.service_pools

    def source_for(self, network: Network) -> str:
        """The gateway's own address of a network's family."""
        return str(gateway_address(self.pools[0 if network.version == 4 else 1]))

    def attach(self, hook: Hook, program_fd: int) -> None:
        """Run a loaded SCHED_CLS program at a hook, in direct-action mode, and read that back.

        What was attached there before is replaced in one step: no packet passes unjudged.
        """

        def add(route: Any) -> None:
            index = _index(route, self.name)
            route.tc("replace", "clsact", index)
            route.tc(
                "replace-filter",
                "bpf",
                index,
                FILTER_HANDLE,
                parent=int(hook),
                prio=FILTER_PRIORITY,
                protocol=ETH_P_ALL,
                fd=program_fd,
                name=hook.filter_name,
                direct_action=True,
            )

        rtnl(f"cannot attach the program {hook.filter_name} to {self.name}", add)
        self.verify_attached(hook, program_fd)

    def verify_attached(self, hook: Hook, program_fd: int) -> None:
        """Raise NetError unless exactly this program decides at the hook, before all others."""
        wanted = program_id(program_fd)
        found = self.attached_program(hook)
        if found != wanted:
            raise NetError(
                f"{self.name}: program {wanted} is not what decides at {hook.name.lower()}"
                f" (found {found or 'none'}): something else changed the link's tc filters"
            )

    def attached_program(self, hook: Hook) -> int | None:
        """ID of the BPF program that decides at a hook; None without a direct-action one."""
        filters = rtnl(
            f"cannot read the filters of {self.name}",
            lambda route: list(route.get_filters(_index(route, self.name), parent=int(hook))),
        )
        # The first with options is the first that runs; those without describe the chain.
        for one in sorted(filters, key=lambda one: int(one["info"]) >> 16):
            options = one.get_attr("TCA_OPTIONS")
            if options is not None:
                return _direct_action_program(options)
        return None

    def detach(self) -> None:
        """Take both programs off. The link goes down first, so nothing passes without them."""

        def remove(route: Any) -> None:
            index = _index(route, self.name)
            route.link("set", index=index, state="down")
            if any(one.get_attr("TCA_KIND") == "clsact" for one in route.get_qdiscs(index=index)):
                route.tc("del", "clsact", index)

        rtnl(f"cannot detach the programs from {self.name}", remove)

    def configure(self) -> None:
        """Give the link, which is down, its MTU, queue length, sysctls and addresses."""
        self._check_pools_free()
        self._set_interface_sysctls()

        def configure(route: Any) -> None:
            index = _index(route, self.name)
            route.link("set", index=index, mtu=self.mtu_bytes, txqlen=self.queue_packets)
            for pool in self.pools:
                # A host prefix: a whole pool on the link would bring a broadcast address along.
                # No duplicate address detection: it has no neighbour to ask, but leaves the
                # address tentative until a worker comes round, and a route that prefers a
                # tentative source is refused.
                route.addr(
                    "replace",
                    index=index,
                    address=str(gateway_address(pool)),
                    prefixlen=pool.max_prefixlen,
                    flags=IFA_F_NODAD if pool.version == 6 else 0,
                )

        rtnl(f"cannot configure {self.name}", configure)

    def up(self) -> None:
        """Bring the link up and lead the pools to it."""

        def bring_up(route: Any) -> None:
            index = _index(route, self.name)
            route.link("set", index=index, state="up")
            for pool in self.led_here:
                route.route(
                    "replace",
                    dst=str(pool),
                    oif=index,
                    prefsrc=self.source_for(pool),
                )

        rtnl(f"cannot bring {self.name} up", bring_up)

    def add_route(self, network: Network) -> None:
        """Lead a network to the link. RouteTaken if the host leads that very prefix elsewhere."""

        def add(route: Any) -> None:
            index = _index(route, self.name)
            try:
                route.route("add", dst=str(network), oif=index, prefsrc=self.source_for(network))
            except NetlinkError as error:
                if error.code == errno.EEXIST:
                    raise RouteTaken(f"the gateway's host has a route to {network}") from error
                raise

        rtnl(f"cannot route {network} to {self.name}", add)

    def remove_route(self, network: Network) -> None:
        """Lead a network to the link no more."""

        def remove(route: Any) -> None:
            route.route("del", dst=str(network), oif=_index(route, self.name))

        rtnl(f"cannot take the route of {network} to {self.name} back", remove)

    def other_networks(self) -> list[tuple[str, Network]]:
        """The networks of the host's other interfaces, with the interfaces' names."""
        found = rtnl("cannot read the host's addresses", _networks)
        return [(name, network) for name, network in found if name != self.name]

    def verify(self) -> None:
        """Raise NetError unless the link is up with its MTU, its addresses and its routes."""

        def read(route: Any) -> list[str]:
            index = _index(route, self.name)
            return [
                *_link_problems(route.get_links(index)[0], self.mtu_bytes),
                *_missing_addresses(route, index, self.pools),
                *_missing_routes(route, index, self.led_here),
            ]

        problems = rtnl(f"cannot read the state of {self.name}", read)
        if problems:
            raise NetError(f"{self.name}: {'; '.join(problems)}")

    def _set_interface_sysctls(self) -> None:
        for key, value in INTERFACE_SYSCTLS.items():
            path = Path("/proc/sys/net") / key.format(name=self.name)
            try:
                path.write_text(value)
            except FileNotFoundError:
                raise NetError(
                    f"{path} does not exist: the kernel's IPv6 is switched off;"
                    " boot without ipv6.disable=1"
                ) from None
            except OSError as error:
                raise NetError(f"cannot set {path} to {value}: {error.strerror}") from error

    def _check_pools_free(self) -> None:
        """Refuse a pool that overlaps a network of another interface of this host."""
        for name, network in self.other_networks():
            for pool in self.led_here:
                if _overlap(pool, network):
                    keys = "pool" if pool in self.pools else "services"
                    raise NetError(
                        f"the pool {pool} overlaps {network} on {name}: choose another pool"
                        f" in the configuration ({keys}.ipv4, {keys}.ipv6)"
                    )


def interface_names() -> set[str]:
    """Names of all interfaces of this network namespace."""
    return rtnl(
        "cannot read the host's interfaces",
        lambda route: {str(link.get_attr("IFLA_IFNAME")) for link in route.get_links()},
    )


def program_id(program_fd: int) -> int:
    """The kernel's ID of a loaded BPF program."""
    text = Path(f"/proc/self/fdinfo/{program_fd}").read_text()
    found = re.search(r"^prog_id:\s*(\d+)$", text, re.MULTILINE)
    if found is None:
        raise NetError(f"file descriptor {program_fd} is not a BPF program")
    return int(found[1])


def _index(route: Any, name: str) -> int:
    indexes = route.link_lookup(ifname=name)
    if not indexes:
        raise NetError(f"there is no interface {name}: the TUN must be opened first")
    return int(indexes[0])


def _direct_action_program(options: Any) -> int | None:
    if not (options.get_attr("TCA_BPF_FLAGS") or 0) & TCA_BPF_FLAG_ACT_DIRECT:
        return None
    for name, value in options["attrs"]:
        if name == "UNKNOWN" and value["header"]["type"] == TCA_BPF_ID:
            _, _, number = struct.unpack_from("=HHI", value.data, value.offset)
            return int(number)
    return None


def _link_problems(link: Any, mtu_bytes: int) -> list[str]:
    problems = []
    if link["state"] != "up":
        problems.append("the link is down")
    if link.get_attr("IFLA_MTU") != mtu_bytes:
        problems.append(f"the MTU is {link.get_attr('IFLA_MTU')}, not {mtu_bytes}")
    return problems


def _missing_addresses(route: Any, index: int, pools: tuple[Network, ...]) -> list[str]:
    present = {str(one.get_attr("IFA_ADDRESS")) for one in route.get_addr(index=index)}
    wanted = [str(gateway_address(pool)) for pool in pools]
    return [f"the address {address} is gone" for address in wanted if address not in present]


def _missing_routes(route: Any, index: int, networks: tuple[Network, ...]) -> list[str]:
    present = {
        f"{one.get_attr('RTA_DST')}/{one['dst_len']}"
        for family in (2, 10)
        for one in route.get_routes(family=family, oif=index)
    }
    return [f"the route to {one} is gone" for one in networks if str(one) not in present]


def _networks(route: Any) -> list[tuple[str, Network]]:
    names = {link["index"]: str(link.get_attr("IFLA_IFNAME")) for link in route.get_links()}
    return [
        (
            names.get(one["index"], "?"),
            ip_network(f"{one.get_attr('IFA_ADDRESS')}/{one['prefixlen']}", strict=False),
        )
        for one in route.get_addr()
    ]


def _overlap(one: Network, other: Network) -> bool:
    if isinstance(one, IPv4Network) and isinstance(other, IPv4Network):
        return one.overlaps(other)
    return isinstance(one, IPv6Network) and isinstance(other, IPv6Network) and one.overlaps(other)
