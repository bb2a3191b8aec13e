"""The host of a subnet connector: routes, marks, masquerade; and that nothing of it stays.

client 10.100.0.7 ==cable== TUN of the connector [connector] eth1 -- eth0 [office] 10.20.0.5
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest
from zgate_connector.config import NetworkSettings
from zgate_connector.networks import HostNetwork
from zgate_datapath.tun import Tun
from zgate_host.errors import NetError
from zgate_lab.cable import Cable
from zgate_lab.lab import Lab, Namespace, Port
from zgate_lab.namespace import command_in
from zgate_lab.wan import open_tun

PREFIX = "zct"
CLIENTS = [ip_network("10.100.0.0/16"), ip_network("fd7a:7a67:6174:65::/64")]
OWN = [ip_interface("10.100.0.2/32"), ip_interface("fd7a:7a67:6174:65::2/128")]
OFFICE_V4, OFFICE_V6 = "10.20.0.5", "fd20::5"
CLIENT_V4, CLIENT_V6 = "10.100.0.7", "fd7a:7a67:6174:65::7"
PORT = 7777


def networks(masquerade: bool = True) -> list[NetworkSettings]:
    return [
        NetworkSettings(network=one, masquerade=masquerade)  # type: ignore[arg-type]
        for one in ("10.20.0.0/24", "fd20::/64")
    ]


@dataclass
class Site:
    """The connector's host, and an office behind it."""

    lab: Lab
    connector: Namespace
    office: Namespace
    state_file: Path

    def network(self, masquerade: bool = True) -> HostNetwork:
        return HostNetwork(PREFIX, networks(masquerade), self.state_file)

    def state(self) -> list[str]:
        """Everything of the host that a connector may touch."""
        run = self.connector.run
        sysctls = run("sysctl", "-a").stdout.splitlines()
        words = ("forward", "accept_ra", "redirects", "src_valid_mark", "rp_filter")
        return [
            run("nft", "list", "tables").stdout,
            run("ip", "-o", "link").stdout,
            run("ip", "rule").stdout,
            run("ip", "-6", "rule").stdout,
            run("ip", "route", "show", "table", "all").stdout,
            run("ip", "-6", "route", "show", "table", "all").stdout,
            "\n".join(one for one in sysctls if any(word in one for word in words)),
        ]

    @contextlib.contextmanager
    def routing(self, masquerade: bool = True, count: int = 1) -> Iterator[HostNetwork]:
        """The connector's host with everything set up, TUNs open."""
        network = self.network(masquerade)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.connector.entered())
            network.install(count)
            stack.callback(network.remove)
            for number in range(count):
                tun = Tun.open(network.tun_name(number))
                stack.callback(tun.close)
                self.tuns[number] = tun
                network.set_up_tun(number, 1400, OWN, CLIENTS)
            yield network

    def __post_init__(self) -> None:
        self.tuns: dict[int, Tun] = {}

    @contextlib.contextmanager
    def client(self, number: int = 0) -> Iterator[Namespace]:
        """A host at the other end of a TUN: the gateway and everything before it."""
        namespace = self.lab.add_namespace(f"client{number}")
        own = open_tun(namespace.name, "tun0")
        namespace.ip(
            f"addr add {CLIENT_V4}/32 dev tun0",
            f"addr add {CLIENT_V6}/128 dev tun0 nodad",
            "link set tun0 mtu 1400 up",
            "route add default dev tun0",
            "route add ::/0 dev tun0",
        )
        try:
            with Cable(own, self.tuns[number].fd):
                yield namespace
        finally:
            os.close(own)


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Site:
    connector, office = lab.add_namespace("connector"), lab.add_namespace("office")
    lab.connect(
        Port(connector, "eth1", (ip_interface("10.20.0.1/24"), ip_interface("fd20::1/64"))),
        Port(office, "eth0", (ip_interface("10.20.0.5/24"), ip_interface("fd20::5/64"))),
    )
    # As strict as a host can be about where packets come from.
    for name in ("all", "default", "eth1"):
        connector.sysctl(f"net.ipv4.conf.{name}.rp_filter", 1)
    return Site(lab, connector, office, tmp_path / "network.json")


@contextlib.contextmanager
def listener(namespace: Namespace, address: str) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with namespace.entered():
        sock = socket.create_server((address, PORT), family=family)
    sock.settimeout(5)
    with sock:
        yield sock


