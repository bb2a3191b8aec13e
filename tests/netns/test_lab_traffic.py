"""The lab's own instruments: what they say is what was on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

import pytest
from zgate_lab.capture import Capture
from zgate_lab.echo import UdpClient, UdpEcho
from zgate_lab.errors import LabError
from zgate_lab.internet import Host
from zgate_lab.lab import Lab, Port
from zgate_lab.stream import TcpStream

PORT = 5001
RESET = f"""\
table ip cutter {{
    chain input {{
        type filter hook input priority 0;
        tcp dport {PORT} reject with tcp reset
    }}
}}
"""
ONE = (IPv4Interface("192.0.2.1/24"), IPv6Interface("2001:db8::1/64"))
OTHER = (IPv4Interface("192.0.2.2/24"), IPv6Interface("2001:db8::2/64"))


@pytest.fixture
def hosts(lab: Lab) -> Iterator[tuple[Host, Host]]:
    """Two hosts on one link."""
    one, other = lab.add_namespace("one"), lab.add_namespace("other")
    lab.connect(Port(one, "eth0", ONE), Port(other, "eth0", OTHER))
    yield (
        Host(one, "eth0", ONE[0].ip, ONE[1].ip),
        Host(other, "eth0", OTHER[0].ip, OTHER[1].ip),
    )


@pytest.fixture(params=("ipv4", "ipv6"))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def address(host: Host, family: str) -> IPv4Address | IPv6Address:
    found: IPv4Address | IPv6Address = getattr(host, family)
    return found


def test_echo_and_capture(hosts: tuple[Host, Host], family: str) -> None:
    one, other = hosts
    with (
        Capture(one.namespace, "eth0") as capture,
        UdpEcho(other, PORT) as echo,
        UdpClient(one.namespace.name, address(other, family), PORT) as client,
    ):
        assert client.ask(b"hello") == b"hello"
        there = capture.wait_for(lambda one: one.is_outgoing and one.protocol == 17, "the question")
        back = capture.wait_for(
            lambda one: not one.is_outgoing and one.protocol == 17, "the answer"
        )
    assert echo.received == [(str(address(one, family)), 5)]
    assert (there.source, there.destination) == (address(one, family), address(other, family))
    assert (back.source, back.destination) == (address(other, family), address(one, family))
    assert there.payload[8:] == back.payload[8:] == b"hello"


def test_nobody_answers(hosts: tuple[Host, Host]) -> None:
    one, other = hosts
    with UdpClient(one.namespace.name, other.ipv4, PORT) as client:
        other.namespace.ip("link set eth0 down")
        assert client.ask(b"hello", timeout_s=0.05) is None


@pytest.mark.parametrize("upload", [True, False])
def test_a_stream_flows_and_arrives_whole(
    hosts: tuple[Host, Host], family: str, upload: bool
) -> None:
    one, other = hosts
    with TcpStream(
        one.namespace.name, other, address(other, family), PORT, upload=upload
    ) as stream:
        stream.wait_for_more(1_000_000, 10.0)
        stream.finish()
    assert stream.sent_bytes == stream.received_bytes >= 1_000_000


def test_a_stream_that_breaks_says_so(hosts: tuple[Host, Host]) -> None:
    one, other = hosts
    with TcpStream(one.namespace.name, other, other.ipv4, PORT, upload=True) as stream:
        stream.wait_for_more(100_000, 10.0)
        other.namespace.run("nft", "-f", "-", stdin=RESET)
        with pytest.raises(LabError, match="broke"):
            stream.wait_for_more(1 << 30, 10.0)
