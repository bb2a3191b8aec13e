"""Private networks behind NATs: what a connector dials out of.

    isp ── natN ──(bridge)──┬── connectorN  10.40.0.2
          masquerade        └── backendN    10.40.0.5
          nothing comes in

Both networks have the same addresses inside, as private networks have: nobody outside can name
them.
They hang on the isp of the `Internet` topology, which stays as it is.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from zgate_lab.internet import Host, Internet, Net, host_addresses
from zgate_lab.lab import Namespace, Port, without_dad

OUTSIDE = {1: ("198.18.11", "2001:db8:11:"), 2: ("198.18.12", "2001:db8:12:")}
LAN: Net = ("10.40.0", "fd00:40:")
LAN_IPV4, LAN_IPV6 = IPv4Network("10.40.0.0/24"), IPv6Network("fd00:40::/64")

CONNECTOR_NUMBER, BACKEND_NUMBER = 2, 5

# Neighbour discovery is IPv6's ARP: without it there is no link. Some kernels show the bridge's own
# frames to these hooks too.
NAT_TABLE = """\
table inet nat {
    chain input {
        type filter hook input priority 0; policy accept;
        iifname "isp" ct state established,related accept
        iifname "isp" icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        iifname "isp" counter drop
    }
    chain forward {
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        iifname "lan" oifname { "isp", "lan" } accept
    }
    chain postrouting {
        type nat hook postrouting priority 100; policy accept;
        oifname "isp" masquerade
    }
}
"""
CUT_TABLE = """\
table inet cut {
    chain forward {
        type filter hook forward priority -10; policy accept;
        iifname "isp" drop
        oifname "isp" drop
    }
}
"""


class PrivateSite:
    """One private network: its NAT, a host for a connector, a host for backends.

    Attributes:
        nat: the router; its interface `isp` is outside, its bridge `lan` inside.
        outside: the NAT's own addresses, which the gateway sees connectors at.
    """

    def __init__(self, internet: Internet, number: int) -> None:
        self.number = number
        self._lab = internet.lab
        self.nat = internet.lab.add_namespace(f"nat{number}", router=True)
        self.outside = self._attach(internet)
        self.nat.ip("link add lan type bridge", "link set lan up")
        self.nat.ip(*(f"addr add {without_dad(one)} dev lan" for one in host_addresses(LAN, 1)))
        self.nat.run("nft", "-f", "-", stdin=NAT_TABLE)
        self.connector = self._add_host(f"connector{number}", CONNECTOR_NUMBER)
        self.backend = self._add_host(f"backend{number}", BACKEND_NUMBER)

    def cut(self) -> None:
        """Drop everything between inside and outside, without a word to anybody."""
        self.nat.run("nft", "-f", "-", stdin=CUT_TABLE)

    def mend(self) -> None:
        """Take `cut` back."""
        self.nat.run("nft", "delete", "table", "inet", "cut", check=False)

    def _attach(self, internet: Internet) -> Host:
        net = OUTSIDE[self.number]
        own, other = host_addresses(net, 2), host_addresses(net, 1)
        self._lab.connect(Port(self.nat, "isp", own), Port(internet.isp, self.nat.role, other))
        self.nat.ip(*(f"route add default via {one.ip} dev isp" for one in other))
        internet.add_way_to(net)
        return Host(self.nat, "isp", own[0].ip, own[1].ip)

    def _add_host(self, role: str, number: int) -> Host:
        namespace: Namespace = self._lab.add_namespace(role)
        addresses = host_addresses(LAN, number)
        self._lab.connect(Port(namespace, "eth0", addresses), Port(self.nat, role))
        self.nat.ip(f"link set dev {role} master lan")
        namespace.ip(
            *(f"route add default via {one.ip} dev eth0" for one in host_addresses(LAN, 1))
        )
        return Host(namespace, "eth0", addresses[0].ip, addresses[1].ip)


def add_private_sites(internet: Internet) -> tuple[PrivateSite, PrivateSite]:
    """Both networks, attached."""
    return PrivateSite(internet, 1), PrivateSite(internet, 2)
