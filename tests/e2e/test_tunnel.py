"""Packets through the tunnel, both address families: all arrive, and all are counted."""

from __future__ import annotations

import pytest
from e2e_support.world import ECHO_PORT, World
from zgate_lab.capture import Capture
from zgate_lab.echo import UdpClient, UdpEcho
from zgate_lab.traffic import https_get, ping
from zgate_lab.waiting import wait_until

DOWNLOAD_BYTES = 3_000_000
FAMILIES = ("ipv4", "ipv6")
IP_HEADER_BYTES = {"ipv4": 20, "ipv6": 40}
ICMP_HEADER_BYTES = UDP_HEADER_BYTES = 8
TCP, TCP_HEADER_BYTES = 6, 20


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_ping(world: World, family: str) -> None:
    result = ping(world.alice, getattr(world.internet.office, family))
    assert (result.sent, result.received, result.duplicates) == (3, 3, 0)


def test_https_download_arrives_whole(world: World, family: str) -> None:
    url = getattr(world.office, f"url_{family}")
    result = https_get(world.alice, f"{url}bytes/{DOWNLOAD_BYTES}", world.office.certificate_file)
    assert (result.status, result.body_bytes) == (200, DOWNLOAD_BYTES), result.error


def test_the_office_sees_the_gateway_only(world: World, family: str) -> None:
    url = getattr(world.office, f"url_{family}")
    result = https_get(world.alice, url, world.office.certificate_file)
    inside = getattr(world.internet.gateway_inside, family)
    assert f'"client": "{inside}"' in result.body
    assert {str(inside)} == {
        one.client for one in world.office.requests() if (":" in one.client) == (family == "ipv6")
    }


def test_1400_bytes_pass_whole_on_a_path_of_1500(world: World, family: str) -> None:
    session = world.zgate.sessions()["alice"]
    assert session["mtu_bytes"] >= 1400
    assert world.zgate.agent_status("alice")["mtu_bytes"] == session["mtu_bytes"]
    headers_bytes = IP_HEADER_BYTES[family] + ICMP_HEADER_BYTES
    for packet_bytes in (1280, 1400, session["mtu_bytes"]):
        result = ping(
            world.alice,
            getattr(world.internet.office, family),
            payload_bytes=packet_bytes - headers_bytes,
            dont_fragment=True,
        )
        assert result.lost == 0, f"{packet_bytes} bytes: {result.output}"


def test_packets_above_the_mtu_pass_in_fragments(world: World, family: str) -> None:
    destination = getattr(world.internet.office, family)
    # IPv6 routers do not fragment: the first answer may be lost to the office learning the way.
    ping(world.alice, destination, count=1, payload_bytes=4000, timeout_s=0.2)
    result = ping(world.alice, destination, payload_bytes=4000)
    assert result.lost == 0, result.output


def test_tcp_is_told_the_tunnels_segment_size(world: World, family: str) -> None:
    """The office offers what its own link takes; the gateway's firewall clamps it."""
    url = getattr(world.office, f"url_{family}")
    with Capture(world.internet.device1.namespace, "zgate-agent0") as device:
        https_get(world.alice, url, world.office.certificate_file)
    offered = [one for one in device.packets if one.protocol == TCP and is_syn(one.payload)]
    assert {one.is_outgoing for one in offered} == {True, False}
    most = world.zgate.sessions()["alice"]["mtu_bytes"] - IP_HEADER_BYTES[family] - TCP_HEADER_BYTES
    assert {segment_size(one.payload) for one in offered} == {most}


def is_syn(tcp: bytes) -> bool:
    return bool(tcp[13] & 0x02)


def segment_size(tcp: bytes) -> int:
    """The MSS option, which everybody's kernel puts first."""
    assert tcp[20:22] == b"\x02\x04"
    return int.from_bytes(tcp[22:24])


def test_udp_echo_of_every_kind_of_size(world: World, family: str) -> None:
    office = world.internet.office
    most = world.zgate.sessions()["alice"]["mtu_bytes"] - IP_HEADER_BYTES[family] - UDP_HEADER_BYTES
    with (
        UdpEcho(office, ECHO_PORT),
        UdpClient(world.alice, getattr(office, family), ECHO_PORT) as client,
    ):
        for size in (0, 1, 2, 63, 64, 512, most - 1, most):
            payload = bytes(number & 0xFF for number in range(size))
            assert client.ask(payload) == payload, f"{size} bytes"


def test_a_thousand_pings_none_lost(world: World) -> None:
    result = ping(world.alice, world.internet.office.ipv4, count=1000, interval_s=0.002)
    assert (result.lost, result.duplicates) == (0, 0), result.output


def test_the_kernel_counts_what_was_sent(world: World, family: str) -> None:
    before = world.zgate.counters("alice")
    ping(world.alice, getattr(world.internet.office, family), count=40, payload_bytes=500)
    packet_bytes = IP_HEADER_BYTES[family] + ICMP_HEADER_BYTES + 500
    expected = before["down_packets"] + 40
    wait_until(lambda: world.zgate.counters("alice")["down_packets"] >= expected, 5.0, "all")
    after = world.zgate.counters("alice")
    grown = {name: after[name] - before[name] for name in after}
    assert grown == {
        "up_packets": 40,
        "up_bytes": 40 * packet_bytes,
        "down_packets": 40,
        "down_bytes": 40 * packet_bytes,
        "dropped_packets": 0,
    }


def test_the_kernel_counts_what_it_drops(world: World) -> None:
    before = world.zgate.counters("bob")
    result = ping(world.bob, world.internet.office.ipv4, count=7, timeout_s=0.2)
    assert result.received == 0
    after = wait_until(
        lambda: (
            now
            if (now := world.zgate.counters("bob"))["dropped_packets"]
            >= before["dropped_packets"] + 7
            else None
        ),
        5.0,
        "the drops to be counted",
    )
    assert after == {**before, "dropped_packets": before["dropped_packets"] + 7}
