"""The dialects with a real gateway, real packets and scripted clients: `stream` and `ztna-v1`.

device1    stan    a stream client: ordinary addresses and routes
device2    zoe     a ztna-v1 agent, which calls itself 10.77.0.2 and the service 10.99.0.1
           alice   an agent of ours; in one test of the dialect, on device1
site 1     zack    a ztna-v1 connector behind a NAT: its own kernel is the backend
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest
from zgate_datapath.engine import native_problem
from zgate_lab.deployment import SERVER_NAME, Deployment
from zgate_lab.echo import UdpClient, UdpEcho
from zgate_lab.internet import Host, Internet
from zgate_lab.lab import Namespace
from zgate_lab.namespace import in_namespace
from zgate_lab.private_site import PrivateSite
from zgate_lab.process import Process
from zgate_lab.stream import TcpStream
from zgate_lab.traffic import ping
from zgate_lab.unix_http import get_json
from zgate_lab.waiting import SLOWNESS, wait_until

Address = IPv4Address | IPv6Address

SCRIPT = Path(__file__).parents[1] / "dialect_clients.py"
CLIENT_POOLS = ("10.100.0.0/16", "fd7a:7a67:6174:65::/64")
# What the ztna-v1 agent uses, and nobody else knows.
AGENT, VIRTUAL_IP = "10.77.0.2", "10.99.0.1"
AGENT_V6, VIRTUAL_IP_V6 = "fd77::2", "fd99::1"
# Where a connector sends to that knows no client's address.
NOBODY, NOBODY_V6 = "192.168.77.7", "fd77:7::7"
AS_AGENT = ("--address", f"{AGENT}/32", "--address", f"{AGENT_V6}/128")
AS_AGENT += ("--route", f"{VIRTUAL_IP}/32", "--route", f"{VIRTUAL_IP_V6}/128")
ECHO_PORT, STREAM_PORT, CLOSED_TO_CLIENTS = 5001, 8080, 5002
START_S = 30.0
MEGABYTE = 1_000_000
PORT_UNREACHABLE, PROHIBITED = "Connection refused", "No route to host"

POLICY = """\
version: "1.0"
metadata: {name: dialects}
default_action: deny
clients:
  stan:
    rules:
      - id: stan-office
        type: ip_cidr
        action: allow
        destinations: [10.20.0.0/24, "fd00:20::/64"]
  zoe: &reaches
    rules:
      - id: to-pacs
        type: service
        action: allow
        services: [pacs]
        protocols: [udp, tcp]
        ports: [5001, 8080]
      - id: ping-pacs
        type: service
        action: allow
        services: [pacs]
        protocols: [icmp]
  alice: *reaches
connectors:
  zack: {services: [pacs]}
"""

pytestmark = pytest.mark.timeout(180)


@dataclass
class Dialects:
    """A gateway that serves both dialects, and what runs of its clients."""

    internet: Internet
    zgate: Deployment
    site: PrivateSite
    engine: str

    @property
    def device1(self) -> Namespace:
        return self.internet.device1.namespace

    @property
    def device2(self) -> Namespace:
        return self.internet.device2.namespace

    def vip(self, version: int = 4) -> Address:
        """The virtual IP of the service, as the gateway tells its operator."""
        answer = get_json(self.zgate.socket, "/v1/services") or {"services": []}
        (pacs,) = [one for one in answer["services"] if one["name"] == "pacs"]
        found = [ip_address(address) for address in pacs["addresses"]]
        return next(address for address in found if address.version == version)

    def addresses(self, name: str) -> list[str]:
        """A client's virtual IPs, IPv4 first."""
        return [one.partition("/")[0] for one in self.zgate.sessions()[name]["addresses"]]

    def spawn(
        self, name: str, dialect: str, where: Namespace, *more: str, tag: str = ""
    ) -> Process:
        """Start a scripted client with a certificate."""
        own = self.zgate.directory / name
        return where.spawn(
            f"{name}{tag}",
            *(sys.executable, SCRIPT, dialect, "--host", str(self.zgate.host.ipv4)),
            *("--server-name", SERVER_NAME, "--ca", str(self.zgate.pki / "ca.crt")),
            *("--certificate", str(own / f"{name}.crt"), "--key", str(own / f"{name}.key")),
            *("--tun", f"zgt-{name}", *more),
        )

    @contextmanager
    def running(self, name: str, dialect: str, where: Namespace, *more: str) -> Iterator[Process]:
        """A scripted client with a session, while the context lasts."""
        process = self.spawn(name, dialect, where, *more)
        try:
            process.wait_for_output(r'^\{"up"', START_S)
            yield process
        finally:
            process.stop()
            wait_until(lambda: name not in self.zgate.sessions(), 5.0, f"{name} to be gone")

    def stan(self) -> Any:
        routes = ("--route", "10.20.0.0/24", "--route", "10.66.0.0/24", "--route", "fd00:20::/64")
        return self.running("stan", "stream", self.device1, *routes)

    def zoe(self, *more: str) -> Any:
        return self.running("zoe", "ztna-v1", self.device2, "--service", "pacs", *AS_AGENT, *more)

    def zack(self, *routes: str) -> Any:
        pools = [word for route in (*CLIENT_POOLS, *routes) for word in ("--route", route)]
        own = [word for v in (4, 6) for word in ("--address", str(self.vip(v)))]
        more = ("--connector", "--service", "pacs", *own, *pools)
        return self.running("zack", "ztna-v1", self.site.connector.namespace, *more)


