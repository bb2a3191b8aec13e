"""`make demo`: a gateway, two agents, two connectors, real packets, a proof of each promise.

Everything happens in network namespaces of its own. Each line that is shown has been proved a
moment before; the exit status is 0 only if every one was. With a terminal the lab then stays up
until Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape

from zgate_lab.demo_services import SERVICE, URL, ServicesDemo
from zgate_lab.deployment import BIN, Deployment
from zgate_lab.errors import LabError
from zgate_lab.internet import Host, Internet, WebServer
from zgate_lab.lab import Namespace
from zgate_lab.traffic import https_get, ping

DOWNLOAD_BYTES = 8 << 20
PINGS = 1000
DENIED_TIMEOUT_S = 1.0

POLICY = """\
version: "1.0"
metadata: {name: zgate-demo}
default_action: deny
clients:
  alice:
    description: "A doctor: may use the office's web server, and ping it"
    rules:
      - id: allow-office-web
        type: ip_cidr
        action: allow
        destinations: [10.20.0.0/24, "fd00:20::/64"]
        protocols: [tcp]
        ports: [443]
      - id: allow-office-ping
        type: ip_cidr
        action: allow
        destinations: [10.20.0.0/24, "fd00:20::/64"]
        protocols: [icmp]
      - id: allow-pacs
        type: service
        action: allow
        services: [pacs]
  bob:
    description: "A visitor: not the office"
    rules:
      - id: deny-office
        type: ip_cidr
        action: deny
        destinations: [10.20.0.0/24, "fd00:20::/64"]
"""


class NotProved(Exception):
    """Something that the demo promises did not happen."""


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP: stop, and clean up. No `Exception`: no step may swallow it."""


def require(condition: object, text: str) -> None:
    """Raise NotProved with `text` unless the condition is true."""
    if not condition:
        raise NotProved(text)


def say(console: Console, proved: bool, text: str) -> None:
    """One line of the demo, never broken by us: whoever copies a path gets all of it."""
    mark = "[green]✔[/green]" if proved else "[red]✘[/red]"
    console.print(f"{mark} {escape(text)}", highlight=False, soft_wrap=True)