def dial(namespace: Namespace, address: str, timeout_s: float = 5.0) -> socket.socket:
    with namespace.entered():
        return socket.create_connection((address, PORT), timeout=timeout_s)


def talk(client: Namespace, server: socket.socket, address: str) -> str:
    """Connect and say something both ways; the address that the server saw."""
    with dial(client, address) as ours:
        theirs, peer = server.accept()
        with theirs:
            ours.sendall(b"question")
            assert theirs.recv(100) == b"question"
            theirs.sendall(b"answer")
            assert ours.recv(100) == b"answer"
    return str(peer[0])


@pytest.mark.parametrize(("address", "own"), [(OFFICE_V4, "10.20.0.1"), (OFFICE_V6, "fd20::1")])
def test_a_client_reaches_the_network_and_is_masqueraded(
    site: Site, address: str, own: str
) -> None:
    with (
        site.routing(),
        site.client() as client,
        listener(site.office, address) as server,
    ):
        assert talk(client, server, address) == own


@pytest.mark.parametrize(("address", "client_ip"), [(OFFICE_V4, CLIENT_V4), (OFFICE_V6, CLIENT_V6)])
def test_without_masquerade_the_network_sees_the_client(
    site: Site, address: str, client_ip: str
) -> None:
    site.office.ip("route add 10.100.0.0/16 via 10.20.0.1")
    site.office.ip("route add fd7a:7a67:6174:65::/64 via fd20::1")
    with (
        site.routing(masquerade=False),
        site.client() as client,
        listener(site.office, address) as server,
    ):
        assert talk(client, server, address) == client_ip
        # Nobody in there begins anything with a client.
        with listener(client, client_ip), pytest.raises(OSError):
            dial(site.office, client_ip, 0.5)


def test_answers_go_to_the_gateway_that_the_question_came_from(site: Site) -> None:
    """Two gateways, whose clients have the same virtual IP."""
    with (
        site.routing(count=2),
        site.client(0) as first,
        site.client(1) as second,
        listener(site.office, OFFICE_V4) as server,
    ):
        for client in (first, second, first):
            assert talk(client, server, OFFICE_V4) == "10.20.0.1"


def test_the_host_itself_is_reached_inside_the_network_only(site: Site) -> None:
    with site.routing(), site.client() as client:
        with listener(site.connector, "10.20.0.1") as server:
            assert talk(client, server, "10.20.0.1") == CLIENT_V4
        with listener(site.connector, str(OWN[0].ip)), pytest.raises(OSError):
            dial(client, str(OWN[0].ip), 0.5)


def test_no_way_leads_elsewhere(site: Site) -> None:
    """Neither through the host to other networks, nor between others through it."""
    site.connector.ip("addr add 10.30.0.1/24 dev eth1")
    site.office.ip("addr add 10.30.0.5/24 dev eth0")
    other = site.lab.add_namespace("other")
    site.lab.connect(
        Port(site.connector, "eth2", (ip_interface("10.40.0.1/24"),)),
        Port(other, "eth0", (ip_interface("10.40.0.5/24"),)),
    )
    other.ip("route add default via 10.40.0.1")
    site.office.ip("route add default via 10.20.0.1")
    with site.routing(), site.client() as client:
        with listener(site.office, "10.30.0.5"), pytest.raises(OSError):
            dial(client, "10.30.0.5", 0.5)
        with listener(site.office, OFFICE_V4), pytest.raises(OSError):
            dial(other, OFFICE_V4, 0.5)


def test_a_host_that_forwarded_before_goes_on(site: Site) -> None:
    site.connector.make_router()
    other = site.lab.add_namespace("other")
    site.lab.connect(
        Port(site.connector, "eth2", (ip_interface("10.40.0.1/24"),)),
        Port(other, "eth0", (ip_interface("10.40.0.5/24"),)),
    )
    other.ip("route add default via 10.40.0.1")
    site.office.ip("route add default via 10.20.0.1")
    with site.routing(), listener(site.office, OFFICE_V4) as server:
        assert talk(other, server, OFFICE_V4) == "10.40.0.5"


def test_a_gateway_cannot_take_our_networks_away(site: Site) -> None:
    """It advertises everything: our own networks are still reached directly."""
    with site.routing() as network, site.client() as client:
        everything = [ip_network("0.0.0.0/0"), ip_network("::/0")]
        network.set_up_tun(0, 1400, OWN, everything)
        with listener(site.office, OFFICE_V4) as server:
            assert talk(client, server, OFFICE_V4) == "10.20.0.1"
        site.connector.ip("route add default via 10.20.0.5")
        way = site.connector.run("ip", "route", "get", "192.0.2.1").stdout
        assert "dev eth1" in way


