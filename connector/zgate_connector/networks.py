"""The host as a router for networks behind it: forwarding, nftables, and a routing table per TUN.

A packet's way, for the TUN of one gateway, which has a number, and a mark and a routing table:

    1. It comes out of the TUN. nftables marks it and its flow (conntrack), lets it go on only to
       one of the networks, and masquerades it there if that is configured.
    2. An answer comes from the network: nftables restores the mark from the flow, so that the
       `ip rule` of the mark sends it to the gateway that its question came from, even where two
       gateways have clients with the same virtual IPs. What belongs to no such flow is dropped.

Everything is called after the TUNs' prefix, so that what a killed predecessor left is found without
a list: nftables table, rules, routes. Only the host's sysctls are in a file.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, NetlinkError
from zgate_host.errors import NetError
from zgate_host.netwatch import CONNECTOR_ROUTES
from zgate_host.sysctls import Sysctls, read_forwarding
from zgate_protocol.ip_range import IpAddress, IpNetwork

from zgate_connector.config import NetworkSettings

logger = logging.getLogger(__name__)

MAX_TUNS = 16
_RULE_PRIORITY = 12_200
"""Before the main table (32766), after what people usually put first."""
_OWN_RULE_PRIORITY = 32_800
"""After the main and the default table: see `_add_rules`."""
_THROW, _UNICAST = 9, 1
_MARK_BASE = 0x7A000000
_MARK_MASK = 0xFFFFFF00
_IPV6_SETTINGS = Path("/proc/sys/net/ipv6/conf")
_IPV4_SETTINGS = Path("/proc/sys/net/ipv4/conf")
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_CURE = "the connector needs the capability CAP_NET_ADMIN"


class HostNetwork:
    """All of a connector's changes to its host's network. Blocking calls, from any thread."""

    def __init__(self, prefix: str, networks: Sequence[NetworkSettings], state_file: Path) -> None:
        self._prefix = prefix
        self._networks = networks
        self._sysctls = Sysctls(state_file, "connector")
        self._versions = sorted({one.network.version for one in networks})
        self._table = "zgate_connector_" + prefix.replace("-", "_")
        # 65536 possible connectors on a host; sixteen gateways each, and a spare nibble.
        self._base = _MARK_BASE | (zlib.crc32(prefix.encode()) & 0xFFFF) << 8
        self._only_tunnel: tuple[int, ...] = ()
        # A thread cannot be cancelled: what an abandoned session still does comes before the end,
        # or not at all.
        self._lock = threading.Lock()
        self._is_installed = False

    def tun_name(self, number: int) -> str:
        """The TUN of the n-th gateway."""
        return f"{self._prefix}{number}"

    def link_name(self, number: int) -> str:
        """The TUN that leads into the n-th gateway's chamber, where services are offered too."""
        return f"{self._prefix}{number}s"

    def install(self, count: int) -> None:
        """Clean up after a killed predecessor; then be a router for so many TUNs, not yet made.

        Raises:
            NetError: it cannot be; nothing is left.
        """
        with self._lock:
            self._install(count)
            self._is_installed = True

    def _install(self, count: int) -> None:
        self.clean_up()
        try:
            forwarding = read_forwarding()
            is_on = {4: forwarding.is_on_ipv4, 6: forwarding.is_on_ipv6}
            self._only_tunnel = tuple(one for one in self._versions if not is_on[one])
            # Before forwarding is on: not for a moment is the host a router for everybody.
            run_nft(self.table_text(), f"cannot install the nftables table inet {self._table}")
            self._sysctls.enable_forwarding("", self._versions)
            _with_rtnl("cannot add routing rules", lambda route: self._add_rules(route, count))
        except NetError:
            self._remove()
            raise

    def clean_up(self) -> None:
        """Take away what a killed predecessor left."""
        restored = self._sysctls.restore_leftovers()
        if restored:
            logger.warning(
                "put back %(sysctls)d sysctls that a killed connector had changed",
                {"event": "sysctls_restored", "sysctls": restored},
            )
        self._remove_all()

    def remove(self) -> None:
        """Leave the host as it was. Never raises: what cannot be taken back is logged."""
        with self._lock:
            self._is_installed = False
            self._remove()

    def _remove(self) -> None:
        for step in (self._sysctls.restore, self._remove_all):
            try:
                step()
            except NetError as error:
                logger.warning("%(error)s", {"event": "networks_not_undone", "error": error})

    def _remove_all(self) -> None:
        text = f"add table inet {self._table}\ndelete table inet {self._table}\n"
        run_nft(text, f"cannot remove the nftables table inet {self._table}")
        _with_rtnl("cannot remove routing rules", self._remove_rules)

    def set_up_tun(
        self,
        number: int,
        mtu_bytes: int,
        addresses: Iterable[IPv4Interface | IPv6Interface],
        clients: Iterable[IpNetwork],
        offers: Iterable[IpAddress] = (),
    ) -> None:
        """Bring the n-th TUN to a session: its addresses, and the way to the gateway's clients.

        `offers`: addresses that are served in the chamber; the way there is over the other TUN.

        Raises:
            NetError: it cannot be done.
        """
        name = self.tun_name(number)
        wanted = set(addresses)
        ways = set(clients)
        chamber = set(offers)

        def set_up(route: Any) -> None:
            quiet_tun(name)
            index = _index(name)
            route.link("set", index=index, mtu=mtu_bytes, state="up")
            versions = [one for one in (4, 6) if _speaks(name, one)]
            _set_addresses(route, index, {one for one in wanted if one.version in versions})
            self._flush_table(route, number)
            self._set_routes(route, number, index, {one for one in ways if one.version in versions})
            self._set_offers(route, number, {one for one in chamber if one.version in versions})

        self._change(f"cannot set up {name}", set_up)

    def set_up_link(self, number: int, mtu_bytes: int) -> None:
        """Bring up the TUN that leads into the chamber. NetError if that cannot be."""
        name = self.link_name(number)

        def set_up(route: Any) -> None:
            quiet_tun(name)
            route.link("set", index=_index(name), mtu=mtu_bytes, state="up")

        self._change(f"cannot set up {name}", set_up)

    def _change(self, what: str, function: Callable[[Any], None]) -> None:
        with self._lock:
            if not self._is_installed:
                raise NetError(f"{what}: the connector ends")
            _with_rtnl(what, function)

    # Routes and rules.

    def _mark(self, number: int) -> int:
        return self._base | number + 1

    def _flush_table(self, route: Any, number: int) -> None:
        _flush(route, self._mark(number))

    def _set_routes(self, route: Any, number: int, index: int, clients: set[IpNetwork]) -> None:
        """The way to clients, in the TUN's own table; it does not lead around our networks."""
        table = self._mark(number)
        for network in clients:
            route.route("replace", **_route(network, table, _UNICAST), oif=index)
        for one in self._networks:
            if _has(one.network.version):
                route.route("replace", **_route(one.network, table, _THROW))

    def _set_offers(self, route: Any, number: int, offers: set[IpAddress]) -> None:
        """The way into the chamber."""
        table = self._mark(number)
        for address in offers:
            link = _index(self.link_name(number))
            route.route("replace", **_route(address, table, _UNICAST), oif=link)

    def _add_rules(self, route: Any, count: int) -> None:
        """Marked packets take their gateway's table.

        This host's own answers get their mark only after a route was found for them, which need
        not be the right one: where no other table has any, ours do, for them alone.
        """
        for number in range(count):
            mark = self._mark(number)
            for version in (4, 6):
                if not _has(version):
                    continue
                rule = {"family": _FAMILIES[version], "table": mark, "protocol": CONNECTOR_ROUTES}
                route.rule("add", **rule, priority=_RULE_PRIORITY, fwmark=mark, fwmask=0xFFFFFFFF)
                route.rule("add", **rule, priority=_OWN_RULE_PRIORITY + number, iifname="lo")

    def _remove_rules(self, route: Any) -> None:
        tables = {self._mark(number) for number in range(MAX_TUNS)}
        for version, family in _FAMILIES.items():
            if not _has(version):
                continue
            for rule in list(route.get_rules(family=family)):
                table = rule.get_attr("FRA_TABLE")
                if table in tables:
                    priority = rule.get_attr("FRA_PRIORITY")
                    route.rule("del", family=family, table=table, priority=priority)
        for table in tables:
            _flush(route, table)

    # nftables.

    def table_text(self) -> str:
        """The whole table, for `nft -f`."""
        tuns = ", ".join(f'"{self.tun_name(number)}"' for number in range(MAX_TUNS))
        links = ", ".join(f'"{self.link_name(number)}"' for number in range(MAX_TUNS))
        lines = [f"table inet {self._table} {{"]
        for version in (4, 6):
            lines += self._sets(version)
        lines += ["  set tuns {", "    type ifname", f"    elements = {{ {tuns} }}", "  }"]
        lines += ["  set links {", "    type ifname", f"    elements = {{ {links} }}", "  }"]
        for name, (hook, rules) in self._chains().items():
            lines += [f"  chain {name} {{", f"    type {hook}; policy accept;"]
            lines += [f"    {rule}" for rule in rules]
            lines += ["  }"]
        return "\n".join([*lines, "}", ""])

    def _sets(self, version: int) -> Iterator[str]:
        mine = [one for one in self._networks if one.network.version == version]
        chosen = {"networks": mine, "masqueraded": [one for one in mine if one.masquerade]}
        for name, networks in chosen.items():
            yield f"  set {name}{version} {{"
            yield f"    type ipv{version}_addr"
            yield "    flags interval"
            yield "    auto-merge"
            if networks:
                listed = ", ".join(str(one.network) for one in networks)
                yield f"    elements = {{ {listed} }}"
            yield "  }"

    def _chains(self) -> dict[str, tuple[str, list[str]]]:
        marks = f"ct mark and {_MARK_MASK:#x} == {self._base:#x}"
        mark_new = [
            f'iifname "{self.tun_name(number)}" meta mark set {self._mark(number):#x}'
            f" ct mark set {self._mark(number):#x}"
            for number in range(MAX_TUNS)
        ]
        clamp = "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu"
        to_networks = [
            "ip daddr @networks4 iifname @tuns accept",
            "ip6 daddr @networks6 iifname @tuns accept",
        ]
        between = ["iifname @tuns oifname @links accept", "iifname @links oifname @tuns accept"]
        only_tunnel = [
            f'meta nfproto ipv{version} counter drop comment "only-tunnel"'
            for version in self._only_tunnel
        ]
        return {
            "mark_flows": (
                "filter hook prerouting priority mangle",
                [*mark_new, f"iifname != @tuns {marks} meta mark set ct mark"],
            ),
            "mark_own": (
                "route hook output priority mangle",
                [f"{marks} meta mark set ct mark"],
            ),
            # What clients send to this host itself: only by an address inside the networks, or
            # what is about their own packets.
            "input": (
                "filter hook input priority filter",
                [
                    "iifname @links counter drop",
                    "iifname != @tuns accept",
                    *to_networks,
                    "ct state established,related accept",
                    "meta l4proto { 1, 58 } accept",  # ICMP; no names, as in chamber_rules
                    "counter drop",
                ],
            ),
            # Answers only: this host begins nothing with a client.
            "output": (
                "filter hook output priority filter",
                ["oifname @tuns ct state != { established, related } counter drop"],
            ),
            "forward": (
                "filter hook forward priority filter",
                [
                    *between,
                    *to_networks,
                    "iifname @tuns counter drop",
                    "iifname @links counter drop",
                    "oifname @links counter drop",
                    "oifname @tuns ct state established,related accept",
                    "oifname @tuns counter drop",
                    *only_tunnel,
                ],
            ),
            "clamp": (
                "filter hook forward priority mangle",
                [f"iifname @tuns {clamp}", f"oifname @tuns {clamp}"],
            ),
            "postrouting": (
                "nat hook postrouting priority srcnat",
                [
                    f"{marks} oifname != @tuns oifname != @links {family} daddr @{name}"
                    " ct direction original masquerade"
                    for family, name in (("ip", "masqueraded4"), ("ip6", "masqueraded6"))
                ],
            ),
        }