def news(process: Process, key: str) -> Any:
    """What a scripted client has said under a name."""
    said = [json.loads(line) for line in process.output().splitlines() if line.startswith("{")]
    return next((one[key] for one in said if key in one), None)


@pytest.fixture(scope="module")
def dialect_identities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dialect-identities") / "made"


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            "native",
            marks=pytest.mark.skipif(bool(native_problem()), reason="no native engine"),
        ),
        "python",
    ],
)
def world(request: pytest.FixtureRequest, dialect_identities: Path) -> Iterator[Dialects]:
    with Internet.open() as internet:
        zgate = Deployment(internet, POLICY)
        if dialect_identities.exists():
            shutil.copytree(dialect_identities, zgate.directory, dirs_exist_ok=True)
        else:
            names = ("stan", "zoe", "zack", "alice")
            zgate.make_identities({name: [] for name in names})
            for name in ("pki", "gateway", *names):
                shutil.copytree(zgate.directory / name, dialect_identities / name)
        site = PrivateSite(internet, 1)
        zgate.start_gateway(engine=request.param, dialects=["stream", "ztna-v1"])
        assert zgate.gateway_status()["engine"] == request.param
        yield Dialects(internet, zgate, site, request.param)
        zgate.stop()


# stream.


def test_a_stream_client_pings_and_streams(world: Dialects) -> None:
    office = world.internet.office
    with world.stan() as stan:
        session = world.zgate.sessions()["stan"]
        assert news(stan, "up") == session["addresses"]
        before = world.zgate.counters("stan")
        for address in (office.ipv4, office.ipv6):
            assert ping(world.device1.name, address).lost == 0
            for upload in (True, False):
                with TcpStream(
                    world.device1.name, office, address, STREAM_PORT, upload=upload
                ) as stream:
                    stream.wait_for_more(2 * MEGABYTE, 60.0)
                    stream.finish()
        after = world.zgate.counters("stan")
        assert after["up_bytes"] > before["up_bytes"] + 4 * MEGABYTE
        assert after["down_bytes"] > before["down_bytes"] + 4 * MEGABYTE


def test_a_stream_client_is_denied_what_others_are(world: Dialects) -> None:
    with world.stan():
        address = world.addresses("stan")[0]
        assert ping(world.device1.name, world.internet.forbidden.ipv4, timeout_s=0.5).received == 0
        world.zgate.wait_audit(
            "flow_denied", client="stan", source=address, reason="POLICY_DEFAULT"
        )


def test_a_stream_client_is_revoked_as_others_are(world: Dialects) -> None:
    """Its session is one of the gateway's: whoever closes it closes it."""
    with world.stan() as stan:
        world.zgate.run("--socket", str(world.zgate.socket), "kick", "stan")
        assert stan.wait(5.0) == 0


# ztna-v1.


def test_an_agent_and_a_connector_of_the_dialect(world: Dialects) -> None:
    with world.zack(), world.zoe() as zoe, UdpEcho(world.site.connector, ECHO_PORT) as echo:
        assert news(zoe, "seen_at")[0] == str(world.internet.device2.ipv4)
        for address in (ip_address(VIRTUAL_IP), ip_address(VIRTUAL_IP_V6)):
            assert ping(world.device2.name, address).lost == 0
            with UdpClient(world.device2.name, address, ECHO_PORT) as client:
                for size in (0, 1, 500, 1200):
                    assert client.ask(bytes(size)) == bytes(size)
        # Behind the NAT everybody knows zoe by its virtual IP.
        assert {source for source, _ in echo.received} == set(world.addresses("zoe"))
        world.zgate.wait_audit(
            "flow_allowed", client="zoe", destination=str(world.vip()), rule="to-pacs"
        )


