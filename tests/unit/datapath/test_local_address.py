"""Which of the host's addresses packets come to, and answers leave from."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from zgate_datapath.local_address import (
    Address,
    answer_from,
    local_address,
    local_host,
    with_local_host,
)
from zgate_datapath.udp import UdpSocket, format_address, udp_overhead_bytes

# All of 127.0.0.0/8 is the host's; the kernel answers from 127.0.0.1 if nobody tells it better.
DIALLED = ("127.0.0.1", "127.0.0.2", "127.0.0.77")
IPV4, IPV6 = socket.AF_INET, socket.AF_INET6

PEER4, PEER6 = ("192.0.2.9", 4711), ("2001:db8::9", 4711, 0, 0)


def pktinfo6(host: str, interface: int) -> tuple[int, int, bytes]:
    packed = socket.inet_pton(IPV6, host)
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, packed + interface.to_bytes(4, "little")


def pktinfo4(host: str, interface: int) -> tuple[int, int, bytes]:
    packed = socket.inet_aton(host)
    return socket.IPPROTO_IP, 8, interface.to_bytes(4, "little") + packed + packed


# The form.


@pytest.mark.parametrize(
    ("control", "host", "interface"),
    [
        (pktinfo4("192.0.2.1", 7), "192.0.2.1", 0),
        (pktinfo6("2001:db8::1", 7), "2001:db8::1", 0),
        (pktinfo6("::ffff:192.0.2.1", 7), "192.0.2.1", 0),
        (pktinfo6("fe80::1", 7), "fe80::1", 7),
        (pktinfo6("febf::1", 7), "febf::1", 7),
        (pktinfo6("fec0::1", 7), "fec0::1", 0),
    ],
    ids=["IPv4", "IPv6", "mapped", "link-local", "the last link-local", "no link-local"],
)
def test_routing_picks_the_interface_but_of_link_local_addresses(
    control: tuple[int, int, bytes], host: str, interface: int
) -> None:
    level, kind, _ = control
    (local,) = local_address(*control)
    address = (*PEER6, local)
    assert local_host(address) == host
    peer, ((sent_level, sent_kind, value),) = answer_from(address)
    assert (peer, sent_level, sent_kind) == (PEER6, level, kind)
    place = slice(0, 4) if level == socket.IPPROTO_IP else slice(16, 20)
    assert int.from_bytes(value[place], "little") == interface


def test_what_is_no_local_address_is_none() -> None:
    assert local_address(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, bytes(4)) == ()
    assert local_address(socket.IPPROTO_IP, socket.IP_TOS, bytes(1)) == ()
    assert local_address(socket.IPPROTO_UDP, 104, bytes(4)) == ()


@pytest.mark.parametrize("peer", [PEER4, PEER6])
def test_a_socket_of_one_address_has_nothing_to_say(peer: Address) -> None:
    assert answer_from(peer) == (peer, ())
    assert local_host(peer) == ""
    assert with_local_host(peer, "", IPV6) == peer


@pytest.mark.parametrize(
    ("host", "family", "kept"),
    [
        ("192.0.2.1", IPV4, "192.0.2.1"),
        ("192.0.2.1", IPV6, "192.0.2.1"),
        ("2001:db8::1", IPV6, "2001:db8::1"),
        ("2001:db8::1", IPV4, ""),
    ],
    ids=["IPv4", "IPv4 on a dual-stack socket", "IPv6", "IPv6 where there is none any more"],
)
def test_what_was_written_down_is_the_same_again(host: str, family: int, kept: str) -> None:
    address = with_local_host(PEER4, host, family)
    assert local_host(address) == kept
    assert address[:2] == PEER4
    if kept:
        received = pktinfo4 if family == IPV4 else pktinfo6
        seen = host if family == IPV4 or ":" in host else f"::ffff:{host}"
        assert address[2:] == local_address(*received(seen, 3))


def test_what_else_looks_at_addresses_takes_these() -> None:
    address = with_local_host(("::ffff:192.0.2.9", 4711, 0, 0), "192.0.2.1", IPV6)
    assert format_address(address) == "192.0.2.9:4711"
    assert udp_overhead_bytes(address) == 28


# Real sockets.


@contextmanager
def dialled(wildcard: str, host: str) -> Iterator[tuple[socket.socket, UdpSocket]]:
    """A client that hears only the address that it has dialled, and a server at all of them."""
    with closing(UdpSocket.bind(wildcard, 0)) as server:
        family = IPV6 if ":" in host else IPV4
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.settimeout(5.0)
            client.connect((host, server.local_address[1]))
            yield client, server


def received(server: UdpSocket) -> list[tuple[list[bytes], Address]]:
    assert select.select([server.fileno()], [], [], 5.0)[0]
    return list(server.receive_batch(16))


@pytest.mark.parametrize(
    ("wildcard", "host"),
    [
        *(("0.0.0.0", host) for host in DIALLED),
        *(("::", host) for host in (*DIALLED, "::1")),
    ],
)
@pytest.mark.parametrize(
    "sizes", [[9], [1200] * 64, [1200, 1200, 80, 5]], ids=["one", "GSO", "mixed"]
)
def test_an_answer_leaves_from_where_the_question_came_to(
    wildcard: str, host: str, sizes: list[int]
) -> None:
    with dialled(wildcard, host) as (client, server):
        client.send(b"hello")
        ((packets, address),) = received(server)
        assert packets == [b"hello"]
        assert local_host(address) == host
        assert address[:-1] == server_view(client, server)
        assert server.send_batch([bytes(size) for size in sizes], address)
        assert [len(client.recv(2000)) for _ in sizes] == sizes
        assert server.dropped_on_send == 0


def server_view(client: socket.socket, server: UdpSocket) -> Address:
    """What the kernel calls the client, without our own end."""
    name: Address = client.getsockname()
    if ":" in str(name[0]) or ":" not in str(server.local_address[0]):
        return name
    return (f"::ffff:{name[0]}", name[1], 0, 0)


@pytest.mark.parametrize("host", ["127.0.0.2", "::1"])
def test_a_socket_of_one_address_is_not_asked(host: str) -> None:
    with dialled(host, host) as (client, server):
        client.send(b"hello")
        ((_, address),) = received(server)
        assert address == client.getsockname()
        assert server.peer_at(*address[:2], "127.0.0.9") == address[:2]


def test_packets_for_several_addresses_are_kept_apart() -> None:
    with (
        closing(UdpSocket.bind("::", 0)) as server,
        socket.socket(IPV4, socket.SOCK_DGRAM) as client,
    ):
        client.bind(("127.0.0.1", 0))
        for host in DIALLED * 3:
            client.sendto(host.encode(), (host, server.local_address[1]))
        heard = [
            (packet.decode(), local_host(address))
            for packets, address in received(server)
            for packet in packets
        ]
    assert heard == [(host, host) for host in DIALLED * 3]


def test_an_address_that_the_host_has_no_more_drops_and_nothing_else() -> None:
    with dialled("::", "127.0.0.2") as (client, server):
        client.send(b"hello")
        ((_, address),) = received(server)
        gone = server.peer_at(address[0], address[1], "192.0.2.1")
        assert server.send_batch([b"x" * 100] * 3, gone), "the path's MTU is not to blame"
        assert server.dropped_on_send == 3
        assert server.send_batch([b"to you"], address)
        assert client.recv(100) == b"to you"


def test_a_peer_that_is_known_by_names_only() -> None:
    with dialled("::", "127.0.0.2") as (client, server):
        name = client.getsockname()
        server.send_batch([b"from elsewhere"], (f"::ffff:{name[0]}", name[1]))
        server.send_batch([b"it is me"], server.peer_at(f"::ffff:{name[0]}", name[1], "127.0.0.2"))
        assert client.recv(100) == b"it is me"
