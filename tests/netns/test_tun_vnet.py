"""The real TUN device with vnet headers: super-packets, and the native carrier on it."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator

import pytest
from zgate_datapath.engine import native_problem
from zgate_datapath.tun import VNET_HEADER_BYTES, Tun
from zgate_lab.lab import Lab, Namespace
from zgate_lab.waiting import wait_until
from zgate_protocol.icmp import checksum

GSO_UDP, GSO_TCP4 = 5, 1
NEEDS_CSUM = 1
UDP_SEGMENT = 103
MTU_BYTES = 1400
READ_BYTES = 70000


@pytest.fixture
def host(lab: Lab) -> Iterator[Namespace]:
    """A namespace; the test runs inside."""
    namespace = lab.add_namespace("host")
    with namespace.entered():
        yield namespace


@pytest.fixture
def tun(host: Namespace) -> Iterator[Tun]:
    """A TUN with vnet headers that is up and has an address."""
    opened = Tun.open("zgtest0", has_vnet_header=True)
    host.ip(f"link set zgtest0 mtu {MTU_BYTES} up")
    host.ip("address add 10.66.0.1/24 dev zgtest0")
    yield opened
    opened.close()


def vnet(read: bytes) -> tuple[int, int, int, int, int, int]:
    """flags, gso_type, hdr_len, gso_size, csum_start, csum_offset (struct virtio_net_hdr)."""
    return struct.unpack("<BBHHHH", read[:VNET_HEADER_BYTES])


def next_ipv4(tun: Tun, protocol: int) -> bytes:
    """The next read that holds an IPv4 packet of this protocol; the kernel sends others, too."""
    found: list[bytes] = []

    def look() -> bool:
        while select.select([tun.fd], [], [], 0)[0]:
            read = os.read(tun.fd, READ_BYTES)
            if read[VNET_HEADER_BYTES] >> 4 == 4 and read[VNET_HEADER_BYTES + 9] == protocol:
                found.append(read)
                return True
        return False

    wait_until(look, 10.0, "a packet from the kernel")
    return found[0]


def udp_packet(payload: bytes) -> bytes:
    source, destination = (socket.inet_aton(one) for one in ("10.66.0.9", "10.66.0.1"))
    upper = b"\x30\x39\x30\x39" + (8 + len(payload)).to_bytes(2, "big") + b"\0\0" + payload
    head = b"\x45\0" + (20 + len(upper)).to_bytes(2, "big") + b"\0\1\0\0\x40\x11"
    total = checksum(head + b"\0\0" + source + destination).to_bytes(2, "big")
    return head + total + source + destination + upper


def test_the_kernel_takes_and_gives_super_packets(tun: Tun) -> None:
    assert tun.has_vnet_header
    assert tun.takes_tcp


def test_every_read_begins_with_a_header(tun: Tun) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x" * 50, ("10.66.0.9", 53))
    read = next_ipv4(tun, socket.IPPROTO_UDP)
    flags, gso_type, _, _, start, offset = vnet(read)
    assert gso_type == 0
    assert flags & NEEDS_CSUM, "with offloads the checksum is left to us"
    assert (start, offset) == (20, 6)
    assert len(read) == VNET_HEADER_BYTES + 28 + 50


def test_a_tcp_super_packet_comes_in_one_read(tun: Tun) -> None:
    """What a bulk sender's kernel hands out: far above the MTU, with the segments' size."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sender:
        sender.setblocking(False)
        sender.connect_ex(("10.66.0.9", 80))
        syn = next_ipv4(tun, socket.IPPROTO_TCP)[VNET_HEADER_BYTES:]
        assert tun.write(_syn_ack(syn))
        wait_until(lambda: select.select([], [sender], [], 0)[1], 10.0, "the connection")
        sender.send(bytes(20000))
        sizes = []
        while not sizes or sizes[-1][0] <= MTU_BYTES:
            read = next_ipv4(tun, socket.IPPROTO_TCP)
            sizes.append((len(read) - VNET_HEADER_BYTES, *vnet(read)))
    size, flags, gso_type, header_bytes, gso_size, start, offset = sizes[-1]
    assert size - header_bytes >= 2 * gso_size  # TCP makes them small after a slow handshake
    assert (gso_type, flags & NEEDS_CSUM, start, offset) == (GSO_TCP4, NEEDS_CSUM, 20, 16)
    assert header_bytes + gso_size <= MTU_BYTES