@dataclass
class Demo:
    """The lab with everything that runs in it."""

    console: Console
    internet: Internet
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.zgate = Deployment(self.internet, POLICY)
        self.services = ServicesDemo(self.internet, self.zgate)

    # -- the parts

    def make_identities(self) -> str:
        """A CA, the gateway's certificate, one for each client, by the real command line."""
        self.zgate.make_identities({"alice": ["staff"], "bob": []})
        return f"CA, gateway and two client certificates in {self.zgate.pki}"

    def start_gateway(self) -> str:
        """The daemon, on the host between uplink and site."""
        process = self.zgate.start_gateway()
        return f"zgate-gateway serves UDP {self.internet.gateway.ipv4}:443 (pid {process.pid})"

    def start_agents(self) -> str:
        """One agent on each device."""
        sessions = {
            "alice": self.zgate.start_agent("alice", self.internet.device1),
            "bob": self.zgate.start_agent("bob", self.internet.device2),
        }
        return ", ".join(
            f"{name} holds {' and '.join(session['addresses'])}"
            for name, session in sessions.items()
        )

    def start_office(self) -> str:
        """HTTPS servers on both hosts of the site."""
        self.office: WebServer = self.internet.start_web_server(self.internet.office)
        self.forbidden: WebServer = self.internet.start_web_server(self.internet.forbidden)
        return f"HTTPS at {self.office.url_ipv4} and, for nobody, {self.forbidden.url_ipv4}"

    def start_connectors(self) -> str:
        """Two private networks behind NATs, a connector in each."""
        return self.services.start()

    # -- the proofs

    def prove_ping(self) -> str:
        """ICMP and ICMPv6 through the tunnel."""
        for address in (self.internet.office.ipv4, self.internet.office.ipv6):
            result = ping(self.internet.device1.namespace.name, address, count=3)
            require(result.lost == 0, f"alice's ping to {address}: {result.lost} of 3 lost")
        return f"alice pings {self.internet.office.ipv4} and {self.internet.office.ipv6}"

    def prove_download(self) -> str:
        """HTTPS over IPv4 and IPv6."""
        for url in (self.office.url_ipv4, self.office.url_ipv6):
            result = https_get(
                self.internet.device1.namespace.name,
                f"{url}bytes/{DOWNLOAD_BYTES}",
                self.office.certificate_file,
            )
            require(result.body_bytes == DOWNLOAD_BYTES, f"{url}: got {result}")
        return f"alice downloads {DOWNLOAD_BYTES >> 20} MiB over HTTPS, by IPv4 and by IPv6"

    def prove_denial(self) -> str:
        """The policy's explicit rule, in the kernel, against bob."""
        self._require_no_answer(self.internet.device2.namespace, self.office)
        record = self._denial("bob", self.internet.office)
        require(record["rule"] == "deny-office", f"denied by {record['rule']}, not deny-office")
        why = self.zgate.ask("why", "bob", str(self.internet.office.ipv4), "tcp/443")
        require(why["kernel"]["rule_id"] == "deny-office", f"why says {why['kernel']}")
        require(why["agree"], "compiler and kernel disagree")
        return (
            f"bob -> {self.internet.office.ipv4}:443 dropped by the BPF program:"
            f" rule {record['rule']}, revision {record['revision']}"
        )

    def prove_default_denial(self) -> str:
        """No rule, no way: nobody reaches the forbidden host."""
        for device in (self.internet.device1, self.internet.device2):
            self._require_no_answer(device.namespace, self.forbidden)
        require(not self.forbidden.requests(), "a request reached the forbidden host")
        record = self._denial("alice", self.internet.forbidden)
        require(record["reason"] == "POLICY_DEFAULT", f"reason {record['reason']}")
        return f"nobody reaches {self.internet.forbidden.ipv4}: no rule, dropped by default"

    def prove_counters(self) -> str:
        """Per-client counters out of the kernel."""
        alice, bob = self.zgate.counters("alice"), self.zgate.counters("bob")
        require(alice["down_bytes"] > 2 * DOWNLOAD_BYTES, f"alice's counters: {alice}")
        require(bob["dropped_packets"] > 0 and bob["down_packets"] == 0, f"bob's: {bob}")
        return (
            f"kernel counters: alice {alice['down_bytes'] / 1e6:.1f} MB down in"
            f" {alice['down_packets']} packets; bob {bob['dropped_packets']} packets dropped"
        )

    def prove_masquerade(self) -> str:
        """The office sees the gateway, never a device or a virtual IP."""
        inside = self.internet.gateway_inside
        seen = {record.client for record in self.office.requests()}
        require(
            seen == {str(inside.ipv4), str(inside.ipv6)}, f"the office's log shows {sorted(seen)}"
        )
        return f"masquerade: the office's log shows only {inside.ipv4} and {inside.ipv6}"

    def prove_no_loss(self) -> str:
        """A thousand pings, none lost."""
        result = ping(
            self.internet.device1.namespace.name,
            self.internet.office.ipv4,
            count=PINGS,
            interval_s=0.002,
        )
        require(result.lost == 0, f"{result.lost} of {PINGS} pings lost")
        return f"{PINGS} pings, 0 lost, {result.rtt_average_ms} ms on average"

    def prove_service(self) -> str:
        """By name, through whichever connector; no way in but the gateway's."""
        hospital = self.services.ask("alice", self.internet.device1)
        require(self.services.is_closed_from_outside(), "a NAT lets something in")
        return f"alice asks {URL} and {hospital} answers; no port of its network is open"

    def prove_service_denial(self) -> str:
        """Who may not reach it does not learn that it exists."""
        require(self.services.denied("bob"), f"bob may reach {SERVICE}")
        require(not self.services.resolves("bob", self.internet.device2), f"bob resolves {SERVICE}")
        return f"bob is told that {SERVICE}.zgate.internal does not exist (NXDOMAIN)"

    def prove_failover(self) -> str:
        """The connector that serves is killed; the other one takes over."""
        killed, heir, took_s = self.services.kill_who_answers("alice", self.internet.device1)
        return f"connector {killed} killed, given up after {took_s:.1f} s: {heir} answers alice"

    def prove_clean_end(self) -> str:
        """SIGTERM: exit status 0 everywhere, nothing left in the gateway's kernel."""
        for name, status in (self.services.stop() | self.zgate.stop()).items():
            require(status == 0, f"{name} ended with status {status}")
        namespace = self.internet.gateway.namespace
        require("zgate" not in namespace.run("nft", "list", "tables").stdout, "nftables left")
        require("zgate0" not in namespace.run("ip", "-o", "link").stdout, "zgate0 left")
        require(namespace.sysctl("net.ipv4.ip_forward") == "0", "ip_forward left on")
        return "all end with status 0; TUN, nftables and sysctls are back as they were"

    # -- tools

    def _require_no_answer(self, namespace: Namespace, server: WebServer) -> None:
        answered = namespace.run(
            *("curl", "-sS", "--max-time", str(DENIED_TIMEOUT_S), "--cacert"),
            *(str(server.certificate_file), server.url_ipv4),
            check=False,
        )
        require(answered.returncode != 0, f"{namespace.role} got an answer from {server.url_ipv4}")

    def _denial(self, client: str, host: Host) -> dict[str, Any]:
        """The audit record of the client's denied flow to the host."""
        return self.zgate.wait_audit(
            "flow_denied", client=client, destination=str(host.ipv4), protocol=6
        )

    def show(self, title: str, step: Callable[[], str]) -> bool:
        """Run one step and show its line."""
        try:
            with self.console.status(f"{title} ..."):
                text = step()
        except (NotProved, LabError, OSError, ValueError, KeyError) as error:
            say(self.console, False, f"{title}: {error}")
            self.failures.append(title)
            return False
        say(self.console, True, text)
        return True

    def tell_how_to_look(self) -> None:
        """What somebody at the terminal can try."""
        # Root has no need of sudo, and a minimal Debian has none.
        sudo = "sudo " if "SUDO_USER" in os.environ else ""
        enter = f"{sudo}ip netns exec"
        device = self.internet.device1.namespace.name
        gateway = self.internet.gateway.namespace.name
        files = self.zgate.directory
        control = f"{BIN / 'zgatectl'} --socket {self.zgate.socket}"
        self.console.print("\nThe lab stays up. In another terminal:", highlight=False)
        for command in (
            f"{sudo}{control} top",
            f"{sudo}{control} sessions",
            f"{sudo}{control} services",
            f"{sudo}{control} connectors",
            f"{sudo}{control} policy show",
            f"{sudo}{control} why bob {self.internet.office.ipv4} tcp/443",
            f"{enter} {device} curl --cacert {self.office.certificate_file} {self.office.url_ipv4}",
            f"{enter} {device} {BIN / 'zgatectl'} netcheck --config {files / 'alice.yaml'}",
            f"{enter} {gateway} {control} doctor --config {files / 'gateway.yaml'}",
            f"{enter} {gateway} nft list ruleset",
            f"tail -f {self.zgate.audit_file}",
        ):
            self.console.print(f"  {command}", highlight=False, soft_wrap=True)
        self.console.print("Ctrl-C ends it and removes everything.", highlight=False)


