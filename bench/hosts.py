"""The three hosts that every peer is measured between.

    client ──(192.0.2.0/24)── gateway ──(10.30.0.0/24)── server

The client has no route to the server's network unless a peer gives it one. The server sends
everything to the gateway.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Self

from zgate_lab.lab import Lab, Port
from zgate_lab.wan import READY, WanSettings

CLIENT = IPv4Interface("192.0.2.2/24")
UPLINK = IPv4Interface("192.0.2.1/24")
INSIDE = IPv4Interface("10.30.0.1/24")
SERVER = IPv4Interface("10.30.0.2/24")
SERVER_NETWORK = IPv4Network("10.30.0.0/24")

WAN_INTERFACE = "wan0"
WAN_START_TIMEOUT_S = 10.0

# What a real network card does not do for us, or not like this: super-packets cross a veth whole.
OFFLOADS = ("tso", "gso", "gro", "tx-udp-segmentation")


class Hosts:
    """Client, gateway and server, with their links."""

    def __init__(self, lab: Lab, *, offloads: bool = True, wan: WanSettings | None = None):
        self.lab = lab
        self.client = lab.add_namespace("client")
        self.gateway = lab.add_namespace("gateway")
        self.server = lab.add_namespace("server")
        if wan is None:
            ends = Port(self.client, "eth0", (CLIENT,)), Port(self.gateway, "uplink", (UPLINK,))
            lab.connect(*ends)
        else:
            self._connect_wan(wan)
        lab.connect(Port(self.gateway, "inside", (INSIDE,)), Port(self.server, "eth0", (SERVER,)))
        self.server.ip(f"route add default via {INSIDE.ip}")
        if not offloads:
            self._switch_offloads_off()

    @classmethod
    @contextmanager
    def open(cls, *, offloads: bool = True, wan: WanSettings | None = None) -> Iterator[Self]:
        """Build it in a lab of its own; everything is removed at the end.

        `wan`: an emulated path in place of the link between client and gateway.
        """
        with Lab() as lab:
            yield cls(lab, offloads=offloads, wan=wan)

    def directory(self, name: str) -> Path:
        """A folder for a peer's files; it lives as long as the lab."""
        directory = self.lab.directory / name
        directory.mkdir(mode=0o700, exist_ok=True)
        return directory

    @contextmanager
    def forwarding(self) -> Iterator[None]:
        """Let the gateway route while a peer runs that does not see to it itself."""
        self.gateway.sysctl("net.ipv4.ip_forward", 1)
        try:
            yield
        finally:
            self.gateway.sysctl("net.ipv4.ip_forward", 0)

    def _connect_wan(self, settings: WanSettings) -> None:
        """The emulator is a process that makes one TUN in each of the two."""
        emulator = self.client.spawn(
            "wan",
            *(sys.executable, "-m", "zgate_lab.wan", self.client.name, self.gateway.name),
            *("--interface", WAN_INTERFACE, *settings.to_arguments()),
        )
        emulator.wait_for_output(READY, WAN_START_TIMEOUT_S)
        self.client.ip(f"addr add {CLIENT} dev {WAN_INTERFACE}")
        self.gateway.ip(f"addr add {UPLINK} dev {WAN_INTERFACE}")

    def _switch_offloads_off(self) -> None:
        switches = [word for name in OFFLOADS for word in (name, "off")]
        for namespace, interface in (
            (self.client, "eth0"),
            (self.gateway, "uplink"),
            (self.gateway, "inside"),
            (self.server, "eth0"),
        ):
            namespace.run("ethtool", "-K", interface, *switches)
