"""The kernel's record of connections, read in a namespace that has some."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network

import pytest
from zgate_gateway.net.conntrack import TCP, UDP, Connection, connections_from
from zgate_gateway.net.errors import NetError
from zgate_lab.lab import Lab, Namespace, Port

CLIENT, SERVER = IPv4Address("10.1.0.2"), IPv4Address("10.2.0.2")
RULES = """
table inet tracked {
  chain forward {
    type filter hook forward priority 0
    ct state established accept
  }
}
"""


@pytest.fixture
def places() -> Iterator[tuple[Namespace, Namespace, Namespace]]:
    """A client, a router that keeps track, a server."""
    with Lab() as lab:
        client, router, server = (
            lab.add_namespace("client"),
            lab.add_namespace("router", router=True),
            lab.add_namespace("server"),
        )
        for number, end in ((1, client), (2, server)):
            ends = (f"10.{number}.0.{{}}/24", f"fd00:{number}::{{}}/64")
            lab.connect(
                Port(end, "up", tuple(ip_interface(one.format(2)) for one in ends)),
                Port(router, f"to{number}", tuple(ip_interface(one.format(1)) for one in ends)),
            )
            end.ip(*(f"route add default via {ip_interface(one.format(1)).ip}" for one in ends))
        router.run("nft", "-f", "-", stdin=RULES)
        yield client, router, server


@pytest.mark.parametrize(
    ("server_address", "client_address"), [("10.2.0.2", "10.1.0.2"), ("fd00:2::2", "fd00:1::2")]
)
def test_what_a_client_has_open(
    places: tuple[Namespace, Namespace, Namespace], server_address: str, client_address: str
) -> None:
    client, router, server = places
    family = socket.AF_INET6 if ":" in server_address else socket.AF_INET
    with server.entered():
        listener = socket.create_server((server_address, 5000), family=family)
        receiver = socket.socket(family, socket.SOCK_DGRAM)
        receiver.bind((server_address, 5001))
    with client.entered():
        tcp = socket.create_connection((server_address, 5000))
        udp = socket.socket(family, socket.SOCK_DGRAM)
        unanswered = socket.socket(family, socket.SOCK_DGRAM)
    accepted, _ = listener.accept()
    with listener, receiver, tcp, udp, unanswered, accepted:
        for one in (udp, unanswered):
            one.connect((server_address, 5001))
            one.send(b"?")
        receiver.recv(10)
        receiver.sendto(b"!", udp.getsockname())
        assert udp.recv(10) == b"!"
        own, remote = ip_address(client_address), ip_address(server_address)
        expected = {
            Connection(own, remote, TCP, tcp.getsockname()[1], 5000),
            Connection(own, remote, UDP, udp.getsockname()[1], 5001),
        }
        others = [ip_address("10.1.0.3"), ip_network("10.2.0.0/16"), ip_network("fd00:2::/64")]
        with router.entered():
            network = ip_network((own, 16), strict=False)
            assert set(connections_from([own])) == expected
            assert set(connections_from([network])) == expected
            assert list(connections_from(others)) == []
        tcp.close()
        accepted.close()
        with router.entered():
            assert {one.protocol for one in connections_from([own])} == {UDP}


def test_a_kernel_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from zgate_gateway.net import conntrack

    monkeypatch.setattr(conntrack, "_TCP_TIMEOUT", conntrack.Path("/nowhere"))
    with pytest.raises(NetError, match="connections that the kernel knows"):
        list(connections_from([CLIENT]))
