"""A gateway and two agents as their real command lines, in the lab's small internet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from zgate_lab.deployment import Deployment
from zgate_lab.internet import Internet, WebServer

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
    """What a test looks at."""

    internet: Internet
    zgate: Deployment
    office: WebServer


@pytest.fixture
def internet() -> Iterator[Internet]:
    """The small internet alone, for tests that change it or start their own gateway."""
    with Internet.open() as made:
        yield made


@pytest.fixture
def deployment(internet: Internet) -> Deployment:
    """Certificates and policy made, nothing started."""
    made = Deployment(internet, POLICY)
    made.make_identities({"alice": [], "bob": [], "carol": ["staff"]})
    return made


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Gateway, alice on device1, bob on device2, an office that serves HTTPS; one per module."""
    with Internet.open() as internet:
        zgate = Deployment(internet, POLICY)
        zgate.make_identities({"alice": [], "bob": [], "carol": ["staff"]})
        office = internet.start_web_server(internet.office)
        zgate.start_gateway()
        zgate.start_agent("alice", internet.device1)
        zgate.start_agent("bob", internet.device2)
        yield World(internet, zgate, office)
