"""Real traffic to a service: sockets at both ends, three kernels, super-packets, both families."""

import contextlib
import hashlib
import os
import socket
import threading

import pytest
from bpf_support.device import WAIT_S
from bpf_support.policies import allow
from bpf_support.service_world import ALICES, FIRST, LEFT, OFFERS, VIPS
from bpf_support.site import MTU_BYTES, Site
from bpf_support.world import ALICE, World
from zgate_bpf.kernel_policy import KernelPolicy
from zgate_bpf.services import OfferUse
from zgate_lab.lab import Lab
from zgate_lab.waiting import wait_until
from zgate_protocol.drop_reason import DropReason as Reason

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
AF = {4: socket.AF_INET, 6: socket.AF_INET6}
PORT = 104
MEGABYTES = 16
PATH_MTU_BYTES = 1300
PIECE = os.urandom(1 << 20)


@pytest.fixture
def site():
    with contextlib.ExitStack() as undo:
        lab, kernel = (
            undo.enter_context(Lab()),
            undo.enter_context(KernelPolicy(max_clients=128, max_flows=1024)),
        )
        World(kernel, 0).policy(allow("0.0.0.0/0", "::/0"))
        made = Site(lab, kernel)
        undo.callback(made.close)
        yield made


def dropped(site):
    """What was; but for what every host says to its neighbours when a link comes up."""
    drops = site.kernel.drops()
    return {reason: n for reason, n in drops.items() if n and reason is not Reason.LINK_LOCAL}


def opened(namespace, family, kind):
    with namespace.entered():
        made = socket.socket(AF[family], kind)
    made.settimeout(WAIT_S)
    return made


def send_all(sock):
    """So much, and then the end of it; gives its hash."""
    digest = hashlib.sha256()
    for _ in range(MEGABYTES):
        sock.sendall(PIECE)
        digest.update(PIECE)
    sock.shutdown(socket.SHUT_WR)
    return digest.digest()


def receive_all(sock):
    digest = hashlib.sha256()
    while data := sock.recv(1 << 16):
        digest.update(data)
    return digest.digest()


def serve_once(listener, answers):
    connection, peer = listener.accept()
    with connection:
        connection.settimeout(WAIT_S)
        answers += [peer[0], receive_all(connection), send_all(connection)]


def settled_counters(site):
    """The connector's and the client's, once the last ACK is no longer under way between them."""

    def same():
        left, alice = site.kernel.counters(LEFT), site.kernel.counters(ALICE)
        up = (left.up_packets, left.up_bytes) == (alice.down_packets, alice.down_bytes)
        down = (left.down_packets, left.down_bytes) == (alice.up_packets, alice.up_bytes)
        return (left, alice) if up and down else None

    return wait_until(same, WAIT_S, "what one of them sent to be what the other one got")


@FAMILIES
@pytest.mark.timeout(120)
def test_tcp_both_ways(site, family):
    """Half-closed in between; each side sees the address that it knows the other by."""
    answers = []
    listener = opened(site.connector, family, socket.SOCK_STREAM)
    client = opened(site.client, family, socket.SOCK_STREAM)
    with listener, client:
        listener.bind((OFFERS[FIRST][family], PORT))
        listener.listen()
        thread = threading.Thread(target=serve_once, args=(listener, answers))
        thread.start()
        client.connect((VIPS[family], PORT))
        sent = send_all(client)
        received = receive_all(client)
        thread.join()
    assert answers == [ALICES[family], sent, received]
    assert not site.wrong, site.wrong[:3]
    for name in ("client", "connector"):
        assert site.passed[name, family, "super-packets"] > 0
    segments = MEGABYTES * (1 << 20) // MTU_BYTES
    left, alice = settled_counters(site)
    assert min(left.up_packets, left.down_packets) > segments
    assert (left.flows, alice.flows) == (1, 1)
    assert dropped(site) == {}


@FAMILIES
def test_udp_in_fragments(site, family):
    """Taken apart and put together again by every kernel on the way."""
    question, reply = os.urandom(6_000), os.urandom(5_000)
    server = opened(site.connector, family, socket.SOCK_DGRAM)
    client = opened(site.client, family, socket.SOCK_DGRAM)
    with server, client:
        server.bind((OFFERS[FIRST][family], PORT))
        client.connect((VIPS[family], PORT))
        client.send(question)
        data, peer = server.recvfrom(10_000)
        assert (data, peer[0]) == (question, ALICES[family])
        server.sendto(reply, peer)
        assert client.recv(10_000) == reply
    assert not site.wrong, site.wrong[:3]
    assert dropped(site) == {}


@FAMILIES
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_closed_port_is_refused_at_once(site, family, kind):
    """TCP by a reset; UDP by an ICMP error, which the client's kernel finds its socket by."""
    with opened(site.client, family, kind) as client, pytest.raises(ConnectionRefusedError):
        client.connect((VIPS[family], PORT + 1))
        client.send(b"anybody?")
        client.recv(10)
    assert not site.wrong, site.wrong[:3]


@FAMILIES
@pytest.mark.parametrize("receiver", ["connector", "client"])
def test_too_large_for_the_rest_of_the_way(site, family, receiver):
    """Whoever sent it is told, about the addresses that it knows: its next packets are smaller."""
    server = opened(site.connector, family, socket.SOCK_DGRAM)
    client = opened(site.client, family, socket.SOCK_DGRAM)
    with server, client:
        server.bind((OFFERS[FIRST][family], PORT))
        client.connect((VIPS[family], PORT))
        client.send(b"x" * 1300)
        server.connect(server.recvfrom(2000)[1])
        server.send(b"x" * 1300)
        client.recv(2000)
        site.tell_too_big(receiver, family, PATH_MTU_BYTES)
        told = client if receiver == "connector" else server
        wait_until(lambda: path_mtu(told, family) == PATH_MTU_BYTES, WAIT_S, "a smaller path")
    assert dropped(site) == {}


def path_mtu(sock, family):
    level, option = ((socket.IPPROTO_IP, 14), (socket.IPPROTO_IPV6, 24))[family == 6]
    return sock.getsockopt(level, option)


@FAMILIES
def test_nobody_offers_it(site, family):
    """The packet comes out of the TUN as it was sent, for its reader to answer."""
    site.kernel.services.use_offer(FIRST, OfferUse.GONE, 0)
    with opened(site.client, family, socket.SOCK_DGRAM) as client:
        client.connect((VIPS[family], PORT))
        client.send(b"anybody?")
        wait_until(lambda: site.returned, WAIT_S, "the packet")
    (packet,) = site.returned
    assert packet.endswith(b"anybody?")
    assert dropped(site) == {Reason.NO_BACKEND: 1}
    assert not site.wrong


@FAMILIES
def test_ping(site, family):
    done = site.client.run("ping", "-c", "2", "-i", "0.05", "-W", "5", VIPS[family])
    assert "2 received" in done.stdout
    assert not site.wrong
