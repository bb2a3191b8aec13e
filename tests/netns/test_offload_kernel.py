"""The TUN's offloads against the kernel's own: what it segments, and what it takes.

A router with two TUNs: a super-packet that is written into one is forwarded to the other, which
takes none, so the kernel's software segmentation (the one behind every veth with TSO off) cuts it.
Then real TCP and UDP sockets at both ends of our cutting and merging, as through a tunnel.
"""

import fcntl
import hashlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, example, given, settings
from zgate_lab.lab import Lab, Namespace

from ..native.offload_packets import (  # noqa: TID252
    ACK,
    CWR,
    DESTINATION_OPTIONS,
    ECE,
    FIN,
    NOPS,
    PSH,
    TIMESTAMPS,
    URG,
    Packet,
    super_packets,
)
from ..native.offload_support import (  # noqa: TID252
    TCP,
    UDP,
    VNET,
    LiveCoalescer,
    Vnet,
    cut,
    merge,
    super_read,
)
from ..native.test_coalesce import mixes, stream, without_meaningless_id  # noqa: TID252

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
CSUM, TSO4, TSO6, TSO_ECN, USO4, USO6 = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40
EVERYTHING = CSUM | TSO4 | TSO6 | TSO_ECN | USO4 | USO6
READ_BYTES = VNET.size + 40 + 65535
KERNEL = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def open_tun(name: str, offloads: int) -> int:
    """A TUN with vnet headers, in this thread's namespace. EINVAL: an offload is unknown."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    fcntl.ioctl(descriptor, TUNSETOFFLOAD, offloads)
    return descriptor


@dataclass
class Router:
    """Takes packets to 10.0.0.2 and fd00::2 in, and out again cut."""

    inward: int
    outward: int

    def forward(self, read: bytes, count: int) -> list[bytes]:
        """Write one packet with its vnet header; read the `count` that come out, and no more."""
        os.write(self.inward, read)
        packets = [self._read(5) for _ in range(count)]
        assert self._read(0) == b""
        return packets

    def _read(self, timeout_s: float) -> bytes:
        """The next of our packets; the kernel has some of its own on a new link."""
        deadline = time.monotonic() + timeout_s
        while select.select([self.outward], [], [], max(deadline - time.monotonic(), 0))[0]:
            read = os.read(self.outward, READ_BYTES)
            packet = read[VNET.size :]
            if packet[12:16] == b"\x0a\0\0\1" or packet[8:10] == b"\xfd\0":
                assert Vnet.of(read).flags == 0
                assert Vnet.of(read).gso_type == 0
                return packet
        assert not timeout_s, "no packet came out"
        return b""


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    with Lab() as lab:
        namespace = lab.add_namespace("router")
        namespace.make_router()
        with namespace.entered():
            inward, outward = open_tun("in0", EVERYTHING), open_tun("out0", 0)
        namespace.ip(
            "link set in0 up",
            "link set out0 mtu 65535 up",
            "route add 10.0.0.0/30 dev in0",
            "route add 10.0.0.2/32 dev out0",
            "route add fd00::/64 dev in0",
            "route add fd00::2/128 dev out0",
        )
        yield Router(inward, outward)
        os.close(inward)
        os.close(outward)


LARGE = Packet(payload=os.urandom(9999), ttl=64, ip_id=0xFFFE)
ALL_FLAGS = replace(LARGE, flags=ACK | PSH | FIN | URG | ECE | CWR, urgent=4000, tos=2)


@KERNEL
@given(super_packets())
@example((LARGE, 1000))
@example((ALL_FLAGS, 1001))
@example((replace(ALL_FLAGS, options=TIMESTAMPS, ip_options=NOPS, fragment=0), 999))
@example((replace(ALL_FLAGS, version=6, options=TIMESTAMPS), 1440))
@example((replace(ALL_FLAGS, version=6, extensions=(DESTINATION_OPTIONS,)), 1))
@example((replace(LARGE, protocol=UDP), 1000))
@example((replace(LARGE, protocol=UDP, version=6), 1000))
def test_segments_are_the_kernels_byte_for_byte(router: Router, case: tuple[Packet, int]) -> None:
    packet, gso_bytes = case
    packet = replace(packet, payload=packet.payload[: 200 * gso_bytes], ttl=64)
    ecn = packet.protocol == TCP and bool(packet.flags & CWR)
    vnet, read = super_read(bytes(packet), gso_bytes, ecn=ecn)
    # A router counts the TTL down; nothing else differs.
    ours = cut(*super_read(bytes(replace(packet, ttl=63)), gso_bytes, ecn=ecn))
    if len(ours) == 1:
        # The kernel takes what is too small for a super-packet for a plain one.
        vnet = replace(vnet, gso_type=0)
        ours = cut(vnet, super_read(bytes(replace(packet, ttl=63)), gso_bytes)[1])
    assert router.forward(bytes(vnet) + read, len(ours)) == ours


@KERNEL
@given(mixes())
def test_the_kernel_cuts_what_we_merge_into_what_came_in(
    router: Router, packets: list[Packet]
) -> None:
    merged = merge([bytes(replace(packet, ttl=64)) for packet in packets])
    expected = merge([bytes(replace(packet, ttl=63)) for packet in packets]).cut()
    came: list[bytes] = []
    for write in merged.writes:
        came += router.forward(write, segments_of(write))
    assert came == expected
    given = sorted(without_meaningless_id(bytes(replace(packet, ttl=63))) for packet in packets)
    assert sorted(map(without_meaningless_id, came)) == given


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_the_largest_writes_are_taken(router: Router, version: int, protocol: int) -> None:
    first = Packet(version=version, protocol=protocol, ttl=64)
    for size in (1, 512, 1300, 9000, 30000):
        packets = stream(first, [size] * 64)
        merged = merge([bytes(packet) for packet in packets])
        assert merged.stats.merged_packets > 60
        came = [
            packet
            for write in merged.writes
            for packet in router.forward(write, segments_of(write))
        ]
        assert came == [bytes(replace(packet, ttl=63)) for packet in packets]


def segments_of(write: bytes) -> int:
    vnet = Vnet.of(write)
    if not vnet.gso_bytes:
        return 1
    return -(-(len(write) - VNET.size - vnet.header_bytes) // vnet.gso_bytes)


# A tunnel of nothing but cutting and merging between two hosts.

ADDRESSES = {
    4: ("10.9.0.1", "10.9.0.2"),
    6: ("fd09::1", "fd09::2"),
}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass
class Counts:
    supers: int = 0
    segments: int = 0
    damaged: int = 0
    merged: int = 0
    failed: int = 0


class Pump:
    """Moves packets between two TUNs: cut to 1400 bytes, then merged. Counts what it did."""

    def __init__(self, one: int, other: int, damage_every: int = 0) -> None:
        self.counts = Counts()
        self._damage_every = damage_every
        self._ways = {
            one: LiveCoalescer(lambda data: os.write(other, data)),
            other: LiveCoalescer(lambda data: os.write(one, data)),
        }
        self._stop_read, self._stop_write = os.pipe()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="pump")

    def __enter__(self) -> "Pump":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._stop_write)
        self._thread.join()
        os.close(self._stop_read)
        for coalescer in self._ways.values():
            self.counts.merged += coalescer.stats.merged_packets
            self.counts.failed += coalescer.stats.failed_writes
            coalescer.close()
        if self._error:
            raise self._error

    def _run(self) -> None:
        try:
            while True:
                ready, _, _ = select.select([*self._ways, self._stop_read], [], [])
                if self._stop_read in ready:
                    return
                for descriptor in ready:
                    self._move(descriptor, self._ways[descriptor])
        except BaseException as error:
            self._error = error

    def _move(self, descriptor: int, coalescer: LiveCoalescer) -> None:
        for _ in range(8):
            try:
                read = os.read(descriptor, READ_BYTES)
            except BlockingIOError:
                break
            segments = cut(Vnet.of(read), read[VNET.size :], 1400)
            self.counts.supers += len(segments) > 1
            for segment in segments:
                coalescer.add(self._perhaps_damaged(segment))
        coalescer.flush()

    def _perhaps_damaged(self, segment: bytes) -> bytes:
        self.counts.segments += 1
        if not self._damage_every or len(segment) < 1000:
            return segment
        if self.counts.segments % self._damage_every:
            return segment
        self.counts.damaged += 1
        return segment[:700] + bytes([segment[700] ^ 0x40]) + segment[701:]


@contextmanager
def hosts(damage_every: int = 0) -> Iterator[tuple[Namespace, Namespace, Pump]]:
    """Two hosts at the ends of the tunnel."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        namespaces, descriptors = [], []
        for number, role in enumerate(("left", "right")):
            namespace = lab.add_namespace(role)
            with namespace.entered():
                descriptors.append(open_tun("tun0", EVERYTHING))
            stack.callback(os.close, descriptors[-1])
            namespace.ip(
                "link set tun0 mtu 1400 up",
                f"addr add {ADDRESSES[4][number]}/24 dev tun0",
                f"addr add {ADDRESSES[6][number]}/64 dev tun0 nodad",
            )
            namespaces.append(namespace)
        for namespace, address in zip(namespaces, ADDRESSES[6], strict=True):
            namespace.wait_for_addresses(ip_address(address))
        pump = stack.enter_context(Pump(descriptors[0], descriptors[1], damage_every))
        yield namespaces[0], namespaces[1], pump


