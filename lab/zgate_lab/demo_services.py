"""The demo's second half: a service in a private network; of two connectors one is killed."""

from __future__ import annotations

import time
from ipaddress import IPv4Address

from zgate_lab.backend_server import NAME_PORT
from zgate_lab.backends import start_backend_server
from zgate_lab.connectors import Connectors, with_resolv_conf
from zgate_lab.deployment import Deployment
from zgate_lab.errors import LabError
from zgate_lab.internet import Host, Internet
from zgate_lab.private_site import PrivateSite, add_private_sites
from zgate_lab.waiting import wait_until

SERVICE, PORT = "pacs", 80
URL = f"http://{SERVICE}.zgate.internal/"
NAMES = ("east", "west")
ASK_TIMEOUT_S = 5.0
FAILOVER_TIMEOUT_S = 15.0
ASKED_AFTERWARDS = 4
NOT_RESOLVED = 6  # curl's exit code


class ServicesDemo:
    """The private networks and what runs in them."""

    def __init__(self, internet: Internet, zgate: Deployment) -> None:
        self._internet = internet
        self._zgate = zgate
        self.connectors = Connectors(zgate)
        self.sites: tuple[PrivateSite, ...] = ()

    def start(self) -> str:
        """Both networks, a server in each, a connector beside each server."""
        self.sites = add_private_sites(self._internet)
        for name, site in zip(NAMES, self.sites, strict=True):
            start_backend_server(site.backend, f"hospital{site.number}")
            self.connectors.issue(name, SERVICE)
            service = {
                "id": SERVICE,
                "ports": [PORT],
                "backend": f"{site.backend.ipv4}:{NAME_PORT}",
            }
            self.connectors.spawn(name, site.connector, services=[service])
        for name in NAMES:
            self.connectors.wait_offering(name)
        return (
            f"connectors {' and '.join(NAMES)}, behind NATs that let nothing in, offer {SERVICE}:"
            f" {' and '.join(self.connectors.service(SERVICE)['addresses'])}"
        )

    def ask(self, client: str, device: Host) -> str:
        """Ask the service by its name, on a client's device; which hospital answered.

        Raises:
            LabError: curl failed; its text says how.
        """
        argv = ["curl", "-sS", "--max-time", f"{ASK_TIMEOUT_S:g}", "--noproxy", "*", URL]
        command = with_resolv_conf(self._zgate.resolv_conf(client), argv)
        return device.namespace.run(*command).stdout.strip()

    def resolves(self, client: str, device: Host) -> bool:
        """Whether the client's device learns the service's address."""
        argv = ["curl", "-sS", "--max-time", "1", "--noproxy", "*", URL]
        command = with_resolv_conf(self._zgate.resolv_conf(client), argv)
        return device.namespace.run(*command, check=False).returncode != NOT_RESOLVED

    def kill_who_answers(self, client: str, device: Host) -> tuple[str, str, float]:
        """SIGKILL the connector that served last: its name, who took over, after how many s.

        Raises:
            LabError: a new flow failed after the gateway had given it up.
        """
        first = self.ask(client, device)
        number = next(site.number for site in self.sites if first == f"hospital{site.number}")
        name = NAMES[number - 1]
        self.connectors.processes.pop(name).kill()
        died_s = time.monotonic()

        def is_given_up() -> bool:
            offers = self.connectors.seen(name).get("services", ())
            return not any(offer["state"] == "up" for offer in offers)

        wait_until(is_given_up, FAILOVER_TIMEOUT_S, f"{name} to be given up")
        took_s = time.monotonic() - died_s
        answers = {self.ask(client, device) for _ in range(ASKED_AFTERWARDS)}
        if len(answers) != 1 or first in answers:
            raise LabError(f"{name} is dead, and {sorted(answers)} answer")
        return name, answers.pop(), took_s

    def is_closed_from_outside(self) -> bool:
        """Whether nobody on the way in gets an answer: from the NATs' own neighbour."""
        probes = [
            (site.outside.ipv4, port) for site in self.sites for port in (PORT, NAME_PORT, 443)
        ]
        return not any(self._connects(address, port) for address, port in probes)

    def _connects(self, address: IPv4Address, port: int) -> bool:
        argv = ("curl", "-s", "--max-time", "0.2", "--noproxy", "*", f"http://{address}:{port}/")
        return self._internet.isp.run(*argv, check=False).returncode == 0

    def denied(self, client: str) -> bool:
        """Whether compiler and kernel agree that a client may not reach the service."""
        why = self._zgate.ask("why", client, SERVICE, f"tcp/{PORT}")
        return bool(why["agree"] and why["kernel"]["action"] == "deny")

    def stop(self) -> dict[str, int]:
        """SIGTERM to those that are left; exit statuses by name."""
        return {name: one.stop() for name, one in self.connectors.processes.items()}
