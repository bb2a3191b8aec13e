"""TCP through connectors: an application connector, which ends it, and a subnet connector.

    client ── gateway ── connector ──(10.32.0.0/24)── server

Both are one process each, on one host, at the same gateway; only one carries something at a time.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_address
from typing import Any

from zgate_lab.lab import Namespace, Port
from zgate_lab.process import Process
from zgate_lab.unix_http import get_json
from zgate_lab.waiting import wait_until

from bench.hosts import SERVER_NETWORK, Hosts
from bench.load.tcp import PORT, Direction, run_tcp
from bench.peers.zgate import BIN, CLIENT_NAME, POLICY_FILE, SERVER_NAME, Zgate
from bench.sections.section import Record, Section

CONNECTOR = IPv4Interface("198.51.100.2/24")
CONNECTOR_UPLINK = IPv4Interface("198.51.100.1/24")
BEHIND = IPv4Interface("10.32.0.1/24")
BACKEND = IPv4Interface("10.32.0.2/24")
BEHIND_NETWORK = IPv4Network("10.32.0.0/24")
SERVICE = "bulk"
APPLICATION, SUBNET = "bench-application", "bench-subnet"
OFFERED_TIMEOUT_S = 20.0

POLICY: dict[str, object] = {
    "version": "1.0",
    "default_action": "deny",
    "clients": {
        CLIENT_NAME: {
            "rules": [
                {"id": "service", "type": "service", "action": "allow", "services": [SERVICE]},
                {
                    "id": "networks",
                    "type": "ip_cidr",
                    "action": "allow",
                    "destinations": [str(BEHIND_NETWORK), str(SERVER_NETWORK)],
                },
            ]
        }
    },
    "connectors": {
        APPLICATION: {"services": [SERVICE]},
        SUBNET: {"routes": [str(BEHIND_NETWORK)]},
    },
}


class WithConnectors(Zgate):
    """A gateway, an agent, and a connector of each kind."""

    name = "connectors"

    def __init__(self, hosts: Hosts, connector: Namespace):
        super().__init__(hosts, more_clients=(APPLICATION, SUBNET))
        self._host = connector

    def start(self) -> None:
        super().start()
        service: dict[str, Any] = {
            "id": SERVICE,
            "protocol": "tcp",
            "ports": [PORT],
            "backend": str(BACKEND.ip),
            # An iperf3 server takes one client, and would take a health check for it.
            "health": {"kind": "none"},
        }
        self._connector(APPLICATION, services=[service])
        self._connector(SUBNET, networks=[{"network": str(BEHIND_NETWORK), "masquerade": True}])
        wait_until(self._is_offered, OFFERED_TIMEOUT_S, "the connectors' offers")

    def virtual_ip(self) -> IPv4Address:
        """The service's address."""
        (service,) = self._asked("services")
        return next(
            one for one in map(ip_address, service["addresses"]) if isinstance(one, IPv4Address)
        )

    def _connector(self, name: str, **offers: object) -> Process:
        config = {
            "gateways": [f"{CONNECTOR_UPLINK.ip}:443"],
            "server_name": SERVER_NAME,
            "runtime_dir": self._file(f"{name}-run"),
            **self._credentials(name),
            **offers,
        }
        self._write(f"{name}.json", json.loads(json.dumps(config)))
        command = (BIN / "zgate-connector", "--config", self._file(f"{name}.json"))
        return self._spawn(self._host, name, *command)

    def _is_offered(self) -> bool:
        offers = [
            offer
            for connector in self._asked("connectors")
            for offer in (*connector["services"], *connector["routes"])
        ]
        return len(offers) == 2 and all(offer["state"] == "up" for offer in offers)

    def _asked(self, what: str) -> list[dict[str, Any]]:
        answer = get_json(self._directory / "gateway.sock", f"/v1/{what}") or {what: []}
        found: list[dict[str, Any]] = answer[what]
        return found

    def _write_files(self) -> None:
        super()._write_files()
        self._write(POLICY_FILE, POLICY)


def measure(record: Record) -> None:
    """Each round: through one and through the other, up and down."""
    with Hosts.open() as hosts, _connector_host(hosts) as connector:
        peer = WithConnectors(hosts, connector)
        with peer.running():
            ways = {"application": peer.virtual_ip(), "subnet": BACKEND.ip}
            for number in range(1, record.settings.rounds + 1):
                for direction in Direction:
                    for way, target in ways.items():
                        record.show(f"round {number}, {way} connector, TCP {direction.value}")
                        flow = run_tcp(
                            *(hosts.client, hosts.server, target, direction),
                            record.settings.tcp_seconds,
                        )
                        record.put(f"{way}_{direction.value}_mbit_per_s", flow.mbit_per_s)


@contextmanager
def _connector_host(hosts: Hosts) -> Iterator[Namespace]:
    """A host between the gateway and a network that the gateway has no way to."""
    made = hosts.lab.add_namespace("connector")
    hosts.lab.connect(
        Port(made, "eth0", (CONNECTOR,)), Port(hosts.gateway, "uplink2", (CONNECTOR_UPLINK,))
    )
    hosts.lab.connect(Port(made, "behind", (BEHIND,)), Port(hosts.server, "eth1", (BACKEND,)))
    yield made


CONNECTORS = Section("connectors", "TCP through connectors", measure)
