"""The steering programs on real sockets and a real TUN: every packet where its owner reads it."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest
from zgate_bpf.errors import BpfLoadError, CapacityError
from zgate_bpf.steering import Steering
from zgate_bpf.steering_tables import OwnerLookup
from zgate_datapath.connection_ids import ConnectionIds
from zgate_datapath.tun import Tun, TunError
from zgate_datapath.udp import UdpSocket
from zgate_lab.lab import Lab, Namespace

WORKERS = 3
PER_WORKER = 100
SECRET = bytes(range(32))
IDS = [ConnectionIds(SECRET, worker, WORKERS) for worker in range(WORKERS)]
HOSTS = ["10.66.0.9", "10.66.1.8", "10.66.255.7", "fd66::9", "fd66::a:1", "fd66:0:0:1::9"]


@pytest.fixture(scope="module")
def steering() -> Iterator[Steering]:
    mask = IDS[0].mask
    made = Steering(
        workers=WORKERS, mask_factor=mask.factor, mask_offset=mask.offset, max_addresses=16
    )
    yield made
    made.close()


@pytest.fixture
def host(lab: Lab) -> Iterator[Namespace]:
    """A namespace; the test runs inside."""
    namespace = lab.add_namespace("host")
    namespace.ip("link set lo up")
    with namespace.entered():
        yield namespace


@pytest.fixture(params=["127.0.0.1", "::"])
def port(request: pytest.FixtureRequest, host: Namespace, steering: Steering) -> Iterator[Port]:
    made = Port(request.param, steering)
    yield made
    made.close()


class Port:
    """A port with one socket for each worker, and senders that each have a port of their own."""

    def __init__(self, address: str, steering: Steering) -> None:
        self.sockets = UdpSocket.bind_group(address, 0, WORKERS)
        steering.steer_sockets([one.fileno() for one in self.sockets])
        self._number = self.sockets[0].local_address[1]
        self._hosts = ["127.0.0.1", "::1"] if address == "::" else [address]
        self._count = 0

    def send(self, packet: bytes) -> None:
        """From another address or port, so by another hash, each time."""
        self._count += 1
        to = self._hosts[self._count % len(self._hosts)]
        family = socket.AF_INET6 if ":" in to else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.sendto(packet, (to, self._number))

    def received(self) -> list[list[bytes]]:
        """What each worker has: loopback delivers before a send returns."""
        return [
            [packet for packets, _ in one.receive_batch(2000) for packet in packets]
            for one in self.sockets
        ]

    def close(self) -> None:
        for one in self.sockets:
            one.close()


@pytest.mark.parametrize("first", [0x40, 0x7F, 0xC0, 0xE0])
def test_an_id_that_a_worker_issued_reaches_it_from_everywhere(port: Port, first: int) -> None:
    head = bytes([first]) + (b"\0\0\0\1\x08" if first & 0x80 else b"")
    sent: list[list[bytes]] = [[] for _ in range(WORKERS)]
    for _ in range(PER_WORKER):
        for worker, ids in enumerate(IDS):
            packet = head + ids.issue() + os.urandom(40)
            sent[worker].append(packet)
            port.send(packet)
    assert port.received() == sent


def test_what_names_nobody_is_spread_and_nothing_is_lost(port: Port) -> None:
    foreign = ConnectionIds(SECRET, 200, 256)
    packets = [
        *(b"\xc0\0\0\0\1\x08" + foreign.issue() + bytes(40) for _ in range(150)),
        *(b"\xc0\0\0\0\1\x14" + IDS[0].issue() + bytes(40) for _ in range(150)),
        *(b"\xc0\0\0\0\1\x00" + IDS[0].issue() + bytes(40) for _ in range(150)),
        b"",
        b"\x40",
        b"\xc0\0\0\0",
        b"\xc0\0\0\0\1\x08abc",
        b"\x40" + IDS[0].issue()[:7],
    ]
    for packet in packets:
        port.send(packet)
    received = port.received()
    assert sorted(one for each in received for one in each) == sorted(packets)
    assert all(len(each) > 50 for each in received)


def test_an_unnamed_connection_stays_where_it_began(port: Port) -> None:
    packet = b"\xc0\0\0\0\1\x08" + ConnectionIds(SECRET, 200, 256).issue() + bytes(40)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(50):
            sender.sendto(packet, ("127.0.0.1", port.sockets[0].local_address[1]))
    assert sorted(map(len, port.received())) == [0, 0, 50]


def test_one_socket_can_be_steered_too(host: Namespace) -> None:
    ids = ConnectionIds(SECRET)
    steering = Steering(
        workers=1, mask_factor=ids.mask.factor, mask_offset=ids.mask.offset, max_addresses=1
    )
    (only,) = UdpSocket.bind_group("127.0.0.1", 0, 1)
    steering.steer_sockets([only.fileno()])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"\x40" + ids.issue(), only.local_address)
        sender.sendto(b"\x40" + os.urandom(8), only.local_address)
    assert sum(len(packets) for packets, _ in only.receive_batch(10)) == 2
    only.close()
    steering.close()


def test_more_sockets_than_workers_are_left_alone(host: Namespace, steering: Steering) -> None:
    sockets = UdpSocket.bind_group("127.0.0.1", 0, 4 * WORKERS)
    steering.steer_sockets([one.fileno() for one in sockets[:WORKERS]])
    foreign = ConnectionIds(SECRET, 200, 256)
    for packet in (b"\xc0\0\0\0\1\x08" + foreign.issue() + bytes(40), b"", b"\x40"):
        for _ in range(PER_WORKER):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(packet, sockets[0].local_address)
    counts = [sum(len(packets) for packets, _ in one.receive_batch(2000)) for one in sockets]
    assert sum(counts[:WORKERS]) == 3 * PER_WORKER
    assert counts[WORKERS:] == [0] * 3 * WORKERS
    for one in sockets:
        one.close()


def test_a_port_that_outlives_its_steering_is_steered_anew(host: Namespace) -> None:
    """As at a restart under a service manager, which keeps the sockets."""
    ids = [ConnectionIds(SECRET, worker, 2) for worker in range(2)]
    sockets = UdpSocket.bind_group("127.0.0.1", 0, 4)
    for _ in range(3):
        mask = ids[0].mask
        steering = Steering(
            workers=2, mask_factor=mask.factor, mask_offset=mask.offset, max_addresses=1
        )
        steering.steer_sockets([one.fileno() for one in sockets[:2]])
        steering.close()  # the program stays with the port, and the array with the program
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for one in ids:
                sender.sendto(b"\x40" + one.issue() + bytes(20), sockets[0].local_address)
        counts = [sum(len(packets) for packets, _ in one.receive_batch(10)) for one in sockets]
        assert counts == [1, 1, 0, 0]
    for one in sockets:
        one.close()


def test_sockets_of_no_group_are_refused(steering: Steering) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as lone,
        pytest.raises(OSError, match="MAP_UPDATE"),
    ):
        steering.steer_sockets([lone.fileno()])


def test_a_mask_of_no_sense_is_told() -> None:
    with pytest.raises(BpfLoadError, match="steering"):
        Steering(workers=0, mask_factor=1, mask_offset=0, max_addresses=1)


# The TUN.


@pytest.fixture(params=[False, True], ids=["plain", "vnet header"])
def queues(
    request: pytest.FixtureRequest, host: Namespace, steering: Steering
) -> Iterator[list[Tun]]:
    made = Tun.open_queues("zgtest0", WORKERS, has_vnet_header=request.param)
    made[0].steer(steering.tun_fd)
    host.ip("link set zgtest0 mtu 1400 up")
    host.ip("address add 10.66.0.1/16 dev zgtest0")
    host.ip("address add fd66::1/48 dev zgtest0 nodad")
    drain(made)
    yield made
    for queue in made:
        queue.close()
    for address in map(ip_address, HOSTS):
        for worker in range(WORKERS):
            steering.owners.release(address, worker)


def drain(queues: list[Tun]) -> list[list[bytes]]:
    found: list[list[bytes]] = [[] for _ in queues]
    while select.select([queue.fd for queue in queues], [], [], 0.2)[0]:
        for queue, packets in zip(queues, found, strict=True):
            packets.extend(queue.read_batch(100))
    return found


def send_to(address: str, payload: bytes) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.sendto(payload, (address, 53))


def payloads_of(queues: list[Tun]) -> list[list[bytes]]:
    """What each queue has, by the 4 bytes at its end; the kernel's own packets left out."""
    return [[one[-8:] for one in each if b"steered:" in one] for each in drain(queues)]


