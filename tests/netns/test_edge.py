"""The edge on links of its own: modes, somebody else's program, leftovers, addresses that come."""

import os
import re
import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface

import pytest
from zgate_bpf import syscalls
from zgate_bpf.edge import EdgeProgram, EdgeReason
from zgate_bpf.edge_attach import ForeignProgram, Mode, attach
from zgate_gateway.config import EdgeConfig
from zgate_gateway.edge import Edge, EdgeError
from zgate_gateway.edge_gro import GroSwitch
from zgate_gateway.edge_uplink import find_uplink
from zgate_lab.lab import Lab, Namespace, Port
from zgate_lab.namespace import call_in
from zgate_lab.waiting import wait_until

ANY = ip_address("::")
INSIDE = ip_address("192.0.2.1")
OUTSIDE = "192.0.2.2"
PORT = 4433


class Hosts:
    """A host with an uplink, and a stranger at its other end."""

    def __init__(self, lab: Lab) -> None:
        self.host = lab.add_namespace("host")
        self.stranger = lab.add_namespace("stranger")
        lab.connect(
            Port(self.host, "eth0", (ip_interface("192.0.2.1/24"),)),
            Port(self.stranger, "eth0", (ip_interface("192.0.2.2/24"),)),
        )

    def open(self, edge: Edge) -> Edge:
        with self.host.entered():
            edge.open()
        return edge

    def look(self, edge: Edge) -> None:
        call_in(self.host.name, edge._follow_uplink)

    def link(self) -> str:
        return self.host.run("ip", "-d", "link", "show", "eth0").stdout

    def send(self, payload: bytes) -> None:
        with self.stranger.entered():
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sock:
            sock.sendto(payload, (str(INSIDE), PORT))


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with Lab() as lab:
        yield Hosts(lab)


@pytest.fixture
def edge(hosts: Hosts) -> Iterator[Edge]:
    made = Edge(EdgeConfig(interface="eth0"), listen=ANY, port=PORT)
    yield made
    with hosts.host.entered():  # what it puts back is there, and not on the machine's own links
        made.close()


def listening(namespace: Namespace) -> socket.socket:
    with namespace.entered():
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.bind(("::", PORT))
    sock.settimeout(5)
    return sock


def test_native_on_a_veth_carries_real_traffic(hosts: Hosts, edge: Edge) -> None:
    hosts.open(edge)
    assert (edge.state().mode, edge.state().interface) == ("native", "eth0")
    assert re.search(r" xdp ", hosts.link())
    good = b"\x40" + bytes(40)
    with listening(hosts.host) as sock:
        hosts.send(bytes(41))
        hosts.send(good)
        assert sock.recv(100) == good  # and nothing before it
    packets = edge.state().packets
    assert packets[EdgeReason.SHORT_HEADER] == packets[EdgeReason.FIXED_BIT] == 1
    hosts.stranger.run("ping", "-c", "1", "-W", "2", str(INSIDE))
    with hosts.host.entered():
        edge.close()
    assert "xdp" not in hosts.link()


def test_gro_is_on_beside_it_and_off_again(hosts: Hosts, edge: Edge) -> None:
    def is_on() -> bool:
        said = hosts.host.run("ethtool", "-k", "eth0").stdout
        return "generic-receive-offload: on" in said

    assert not is_on()
    hosts.open(edge)
    assert is_on()
    with hosts.host.entered():
        assert GroSwitch.on("eth0") is None  # it is
        edge.close()
    assert not is_on()


def test_generic_where_the_driver_has_none(hosts: Hosts) -> None:
    hosts.host.ip("link add bridge0 type bridge", "link set bridge0 up")
    edge = Edge(EdgeConfig(interface="bridge0"), listen=ANY, port=PORT)
    hosts.open(edge)
    state = edge.state()
    edge.close()
    assert (state.mode, state.interface) == ("generic", "bridge0")
    assert "not in the driver" in str(state.note)


def test_somebody_else_s_program_stays(hosts: Hosts, edge: Edge) -> None:
    with EdgeProgram(name="theirs") as theirs:
        with hosts.host.entered():
            index = socket.if_nametoindex("eth0")
            foreign = attach(theirs.fd, "eth0", index, name="theirs")
        hosts.open(edge)
        assert edge.state().mode == "off"
        assert "already (theirs)" in str(edge.state().note)
        strict = Edge(EdgeConfig(enabled="on", interface="eth0"), listen=ANY, port=PORT)
        with pytest.raises(EdgeError, match="left there"):
            hosts.open(strict)
        strict.close()
        assert foreign.mode is Mode.NATIVE and f"prog/xdp id {theirs.id} " in hosts.link()
        # When it goes, the edge takes its place.
        foreign.close()
        wait_until(lambda: "xdp" not in hosts.link(), 5, "the foreign program to go")
        hosts.look(edge)
        assert edge.state().mode == "native"


