"""Empty machines for a gateway, two agents and a connector; an office; a controller.

    controller ── isp ──┬── agent1, agent2
                        ├── connector          a wiki on the same host, on its loopback
                        │       └── branch     10.40.0.5, if there is one
                        ├── transit ── gateway ──┬── site ── office   10.20.0.5
                        └── gateway2 ────────────┘     if there is one

Nothing of zgate is on them. What is installed there, Ansible has installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bed import Files, Machine
from controller import Controller, Run
from zgate_lab.internet import OFFICE, Host, Internet, Net, WebServer, host_addresses
from zgate_lab.lab import Port

WIKI_PORT = 8080
WIKI_TEXT = "the wiki answers"
WIKI_PROGRAM = f"""\
from http.server import BaseHTTPRequestHandler, HTTPServer
class Wiki(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{WIKI_TEXT}")
HTTPServer(("127.0.0.1", {WIKI_PORT}), Wiki).serve_forever()
"""
_CONNECTOR_NET = ("198.18.13", "2001:db8:13:")
_GATEWAY2_NET = ("198.18.14", "2001:db8:14:")
_GATEWAY2_INSIDE = ("10.9.1", "fd00:91:")
BRANCH = ("10.40.0", "fd00:40:")
BRANCH_NETWORKS = ["10.40.0.0/24", "fd00:40::/64"]


@dataclass
class Appliance:
    """The machines, by the names of the inventory.

    Attributes:
        gateways: in the order in which the inventory has them.
        office: a web server that only the gateways' site knows.
        variables: of the inventory's groups and hosts.
        boot: make a machine of a host.
    """

    internet: Internet
    gateways: dict[str, Machine]
    agents: dict[str, Machine]
    connector: Machine
    office: WebServer
    controller: Controller
    variables: dict[str, dict[str, Any]]
    boot: Callable[[Host], Machine]

    @classmethod
    @contextmanager
    def open(
        cls, files: Files, key: Path, folder: Path, *, empty: Files | None = None
    ) -> Iterator[Appliance]:
        """Boot all of them; they are gone after the block.

        Gateway and agent1 are `empty`, if that is given.
        """
        with Internet.open() as internet, ExitStack() as stack:

            def boot(host: Host, files: Files = files) -> Machine:
                return stack.enter_context(
                    Machine(internet.lab, host.namespace, host.ipv4, files, key=key)
                )

            agents = {
                "agent1": boot(internet.device1, empty or files),
                "agent2": boot(internet.device2),
            }
            connector = boot(_add_host(internet, "connector", "eth0", _CONNECTOR_NET))
            appliance = cls(
                internet,
                {"gateway": boot(internet.gateway, empty or files)},
                agents,
                connector,
                internet.start_web_server(internet.office),
                Controller(internet.isp, folder, key),
                {},
                boot,
            )
            connector.write("/srv/wiki.py", WIKI_PROGRAM)
            connector.run("systemd-run", "--unit=wiki", "python3", "/srv/wiki.py")
            appliance.variables = _variables(str(internet.gateway.ipv4))
            appliance.write_inventory()
            yield appliance

    @property
    def gateway(self) -> Machine:
        """The first one; it has the authority."""
        return self.gateways["gateway"]

    @property
    def machines(self) -> dict[str, Machine]:
        """All of them."""
        return {**self.gateways, **self.agents, "connector": self.connector}

    def add_gateway(self) -> Machine:
        """A second way into the site; nothing of zgate is on it."""
        internet = self.internet
        host = _add_host(internet, "gateway2", "uplink", _GATEWAY2_NET)
        inside, via = host_addresses(_GATEWAY2_INSIDE, 1), host_addresses(_GATEWAY2_INSIDE, 2)
        internet.lab.connect(
            Port(host.namespace, "inside", inside), Port(internet.site, "gateway2", via)
        )
        ways = zip(host_addresses(OFFICE, 0), via, strict=True)
        host.namespace.ip(
            *(f"route add {net.network} via {one.ip} dev inside" for net, one in ways)
        )
        self.gateways["gateway2"] = self.boot(host)
        return self.gateways["gateway2"]

    def add_branch(self) -> WebServer:
        """A network behind the connector's host, with a web server in it; no way leads there."""
        lab = self.internet.lab
        namespace, own = lab.add_namespace("branch"), host_addresses(BRANCH, 5)
        lab.connect(
            Port(namespace, "eth0", own),
            Port(self.connector.namespace, "branch", host_addresses(BRANCH, 2)),
        )
        return self.internet.start_web_server(Host(namespace, "eth0", own[0].ip, own[1].ip))

    def write_inventory(self) -> None:
        """The machines and `variables`, as Ansible is to see them."""
        groups = {
            "zgate_gateways": self.gateways,
            "zgate_connectors": {"connector": self.connector},
            "zgate_agents": self.agents,
        }
        self.controller.write_inventory(groups, self.variables)

    def deploy(
        self, package: Path | None, *arguments: str, check: bool = True, **variables: Any
    ) -> Run:
        """Run `site.yml` with a package; None: with what a repository has."""
        if package is not None:
            variables["zgate_common_deb"] = str(package)
        return self.controller.run("site.yml", *arguments, check=check, **variables)


def _add_host(internet: Internet, name: str, interface: str, net: Net) -> Host:
    """One more host at the isp, reached from everywhere."""
    namespace = internet.lab.add_namespace(name)
    own, other = host_addresses(net, 2), host_addresses(net, 1)
    internet.lab.connect(Port(namespace, interface, own), Port(internet.isp, name, other))
    namespace.ip(*(f"route add default via {one.ip} dev {interface}" for one in other))
    internet.add_way_to(net)
    return Host(namespace, interface, own[0].ip, own[1].ip)


def _variables(gateway: str) -> dict[str, dict[str, Any]]:
    to_office = {
        "id": "office",
        "type": "ip_cidr",
        "action": "allow",
        "destinations": ["10.20.0.0/24", "fd00:20::/64"],
    }
    to_wiki = {"id": "wiki", "type": "service", "action": "allow", "services": ["wiki"]}
    return {
        "zgate_gateways": {
            "zgate_gateway_server_names": [gateway],
            "zgate_gateway_routes": [
                *("10.20.0.0/24", "10.66.0.0/24", "10.101.0.0/16"),
                *("fd00:20::/64", "fd7a:7a67:6174:66::/64"),
            ],
            "zgate_gateway_policy": {
                "version": "1.0",
                "clients": {"agent1": {"rules": [to_wiki]}},
                "groups": {"staff": {"rules": [to_office]}},
                "connectors": {"connector": {"services": ["wiki"]}},
            },
        },
        "zgate_connectors": {
            "zgate_connector_gateways": [gateway],
            "zgate_connector_services": [
                {"id": "wiki", "ports": [80], "backend": f"127.0.0.1:{WIKI_PORT}"}
            ],
        },
        "zgate_agents": {"zgate_agent_gateways": [gateway], "zgate_agent_groups": ["staff"]},
    }