def lookup_of(steering: Steering) -> OwnerLookup:
    """As a worker has it, with descriptors of its own."""
    return OwnerLookup(os.dup(steering.owners.fd), os.dup(steering.owners.networks_fd))


@pytest.mark.parametrize("shift", range(WORKERS))
def test_packets_for_an_address_go_to_its_workers_queue(
    queues: list[Tun], steering: Steering, shift: int
) -> None:
    expected: list[list[bytes]] = [[] for _ in queues]
    for number, address in enumerate(HOSTS):
        worker = (number + shift) % WORKERS
        steering.owners.assign(ip_address(address), worker)
        for count in range(20):
            payload = b"steered:" + bytes([number, count]) + b"012345"
            send_to(address, payload)
            expected[worker].append(payload[-8:])
    assert payloads_of(queues) == expected


def test_an_address_can_change_hands(queues: list[Tun], steering: Steering) -> None:
    address = ip_address(HOSTS[0])
    lookup = lookup_of(steering)
    assert lookup.owner_of(address.packed) is None
    for worker in (2, 1, 0, 2):
        steering.owners.assign(address, worker)
        assert lookup.owner_of(address.packed) == worker
        send_to(HOSTS[0], b"steered:xxxxxxxx")
        assert [len(each) for each in payloads_of(queues)] == [
            int(worker == index) for index in range(WORKERS)
        ]
    # Whoever does not own it any more gives up nothing.
    steering.owners.release(address, 1)
    assert lookup.owner_of(address.packed) == 2
    steering.owners.release(address, 2)
    assert lookup.owner_of(address.packed) is None
    send_to(HOSTS[0], b"steered:xxxxxxxx")
    assert [len(each) for each in payloads_of(queues)] == [1, 0, 0]
    lookup.close()