# The kernel's side.


def quiet_tun(name: str) -> None:
    """A TUN that makes no address of its own, and whose packets' marks count for reverse paths."""
    settings = {
        _IPV6_SETTINGS / name / "addr_gen_mode": "1",
        _IPV6_SETTINGS / name / "accept_ra": "0",
        _IPV4_SETTINGS / name / "src_valid_mark": "1",
    }
    for path, value in settings.items():
        if not path.exists():
            continue  # no IPv6 on this host
        try:
            path.write_text(value)
        except OSError as error:
            raise NetError(f"cannot set {path}: {error.strerror} ({_CURE})") from error


def _has(version: int) -> bool:
    return version == 4 or _IPV6_SETTINGS.exists()


def _speaks(name: str, version: int) -> bool:
    """Whether an interface speaks an IP version: IPv6 may be off, here or on the whole host."""
    if version == 4:
        return True
    try:
        return (_IPV6_SETTINGS / name / "disable_ipv6").read_text().strip() == "0"
    except OSError:
        return False


def _index(name: str) -> int:
    return socket.if_nametoindex(name)


def _set_addresses(route: Any, index: int, wanted: set[IPv4Interface | IPv6Interface]) -> None:
    there = {
        (row.get_attr("IFA_LOCAL") or row.get_attr("IFA_ADDRESS"), int(row["prefixlen"]))
        for row in route.get_addr(index=index)
    }
    want = {(str(one.ip), one.network.prefixlen): one for one in wanted}
    for key, one in want.items():
        if key not in there:
            flags = 0x02 if one.version == 6 else 0  # IFA_F_NODAD: there are no neighbours
            route.addr("replace", index=index, address=key[0], prefixlen=key[1], flags=flags)
    for address, length in there - want.keys():
        route.addr("del", index=index, address=address, prefixlen=length)


