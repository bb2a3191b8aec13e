"""The topology that the demo, the end-to-end tests and the bench share.

    device1 ──┐                                                        ┌── office     10.20.0.5
              ├── isp ──(the path)── transit ── gateway ── site ───────┤
    device2 ──┘      MTU, loss, delay           uplink     inside      └── forbidden  10.66.0.5

Devices know the way to the gateway's uplink and no way to the site: nobody between has a route
there, so whatever a device gets from the office came through a tunnel. The site knows the
gateway's inside address and no route to the tunnel's pools: without masquerade no answer returns.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_interface
from pathlib import Path
from typing import Self

from zgate_lab import https_server
from zgate_lab.https_server import RequestRecord
from zgate_lab.lab import DEFAULT_MTU_BYTES, Interface, Lab, Namespace, Port, without_dad
from zgate_lab.process import Process
from zgate_lab.wan import READY as WAN_READY
from zgate_lab.wan import WanSettings

START_TIMEOUT_S = 15.0

DEVICE_NETS = {1: ("198.18.1", "2001:db8:1:"), 2: ("198.18.2", "2001:db8:2:")}
PATH = ("198.18.255", "2001:db8:ff:")
UPLINK = ("203.0.113", "2001:db8:f:")
INSIDE = ("10.9.0", "fd00:9:")
OFFICE = ("10.20.0", "fd00:20:")
FORBIDDEN = ("10.66.0", "fd00:66:")

Net = tuple[str, str]


def host_addresses(net: Net, host: int) -> tuple[IPv4Interface, IPv6Interface]:
    """The host's address in a net, both families: 10.20.0 and 5 give 10.20.0.5/24."""
    return IPv4Interface(f"{net[0]}.{host}/24"), IPv6Interface(f"{net[1]}:{host}/64")


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace, and the interface and addresses by which others know it."""

    namespace: Namespace
    interface: str
    ipv4: IPv4Address
    ipv6: IPv6Address


@dataclass(frozen=True, slots=True)
class WebServer:
    """A running HTTPS server on port 443 of a host."""

    host: Host
    process: Process
    directory: Path

    @property
    def certificate_file(self) -> Path:
        """What a client is to trust (`curl --cacert`)."""
        return self.directory / https_server.CERTIFICATE_FILE

    @property
    def url_ipv4(self) -> str:
        """Its root, by IPv4 address."""
        return f"https://{self.host.ipv4}/"

    @property
    def url_ipv6(self) -> str:
        """Its root, by IPv6 address."""
        return f"https://[{self.host.ipv6}]/"

    def requests(self) -> list[RequestRecord]:
        """Every request so far, with the client's address as this server saw it."""
        return https_server.read_log(self.directory / https_server.LOG_FILE)