def _syn_ack(syn: bytes) -> bytes:
    source, destination = syn[16:20], syn[12:16]
    sequence = int.from_bytes(syn[24:28], "big")
    tcp = (
        syn[22:24] + syn[20:22] + bytes(4) + (sequence + 1).to_bytes(4, "big")
        + b"\x60\x12\xff\xff\0\0\0\0" + b"\x02\x04" + (MTU_BYTES - 40).to_bytes(2, "big")
    )  # fmt: skip
    pseudo = source + destination + b"\0\6" + len(tcp).to_bytes(2, "big")
    tcp = tcp[:16] + checksum(pseudo + tcp).to_bytes(2, "big") + tcp[18:]
    head = b"\x45\0" + (20 + len(tcp)).to_bytes(2, "big") + b"\0\1\0\0\x40\x06"
    total = checksum(head + b"\0\0" + source + destination).to_bytes(2, "big")
    return head + total + source + destination + tcp


def test_udp_super_packets_where_the_kernel_has_them(tun: Tun) -> None:
    if not tun.takes_udp:
        pytest.skip("this kernel's TUN has no USO (Linux 6.2)")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 1000)
        sender.sendto(bytes(5500), ("10.66.0.9", 53))
    read = next_ipv4(tun, socket.IPPROTO_UDP)
    _, gso_type, _, gso_size, _, _ = vnet(read)
    assert (gso_type, gso_size) == (GSO_UDP, 1000)
    assert len(read) == VNET_HEADER_BYTES + 28 + 5500


def test_what_is_written_reaches_a_socket(tun: Tun) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("10.66.0.1", 12345))
        receiver.settimeout(10)
        assert tun.write(udp_packet(b"hello"))
        assert receiver.recvfrom(100) == (b"hello", ("10.66.0.9", 12345))


def test_every_queue_has_the_headers(host: Namespace) -> None:
    queues = Tun.open_queues("zgtest1", 2, has_vnet_header=True)
    host.ip("link set zgtest1 up")
    assert all(queue.has_vnet_header and queue.takes_tcp for queue in queues)
    for queue in queues:
        assert queue.write(udp_packet(b"x"))
        queue.close()


# The native carrier on the real device.


@pytest.mark.skipif(bool(native_problem()), reason="the native engine is not built")
def test_the_carrier_reports_what_is_for_nobody_and_a_device_that_goes(
    host: Namespace, tun: Tun
) -> None:
    from zgate_datapath import _native

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("10.66.0.1", 0))
        carrier = _native.Carrier(udp.fileno(), 8)
        carrier.set_tun(tun.fd, tun.takes_tcp, tun.takes_udp)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"for nobody", ("10.66.0.9", 53))
        reads: list[bytes] = []

        def look() -> bool:
            reads.extend(
                data
                for kind, session, data, *_ in carrier.run(1_000_000)[1]
                if kind == _native.REPORT_READ and session is None
            )
            return any(b"for nobody" in read for read in reads)

        wait_until(look, 10.0, "the report")
        assert carrier.counters()["no_session"] >= 1
        assert not carrier.tun_is_gone()
        host.ip("link delete zgtest0")
        wait_until(lambda: carrier.run(1_000_000) and carrier.tun_is_gone(), 10.0, "the end")
        # ... and it is not read again and again.
        before = carrier.counters()["tun_reads"]
        carrier.run(1_000_000)
        assert carrier.counters()["tun_reads"] == before
        carrier.set_tun(-1, False, False)