def test_a_transfer_each_way(world: Dialects) -> None:
    """TCP with a checksum: under the native engine the gateway's TUN gives super-packets."""
    with world.zack(), world.zoe():
        before = world.zgate.counters("zoe")
        for destination in (VIRTUAL_IP, VIRTUAL_IP_V6):
            exchange(world.device2, ip_address(destination), world.site.connector, 2 * MEGABYTE)
        after = world.zgate.counters("zoe")
        assert after["up_bytes"] > before["up_bytes"] + 4 * MEGABYTE
        assert after["down_bytes"] > before["down_bytes"] + 4 * MEGABYTE


def test_what_names_its_service_goes_there(world: Dialects) -> None:
    with world.zack(), world.zoe("--framed"):
        assert ping(world.device2.name, ip_address(VIRTUAL_IP)).lost == 0


def test_the_policy_denies(world: Dialects) -> None:
    with world.zack(), world.zoe(), UdpEcho(world.site.connector, CLOSED_TO_CLIENTS) as echo:
        source = world.addresses("zoe")[0]
        with UdpClient(world.device2.name, ip_address(VIRTUAL_IP), CLOSED_TO_CLIENTS) as client:
            assert client.ask(b"anybody?", timeout_s=0.5) is None
        assert echo.received == []
        world.zgate.wait_audit(
            "flow_denied", client="zoe", source=source, destination=str(world.vip())
        )


def test_errors_come_back_to_whom_they_concern(world: Dialects) -> None:
    """A port that nobody listens on, and a service that nobody offers: ICMP, both translated."""
    with world.zoe():
        with world.zack():
            refused_with(world, PORT_UNREACHABLE)
        refused_with(world, PROHIBITED)


def refused_with(world: Dialects, error: str) -> None:
    with udp_to_service(world) as client, pytest.raises(OSError, match=error):
        client.ask(b"anybody?")


def udp_to_service(world: Dialects) -> UdpClient:
    return UdpClient(world.device2.name, ip_address(VIRTUAL_IP), ECHO_PORT)


def test_an_agent_of_ours_reaches_a_connector_of_the_dialect(world: Dialects) -> None:
    with world.zack():
        world.zgate.start_agent("alice", world.internet.device2)
        try:
            for version in (4, 6):
                assert ping(world.device2.name, world.vip(version)).lost == 0
                exchange(world.device2, world.vip(version), world.site.connector, MEGABYTE)
        finally:
            world.zgate.agents.pop("alice").stop()


@pytest.mark.parametrize(
    ("service", "nobody"), [(VIRTUAL_IP, NOBODY), (VIRTUAL_IP_V6, NOBODY_V6)], ids=["IPv4", "IPv6"]
)
def test_an_answer_to_nobody_goes_to_who_registered_last(
    world: Dialects, service: str, nobody: str
) -> None:
    """If it is one of that agent's flows; and when the agent has gone, to the one before it."""
    also = ("--service", "pacs", *AS_AGENT)
    address = ip_address(service)
    with (
        world.zack(f"{NOBODY}/32", f"{NOBODY_V6}/128"),
        world.zoe(),
        backend(world.site.connector, address.version) as server,
        UdpClient(world.device2.name, address, ECHO_PORT) as zoe,
    ):
        zoes = (nobody, port_of(zoe, server))
        arrives(server, zoes, zoe, b"for the only agent")
        with (
            world.running("alice", "ztna-v1", world.device1, *also),
            UdpClient(world.device1.name, address, ECHO_PORT) as alice,
        ):
            alices = (nobody, port_of(alice, server))
            arrives(server, alices, alice, b"for the last one")
            before = unsolicited(world)
            server.sendto(b"in no flow of hers", zoes)
            wait_until(lambda: unsolicited(world) > before, 5.0, "the packet to be dropped")
        arrives(server, zoes, zoe, b"for who is left")


@contextmanager
def backend(host: Host, version: int) -> Iterator[socket.socket]:
    with host.namespace.entered():
        sock = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    with sock:
        sock.bind(("", ECHO_PORT))
        sock.settimeout(5.0)
        yield sock


def port_of(client: UdpClient, server: socket.socket) -> int:
    """The port that the client asks from."""
    client.socket.send(b"question")
    return int(server.recvfrom(100)[1][1])


def arrives(
    server: socket.socket, destination: tuple[str, int], client: UdpClient, data: bytes
) -> None:
    """What the server sends there comes to the client, soon if not at once."""

    def came() -> bool:
        server.sendto(data, destination)
        with suppress(TimeoutError):
            return client.socket.recv(100) == data
        return False

    client.socket.settimeout(0.5)
    wait_until(came, 5.0, f"{data!r} to arrive")


