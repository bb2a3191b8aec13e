"""The real TUN device and the real raw sockets, in namespaces of their own."""

import os
import select
import socket
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv6Interface, ip_address

import pytest
from zgate_datapath.path_mtu import BASE_BYTES
from zgate_datapath.tun import Tun, TunError
from zgate_datapath.udp import UdpSocket
from zgate_gateway.forwarder import IcmpSender
from zgate_lab.lab import Lab, Namespace, Port
from zgate_protocol.icmp import IcmpError, build_icmp_error, checksum

ADDRESSES = ("10.66.0.1/24", "fd66::1/64")
PEER_V4, PEER_V6 = ip_address("10.66.0.9"), ip_address("fd66::9")


@pytest.fixture
def host(lab: Lab) -> Iterator[Namespace]:
    """A namespace; the test runs inside."""
    namespace = lab.add_namespace("host")
    with namespace.entered():
        yield namespace


@pytest.fixture
def tun(host: Namespace) -> Iterator[Tun]:
    """A TUN that is up and has addresses."""
    opened = Tun.open("zgtest0")
    # No link-local address: the kernel would say things of its own with it.
    host.sysctl("net.ipv6.conf.zgtest0.addr_gen_mode", 1)
    host.ip("link set zgtest0 mtu 1400 up")
    for address in ADDRESSES:
        host.ip(f"address add {address} dev zgtest0" + (" nodad" if ":" in address else ""))
    drain(opened)
    yield opened
    opened.close()


def drain(tun: Tun) -> None:
    """Take away what the kernel sends by itself into a new link."""
    while select.select([tun.fd], [], [], 0.05)[0]:
        tun.read_batch(100)


def wait_readable(tun: Tun) -> None:
    assert select.select([tun.fd], [], [], 5)[0], "no packet came"


def udp_from(source: str, destination: str, payload: bytes) -> bytes:
    one, other = ip_address(source).packed, ip_address(destination).packed
    upper = b"\x30\x39\x30\x39" + (8 + len(payload)).to_bytes(2, "big") + b"\0\0" + payload
    head = b"\x45\0" + (20 + len(upper)).to_bytes(2, "big") + b"\0\1\0\0\x40\x11"
    return head + checksum(head + b"\0\0" + one + other).to_bytes(2, "big") + one + other + upper


def test_the_device_has_the_name_and_vanishes_with_its_descriptor(host: Namespace) -> None:
    tun = Tun.open("zgtest0")
    assert tun.name == "zgtest0"
    assert "zgtest0" in host.run("ip", "-o", "link").stdout
    tun.close()
    tun.close()
    assert "zgtest0" not in host.run("ip", "-o", "link").stdout


def test_a_name_that_is_taken_names_the_cause(host: Namespace) -> None:
    tun = Tun.open("zgtest0")
    with pytest.raises(TunError, match="zgtest0: another process holds it"):
        Tun.open("zgtest0")
    tun.close()
    host.ip("link add veth1 type veth peer name veth2")
    with pytest.raises(TunError, match="veth1: a link of another kind has that name"):
        Tun.open("veth1")


def test_what_the_kernel_sends_is_read_packet_by_packet(tun: Tun) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for number in range(20):
            sender.sendto(bytes([number]) * 10, (str(PEER_V4), 53))
    wait_readable(tun)
    packets = tun.read_batch(8) + tun.read_batch(100)
    assert [packet[28:] for packet in packets] == [bytes([n]) * 10 for n in range(20)]
    assert all(packet[0] == 0x45 for packet in packets), "no header before the packet"
    assert tun.read_batch(1) == []


def test_what_is_written_reaches_a_socket(tun: Tun) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("10.66.0.1", 12345))
        receiver.settimeout(5)
        assert tun.write(udp_from("10.66.0.9", "10.66.0.1", b"hello"))
        assert receiver.recvfrom(100) == (b"hello", ("10.66.0.9", 12345))


@pytest.mark.parametrize(
    "packet",
    [b"", b"\x45", b"\x00" * 40, os.urandom(60), b"\x60" * 39],
    ids=["nothing", "one byte", "zeros", "random", "cut off"],
)
def test_noise_is_taken_or_not_and_raises_nothing(tun: Tun, packet: bytes) -> None:
    assert tun.write(packet) in (True, False)


def test_a_link_that_is_down_takes_nothing_and_is_not_gone(host: Namespace, tun: Tun) -> None:
    host.ip("link set zgtest0 down")
    assert not tun.write(udp_from("10.66.0.9", "10.66.0.1", b"hello"))
    assert tun.read_batch(10) == []
    assert not tun.is_gone
    host.ip("link set zgtest0 up")
    assert tun.write(udp_from("10.66.0.9", "10.66.0.1", b"hello"))