def _route(destination: IpNetwork | IpAddress, table: int, kind: int) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "dst": str(destination),
        "family": int(_FAMILIES[destination.version]),
        "table": table,
        "proto": CONNECTOR_ROUTES,
        "type": kind,
    }
    if kind == _UNICAST and destination.version == 4:
        arguments["scope"] = 253  # on the link
    return arguments


def _flush(route: Any, table: int) -> None:
    for version, family in _FAMILIES.items():
        if _has(version):
            with contextlib.suppress(NetlinkError):
                route.flush_routes(family=family, table=table)


def _with_rtnl(what: str, function: Callable[[Any], None]) -> None:
    try:
        with IPRoute() as route:
            function(route)
    except (NetlinkError, OSError) as error:
        code = error.code if isinstance(error, NetlinkError) else error.errno
        cure = f" ({_CURE})" if code in (errno.EPERM, errno.EACCES) else ""
        raise NetError(f"{what}: {error}{cure}") from error


def run_nft(text: str, what: str) -> None:
    """Run nft's own language in one transaction; NetError, beginning with `what`, if refused."""
    try:
        import nftables
    except ImportError:
        raise NetError(f"{what}: python3-nftables is missing (apt install it)") from None
    # A context of its own for each call: its socket belongs to the namespace of its birth.
    code, _, error = nftables.Nftables().cmd(text)
    if code != 0:
        first_line = error.strip().partition("\n")[0] or f"nft error {code}"
        raise NetError(f"{what}: {first_line}")
