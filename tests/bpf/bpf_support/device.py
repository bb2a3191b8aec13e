"""A real TUN with the programs on both sides, in a namespace of its own."""

import fcntl
import os
import select
import struct
import time
from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest
from zgate_bpf.kernel_policy import Capacity, KernelPolicy
from zgate_gateway.net.links import Hook, TunLink
from zgate_lab.lab import Lab
from zgate_lab.waiting import SLOWNESS

from bpf_support import packets as p
from bpf_support.world import ALICE, ALICE4, ALICE6, World

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02
VNET_NEEDS_CSUM, VNET_GSO_TCPV4 = 1, 1
VNET_HEADER = struct.Struct("<BBHHHH")
GATEWAY4, GATEWAY6 = "10.100.0.1", "fd7a::1"
WAIT_S = 5.0 * SLOWNESS
SMALL = Capacity(
    max_clients=8,
    max_flows=1024,
    max_policies=8,
    max_rules=64,
    max_lists=64,
    max_destinations=64,
    max_intervals=256,
)


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


def open_tun(lab):
    """A namespace and a TUN in it, down and without addresses."""
    namespace = lab.add_namespace("gateway")
    with namespace.entered():
        fd = os.open("/dev/net/tun", os.O_RDWR)
        flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"zgate0", flags))
        fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    return namespace, fd


def attach(namespace, kernel):
    with namespace.entered():
        link = TunLink("zgate0", 1400, IPv4Network("10.100.0.0/16"), IPv6Network("fd7a::/64"))
        link.attach(Hook.INGRESS, kernel.ingress_fd)
        link.attach(Hook.EGRESS, kernel.egress_fd)


def bring_up(namespace):
    # No link-local address: what the host says of itself with it would be dropped and told.
    namespace.sysctl("net.ipv6.conf.zgate0.addr_gen_mode", 1)
    namespace.ip(
        f"addr add {GATEWAY4}/16 dev zgate0",
        f"addr add {GATEWAY6}/64 dev zgate0 nodad",
        "link set zgate0 up",
    )
    namespace.wait_for_addresses(ip_address(GATEWAY6))


@pytest.fixture
def device():
    with Lab() as lab, KernelPolicy(capacity=SMALL) as kernel:
        namespace, fd = open_tun(lab)
        attach(namespace, kernel)
        bring_up(namespace)
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
