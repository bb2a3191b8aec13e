"""What RFC 9484 asks of the way of a packet, seen on the wire."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest
from e2e_support.world import ECHO_PORT, World
from zgate_lab.capture import Capture, CapturedPacket
from zgate_lab.echo import UdpClient, UdpEcho
from zgate_lab.traffic import ping
from zgate_lab.waiting import wait_until

UDP = 17
ECHO_REQUEST = {"ipv4": (1, 8), "ipv6": (58, 128)}
ECHO_REPLY = {"ipv4": (1, 0), "ipv6": (58, 129)}
OWN_HOP_LIMIT = 64
EXPEDITED_FORWARDING, ECT_0, ECN_MASK = 0xB8, 0x02, 0x03
UDP_AND_IPV4_BYTES = 28
LEAST_UDP_PAYLOAD_BYTES = 1331


@pytest.fixture(params=("ipv4", "ipv6"))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def is_icmp(packet: CapturedPacket, kind: tuple[int, int]) -> bool:
    return packet.protocol == kind[0] and packet.payload[:1] == bytes((kind[1],))


def test_9484_s7_2_the_hop_limit_goes_down_by_one_each_way(world: World, family: str) -> None:
    """Up: the device sends packets of its own, and only the gateway's kernel forwards them.

    Down: the office's router forwards once, the gateway once, and the agent does not.
    """
    with (
        Capture(world.internet.device1.namespace, "zgate-agent0") as device,
        Capture(world.internet.gateway.namespace, "inside") as gateway,
    ):
        office = getattr(world.internet.office, family)
        assert ping(world.alice, office, count=1).lost == 0
        request, reply = ECHO_REQUEST[family], ECHO_REPLY[family]
        sent = device.wait_for(lambda one: is_icmp(one, request), "the request on the device")
        forwarded = gateway.wait_for(lambda one: is_icmp(one, request), "the request behind")
        answer = gateway.wait_for(lambda one: is_icmp(one, reply), "the answer at the gateway")
        received = device.wait_for(lambda one: is_icmp(one, reply), "the answer on the device")
    assert (sent.is_outgoing, sent.hop_limit) == (True, OWN_HOP_LIMIT)
    assert (forwarded.is_outgoing, forwarded.hop_limit) == (True, OWN_HOP_LIMIT - 1)
    assert (answer.is_outgoing, answer.hop_limit) == (False, OWN_HOP_LIMIT - 1)
    assert (received.is_outgoing, received.hop_limit) == (False, OWN_HOP_LIMIT - 2)


def test_9484_s7_2_an_expired_hop_limit_is_answered_by_the_gateway(world: World) -> None:
    """traceroute through the tunnel shows the gateway as its first hop."""
    office = str(world.internet.office.ipv4)
    shown = world.internet.device1.namespace.run(
        "ping", "-n", "-c", "1", "-t", "1", "-W", "2", office, check=False
    )
    gateway = world.zgate.gateway_status()["pools"][0]["gateway"]
    assert f"From {gateway}" in shown.stdout
    assert "Time to live exceeded" in shown.stdout


def test_9484_s10_2_outer_packets_carry_no_dscp_and_an_ecn_of_their_own(world: World) -> None:
    """Inner packets with both marks; the outer ones have ECT(0) of QUIC's own, or nothing."""
    office = world.internet.office
    with (
        Capture(world.internet.gateway.namespace, "uplink") as outer,
        Capture(world.internet.gateway.namespace, "inside") as inner,
        UdpEcho(office, ECHO_PORT) as echo,
        UdpClient(world.alice, office.ipv4, ECHO_PORT) as client,
    ):
        echo.set_traffic_class(EXPEDITED_FORWARDING | ECT_0)
        marks = EXPEDITED_FORWARDING | ECT_0
        client.socket.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, marks)
        for _ in range(20):
            assert client.ask(bytes(1000)) is not None
    marked = [one for one in inner.packets if one.protocol == UDP and one.traffic_class == marks]
    assert {one.is_outgoing for one in marked} == {True, False}
    assert len(marked) == 40
    carriers = [one for one in outer.packets if one.protocol == UDP and len(one.data) > 1000]
    assert {one.is_outgoing for one in carriers} == {True, False}
    assert {one.traffic_class for one in outer.packets if one.protocol == UDP} <= {0, ECT_0}


@pytest.fixture
def narrow_path(world: World) -> Iterator[World]:
    """A path that is one byte too narrow for IPv6 in the tunnel; afterwards all is as before."""
    mtu_bytes = LEAST_UDP_PAYLOAD_BYTES + UDP_AND_IPV4_BYTES - 1
    world.internet.set_path_mtu(mtu_bytes)
    yield world
    world.internet.set_path_mtu(1500)
    world.forget_paths()


def test_9484_s7_2_a_path_below_1331_bytes_has_no_session(narrow_path: World) -> None:
    zgate = narrow_path.zgate
    agent = zgate.agents["alice"]
    agent.stop()
    agent = zgate.spawn_agent("alice", narrow_path.internet.device1)
    refused = zgate.wait_agent("alice", "backoff")
    # Both ends look for themselves, and either may be the first to know.
    needed = "the path carries no (UDP payload of 1331|IPv6 packet of 1280) bytes"
    assert re.search(needed, refused["reason"]), refused
    wait_until(lambda: "alice" not in zgate.sessions(), 5.0, "the session to end")
    narrow_path.internet.set_path_mtu(LEAST_UDP_PAYLOAD_BYTES + UDP_AND_IPV4_BYTES)
    assert zgate.wait_connected("alice", agent)["mtu_bytes"] >= 1280


def test_9484_s7_2_a_session_ends_when_its_path_gets_too_narrow(world: World) -> None:
    zgate = world.zgate
    session = zgate.reconnect("alice")
    try:
        world.internet.set_path_mtu(LEAST_UDP_PAYLOAD_BYTES + UDP_AND_IPV4_BYTES - 1)
        # A packet that no longer fits is how anybody notices.
        ping(world.alice, world.internet.office.ipv4, count=1, payload_bytes=1350, timeout_s=0.2)
        down = zgate.wait_audit("session_down", 20.0, client="alice", session=session["session_id"])
        assert "1280" in down["cause"] or "1331" in down["cause"]
        wait_until(lambda: "1331" in zgate.agent_status("alice")["reason"], 5.0, "the agent to say")
    finally:
        world.internet.set_path_mtu(1500)
        world.forget_paths()
        zgate.reconnect("alice")