def unsolicited(world: Dialects) -> int:
    return int(world.zgate.gateway_status()["drops"].get("UNSOLICITED", 0))


def test_the_session_ends_with_its_connector(world: Dialects) -> None:
    with world.zoe():
        with world.zack():
            assert ping(world.device2.name, ip_address(VIRTUAL_IP)).lost == 0
        with world.zack():
            assert ping(world.device2.name, ip_address(VIRTUAL_IP)).lost == 0


def test_a_silent_connector_takes_no_flows(world: Dialects) -> None:
    """It holds its session and does not acknowledge: three seconds, then it counts as gone."""
    with world.zoe(), world.zack() as zack:
        assert ping(world.device2.name, ip_address(VIRTUAL_IP)).lost == 0
        began = time.monotonic()
        zack.signal(signal.SIGSTOP)
        try:
            wait_until(lambda: is_prohibited(world), 10.0, "the connector to count as gone")
            assert time.monotonic() - began < 5.0 * SLOWNESS  # its idle timeout is far away
            assert "zack" in world.zgate.sessions()
        finally:
            zack.signal(signal.SIGCONT)
        wait_until(
            lambda: ping(world.device2.name, ip_address(VIRTUAL_IP), count=1).received,
            10.0,
            "the connector to be heard again",
        )


def is_prohibited(world: Dialects) -> bool:
    with udp_to_service(world) as client:
        try:
            client.ask(b"anybody?", timeout_s=0.2)
        except OSError as error:
            return error.errno == errno.EHOSTUNREACH
    return False


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("zoe", ("--service", "web")),
        ("zoe", ("--connector", "--service", "pacs")),
        ("zack", ("--connector", "--service", "web")),
        ("zack", ("--service", "pacs")),
    ],
    ids=["agent elsewhere", "agent as connector", "connector elsewhere", "connector as agent"],
)
def test_what_is_not_authorized_is_refused(
    world: Dialects, name: str, more: tuple[str, ...]
) -> None:
    process = world.spawn(name, "ztna-v1", world.device1, *more, tag="-refused")
    assert process.wait(START_S) == 1
    assert news(process, "refused") == 0x02


def test_without_a_certificate_nobody_is_served(world: Dialects) -> None:
    other = world.zgate.directory / "stranger"
    if not other.exists():
        other.mkdir()
        # Its own, which nobody has signed.
        for ending in ("crt", "key"):
            shutil.copy(self_signed(world, ending), other / f"stranger.{ending}")
    for dialect in ("stream", "ztna-v1"):
        process = world.spawn("stranger", dialect, world.device1, "--service", "pacs")
        assert process.wait(START_S) != 0
        assert news(process, "up") is None
        assert news(process, "seen_at") is None


def self_signed(world: Dialects, ending: str) -> Path:
    """A certificate of another authority."""
    directory = world.zgate.directory / "other-pki"
    if not directory.exists():
        world.zgate.run("pki", "init", "--dir", str(directory))
        issue = ("pki", "issue", "stranger", "--usage", "client", "--dir", str(directory))
        world.zgate.run(*issue, "--out", str(directory / "made"))
    return directory / "made" / f"stranger.{ending}"


# Bytes.


def exchange(client: Namespace, destination: Address, server: Host, size_bytes: int) -> None:
    """So many bytes each way over one connection, compared by their hash."""
    data = hashlib.shake_256(b"dialects").digest(size_bytes)
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    with server.namespace.entered():
        listener = socket.create_server(("", STREAM_PORT), family=family)
    with in_namespace(client.name):
        sock = socket.socket(family, socket.SOCK_STREAM)
    answered = threading.Thread(target=send_back, args=(listener,))
    answered.start()
    with listener, sock:
        sock.settimeout(60.0)
        sock.connect((str(destination), STREAM_PORT))
        sender = threading.Thread(target=send_all, args=(sock, data))
        sender.start()
        received = read_all(sock, size_bytes)
        sender.join()
    answered.join()
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()


def send_back(listener: socket.socket) -> None:
    """Everything, once it is there."""
    listener.settimeout(60.0)
    accepted, _ = listener.accept()
    with accepted:
        accepted.settimeout(60.0)
        whole = b"".join(iter(lambda: accepted.recv(1 << 16), b""))
        accepted.sendall(whole)


def send_all(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def read_all(sock: socket.socket, size_bytes: int) -> bytes:
    received = bytearray()
    while len(received) < size_bytes and (data := sock.recv(1 << 16)):
        received += data
    return bytes(received)
