"""A gateway with several addresses that listens at all of them: each is as good as the other."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest
from e2e_support.world import STREAM_PORT
from zgate_datapath.engine import native_problem
from zgate_lab.capture import Capture
from zgate_lab.deployment import Deployment
from zgate_lab.internet import UPLINK, Host, host_addresses
from zgate_lab.lab import without_dad
from zgate_lab.stream import TcpStream
from zgate_lab.traffic import ping
from zgate_lab.waiting import wait_until

SOME_BYTES = 3_000_000
# Beside the first one's 10: the kernel would answer from that.
SECOND_HOST = 11

ENGINES = [
    pytest.param(
        "native", marks=pytest.mark.skipif(bool(native_problem()), reason="it is not built")
    ),
    "python",
]

Address = IPv4Address | IPv6Address


def endpoint(address: Address) -> str:
    return f"[{address}]:443" if address.version == 6 else f"{address}:443"


@pytest.fixture
def addresses(deployment: Deployment) -> Iterator[list[Address]]:
    """The gateway's, two of each family."""
    gateway = deployment.internet.gateway
    second = host_addresses(UPLINK, SECOND_HOST)
    gateway.namespace.ip(
        *(f"addr add {without_dad(one)} dev {gateway.interface}" for one in second)
    )
    yield [gateway.ipv4, gateway.ipv6, *(one.ip for one in second)]
    deployment.stop()


def carries(zgate: Deployment, device: Host) -> None:
    """Both ways, with full batches."""
    office = zgate.internet.office
    assert ping(device.namespace.name, office.ipv4, count=3).lost == 0
    for upload in (True, False):
        with TcpStream(
            device.namespace.name, office, office.ipv4, STREAM_PORT, upload=upload
        ) as stream:
            stream.wait_for_more(SOME_BYTES, 30.0)
            stream.finish()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.timeout(180)
def test_each_address_of_the_gateway_can_be_dialled(
    deployment: Deployment, addresses: list[Address], engine: str
) -> None:
    deployment.start_gateway(engine=engine, workers=2)
    device = deployment.internet.device1
    for address in addresses:
        deployment.start_agent("alice", device, gateway=endpoint(address), engine=engine)
        carries(deployment, device)
        deployment.agents["alice"].stop()


@pytest.mark.timeout(180)
def test_who_dialled_another_address_is_told_from_there_that_the_gateway_was_killed(
    deployment: Deployment, addresses: list[Address]
) -> None:
    """By the next gateway: a client would believe no other address."""
    internet = deployment.internet
    deployment.start_gateway()
    devices = {"alice": internet.device1, "bob": internet.device2}
    dialled = addresses[2:]
    for (name, device), address in zip(devices.items(), dialled, strict=True):
        deployment.start_agent(name, device, gateway=endpoint(address))
    file = deployment.directory / "run" / "clients.json"

    def kept() -> list[tuple[str, int, str]]:
        entries = json.loads(file.read_bytes()) if file.exists() else []
        return [(host, port, local) for host, port, _, local in entries]

    wait_until(
        lambda: sorted(local for *_, local in kept()) == sorted(map(str, dialled)),
        5.0,
        "the addresses that clients have dialled",
    )
    clients = kept()
    gateway = deployment.gateway
    assert gateway is not None
    gateway.kill()
    with Capture(internet.transit, "gateway") as uplink:
        deployment.start_gateway()
        for host, port, local in clients:
            # To the port of the connection that is lost; agents may have another one by now.
            uplink.wait_for(
                lambda one, host=host, port=port, local=local: (  # type: ignore[misc]
                    (one.protocol, str(one.source)) == (socket.IPPROTO_UDP, local)
                    and str(one.destination) == host.removeprefix("::ffff:")
                    and int.from_bytes(one.payload[2:4], "big") == port
                ),
                f"the stateless reset of {local} for {host}",
            )
    for name in devices:
        deployment.wait_connected(name, deployment.agents[name])
    carries(deployment, internet.device1)
