"""Two private networks with the same servers, and who may use them."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from zgate_lab.backend_server import ECHO_PORT, GREETING_PORT, NAME_PORT
from zgate_lab.backends import (
    DNS_PORT,
    HTTP_PORT,
    POSTGRES_PORT,
    SSH_PORT,
    SshServer,
    start_backend_server,
    start_dns,
    start_nginx,
    start_postgres,
)
from zgate_lab.connectors import Connectors
from zgate_lab.deployment import Deployment
from zgate_lab.internet import Internet
from zgate_lab.namespace import in_namespace
from zgate_lab.private_site import PrivateSite, add_private_sites
from zgate_lab.process import Process

Address = IPv4Address | IPv6Address

#: Ports of the service `raw`: the test itself listens behind them, or nobody does.
RAW_PORTS = range(9000, 9010)
DOMAIN = "zgate.internal"
GATEWAY_IPV4, GATEWAY_IPV6 = IPv4Address("10.100.0.1"), IPv6Address("fd7a:7a67:6174:65::1")
CONNECT_TIMEOUT_S = 10.0

POLICY = """\
version: "1.0"
metadata: {name: services}
default_action: deny
clients:
  alice:
    rules:
      - id: alice-services
        type: service
        action: allow
        services: [web, dns, db, ssh, raw, who, "echo*", "extra-*"]
      - id: alice-branch
        type: ip_cidr
        action: allow
        destinations: [10.40.0.0/24, "fd00:40::/64"]
  bob:
    rules:
      - id: bob-not-web
        type: service
        action: deny
        services: [web]
      - id: bob-who
        type: service
        action: allow
        services: [who]
        protocols: [tcp]
        ports: [8080]
  dana:
    rules:
      - id: dana-everything
        type: service
        action: allow
        services: ["*"]
connectors:
  west:
    services: [web, who, "echo*"]
    routes: [10.40.0.0/24, "fd00:40::/64"]
  south:
    routes: [10.40.0.0/24, 10.96.0.0/11]
"""


def service(name: str, protocol: str, ports: list[Any], backend: str, **more: Any) -> Any:
    """One entry of a connector's `services`."""
    return {"id": name, "protocol": protocol, "ports": ports, "backend": backend, **more}


def quick_health(kind: str = "tcp", **more: Any) -> dict[str, Any]:
    """Health checks that a test does not have to wait long for."""
    return {"kind": kind, "interval_s": 0.2, "timeout_s": 1.0, "fall": 2, "rise": 1, **more}


def common_services(site: PrivateSite) -> list[Any]:
    """What both networks offer, from their own backends."""
    backend = str(site.backend.ipv4)
    return [
        service("web", "tcp", [HTTP_PORT], backend, health=quick_health()),
        service("who", "tcp", [NAME_PORT], backend, health=quick_health()),
        service("echo", "tcp", [ECHO_PORT], backend, health=quick_health()),
        service("echo-named", "tcp", [GREETING_PORT], backend, health=quick_health()),
        service("echo", "udp", [ECHO_PORT], backend, health=quick_health("udp", probe_hex="00")),
    ]


def own_services(site: PrivateSite) -> list[Any]:
    """What only the first network offers."""
    backend = str(site.backend.ipv4)
    return [
        service("dns", "udp", [DNS_PORT], backend),
        service("dns", "tcp", [DNS_PORT], backend),
        service("db", "tcp", [POSTGRES_PORT], backend),
        service("ssh", "tcp", [SSH_PORT], backend),
        service("raw", "tcp", ["9000-9009"], backend, health={"kind": "none"}),
    ]


