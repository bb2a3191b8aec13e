"""The programs on a real TUN: what they see there is what they see in test runs."""

import fcntl
import os
import select
import socket
import struct
import time
from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest
from bpf_support import packets as p
from bpf_support.policies import allow
from bpf_support.world import ALICE, ALICE4, ALICE6, OTHER4, World
from zgate_bpf.kernel_policy import KernelPolicy
from zgate_gateway.net.links import Hook, TunLink
from zgate_lab.lab import Lab
from zgate_protocol.drop_reason import DropReason as Reason

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02
VNET_NEEDS_CSUM, VNET_GSO_TCPV4 = 1, 1
VNET_HEADER = struct.Struct("<BBHHHH")
GATEWAY4, GATEWAY6 = "10.100.0.1", "fd7a::1"
WAIT_S = 5.0


class Device:
    """A TUN with the programs on both sides, and whoever reads and writes it."""

    def __init__(self, fd, namespace, world):
        self.fd = fd
        self.namespace = namespace
        self.world = world

    def write(self, packet, *, gso_size=0, header_bytes=0):
        flags, kind = (VNET_NEEDS_CSUM, VNET_GSO_TCPV4) if gso_size else (0, 0)
        start = 20 if gso_size else 0
        vnet = VNET_HEADER.pack(flags, kind, header_bytes, gso_size, start, 16 if start else 0)
        os.write(self.fd, vnet + packet)

    def read(self):
        """The next packet to a client."""
        if not select.select([self.fd], [], [], WAIT_S)[0]:
            raise TimeoutError("no packet came out of the TUN")
        return os.read(self.fd, 70_000)[VNET_HEADER.size :]

    def settles(self, condition):
        end = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < end, "never came true"
            time.sleep(0.005)


@pytest.fixture
def device():
    with Lab() as lab, KernelPolicy(max_clients=8, max_flows=1024) as kernel:
        namespace = lab.add_namespace("gateway")
        with namespace.entered():
            fd = os.open("/dev/net/tun", os.O_RDWR)
            flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"zgate0", flags))
            fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
            link = TunLink("zgate0", 1400, IPv4Network("10.100.0.0/16"), IPv6Network("fd7a::/64"))
            link.attach(Hook.INGRESS, kernel.ingress_fd)
            link.attach(Hook.EGRESS, kernel.egress_fd)
        # No link-local address: what the host says of itself with it would be dropped and told.
        namespace.sysctl("net.ipv6.conf.zgate0.addr_gen_mode", 1)
        namespace.ip(
            f"addr add {GATEWAY4}/16 dev zgate0",
            f"addr add {GATEWAY6}/64 dev zgate0 nodad",
            "link set zgate0 up",
        )
        world = World(kernel, 0)
        kernel.set_client(ip_address(ALICE4), ALICE)
        kernel.set_client(ip_address(ALICE6), ALICE)
        try:
            yield Device(fd, namespace, world)
        finally:
            os.close(fd)


def checksummed(packet):
    """With the header checksum that the kernel's stack wants of IPv4."""
    words = struct.unpack("!10H", packet[:20])
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    return (
        packet[:10] + struct.pack("!H", 0xFFFF - ((total & 0xFFFF) + (total >> 16))) + packet[12:]
    )


@pytest.mark.parametrize(
    ("client", "gateway", "family"),
    [(ALICE4, GATEWAY4, socket.AF_INET), (ALICE6, GATEWAY6, socket.AF_INET6)],
    ids=["ipv4", "ipv6"],
)
def test_packet_passes_and_its_answer_comes_back(device, client, gateway, family):
    device.world.policy(allow(f"{gateway}/{32 if family == socket.AF_INET else 128}"))
    with device.namespace.entered():
        listener = socket.socket(family, socket.SOCK_DGRAM)
    with listener:
        listener.bind((gateway, 5353))
        listener.settimeout(WAIT_S)
        sent = with_udp_checksum(client, gateway, 4000, 5353, b"hello")
        device.write(sent)
        data, sender = listener.recvfrom(100)
        assert data == b"hello"
        assert sender[:2] == (client, 4000)
        listener.sendto(b"and unasked", (client, 4001))
        listener.sendto(b"welcome", (client, 4000))
    assert device.read().endswith(b"welcome")
    counted = device.world.kernel.counters(ALICE)
    assert (counted.up_packets, counted.up_bytes) == (1, len(sent))
    assert (counted.down_packets, counted.down_dropped_packets) == (1, 1)
    assert device.world.drops(Reason.UNSOLICITED) == 1
    assert device.world.drops(Reason.MALFORMED) == 0