def test_another_session_replaces_what_was_there(site: Site) -> None:
    with site.routing() as network:
        network.set_up_tun(0, 1300, OWN[:1], CLIENTS[:1])
        shown = site.connector.run("ip", "addr", "show", network.tun_name(0)).stdout
        assert "mtu 1300" in shown and "10.100.0.2/32" in shown and "fd7a" not in shown
        tables = site.connector.run("ip", "-6", "route", "show", "table", "all").stdout
        assert "fd7a:7a67:6174:65::/64" not in tables


def test_the_host_is_as_it_was(site: Site) -> None:
    before = site.state()
    with site.routing(count=3):
        assert site.state() != before
    assert site.state() == before
    assert not site.state_file.exists()


KILLED = """
import os, signal, sys
from ipaddress import ip_interface, ip_network
from pathlib import Path
from zgate_connector.config import NetworkSettings
from zgate_connector.networks import HostNetwork
from zgate_datapath.tun import Tun
networks = [NetworkSettings(network="10.20.0.0/24"), NetworkSettings(network="fd20::/64")]
network = HostNetwork(sys.argv[1], networks, Path(sys.argv[2]))
network.install(2)
tun = Tun.open(network.tun_name(0))
network.set_up_tun(0, 1400, [ip_interface("10.100.0.2/32")], [ip_network("10.100.0.0/16")])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_connector_left_goes_with_the_next_start(site: Site) -> None:
    before = site.state()
    arguments = [sys.executable, "-c", KILLED, PREFIX, str(site.state_file)]
    argv = command_in(site.connector.name, arguments)
    assert subprocess.run(argv, check=False, timeout=60).returncode == -signal.SIGKILL
    assert site.state() != before
    with site.connector.entered():
        site.network().clean_up()
    assert site.state() == before


def test_what_cannot_be_set_up_is_told_and_nothing_stays(site: Site) -> None:
    before = site.state()
    with site.connector.entered():
        network = site.network()
        network.install(1)
        with pytest.raises(NetError):
            network.set_up_tun(0, 1400, OWN, CLIENTS)  # there is no such TUN
        network.remove()
        network.remove()
    assert site.state() == before


def test_a_host_without_ipv6_carries_ipv4(site: Site) -> None:
    site.connector.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
    site.connector.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
    with (
        site.routing(),
        site.client() as client,
        listener(site.office, OFFICE_V4) as server,
    ):
        assert talk(client, server, OFFICE_V4) == "10.20.0.1"


def test_nothing_is_set_up_any_more_once_it_ends(site: Site) -> None:
    """A session that was given up may still be at it, in a thread."""
    before = site.state()
    with site.connector.entered():
        network = site.network()
        network.install(1)
        network.remove()
        for change in (network.set_up_link, lambda *_: network.set_up_tun(0, 1400, OWN, CLIENTS)):
            with pytest.raises(NetError, match="the connector ends"):
                change(0, 1400)
    assert site.state() == before


def test_offers_are_reached_over_the_other_tun(site: Site) -> None:
    """Services beside networks: the chamber is one more network behind the host."""
    offer = ip_address("10.101.255.254")
    with site.routing() as network, contextlib.ExitStack() as stack:
        link = Tun.open(network.link_name(0))
        stack.callback(link.close)
        network.set_up_link(0, 1400)
        network.set_up_tun(0, 1400, OWN, CLIENTS, [offer])
        chamber = site.lab.add_namespace("chamber")
        inner = open_tun(chamber.name, "tun0")
        stack.callback(os.close, inner)
        chamber.ip(
            f"addr add {offer}/32 dev tun0", "link set tun0 up", "route add default dev tun0"
        )
        stack.enter_context(Cable(inner, link.fd))
        client = stack.enter_context(site.client())
        with listener(chamber, str(offer)) as server:
            assert talk(client, server, str(offer)) == CLIENT_V4
        # The chamber's ways out are answers only.
        with listener(site.office, OFFICE_V4), pytest.raises(OSError):
            dial(chamber, OFFICE_V4, 0.5)
        with listener(site.connector, "10.20.0.1"), pytest.raises(OSError):
            dial(chamber, "10.20.0.1", 0.5)
