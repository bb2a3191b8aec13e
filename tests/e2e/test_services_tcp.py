"""TCP through an application connector is the kernel's: what an application does is what happens.

The test holds both ends of each connection: the client's on the device, the backend's in the
private network.
"""

from __future__ import annotations

import errno
import hashlib
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from e2e_support.service_world import ServiceWorld, connect, listen
from zgate_lab.backend_server import ECHO_PORT
from zgate_lab.waiting import SLOWNESS, wait_until

GIB = 1 << 30
CHUNK_BYTES = 1 << 20
PORT = 9000
NOBODYS_PORT = 9009
FLOWS = 500
TIMEOUT_S = 60.0


@pytest.fixture
def world(service_world: ServiceWorld) -> Iterator[ServiceWorld]:
    service_world.start_both()
    return service_world


class Pair:
    """Both ends of one TCP connection through the connector."""

    def __init__(self, world: ServiceWorld, port: int = PORT, version: int = 4) -> None:
        with listen(world.sites[0], port) as listener:
            self.client = connect(world.alice, world.vip("raw", version), port)
            self.backend, _ = listener.accept()
        for end in (self.client, self.backend):
            end.settimeout(TIMEOUT_S)

    def __enter__(self) -> tuple[socket.socket, socket.socket]:
        return self.client, self.backend

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.backend.close()


def reset(end: socket.socket) -> None:
    """Close with a RST."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


def block(number: int) -> bytes:
    """A mebibyte that says which one it is, so that none can take another's place."""
    return number.to_bytes(8) * (CHUNK_BYTES // 8)


def send_all(sender: socket.socket, size_bytes: int) -> bytes:
    digest = hashlib.sha256()
    for number in range(size_bytes // CHUNK_BYTES):
        data = block(number)
        digest.update(data)
        sender.sendall(data)
    sender.shutdown(socket.SHUT_WR)
    return digest.digest()


def receive_all(receiver: socket.socket) -> tuple[int, bytes]:
    digest, size_bytes = hashlib.sha256(), 0
    while data := receiver.recv(CHUNK_BYTES):
        digest.update(data)
        size_bytes += len(data)
    return size_bytes, digest.digest()


@pytest.mark.parametrize("upwards", [True, False], ids=["up", "down"])
def test_a_gibibyte_arrives_as_it_was_sent(world: ServiceWorld, upwards: bool) -> None:
    with Pair(world) as ends, ThreadPoolExecutor(2) as pool:
        sender, receiver = ends if upwards else ends[::-1]
        sent = pool.submit(send_all, sender, GIB)
        received = pool.submit(receive_all, receiver)
        assert received.result() == (GIB, sent.result())


@pytest.mark.parametrize("version", [4, 6])
def test_both_ways_at_once(world: ServiceWorld, version: int) -> None:
    size_bytes = 32 * CHUNK_BYTES
    with Pair(world, version=version) as ends, ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(send_all, end, size_bytes) for end in ends]
        received = [pool.submit(receive_all, end) for end in ends[::-1]]
        for one, other in zip(sent, received, strict=True):
            assert other.result() == (size_bytes, one.result())


def test_half_close_towards_the_backend(world: ServiceWorld) -> None:
    """As `ssh host sort < file`: all is sent, then the answer begins."""
    with Pair(world) as (client, backend):
        client.sendall(b"b\na\n")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(backend)[0] == 4
        for _ in range(3):  # and the other direction goes on for as long as it likes
            backend.sendall(b"a\nb\n")
            assert client.recv(100) == b"a\nb\n"
        backend.close()
        assert client.recv(100) == b""


def test_half_close_towards_the_client(world: ServiceWorld) -> None:
    with Pair(world) as (client, backend):
        backend.sendall(b"220 bye")
        backend.shutdown(socket.SHUT_WR)
        assert receive_all(client)[0] == 7
        client.sendall(b"still here")
        assert backend.recv(100) == b"still here"
        client.close()
        assert backend.recv(100) == b""


def test_a_backend_that_dies_in_the_middle_resets_the_client(world: ServiceWorld) -> None:
    with Pair(world) as (client, backend):
        backend.sendall(b"x" * 1000)
        assert client.recv(1000, socket.MSG_WAITALL) == b"x" * 1000
        reset(backend)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_client_that_dies_in_the_middle_resets_the_backend(world: ServiceWorld) -> None:
    with Pair(world) as (client, backend):
        client.sendall(b"x" * 1000)
        assert backend.recv(1000, socket.MSG_WAITALL) == b"x" * 1000
        reset(client)
        with pytest.raises(ConnectionResetError):
            backend.recv(1)


def test_a_backend_that_refuses_resets_the_client_at_once(world: ServiceWorld) -> None:
    began_s = time.monotonic()
    with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
        connect(world.alice, world.vip("raw"), NOBODYS_PORT).recv(1)
    assert time.monotonic() - began_s < 3.0 * SLOWNESS  # not by a timeout


def test_a_port_that_is_not_offered_is_refused(world: ServiceWorld) -> None:
    began_s = time.monotonic()
    with pytest.raises(OSError) as refused:
        connect(world.alice, world.vip("raw"), 9999, timeout_s=5.0)
    assert refused.value.errno in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EACCES)
    assert time.monotonic() - began_s < 3.0 * SLOWNESS  # not by a timeout


