"""The UDP socket in batches, on loopback: nothing lost, merged or reordered."""

from __future__ import annotations

import contextlib
import select
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zgate_datapath import udp
from zgate_datapath.udp import UdpSocket, _segment_runs, udp_overhead_bytes


def receive(sock: UdpSocket, count: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count:
        ready, _, _ = select.select([sock.fileno()], [], [], 5)
        assert ready, f"only {len(found)} of {count} arrived"
        for packets, _address in sock.receive_batch(100):
            found.extend(packets)
    return found


@pytest.fixture(params=["127.0.0.1", "::1"])
def ends(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    if request.param == "::1" and not socket.has_ipv6:
        pytest.skip("no IPv6 on this host")
    server = UdpSocket.bind(request.param, 0)
    client = UdpSocket.towards(server.local_address)
    yield client, server
    client.close()
    server.close()


def test_mixed_sizes_arrive_as_they_were_sent(ends: tuple[UdpSocket, UdpSocket]) -> None:
    client, server = ends
    sent = [bytes([n % 256]) * size for n, size in enumerate([1200] * 70 + [90, 1200, 1201, 5] * 9)]
    assert client.send_batch(sent, server.local_address)
    assert receive(server, len(sent)) == sent


@given(st.lists(st.integers(min_value=1, max_value=1452), max_size=200))
@settings(max_examples=200)
def test_runs_keep_order_and_fit_one_gso_send(sizes: list[int]) -> None:
    packets = [bytes(size) for size in sizes]
    runs = [list(run) for run in _segment_runs(packets)]
    assert [packet for run in runs for packet in run] == packets
    for run in runs:
        assert len(run) <= 64
        assert sum(map(len, run)) <= 65000
        assert all(len(packet) == len(run[0]) for packet in run[:-1])
        assert len(run[-1]) <= len(run[0])


def test_a_packet_above_the_paths_mtu_is_reported() -> None:
    server = UdpSocket.bind("127.0.0.1", 0)
    client = UdpSocket.towards(server.local_address)
    # Loopback carries 65536 bytes; UDP itself ends at 65507.
    assert not client.send_batch([bytes(65508)], server.local_address)
    assert client.dropped_on_send == 1


def test_a_closed_port_is_reported_and_raises_nothing() -> None:
    server = UdpSocket.bind("127.0.0.1", 0)
    address = server.local_address
    server.close()
    client = UdpSocket.towards(address)
    client.send_batch([b"x"], address)
    select.select([client.fileno()], [], [], 5)
    assert list(client.receive_batch(4)) == []
    client.close()


def test_overheads() -> None:
    assert udp_overhead_bytes(("192.0.2.1", 1)) == 28
    assert udp_overhead_bytes(("::ffff:192.0.2.1", 1, 0, 0)) == 28
    assert udp_overhead_bytes(("2001:db8::1", 1, 0, 0)) == 48


@pytest.mark.parametrize("sizes", [[100], [1200] * 5 + [70], [1200, 1300, 90]])
def test_9484_s10_2_outer_packets_are_not_ect_and_carry_no_dscp(
    ends: tuple[UdpSocket, UdpSocket], sizes: list[int]
) -> None:
    """One by one and with GSO: aioquic reads no ECN feedback, so no packet may claim to be ECT."""
    client, server = ends
    for level, option in (
        (socket.IPPROTO_IP, socket.IP_RECVTOS),
        (socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS),
    ):
        with contextlib.suppress(OSError):
            server._socket.setsockopt(level, option, 1)
    # An inner packet full of marks: CS7, and congestion experienced.
    marked = b"\x45\xff" + bytes(18)
    client.send_batch([marked.ljust(size, b"x") for size in sizes], server.local_address)
    seen: list[int] = []
    received = 0
    while received < sum(sizes):
        ready, _, _ = select.select([server.fileno()], [], [], 5)
        assert ready
        data, ancillary, _, _ = server._socket.recvmsg(65535, 256)
        received += len(data)
        seen += [
            value[0]
            for level, kind, value in ancillary
            if (level, kind)
            in (
                (socket.IPPROTO_IP, socket.IP_TOS),
                (socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
            )
        ]
    assert seen
    assert set(seen) == {0}


@pytest.mark.parametrize("size", [1, 5])
def test_a_dead_peer_costs_the_others_no_packet(
    ends: tuple[UdpSocket, UdpSocket], size: int
) -> None:
    """The kernel reports a closed port at the next send, whoever that is for."""
    client, server = ends
    host = client.local_address[0]
    dead = UdpSocket.bind(host, 0)
    dead_address = dead.local_address
    dead.close()
    sent = [bytes([n]) * 100 for n in range(size)]
    for _ in range(3):
        server.send_batch([b"x" * 100], dead_address)
        ready = select.poll()
        ready.register(server.fileno(), 0)
        assert ready.poll(5000) == [(server.fileno(), select.POLLERR)]
        assert server.send_batch(sent, client.local_address)
        assert receive(client, size) == sent
    assert server.dropped_on_send == 0
    assert {error.address[1] for error in server.path_errors()} == {dead_address[1]}


@pytest.mark.parametrize("count", [1, 3])
def test_a_group_shares_a_port_and_nobody_else_joins(count: int) -> None:
    group = UdpSocket.bind_group("127.0.0.1", 0, count)
    port = group[0].local_address[1]
    assert [one.local_address for one in group] == [("127.0.0.1", port)] * count
    with pytest.raises(OSError, match="in use"):
        UdpSocket.bind_group("127.0.0.1", port, 2)
    senders = [UdpSocket.towards(("127.0.0.1", port)) for _ in range(200)]
    for sender in senders:
        sender.send_batch([b"hello"], ("127.0.0.1", port))
    received = [len(list(one.receive_batch(300))) for one in group]
    assert sum(received) == 200
    assert all(received)
    for one in (*senders, *group):
        one.close()
    UdpSocket.bind("127.0.0.1", port).close()


def test_a_group_that_cannot_be_bound_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    free = UdpSocket.bind("127.0.0.1", 0)
    port = free.local_address[1]
    free.close()
    made = 0
    bound = udp._bound

    def bound_twice(host: str, port: int, *, shared: bool) -> socket.socket:
        nonlocal made
        made += 1
        if made == 3:
            raise OSError("no")
        return bound(host, port, shared=shared)

    monkeypatch.setattr(udp, "_bound", bound_twice)
    with pytest.raises(OSError, match="no"):
        UdpSocket.bind_group("127.0.0.1", port, 4)
    monkeypatch.undo()
    UdpSocket.bind("127.0.0.1", port).close()
