"""The policy of the end-to-end tests, and what a test looks at."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from zgate_lab.deployment import Deployment
from zgate_lab.internet import Internet, WebServer
from zgate_lab.process import Process

ECHO_PORT = 5001
STREAM_PORT = 5002
CLIENTS: dict[str, list[str]] = {"alice": [], "bob": [], "carol": ["staff"]}

POLICY = """\
version: "1.0"
metadata: {name: e2e}
default_action: deny
clients:
  alice:
    rules:
      - id: allow-office-web
        type: ip_cidr
        action: allow
        destinations: [10.20.0.0/24, "fd00:20::/64"]
        protocols: [tcp]
        ports: [443, 5001-5100]
      - id: allow-office-udp
        type: ip_cidr
        action: allow
        destinations: [10.20.0.0/24, "fd00:20::/64"]
        protocols: [udp]
        ports: [5001-5100]
      - id: allow-office-ping
        type: ip_cidr
        action: allow
        destinations: [10.20.0.0/24, "fd00:20::/64"]
        protocols: [icmp]
  bob:
    rules:
      - id: deny-office
        type: ip_cidr
        action: deny
        destinations: [10.20.0.0/24, "fd00:20::/64"]
groups:
  staff:
    rules:
      - id: staff-ping
        type: ip_cidr
        action: allow
        destinations: [10.66.0.0/24]
        protocols: [icmp]
"""


@dataclass
class World:
    """A gateway that runs, and who is connected to it."""

    internet: Internet
    zgate: Deployment
    office: WebServer

    @property
    def alice(self) -> str:
        """The namespace of alice's device."""
        return self.internet.device1.namespace.name

    @property
    def bob(self) -> str:
        """The namespace of bob's device."""
        return self.internet.device2.namespace.name

    @property
    def gateway(self) -> Process:
        """The daemon."""
        assert self.zgate.gateway is not None
        return self.zgate.gateway

    def forget_paths(self) -> None:
        """What routers have said of a path's MTU: kernels remember it for ten minutes.

        Everybody's: bob's session follows the path as well as alice's.
        """
        for namespace in self.internet.lab.namespaces.values():
            namespace.ip("route flush cache")
            namespace.run("ip", "-6", "route", "flush", "cache")

    def connect_all(self) -> None:
        """See to it that alice and bob are connected; quick when they are."""
        devices = {"alice": self.internet.device1, "bob": self.internet.device2}
        for name, device in devices.items():
            agent = self.zgate.agents.get(name)
            if agent is None or not agent.is_running():
                self.zgate.start_agent(name, device)
            elif name not in self.zgate.sessions() or not self.zgate.is_connected(name):
                self.zgate.wait_connected(name, agent)


def prepare(internet: Internet, identities: Path) -> Deployment:
    """A deployment with certificates and policy, nothing started.

    `identities` is a folder for the certificates: made by the first who comes, copied by the rest.
    """
    made = Deployment(internet, POLICY)
    if not identities.exists():
        made.make_identities(CLIENTS)
        for name in ("pki", "gateway", *CLIENTS):
            shutil.copytree(made.directory / name, identities / name)
    else:
        shutil.copytree(identities, made.directory, dirs_exist_ok=True)
    return made
