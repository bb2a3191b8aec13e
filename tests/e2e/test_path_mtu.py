"""Path MTU discovery through the tunnel, whichever part of the way is the narrow one."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest
from e2e_support.world import ECHO_PORT, STREAM_PORT, World
from scapy.layers.inet import ICMP, IP, UDP
from zgate_lab.capture import Capture
from zgate_lab.echo import UdpClient, UdpEcho
from zgate_lab.internet import Host
from zgate_lab.stream import TcpStream
from zgate_lab.traffic import PingResult, ping
from zgate_lab.waiting import wait_until

ORDINARY_BYTES = 1500
NARROW_BYTES = 1400
# IPv4, UDP, and what QUIC and the datagram's head need.
MOST_INNER_BYTES = NARROW_BYTES - 28 - 24
LEAST_PATH_BYTES = 1331 + 28
IP_MTU, IP_MTU_DISCOVER, IP_PMTUDISC_DO = 14, 10, 2
IPV6_MTU, IPV6_MTU_DISCOVER = 24, 23
HEADERS_BYTES = {"ipv4": 28, "ipv6": 48}
MEGABYTE = 1_000_000


@pytest.fixture(params=("ipv4", "ipv6"))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def ordinary_path(world: World) -> Iterator[None]:
    """Each test begins and ends with a path of 1500 bytes and an agent that knows it."""
    yield
    world.internet.set_path_mtu(ORDINARY_BYTES)
    world.internet.set_site_mtu(ORDINARY_BYTES)
    world.forget_paths()
    world.zgate.reconnect("alice")
    # The TUN keeps its old MTU until the new session is programmed.
    wait_until(lambda: agent_mtu(world) == session_mtu(world) >= 1400, 5.0, "the old MTU")


def session_mtu(world: World) -> int:
    return int(world.zgate.sessions()["alice"]["mtu_bytes"])


def agent_mtu(world: World) -> int:
    return int(world.zgate.agent_status("alice")["mtu_bytes"])


@pytest.mark.parametrize("upload", [True, False], ids=["upload", "download"])
def test_tcp_goes_on_when_the_path_shrinks(world: World, family: str, upload: bool) -> None:
    address = getattr(world.internet.office, family)
    session = world.zgate.sessions()["alice"]["session_id"]
    with TcpStream(
        world.alice, world.internet.office, address, STREAM_PORT, upload=upload
    ) as stream:
        stream.wait_for_more(MEGABYTE, 10.0)
        world.internet.set_path_mtu(NARROW_BYTES)
        stream.wait_for_more(3 * MEGABYTE, 20.0)
        stream.finish()
    # Whoever sends large packets has learned it.
    learned = agent_mtu if upload else session_mtu
    wait_until(
        lambda: 1280 <= learned(world) <= MOST_INNER_BYTES, 5.0, "the sender's end to follow"
    )
    assert world.zgate.sessions()["alice"]["session_id"] == session


def test_ipv6_has_its_1280_bytes_on_the_narrowest_path(world: World) -> None:
    world.internet.set_path_mtu(LEAST_PATH_BYTES)
    world.zgate.reconnect("alice")
    wait_until(lambda: session_mtu(world) >= 1280, 5.0, "what the session carries")
    result = ping_with_1280(world)
    assert result.lost == 0, result.output


@pytest.mark.parametrize("at", ["device", "gateway"])
def test_a_forged_message_ends_no_session_and_keeps_nobody_out(world: World, at: str) -> None:
    """Their kernels believe it for ten minutes, and refuse what every session needs."""
    device, gateway = world.internet.device1, world.internet.gateway
    own, peer = (device, gateway) if at == "device" else (gateway, device)
    session = world.zgate.sessions()["alice"]["session_id"]
    forge_too_big(world, own, peer, mtu_bytes=576)
    learned = agent_mtu if at == "device" else session_mtu
    wait_until(lambda: not ping_with_1280(world).lost, 5.0, "a packet that found its way")
    wait_until(lambda: 1280 <= learned(world) < 1300, 5.0, "that end to be careful")
    route = own.namespace.run("ip", "route", "get", str(peer.ipv4)).stdout
    assert "mtu 576" in route
    assert ping_with_1280(world).lost == 0
    assert world.zgate.sessions()["alice"]["session_id"] == session
    world.zgate.reconnect("alice")
    assert ping_with_1280(world).lost == 0


def forge_too_big(world: World, own: Host, peer: Host, mtu_bytes: int) -> None:
    """Send `own` an ICMP message about a packet to `peer`, as anybody on the internet could.

    The gateway's socket is nobody's in particular: its kernel asks for no port of the peer.
    """
    with Capture(own.namespace, own.interface) as capture:
        # What carries it is of the session in use, and not of one that is saying goodbye.
        assert ping_with_1280(world).lost == 0
        sent = capture.wait_for(
            lambda one: one.destination == peer.ipv4 and len(one.data) > 1280, "a packet"
        )
    head = IP(sent.data[: HEADERS_BYTES["ipv4"]])
    if own is world.internet.gateway:
        head[UDP].dport = 9
    forged = IP(dst=str(own.ipv4)) / ICMP(type=3, code=4, nexthopmtu=mtu_bytes) / head
    with world.internet.isp.entered():
        forger = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with forger:
        forger.sendto(bytes(forged), (str(own.ipv4), 0))


def ping_with_1280(world: World) -> PingResult:
    """Pings of the size that IPv6 may count on."""
    payload_bytes = 1280 - HEADERS_BYTES["ipv6"]
    office = world.internet.office.ipv6
    return ping(world.alice, office, payload_bytes=payload_bytes, dont_fragment=True)


def test_office_senders_get_packet_too_big(world: World, family: str) -> None:
    """The session carries less than `zgate0` does: the gateway itself tells the sender."""
    world.internet.set_path_mtu(NARROW_BYTES)
    world.zgate.reconnect("alice")
    wait_until(lambda: 0 < session_mtu(world) <= MOST_INNER_BYTES, 5.0, "the path's MTU")
    mtu_bytes = session_mtu(world)
    office = world.internet.office
    with open_server(office, family) as server:
        with UdpClient(world.alice, getattr(office, family), ECHO_PORT) as client:
            client.socket.send(b"hello")
            server.settimeout(5.0)
            _, peer = server.recvfrom(100)
            server.connect(peer)
            answer = bytes(1420 - HEADERS_BYTES[family])
            server.send(answer)
            wait_until(lambda: known_mtu(server, family) < 1420, 5.0, "an ICMP error")
        assert known_mtu(server, family) == mtu_bytes


def test_a_narrow_office_path_is_told_to_the_client(world: World, family: str) -> None:
    """An ICMP error of a router behind the masquerade comes back through the tunnel."""
    world.internet.set_site_mtu(1300)
    office = world.internet.office
    with (
        UdpEcho(office, ECHO_PORT),
        UdpClient(world.alice, getattr(office, family), ECHO_PORT) as client,
    ):
        dont_fragment(client.socket, family)
        packet = bytes(1400 - HEADERS_BYTES[family])
        client.socket.send(packet)
        wait_until(lambda: known_mtu(client.socket, family) == 1300, 5.0, "an ICMP error")
        assert client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EMSGSIZE
        assert client.ask(bytes(1300 - HEADERS_BYTES[family])) is not None


def test_tcp_goes_on_when_the_office_path_shrinks(world: World, family: str) -> None:
    office = world.internet.office
    with TcpStream(
        world.alice, office, getattr(office, family), STREAM_PORT, upload=True
    ) as stream:
        stream.wait_for_more(MEGABYTE, 10.0)
        world.internet.set_site_mtu(1300)
        stream.wait_for_more(2 * MEGABYTE, 20.0)
        stream.finish()


def open_server(office: Host, family: str) -> socket.socket:
    """A UDP socket in the office that sends with "don't fragment"."""
    kind = socket.AF_INET if family == "ipv4" else socket.AF_INET6
    with office.namespace.entered():
        server = socket.socket(kind, socket.SOCK_DGRAM)
    server.bind((str(getattr(office, family)), ECHO_PORT))
    dont_fragment(server, family)
    return server


def dont_fragment(sock: socket.socket, family: str) -> None:
    if family == "ipv4":
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_DO)


def known_mtu(sock: socket.socket, family: str) -> int:
    """What the kernel knows of the connected socket's path."""
    if family == "ipv4":
        return sock.getsockopt(socket.IPPROTO_IP, IP_MTU)
    return sock.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU)