def test_leftover_of_ours_is_replaced_and_a_namesake_elsewhere_is_not(hosts: Hosts) -> None:
    """Interface numbers are alike in all namespaces: the stranger's eth0 has the host's."""
    with EdgeProgram(name="zgedge_test") as old, EdgeProgram(name="zgedge_test") as fresh:
        with hosts.stranger.entered():
            index = socket.if_nametoindex("eth0")
            elsewhere = attach(fresh.fd, "eth0", index, name="zgedge_test")
        with hosts.host.entered():
            index = socket.if_nametoindex("eth0")
            leftover = attach(old.fd, "eth0", index, name="zgedge_test")
            present = find_uplink(ANY, "eth0").program
            assert present == old.id
            with pytest.raises(ForeignProgram):
                attach(fresh.fd, "eth0", index, name="another", present=present)
            ours = attach(fresh.fd, "eth0", index, name="zgedge_test", present=present)
            assert find_uplink(ANY, "eth0").program == fresh.id
        with hosts.stranger.entered():
            assert find_uplink(ANY, "eth0").program == fresh.id
        for one in (leftover, ours, elsewhere):
            one.close()


def test_program_that_was_detached_is_attached_again(hosts: Hosts, edge: Edge) -> None:
    hosts.open(edge)
    program = edge._program
    assert program is not None
    link = syscalls.xdp_link(program.id)
    assert link is not None
    syscalls.link_detach(link)
    os.close(link)
    assert "xdp" not in hosts.link()
    hosts.look(edge)
    assert "xdp" in hosts.link()


def test_interface_that_goes_and_comes_back(hosts: Hosts, edge: Edge) -> None:
    hosts.open(edge)
    hosts.host.ip("link del eth0")
    hosts.look(edge)
    assert edge.state().mode == "off"
    assert edge.state().note == "there is no interface eth0"
    hosts.host.ip("link add eth0 type veth peer name eth1", "link set eth0 up")
    hosts.look(edge)
    assert edge.state().mode == "native"


def test_uplink_is_found(hosts: Hosts) -> None:
    def find(listen: str, configured: str | None = None):
        with hosts.host.entered():
            return find_uplink(ip_address(listen), configured)

    assert find("::").problem == "there is no default route; set edge.interface"
    assert find("192.0.2.9").problem == "no interface has the address 192.0.2.9"
    found = find("192.0.2.1")
    assert found.interface is not None and found.interface[0] == "eth0" and found.is_veth
    assert found.addresses == {INSIDE}
    hosts.host.ip("addr add 2001:db8::1/64 dev eth0 nodad", "route add default via 192.0.2.2")
    found = find("::")
    assert found.interface is not None and found.interface[0] == "eth0"
    assert {INSIDE, ip_address("2001:db8::1")} <= found.addresses
    assert {one.version for one in find("0.0.0.0").addresses} == {4}
    assert ip_address("127.0.0.1") not in found.addresses


def test_addresses_are_followed(hosts: Hosts, edge: Edge) -> None:
    hosts.open(edge)
    hosts.host.ip("addr add 192.0.2.5/24 dev eth0")
    assert edge._program is not None
    before = edge._program._addresses.count()
    hosts.look(edge)
    assert edge._program._addresses.count() == before + 1


def test_without_privilege_or_route_auto_goes_on_and_on_does_not(hosts: Hosts) -> None:
    relaxed = Edge(EdgeConfig(), listen=ANY, port=PORT)
    hosts.open(relaxed)
    assert relaxed.state().note == "there is no default route; set edge.interface"
    relaxed.close()
    strict = Edge(EdgeConfig(enabled="on"), listen=ANY, port=PORT)
    with pytest.raises(EdgeError, match="no default route"):
        hosts.open(strict)
    strict.close()
    off = Edge(EdgeConfig(enabled="off"), listen=ANY, port=PORT)
    hosts.open(off)
    assert off.state().note == "switched off" and off.state().packets == {}