def host_state() -> str:
    """The host's own links, routes and nftables: the demo must leave them as they are.

    Without what changes by itself: nftables' counters, and for how long a route is still good.
    """
    commands = (
        ("ip", "-o", "link"),
        ("ip", "route", "show", "table", "all"),
        ("ip", "-6", "route", "show", "table", "all"),
        ("nft", "--stateless", "list", "ruleset"),
    )
    said = "\n".join(
        subprocess.run(command, capture_output=True, text=True, check=False).stdout
        for command in commands
    )
    return re.sub(r" expires \d+sec", "", said)


def wait_for_ever() -> None:
    """Until a signal's handler raises. `signal.pause` would miss one that comes just before it."""
    while True:
        time.sleep(0.5)


def prove(demo: Demo, *, stay: bool) -> None:
    """Start everything, prove everything; `stay`: with all of it up, wait for Ctrl-C."""
    parts: list[tuple[str, Callable[[], str]]] = [
        ("certificates", demo.make_identities),
        ("servers", demo.start_office),
        ("gateway", demo.start_gateway),
        ("agents", demo.start_agents),
        ("connectors", demo.start_connectors),
    ]
    proofs: list[tuple[str, Callable[[], str]]] = [
        ("ping", demo.prove_ping),
        ("download", demo.prove_download),
        ("a denied destination", demo.prove_denial),
        ("default deny", demo.prove_default_denial),
        ("counters", demo.prove_counters),
        ("masquerade", demo.prove_masquerade),
        ("no loss", demo.prove_no_loss),
        ("a service by name", demo.prove_service),
        ("a service's name for who may not", demo.prove_service_denial),
        ("a dead connector", demo.prove_failover),
    ]
    # Without its parts nothing can be proved; one failed proof does not hide the next.
    if not all(demo.show(title, part) for title, part in parts):
        return
    for title, proof in proofs:
        demo.show(title, proof)
    if stay:
        with contextlib.suppress(Interrupted):
            # Inside: who reads fast may press Ctrl-C before the last line is out.
            demo.tell_how_to_look()
            wait_for_ever()
    demo.show("clean end", demo.prove_clean_end)


def run(console: Console, *, stay: bool) -> int:
    """The whole demo, from an untouched host to an untouched host. Returns the exit status."""
    before = host_state()
    failures: list[str] = []
    try:
        with Internet.open() as internet:
            demo = Demo(console, internet, failures)
            prove(demo, stay=stay)
    except Interrupted:
        say(console, False, "interrupted: not everything was proved")
        failures.append("interrupted")
    if host_state() != before:
        say(console, False, "the host's own network is not as it was")
        failures.append("host untouched")
    else:
        say(console, True, "the host's own links, routes and nftables are untouched")
    return 1 if failures else 0


def _interrupt(*_: object) -> None:
    """SIGINT, SIGTERM, SIGHUP: once, because what follows is the cleaning up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    raise Interrupted


def main() -> None:
    """Entry point of `python -m zgate_lab.demo`."""
    console = Console()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        status = run(console, stay=sys.stdin.isatty() and sys.stdout.isatty())
    except LabError as error:
        say(console, False, str(error))
        status = 1
    sys.exit(status)


if __name__ == "__main__":
    main()
