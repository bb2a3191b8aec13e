"""The programs on a real TUN: what they see there is what they see in test runs."""

import socket
from ipaddress import ip_address

import pytest
from bpf_support import packets as p
from bpf_support.device import (
    GATEWAY4,
    GATEWAY6,
    WAIT_S,
    checksummed,
    device,
    with_udp_checksum,
)
from bpf_support.policies import allow
from bpf_support.world import ALICE, ALICE4, ALICE6, OTHER4
from zgate_bpf.limits import MAX_NEW_FLOWS_PER_S, ClientLimits
from zgate_protocol.drop_reason import DropReason as Reason

__all__ = ["device"]


@pytest.mark.parametrize(
    ("client", "gateway", "family"),
    [(ALICE4, GATEWAY4, socket.AF_INET), (ALICE6, GATEWAY6, socket.AF_INET6)],
    ids=["ipv4", "ipv6"],
)
def test_packet_passes_and_its_answer_comes_back(device, client, gateway, family):
    device.world.policy(allow(f"{gateway}/{32 if family == socket.AF_INET else 128}"))
    with device.namespace.entered():
        listener = socket.socket(family, socket.SOCK_DGRAM)
    with listener:
        listener.bind((gateway, 5353))
        listener.settimeout(WAIT_S)
        sent = with_udp_checksum(client, gateway, 4000, 5353, b"hello")
        device.write(sent)
        data, sender = listener.recvfrom(100)
        assert data == b"hello"
        assert sender[:2] == (client, 4000)
        listener.sendto(b"and unasked", (client, 4001))
        listener.sendto(b"welcome", (client, 4000))
    assert device.read().endswith(b"welcome")
    counted = device.world.kernel.counters(ALICE)
    assert (counted.up_packets, counted.up_bytes) == (1, len(sent))
    assert (counted.down_packets, counted.down_dropped_packets) == (1, 1)
    assert device.world.drops(Reason.UNSOLICITED) == 1
    assert device.world.drops(Reason.MALFORMED) == 0


def test_denied_on_the_device(device):
    device.world.policy(allow(f"{OTHER4}/32"))
    device.write(checksummed(p.ipv4(ALICE4, GATEWAY4, p.UDP, p.udp(1, 2))))
    device.settles(lambda: device.world.drops(Reason.POLICY_DEFAULT) == 1)
    (event,) = device.world.events()
    assert event.client_index == ALICE
    assert event.destination == ip_address(GATEWAY4)


@pytest.mark.parametrize(
    "whole",
    [p.ipv4(ALICE4, GATEWAY4, p.TCP, p.tcp(1, 2)), p.ipv6(ALICE6, GATEWAY6, p.UDP, p.udp(1, 2))],
    ids=["ipv4", "ipv6"],
)
def test_truncated_at_every_length_on_the_device(device, whole):
    """Down to one byte, which test runs do not take."""
    device.world.policy(allow("0.0.0.0/0", "::/0"))
    for length in range(1, len(whole)):
        device.write(whole[:length])
    device.settles(lambda: device.world.drops(Reason.MALFORMED) == len(whole) - 1)
    assert device.world.kernel.counters(ALICE).up_packets == 0


def test_super_packet_from_the_device_counts_its_segments(device):
    device.world.policy(allow("0.0.0.0/0"))
    packet = checksummed(p.ipv4(ALICE4, GATEWAY4, p.TCP, p.tcp(4000, 443, p.ACK, bytes(12_000))))
    device.write(packet, gso_size=1360, header_bytes=40)
    device.settles(lambda: device.world.kernel.counters(ALICE).up_packets > 0)
    counted = device.world.kernel.counters(ALICE)
    assert counted.up_packets == 9
    assert counted.up_bytes == len(packet) + 8 * 40


def test_limits_on_the_device(device):
    """Super-packets up, an answer down: each direction has a limit of its own."""
    device.world.policy(allow("0.0.0.0/0"))
    device.world.generation.assign(
        ALICE, 1, ClientLimits(bandwidth_mbit=1, new_flows_per_s=MAX_NEW_FLOWS_PER_S)
    )
    packet = checksummed(p.ipv4(ALICE4, GATEWAY4, p.TCP, p.tcp(4000, 443, p.ACK, bytes(12_000))))
    wire_bytes = len(packet) + 8 * 40
    # A second's worth and more; nobody can write as little as the limit lets through meanwhile.
    for _ in range(100):
        device.write(packet, gso_size=1360, header_bytes=40)

    def counted_packets():
        counted = device.world.kernel.counters(ALICE)
        return counted.up_packets + counted.up_dropped_packets

    device.settles(lambda: counted_packets() == 900)
    counted = device.world.kernel.counters(ALICE)
    assert counted.up_bytes >= 131_072 - wire_bytes
    assert counted.up_dropped_packets == device.world.drops(Reason.RATE_LIMITED) > 0
    assert counted.down_dropped_packets == 0
    # Once, or again after a second.
    assert {e.reason for e in device.world.events() if e.reason} == {Reason.RATE_LIMITED}


def test_test_run_mark_on_a_real_packet_leaves_traces(device):
    """Only a test run may ask to leave none, whatever mark a packet of the host carries."""
    device.world.policy(allow("0.0.0.0/0"))
    with device.namespace.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x7A670001)
        sender.sendto(b"x", (ALICE4, 9))
    device.settles(lambda: device.world.drops(Reason.UNSOLICITED) == 1)


def test_programs_stay_when_their_loader_is_closed(device):
    """Deciding does not depend on this process: its maps closed, the verdicts are the same."""
    device.world.policy(allow(f"{GATEWAY4}/32"))
    with device.namespace.entered():
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with listener:
        listener.bind((GATEWAY4, 5353))
        listener.settimeout(WAIT_S)
        device.world.kernel.close()
        device.write(with_udp_checksum(ALICE4, GATEWAY4, 4000, 5354, b"no listener, no matter"))
        device.write(with_udp_checksum(OTHER4, GATEWAY4, 4000, 5353, b"nobody"))
        device.write(with_udp_checksum(ALICE4, GATEWAY4, 4000, 5353, b"still passes"))
        assert listener.recv(100) == b"still passes"