@dataclass
class ServiceWorld:
    """A gateway, alice and bob on their devices, backends in two private networks, connectors."""

    internet: Internet
    zgate: Deployment
    sites: tuple[PrivateSite, PrivateSite]
    connectors: Connectors
    ssh: SshServer
    servers: list[Process]
    virtual_ips: dict[str, tuple[Address, ...]] = field(default_factory=dict)

    @property
    def alice(self) -> str:
        """The namespace of alice's device."""
        return self.internet.device1.namespace.name

    @property
    def bob(self) -> str:
        """The namespace of bob's device."""
        return self.internet.device2.namespace.name

    def vip(self, name: str, version: int = 4) -> Address:
        """A service's virtual IP, as the gateway tells its operator."""
        if name not in self.virtual_ips:
            addresses = self.connectors.service(name)["addresses"]
            self.virtual_ips[name] = tuple(_address(one) for one in addresses)
        return next(one for one in self.virtual_ips[name] if one.version == version)

    def start_both(self) -> None:
        """East and west, if they do not run."""
        for name, site in zip(("east", "west"), self.sites, strict=True):
            site.mend()
            process = self.connectors.processes.get(name)
            if process is None or not process.is_running():
                services = common_services(site)
                services += own_services(site) if name == "east" else []
                self.connectors.spawn(name, site.connector, services=services)
        for name in ("east", "west"):
            self.connectors.wait_offering(name)

    def stop_all(self) -> None:
        """No connector is left."""
        for name in list(self.connectors.processes):
            self.connectors.stop(name)


def _address(text: str) -> Address:
    return IPv6Address(text) if ":" in text else IPv4Address(text)


SERVICE_CLIENTS = ("alice", "bob")
CONNECTORS: dict[str, tuple[str, ...]] = {
    "east": ("*",),
    "west": (),
    "south": (),
    "stranger": ("extra-only",),
}


def prepare_services(internet: Internet, identities: Path) -> Deployment:
    """A deployment with certificates for agents and connectors, nothing started."""
    zgate = Deployment(internet, POLICY)
    if identities.exists():
        shutil.copytree(identities, zgate.directory, dirs_exist_ok=True)
        return zgate
    zgate.make_identities({name: [] for name in SERVICE_CLIENTS})
    zgate.issue("dana", "client", "--agent", "who")
    connectors = Connectors(zgate)
    for name, services in CONNECTORS.items():
        connectors.issue(name, *services)
    for name in ("pki", "gateway", "dana", *SERVICE_CLIENTS, *CONNECTORS):
        shutil.copytree(zgate.directory / name, identities / name)
    return zgate


@contextmanager
def open_service_world(identities: Path) -> Iterator[ServiceWorld]:
    """Everything but the connectors, which are each module's own."""
    with Internet.open() as internet:
        sites = add_private_sites(internet)
        zgate = prepare_services(internet, identities)
        servers = [
            start_backend_server(site.backend, f"hospital{number}")
            for number, site in enumerate(sites, 1)
        ]
        lab, first = internet.lab, sites[0].backend
        start_nginx(lab, first, "hospital1")
        start_nginx(lab, sites[1].backend, "hospital2")
        start_dns(first)
        ssh = SshServer(lab, first)
        start_postgres(lab, first)
        zgate.start_gateway()
        zgate.start_agent("alice", internet.device1)
        zgate.start_agent("bob", internet.device2)
        yield ServiceWorld(internet, zgate, sites, Connectors(zgate), ssh, servers)


def connect(
    namespace: str, address: Address, port: int, timeout_s: float = CONNECT_TIMEOUT_S
) -> socket.socket:
    """A TCP connection out of a namespace. Raises OSError as the kernel does."""
    with in_namespace(namespace):
        made = socket.socket(
            socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM
        )
    made.settimeout(timeout_s)
    try:
        made.connect((str(address), port))
    except OSError:
        made.close()
        raise
    return made


def listen(site: PrivateSite, port: int) -> socket.socket:
    """The backend of `raw` on one of its ports: the test has both ends in its hands."""
    with site.backend.namespace.entered():
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.settimeout(CONNECT_TIMEOUT_S)
    made.bind((str(site.backend.ipv4), port))
    made.listen(1024)
    return made


def who_answers(namespace: str, address: Address, timeout_s: float = CONNECT_TIMEOUT_S) -> str:
    """Ask the service `who`; the name of the backend that answered. Raises OSError."""
    with connect(namespace, address, NAME_PORT, timeout_s) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while data := client.recv(4096):
            answer += data
    return answer.rpartition(b"\r\n\r\n")[2].decode().strip()