def test_a_deleted_device_is_noticed_and_raises_nothing(host: Namespace, tun: Tun) -> None:
    host.ip("link delete zgtest0")
    # The descriptor stays readable for good: who does not look would spin.
    wait_readable(tun)
    assert tun.read_batch(10) == []
    assert tun.is_gone
    assert not tun.write(udp_from("10.66.0.9", "10.66.0.1", b"hello"))


# Raw sockets: ICMP errors leave by the host's own routes.


@pytest.mark.parametrize(
    ("family", "own", "peer", "offset"),
    [
        (socket.AF_INET, "10.66.0.1", PEER_V4, 20),
        (socket.AF_INET6, "fd66::1", PEER_V6, 40),
    ],
)
def test_an_icmp_error_leaves_as_it_was_built(
    tun: Tun, family: int, own: str, peer: object, offset: int
) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x" * 100, (str(peer), 53))
    wait_readable(tun)
    (outgoing,) = tun.read_batch(1)
    swapped = (
        outgoing[:12] + outgoing[16:20] + outgoing[12:16] + outgoing[20:]
        if family == socket.AF_INET
        else outgoing[:8] + outgoing[24:40] + outgoing[8:24] + outgoing[40:]
    )
    error = build_icmp_error(
        IcmpError.PACKET_TOO_BIG, swapped, ip_address(own).packed, mtu_bytes=1280
    )
    assert error is not None
    icmp = IcmpSender()
    icmp.send(error)
    wait_readable(tun)
    (sent,) = tun.read_batch(1)
    icmp.close()
    assert sent[offset:] == error[offset:], "type, code, MTU and quote as built"
    assert len(sent) == len(error)


# Path MTU, as the kernel tells it.


def two_hosts(lab: Lab, mtu_bytes: int) -> tuple[Namespace, Namespace]:
    """Host 1 and host 2 of 10.77.0.0/24 and fd77::/64, on one link."""
    one, other = lab.add_namespace("one"), lab.add_namespace("other")
    lab.connect(
        Port(one, "eth0", (IPv4Interface("10.77.0.1/24"), IPv6Interface("fd77::1/64"))),
        Port(other, "eth0", (IPv4Interface("10.77.0.2/24"), IPv6Interface("fd77::2/64"))),
        mtu_bytes=mtu_bytes,
    )
    return one, other


@pytest.mark.parametrize("host_address", ["10.77.0.2", "fd77::2"])
def test_a_packet_above_the_links_mtu_is_reported_with_the_mtu(lab: Lab, host_address: str) -> None:
    one, _ = two_hosts(lab, mtu_bytes=1400)
    with one.entered():
        udp = UdpSocket.towards((host_address, 9))
    overhead = 48 if ":" in host_address else 28
    address = (host_address, 9)
    assert udp.send_batch([bytes(1400 - overhead)], address)
    assert not udp.send_batch([bytes(1400 - overhead + 1)], address)
    assert not udp.send_batch([bytes(1452)] * 5 + [bytes(100)], address)
    limits = {error.mtu_bytes for error in udp.path_errors() if error.mtu_bytes}
    assert limits == {1400}
    udp.close()


@pytest.mark.parametrize("host_address", ["10.77.0.2", "fd77::2"])
def test_the_kernel_cannot_refuse_what_every_session_needs(lab: Lab, host_address: str) -> None:
    """As if a router had said so: it need not be true, and only a packet that is sent can tell."""
    one, other = two_hosts(lab, mtu_bytes=1500)
    one.ip(f"route add {host_address} dev eth0 mtu 1300")
    address = (host_address, 9)
    with other.entered():
        receiver = UdpSocket.bind(*address)
    with one.entered():
        udp = UdpSocket.towards(address)
    assert not udp.send_batch([bytes(BASE_BYTES + 1)] * 3, address)
    assert udp.believes_kernel
    assert {error.mtu_bytes for error in udp.path_errors() if error.mtu_bytes} == {1300}
    assert not udp.believes_kernel, "the native engine's packets are not seen before"
    udp.believe_kernel()
    assert not udp.send_batch([bytes(BASE_BYTES + 1)], address)
    assert udp.send_batch([bytes(BASE_BYTES)] * 3, address)
    assert not udp.believes_kernel
    assert udp.send_batch([bytes(1400)] * 3, address)
    received: list[int] = []
    while len(received) < 6:
        assert select.select([receiver.fileno()], [], [], 5.0)[0], received
        received += [len(data) for run, _ in receiver.receive_batch(6) for data in run]
    assert received == [BASE_BYTES] * 3 + [1400] * 3
    assert not udp.send_batch([bytes(1500)], address), "its own link is narrower"
    receiver.close()
    udp.close()