@pytest.mark.parametrize("upwards", [True, False], ids=["up", "down"])
def test_a_slow_reader_stops_the_sender_and_loses_nothing(
    world: ServiceWorld, upwards: bool
) -> None:
    """Nobody between them holds more than its buffers; what was taken arrives."""
    with Pair(world) as ends:
        sender, receiver = ends if upwards else ends[::-1]
        sender.setblocking(False)
        sent_bytes = 0
        while more := fill(sender):  # once more: somebody between may just have had no core
            sent_bytes += more
        assert 100_000 < sent_bytes < 64 << 20
        # A time without room: it is the sender that waits, and not the kernel that is slow.
        assert not select.select([], [sender], [], 0.5)[1]
        taken_bytes = 0
        while taken_bytes < sent_bytes:
            taken_bytes += len(receiver.recv(CHUNK_BYTES))
        assert taken_bytes == sent_bytes
        assert select.select([], [sender], [], 10.0)[1], "there is room again"


def fill(sender: socket.socket) -> int:
    """Send until there has been no room for a while; how much was taken."""
    sent_bytes = 0
    while select.select([], [sender], [], 0.7)[1]:
        try:
            sent_bytes += sender.send(b"\0" * 65536)
        except BlockingIOError:
            continue
    return sent_bytes


def test_five_hundred_connections_at_once(world: ServiceWorld) -> None:
    address = world.vip("echo")
    payloads = [f"flow {number} ".encode() * 20 for number in range(FLOWS)]
    with ThreadPoolExecutor(16) as pool:
        clients = list(pool.map(lambda _: connect(world.alice, address, ECHO_PORT), payloads))
    try:
        for client, payload in zip(clients, payloads, strict=True):
            client.sendall(payload)
        for client, payload in zip(clients, payloads, strict=True):
            assert client.recv(len(payload), socket.MSG_WAITALL) == payload
        wait_until(
            lambda: sum(one["open_flows"] for one in offers(world, "echo")) >= FLOWS,
            10.0,
            "the open flows to be shown",
        )
        shares = [one["open_flows"] for one in offers(world, "echo")]
        assert min(shares) > FLOWS / 4, f"both connectors have their share: {shares}"
    finally:
        for client in clients:
            client.close()
    wait_until(
        lambda: sum(one["open_flows"] for one in offers(world, "echo")) == 0,
        10.0,
        "closed flows to be forgotten",
    )


def offers(world: ServiceWorld, name: str) -> list[dict[str, int]]:
    """The offers of a service, by whichever connector."""
    return [
        one
        for connector in ("east", "west")
        for one in world.connectors.seen(connector).get("services", ())
        if one["name"] == name
    ]


def test_bytes_are_counted_both_ways(world: ServiceWorld) -> None:
    def moved() -> tuple[int, int]:
        (one,) = offers(world, "raw")
        return one["bytes_up"], one["bytes_down"]

    up, down = moved()
    with Pair(world) as (client, backend):
        client.sendall(b"u" * 5000)
        assert backend.recv(5000, socket.MSG_WAITALL) == b"u" * 5000
        backend.sendall(b"d" * 300)
        assert client.recv(300, socket.MSG_WAITALL) == b"d" * 300
    wait_until(lambda: moved() == (up + 5000, down + 300), 5.0, "the bytes to be counted")


def test_new_flows_are_limited_for_each_source(world: ServiceWorld) -> None:
    """Ten SYNs at once of which five may pass: the others come through later, by TCP's retry."""
    site = world.sites[0]
    world.connectors.start(
        "stranger",
        site.connector,
        services=[
            {"id": "extra-only", "protocol": "tcp", "ports": [7], "backend": str(site.backend.ipv4)}
        ],
        limits={"new_flows_per_s": 5},
    )
    try:
        address = world.vip("extra-only")
        took: list[float] = []

        def one(_: int) -> None:
            began_s = time.monotonic()
            connect(world.alice, address, 7).close()
            took.append(time.monotonic() - began_s)

        threads = [threading.Thread(target=one, args=(number,)) for number in range(15)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        assert len(took) == 15, "each came through in the end"
        assert sum(1 for one_s in took if one_s < 0.5) <= 12
        assert max(took) > 0.9, "some waited for a second SYN"
    finally:
        world.connectors.stop("stranger")
