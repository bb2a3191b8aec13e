"""The daemon stands still, packets go on: what the kernel decides needs no process of ours."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_interface

import pytest
from e2e_support.foreign_tun import ForeignTun
from e2e_support.packets import UDP, udp_packet
from e2e_support.world import ECHO_PORT, World
from zgate_lab.capture import Capture, CapturedPacket
from zgate_lab.echo import UdpEcho
from zgate_lab.process import Process
from zgate_lab.traffic import ping
from zgate_lab.waiting import SLOWNESS, wait_until

STOPPED_S = 10.0
GAP_S = 0.01
ANSWER_S = 5.0 * SLOWNESS
QUIET_S = 0.2
UDP_HEADER_BYTES = 8
FORBIDDEN_PORT = 6000
UNASKED_PORT = 9
STRANGERS = {4: IPv4Address("10.100.200.200"), 6: IPv6Address("2001:db8:bad::1")}

Address = IPv4Address | IPv6Address


@contextmanager
def stopped(process: Process) -> Iterator[None]:
    """SIGSTOP for the length of the block, for it and for all in its session."""
    os.killpg(process.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: state(process.pid) == "T", 5.0, "the daemon to stand still")
        yield
        assert state(process.pid) == "T"
    finally:
        os.killpg(process.pid, signal.SIGCONT)


def state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        return file.read().rsplit(")", 1)[1].split()[0]


def addresses_of(world: World, client: str) -> dict[int, Address]:
    """Its virtual address in each family."""
    addresses = [ip_interface(one).ip for one in world.zgate.sessions()[client]["addresses"]]
    return {one.version: one for one in addresses}


@dataclass
class Traffic:
    """What is written, and what must become of it."""

    world: World
    tun: ForeignTun
    sent: int = 0
    answers: list[bytes] = field(default_factory=list)
    unasked: dict[int, socket.socket] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.alice = addresses_of(self.world, "alice")
        self.bob = addresses_of(self.world, "bob")
        office = self.world.internet.office
        self.office: dict[int, Address] = {4: office.ipv4, 6: office.ipv6}
        with self.world.internet.gateway.namespace.entered():
            self.unasked = {
                4: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
                6: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
            }

    def round(self, version: int) -> None:
        """A new flow of each kind: allowed, with its answer; denied; nobody's; unsolicited."""
        port = 10_000 + self.sent
        number = self.sent.to_bytes(4)
        office = self.office[version]
        for source, to, data in (
            (self.alice[version], FORBIDDEN_PORT, b"denied by default"),
            (self.bob[version], ECHO_PORT, b"denied by a rule"),
            (STRANGERS[version], ECHO_PORT, b"nobody's"),
            (self.alice[version], ECHO_PORT, b"allowed" + number),
        ):
            self.tun.write(udp_packet(source, office, port, to, data))
        self.unasked[version].sendto(b"unasked", (str(self.alice[version]), UNASKED_PORT))
        answer = self.tun.read(ANSWER_S)
        assert answer is not None, f"no answer to packet {self.sent}, IPv{version}"
        packet = CapturedPacket(is_outgoing=True, data=answer)
        assert (packet.source, packet.destination) == (office, self.alice[version])
        assert packet.payload[:4] == ECHO_PORT.to_bytes(2) + port.to_bytes(2)
        assert packet.payload[UDP_HEADER_BYTES:] == b"allowed" + number
        self.sent += 1

    def close(self) -> None:
        for one in self.unasked.values():
            one.close()


def flow_until_the_end(traffic: Traffic) -> None:
    end_s = time.monotonic() + STOPPED_S
    while time.monotonic() < end_s:
        traffic.round(4)
        traffic.round(6)
        time.sleep(GAP_S)
    left_over = traffic.tun.read(QUIET_S)
    assert left_over is None, f"this came out of the TUN unasked: {left_over.hex()}"


@pytest.mark.timeout(90)
def test_verdicts_stay_right_while_the_daemon_is_stopped(own_world: World) -> None:
    world, office = own_world, own_world.internet.office
    sessions = {name: one["session_id"] for name, one in world.zgate.sessions().items()}
    before = {name: world.zgate.counters(name) for name in ("alice", "bob")}
    with (
        UdpEcho(office, ECHO_PORT),
        Capture(office.namespace, office.interface) as at_the_office,
        ForeignTun(world.gateway.pid) as tun,
    ):
        traffic = Traffic(world, tun)
        with stopped(world.gateway):
            flow_until_the_end(traffic)
        traffic.close()
    sent = traffic.sent
    assert sent > 100 / SLOWNESS
    check_what_the_office_saw(at_the_office, world, sent)

    # The daemon goes on as if nothing had been, and the kernel has counted every packet.
    world.connect_all()
    assert {name: one["session_id"] for name, one in world.zgate.sessions().items()} == sessions
    grown = {
        name: {word: now - before[name][word] for word, now in world.zgate.counters(name).items()}
        for name in before
    }
    packet_bytes = sent // 2 * (20 + 40) + sent * (UDP_HEADER_BYTES + len(b"allowed") + 4)
    assert grown["alice"] == {
        "up_packets": sent,
        "up_bytes": packet_bytes,
        "down_packets": sent,
        "down_bytes": packet_bytes,
        "dropped_packets": 2 * sent,
    }
    assert (grown["bob"]["up_packets"], grown["bob"]["dropped_packets"]) == (0, sent)
    for destination in (office.ipv4, office.ipv6):
        assert ping(world.alice, destination, count=3).lost == 0
        assert ping(world.bob, destination, count=1, timeout_s=0.2).received == 0


def check_what_the_office_saw(capture: Capture, world: World, sent: int) -> None:
    """Every allowed packet once, from the gateway's own addresses, and none of the others."""
    arrived = [one for one in capture.packets if not one.is_outgoing and one.protocol == UDP]
    assert Counter(one.payload[UDP_HEADER_BYTES:] for one in arrived) == Counter(
        b"allowed" + number.to_bytes(4) for number in range(sent)
    )
    inside = world.internet.gateway_inside
    assert {one.source for one in arrived} == {inside.ipv4, inside.ipv6}