def transfer(left: Namespace, right: Namespace, version: int, data: bytes) -> bytes:
    """Send by TCP from left to right; what came."""
    with right.entered():
        listener = socket.create_server((ADDRESSES[version][1], 5001), family=FAMILIES[version])
    with left.entered():
        sender = socket.socket(FAMILIES[version])
    sender.settimeout(60)
    received: list[bytes] = []

    def receive() -> None:
        connection, _ = listener.accept()
        connection.settimeout(60)
        with connection:
            while piece := connection.recv(1 << 16):
                received.append(piece)

    thread = threading.Thread(target=receive)
    thread.start()
    with listener, sender:
        sender.connect((ADDRESSES[version][1], 5001))
        sender.sendall(data)
        sender.shutdown(socket.SHUT_WR)
        thread.join(90)
    assert not thread.is_alive()
    return b"".join(received)


@pytest.mark.parametrize("version", [4, 6])
def test_tcp_through_cutting_and_merging(version: int) -> None:
    data = os.urandom(8 << 20)
    with hosts() as (left, right, pump):
        assert digest(transfer(left, right, version, data)) == digest(data)
    assert pump.counts.supers > 100
    assert pump.counts.merged > pump.counts.segments / 2
    assert pump.counts.failed == 0


@pytest.mark.parametrize("version", [4, 6])
def test_damage_on_the_way_is_never_delivered(version: int) -> None:
    """TCP's checksum is still the receiving host's to verify: it drops, and it is sent again."""
    data = os.urandom(4 << 20)
    with hosts(damage_every=100) as (left, right, pump):
        assert digest(transfer(left, right, version, data)) == digest(data)
    assert pump.counts.damaged > 10
    assert pump.counts.merged > 1000


def digest(data: bytes) -> str:
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}"


UDP_SEGMENT = 103


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [1, 64, 1200])
def test_udp_super_packets_arrive_as_datagrams(version: int, size: int) -> None:
    payload = os.urandom(size * 40 + size // 2)
    expected = [payload[at : at + size] for at in range(0, len(payload), size)]
    with hosts() as (left, right, pump):
        with right.entered():
            receiver = socket.socket(FAMILIES[version], socket.SOCK_DGRAM)
        with left.entered():
            sender = socket.socket(FAMILIES[version], socket.SOCK_DGRAM)
        with receiver, sender:
            receiver.settimeout(5)
            receiver.bind((ADDRESSES[version][1], 5001))
            sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
            for _ in range(5):
                sender.sendto(payload, (ADDRESSES[version][1], 5001))
                assert [receiver.recv(2000) for _ in expected] == expected
    assert pump.counts.supers == 5
    assert pump.counts.merged == 5 * len(expected)
    assert pump.counts.failed == 0