@pytest.mark.parametrize(
    ("wide", "narrow", "inside", "beside", "family_bits"),
    [
        ("10.66.0.0/17", "10.66.2.0/23", "10.66.3.9", "10.66.4.9", 32),
        ("fd66::/60", "fd66:0:0:2::/63", "fd66:0:0:3::9", "fd66:0:0:4::9", 128),
    ],
    ids=["ipv4", "ipv6"],
)
def test_networks_go_to_the_worker_of_the_longest_prefix(
    queues: list[Tun],
    steering: Steering,
    wide: str,
    narrow: str,
    inside: str,
    beside: str,
    family_bits: int,
) -> None:
    owners, lookup = steering.owners, lookup_of(steering)

    def asked(address: str) -> int | None:
        """What the lookup says, if the kernel does the same; its queue 0 is for nobody's, too."""
        said = lookup.owner_of(ip_address(address).packed)
        send_to(address, b"steered:xxxxxxxx")
        found = [len(each) for each in payloads_of(queues)]
        assert found == [int((said or 0) == index) for index in range(WORKERS)]
        return said

    try:
        assert asked(inside) is None
        owners.assign_network(ip_network(wide), 1)
        owners.assign_network(ip_network(narrow), 2)
        assert (asked(inside), asked(beside)) == (2, 1)
        owners.assign(ip_address(inside), 1)  # an address of its own comes first
        assert asked(inside) == 1
        owners.release(ip_address(inside), 1)
        owners.release_network(ip_network(narrow), 1)  # not its owner
        assert asked(inside) == 2
        owners.release_network(ip_network(narrow), 2)
        owners.release_network(ip_network(narrow), 2)
        assert asked(inside) == 1
        owners.assign_network(ip_network(wide), 2)
        assert asked(beside) == 2
        other = "::/0" if family_bits == 32 else "0.0.0.0/0"
        owners.assign_network(ip_network(other), 1)  # not of this family
        owners.release_network(ip_network(wide), 2)
        assert asked(beside) is None
        owners.release_network(ip_network(other), 1)
    finally:
        lookup.close()


def test_a_full_table_says_so(steering: Steering) -> None:
    addresses = [ip_address("10.9.0.0") + number for number in range(17)]
    with pytest.raises(CapacityError, match="zg_owners"):
        for address in addresses:
            steering.owners.assign(address, 0)
    for address in addresses:
        steering.owners.release(address, 0)


def test_no_other_process_joins_the_device(queues: list[Tun]) -> None:
    with pytest.raises(TunError, match="another process holds it"):
        Tun.open_queues("zgtest0", 1)
    with pytest.raises(TunError, match="a link of another kind"):
        Tun.open("zgtest0")


def test_a_program_of_another_kind_steers_nothing(queues: list[Tun]) -> None:
    with pytest.raises(TunError, match="cannot steer"):
        queues[0].steer(queues[0].fd)


def test_the_device_goes_with_its_last_queue(host: Namespace) -> None:
    queues = Tun.open_queues("zgtest1", 2)
    queues[0].close()
    assert "zgtest1" in host.run("ip", "-o", "link").stdout
    queues[1].close()
    assert "zgtest1" not in host.run("ip", "-o", "link").stdout
