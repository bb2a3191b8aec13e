"""From the TUN to the sessions, and back what does not fit."""

from __future__ import annotations

import asyncio
import os
import socket
from ipaddress import ip_address

import pytest
from zgate_gateway.forwarder import IcmpSender
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.icmp import TokenBucket

from ...loopback import (  # noqa: TID252
    GATEWAY_V4,
    GATEWAY_V6,
    OFFICE_V4,
    OFFICE_V6,
    FakeTun,
    Lab,
    eventually,
    icmp_type_and_code,
    python_engine,
    sized_packet,
    udp_packet,
)

V4, V6 = ip_address("10.100.0.2"), ip_address("fd7a:7a67:6174:65::2")


async def test_a_packet_for_nobody_is_a_counted_drop(lab: Lab) -> None:
    gateway = lab.gateway()
    await lab.connect(gateway)
    gateway.tun.inject(udp_packet(OFFICE_V4, "10.100.0.6"))
    gateway.tun.inject(udp_packet(OFFICE_V6, "fd7a:7a67:6174:65::6"))
    await eventually(lambda: gateway.table.total_drops() == {DropReason.NO_SESSION: 2})
    assert gateway.icmp.sent == []


@pytest.mark.parametrize(
    ("office", "ours", "own", "expected"),
    [(OFFICE_V4, V4, GATEWAY_V4, (3, 4)), (OFFICE_V6, V6, GATEWAY_V6, (2, 0))],
)
async def test_9484_s10_1_too_big_is_dropped_and_its_sender_told(
    lab: Lab, office: str, ours: object, own: object, expected: tuple[int, int]
) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    mtu = gateway.session("alice").tunnel.mtu_bytes
    gateway.tun.inject(sized_packet(office, ours, mtu + 1))
    gateway.tun.inject(sized_packet(office, ours, mtu))
    await eventually(lambda: client.tun.written)
    assert [len(packet) for packet in client.tun.written] == [mtu]
    (error,) = gateway.icmp.sent
    assert icmp_type_and_code(error) == expected
    offset = 24 if ip_address(office).version == 4 else 44
    assert int.from_bytes(error[offset : offset + 4], "big") == mtu
    addresses = error[12:20] if offset == 24 else error[8:40]
    assert addresses == own.packed + ip_address(office).packed  # type: ignore[attr-defined]
    assert gateway.table.total_drops() == {DropReason.TOO_BIG: 1}


async def test_the_tunnel_carries_at_least_1400_bytes_on_a_path_of_1500(lab: Lab) -> None:
    gateway = lab.gateway()
    _, state = await lab.connect(gateway)
    assert state.mtu_bytes >= 1400
    assert gateway.session("alice").tunnel.mtu_bytes >= 1400


@python_engine
async def test_a_full_queue_is_a_counted_drop_and_never_aioquics(lab: Lab) -> None:
    gateway = lab.gateway(queue_packets=50)
    client, _ = await lab.connect(gateway)
    connection = gateway.session("alice").tunnel.connection
    connection.engine.window_bytes = lambda: 0  # type: ignore[method-assign]
    for number in range(200):
        gateway.tun.inject(udp_packet(OFFICE_V4, V4, bytes([number])))
    await eventually(lambda: gateway.table.total_drops() == {DropReason.QUEUE_FULL: 150})
    assert connection.queued_packets() == 50
    assert not connection.quic._datagrams_pending
    assert gateway.icmp.sent == []
    del connection.engine.window_bytes  # type: ignore[method-assign]
    gateway.endpoint.flush(connection)
    await eventually(lambda: len(client.tun.written) == 50)


async def test_the_other_clients_are_served_while_one_is_stuck(lab: Lab) -> None:
    gateway = lab.gateway(queue_packets=10)
    await lab.connect(gateway, "alice")
    bob, state = await lab.connect(gateway, "bob")
    stuck = gateway.session("alice").tunnel.connection
    stuck.engine.window_bytes = lambda: 0  # type: ignore[method-assign]
    for _ in range(100):
        gateway.tun.inject(udp_packet(OFFICE_V4, V4))
        gateway.tun.inject(udp_packet(OFFICE_V4, state.addresses[0].ip))
        await asyncio.sleep(0)
    await eventually(lambda: len(bob.tun.written) == 100)


async def test_errors_are_limited(lab: Lab) -> None:
    gateway = lab.gateway()
    await lab.connect(gateway)
    mtu = gateway.session("alice").tunnel.mtu_bytes
    gateway.forwarder._icmp_bucket = TokenBucket(0, 20)
    for _ in range(100):
        gateway.tun.inject(sized_packet(OFFICE_V4, V4, mtu + 1))
        await asyncio.sleep(0)
    await eventually(lambda: gateway.table.total_drops() == {DropReason.TOO_BIG: 100})
    assert len(gateway.icmp.sent) == 20


async def test_a_deleted_tun_is_noticed_once_and_does_not_spin(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    gateway.tun.is_gone = True
    gateway.tun.inject(udp_packet(OFFICE_V4, V4))
    await eventually(lambda: gateway.tun_lost)
    gateway.tun.inject(udp_packet(OFFICE_V4, V4))
    client.tun.inject(udp_packet(V4, OFFICE_V4))
    await eventually(lambda: gateway.tun.written)
    assert gateway.tun_lost == 1
    assert "the TUN device fake0 is gone" in caplog.text


async def test_stopping_reads_no_more_and_closes_the_sockets(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    gateway.forwarder.stop()
    gateway.tun.inject(udp_packet(OFFICE_V4, V4))
    await asyncio.sleep(0.02)
    assert client.tun.written == []
    assert gateway.icmp.closed
    gateway.forwarder.start()
    await eventually(lambda: client.tun.written)


# Raw sockets (the sending itself is in tests/netns).


@pytest.mark.skipif(os.geteuid() != 0, reason="raw sockets need root")
def test_what_cannot_be_sent_is_lost_without_a_word() -> None:
    sender = IcmpSender()
    sender.send(udp_packet("127.0.0.1", "255.255.255.255"))
    sender.send(udp_packet("::1", "ff0e::1:2:3")[:40])
    sender.close()
    sender.send(udp_packet("127.0.0.1", "127.0.0.1"))


def test_without_ipv6_there_is_no_ipv6_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    class Raw:
        def __init__(self, family: int, *arguments: object) -> None:
            if family == socket.AF_INET6:
                raise OSError("no IPv6 here")
            self.sent: list[object] = []

        def sendto(self, packet: bytes, address: object) -> None:
            self.sent.append(address)

        def close(self) -> None:
            return None

    monkeypatch.setattr(socket, "socket", Raw)
    sender = IcmpSender()
    sender.send(udp_packet(V6, OFFICE_V6))
    sender.send(udp_packet(V4, OFFICE_V4))
    assert sender._ipv4.sent == [(OFFICE_V4, 0)]  # type: ignore[attr-defined]
    sender.close()


def test_the_fake_tun_is_one() -> None:
    """What the harness promises: packets keep their borders."""
    tun = FakeTun()
    tun.inject(b"one")
    tun.inject(b"two")
    assert tun.read_batch(10) == [b"one", b"two"]
    tun.close()