def with_udp_checksum(source, destination, source_port, destination_port, data):
    """UDP over IPv6 must have one; over IPv4 it does no harm."""
    addresses = ip_address(source).packed + ip_address(destination).packed
    body = p.udp(source_port, destination_port, data)
    pseudo = addresses + struct.pack("!II", len(body), p.UDP) + body + b"\0" * (len(body) % 2)
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    body = body[:6] + struct.pack("!H", 0xFFFF - total or 0xFFFF) + body[8:]
    packet = p.ip(source, destination, p.UDP, body)
    return checksummed(packet) if ip_address(source).version == 4 else packet


def test_denied_on_the_device(device):
    device.world.policy(allow(f"{OTHER4}/32"))
    device.write(checksummed(p.ipv4(ALICE4, GATEWAY4, p.UDP, p.udp(1, 2))))
    device.settles(lambda: device.world.drops(Reason.POLICY_DEFAULT) == 1)
    (event,) = device.world.events()
    assert event.client_index == ALICE
    assert event.destination == ip_address(GATEWAY4)


@pytest.mark.parametrize(
    "whole",
    [p.ipv4(ALICE4, GATEWAY4, p.TCP, p.tcp(1, 2)), p.ipv6(ALICE6, GATEWAY6, p.UDP, p.udp(1, 2))],
    ids=["ipv4", "ipv6"],
)
def test_truncated_at_every_length_on_the_device(device, whole):
    """Down to one byte, which test runs do not take."""
    device.world.policy(allow("0.0.0.0/0", "::/0"))
    for length in range(1, len(whole)):
        device.write(whole[:length])
    device.settles(lambda: device.world.drops(Reason.MALFORMED) == len(whole) - 1)
    assert device.world.kernel.counters(ALICE).up_packets == 0


def test_super_packet_from_the_device_counts_its_segments(device):
    device.world.policy(allow("0.0.0.0/0"))
    packet = checksummed(p.ipv4(ALICE4, GATEWAY4, p.TCP, p.tcp(4000, 443, p.ACK, bytes(12_000))))
    device.write(packet, gso_size=1360, header_bytes=40)
    device.settles(lambda: device.world.kernel.counters(ALICE).up_packets > 0)
    counted = device.world.kernel.counters(ALICE)
    assert counted.up_packets == 9
    assert counted.up_bytes == len(packet) + 8 * 40


def test_test_run_mark_on_a_real_packet_leaves_traces(device):
    """Only a test run may ask to leave none, whatever mark a packet of the host carries."""
    device.world.policy(allow("0.0.0.0/0"))
    with device.namespace.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x7A670001)
        sender.sendto(b"x", (ALICE4, 9))
    device.settles(lambda: device.world.drops(Reason.UNSOLICITED) == 1)


def test_programs_stay_when_their_loader_is_closed(device):
    """Deciding does not depend on this process: its maps closed, the verdicts are the same."""
    device.world.policy(allow(f"{GATEWAY4}/32"))
    with device.namespace.entered():
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with listener:
        listener.bind((GATEWAY4, 5353))
        listener.settimeout(WAIT_S)
        device.world.kernel.close()
        device.write(with_udp_checksum(ALICE4, GATEWAY4, 4000, 5354, b"no listener, no matter"))
        device.write(with_udp_checksum(OTHER4, GATEWAY4, 4000, 5353, b"nobody"))
        device.write(with_udp_checksum(ALICE4, GATEWAY4, 4000, 5353, b"still passes"))
        assert listener.recv(100) == b"still passes"