class Internet:
    """The hosts and routers, and what can be done to the paths between them."""

    def __init__(self, lab: Lab):
        self.lab = lab
        self.isp = lab.add_namespace("isp", router=True)
        self.transit = lab.add_namespace("transit", router=True)
        self.site = lab.add_namespace("site", router=True)
        self.device1 = self._add_device(1)
        self.device2 = self._add_device(2)
        self._add_path()
        self.gateway, self.gateway_inside = self._add_gateway()
        self.office = self._add_site_host("office", OFFICE)
        self.forbidden = self._add_site_host("forbidden", FORBIDDEN)
        self._wan: Process | None = None

    @classmethod
    @contextmanager
    def open(cls, *, directory: Path | None = None) -> Iterator[Self]:
        """Make a lab with this topology in it, and remove both at the end."""
        with Lab(directory=directory) as lab:
            yield cls(lab)

    # -- what runs on the hosts

    def start_web_server(self, host: Host) -> WebServer:
        """Start the HTTPS server on a host and wait until it answers."""
        role = host.namespace.role
        directory = self.lab.directory / f"{role}-https"
        directory.mkdir()
        process = host.namespace.spawn(
            f"{role}-https",
            *(sys.executable, "-m", "zgate_lab.https_server", "--name", role),
            *("--directory", directory, "--addresses", str(host.ipv4), str(host.ipv6)),
        )
        process.wait_for_output(https_server.READY, START_TIMEOUT_S)
        return WebServer(host, process, directory)

    # -- what happens to the paths

    def set_path_mtu(self, mtu_bytes: int) -> None:
        """Change the MTU in the middle of the way between devices and gateway.

        Neither end's own link changes: they learn it from ICMP errors, or by probing, or not.
        """
        self.isp.set_mtu("path", mtu_bytes)
        self.transit.set_mtu("path", mtu_bytes)

    def set_site_mtu(self, mtu_bytes: int) -> None:
        """Change the MTU of the link between the site's router and the office."""
        self.site.set_mtu("office", mtu_bytes)
        self.office.namespace.set_mtu(self.office.interface, mtu_bytes)

    def shape_path(self, settings: WanSettings, *, mtu_bytes: int = DEFAULT_MTU_BYTES) -> Process:
        """Let the way between devices and gateway lead over an emulated WAN from now on."""
        self.unshape_path()
        wan = self.isp.spawn(
            "wan",
            *(sys.executable, "-m", "zgate_lab.wan", self.isp.name, self.transit.name),
            *("--interface", "wan0", "--mtu-bytes", str(mtu_bytes), *settings.to_arguments()),
        )
        wan.wait_for_output(WAN_READY, START_TIMEOUT_S)
        # Better metrics than the veth's: these routes go away with the TUN.
        self.isp.ip(*_routes_over("wan0", [UPLINK]))
        self.transit.ip(*_routes_over("wan0", DEVICE_NETS.values()))
        self._wan = wan
        return wan

    def unshape_path(self) -> None:
        """Let the way lead over the plain link again."""
        if self._wan is not None:
            self._wan.stop()
            self._wan = None

    def set_path_up(self, is_up: bool) -> None:
        """Cut the way between devices and gateway, or mend it. Its routes are put back."""
        if is_up:
            self.isp.ip("link set dev path up")
            self.transit.ip("link set dev path up")
            self._add_path_addresses_and_routes()
        else:
            self.isp.ip("link set dev path down")

    def add_way_to(self, net: Net) -> None:
        """Let the far side of the path know the way to one more net behind the isp."""
        self.transit.ip(
            *(
                f"route replace {_network(net, via)} via {via.ip} dev path metric 100"
                for via in host_addresses(PATH, 1)
            )
        )

    def move_device(self, device: Host, host_number: int, *, abruptly: bool = False) -> Host:
        """Give a device other addresses, as when it changes networks; return it as it is now.

        New addresses come before the old ones go, and routes stay; `abruptly` is the other way
        round, and every route over the interface goes with the old addresses.
        """
        net = DEVICE_NETS[1 if device.namespace is self.device1.namespace else 2]
        new = host_addresses(net, host_number)
        add = [f"addr add {without_dad(one)} dev {device.interface}" for one in new]
        remove = [
            f"addr del {device.ipv4}/24 dev {device.interface}",
            f"addr del {device.ipv6}/64 dev {device.interface}",
        ]
        device.namespace.ip(*(remove + add if abruptly else add + remove))
        device.namespace.ip(*_default_routes(net, device.interface, verb="replace"))
        moved = replace(device, ipv4=new[0].ip, ipv6=new[1].ip)
        if device.namespace is self.device1.namespace:
            self.device1 = moved
        else:
            self.device2 = moved
        return moved

    # -- building

    def _add_device(self, number: int) -> Host:
        net = DEVICE_NETS[number]
        return self._add_host(f"device{number}", self.isp, net, "eth0", 2)

    def _add_site_host(self, role: str, net: Net) -> Host:
        return self._add_host(role, self.site, net, "eth0", 5)

    def _add_host(
        self, role: str, router: Namespace, net: Net, interface: str, number: int
    ) -> Host:
        namespace = self.lab.add_namespace(role)
        addresses = host_addresses(net, number)
        self.lab.connect(
            Port(namespace, interface, addresses), Port(router, role, host_addresses(net, 1))
        )
        namespace.ip(*_default_routes(net, interface))
        return Host(namespace, interface, addresses[0].ip, addresses[1].ip)

    def _add_path(self) -> None:
        self.lab.connect(Port(self.isp, "path"), Port(self.transit, "path"))
        self._add_path_addresses_and_routes()

    def _add_path_addresses_and_routes(self) -> None:
        """Set up the ends of the path; also after a cut, in which the kernel forgets IPv6."""
        ends = ((self.isp, 1, 2, [UPLINK]), (self.transit, 2, 1, DEVICE_NETS.values()))
        for namespace, own, other, nets in ends:
            via = host_addresses(PATH, other)
            namespace.ip(
                *(f"addr replace {without_dad(one)} dev path" for one in host_addresses(PATH, own)),
                *(
                    f"route replace {_network(net, via_one)} via {via_one.ip} dev path metric 100"
                    for net in nets
                    for via_one in via
                ),
            )

    def _add_gateway(self) -> tuple[Host, Host]:
        uplink = self._add_host("gateway", self.transit, UPLINK, "uplink", 10)
        addresses = host_addresses(INSIDE, 1)
        self.lab.connect(
            Port(uplink.namespace, "inside", addresses),
            Port(self.site, "gateway", host_addresses(INSIDE, 2)),
        )
        via = host_addresses(INSIDE, 2)
        uplink.namespace.ip(
            *(
                f"route add {_network(net, one)} via {one.ip} dev inside"
                for net in (OFFICE, FORBIDDEN)
                for one in via
            )
        )
        return uplink, Host(uplink.namespace, "inside", addresses[0].ip, addresses[1].ip)


def _network(net: Net, like: Interface) -> str:
    """The net's prefix in the family of an address."""
    return str(ip_interface(host_addresses(net, 0)[0 if like.version == 4 else 1]).network)


def _default_routes(net: Net, interface: str, verb: str = "add") -> list[str]:
    return [f"route {verb} default via {one.ip} dev {interface}" for one in host_addresses(net, 1)]


def _routes_over(interface: str, nets: Iterable[Net]) -> list[str]:
    return [
        f"route add {_network(net, one)} dev {interface} metric 10"
        for net in nets
        for one in host_addresses(net, 1)
    ]
