"""Sockets that are bound to all addresses answer from the one that was asked, over a real link."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_interface

import pytest
from zgate_datapath.local_address import local_host
from zgate_datapath.udp import UdpSocket
from zgate_lab.lab import Lab, Namespace, Port

# The kernel's choice is the first of each family.
HELD = ("192.0.2.1/24", "192.0.2.2/24", "2001:db8::1/64", "2001:db8::2/64", "fe80::1/64")
ASKER = ("192.0.2.9/24", "2001:db8::9/64", "fe80::9/64")


@pytest.fixture
def ends(lab: Lab) -> Iterator[tuple[Namespace, Namespace]]:
    server, client = lab.add_namespace("server"), lab.add_namespace("client")
    lab.connect(
        Port(server, "eth0", tuple(map(ip_interface, HELD))),
        Port(client, "eth0", tuple(map(ip_interface, ASKER))),
    )
    yield server, client


@pytest.mark.parametrize("host", [one.partition("/")[0] for one in HELD])
def test_the_asked_address_answers(ends: tuple[Namespace, Namespace], host: str) -> None:
    server, client = ends
    with server.entered():
        listening = UdpSocket.bind("::", 0)
    with client.entered():
        asking = socket.socket(
            socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM
        )
        scope = socket.if_nametoindex("eth0") if host.startswith("fe80") else 0
    port = listening.local_address[1]
    with closing(listening), asking:
        asking.settimeout(5.0)
        asking.connect((host, port, 0, scope) if ":" in host else (host, port))
        asking.send(b"hello")
        assert select.select([listening.fileno()], [], [], 5.0)[0]
        ((_, address),) = listening.receive_batch(4)
        assert local_host(address) == host
        sizes = [1200] * 40 + [7]
        assert listening.send_batch([bytes(size) for size in sizes], address)
        assert [len(asking.recv(2000)) for _ in sizes] == sizes
        assert listening.dropped_on_send == 0
