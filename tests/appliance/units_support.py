"""A gateway, an agent and a connector as units, each on a machine; an office behind the gateway."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bed import Machine, clone, with_dependencies
from bed.files import ROOT
from zgate_lab.internet import Host, Internet
from zgate_lab.waiting import wait_until

GATEWAY = "zgate-gateway.service"
SOCKET = "zgate-gateway.socket"
AGENT = "zgate-agent@laptop.service"
CONNECTOR = "zgate-connector@beside.service"
WIKI = "the wiki answers"
TIMEOUT_S = 60.0
NETWORKS_DROP_IN = ROOT / "systemd/zgate-connector-networks.conf"

_POLICY = {
    "version": "1.0",
    "clients": {
        "alice": {
            "rules": [
                {
                    "id": "office",
                    "type": "ip_cidr",
                    "action": "allow",
                    "destinations": ["10.20.0.0/24", "10.77.0.0/24"],
                },
                {"id": "wiki", "type": "service", "action": "allow", "services": ["wiki"]},
            ]
        }
    },
    "connectors": {"beside": {"services": ["wiki"], "routes": ["10.77.0.0/24"]}},
}
_WIKI_PROGRAM = f"""\
from http.server import BaseHTTPRequestHandler, HTTPServer
class Wiki(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{WIKI}")
HTTPServer(("127.0.0.1", 8080), Wiki).serve_forever()
"""


@dataclass
class Units:
    """The machines, with everything configured and nothing but the gateway started."""

    internet: Internet
    gateway: Machine
    device: Machine
    beside: Machine

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Units]:
        """Boot and configure; it is all gone after the block."""
        with Internet.open() as internet, ExitStack() as stack:

            def boot(host: Host) -> Machine:
                machine = stack.enter_context(
                    Machine(
                        internet.lab,
                        host.namespace,
                        host.ipv4,
                        with_dependencies(),
                        binds=clone.BINDS,
                    )
                )
                clone.link_programs(machine)
                clone.install_units(machine)
                return machine

            made = cls(
                internet, boot(internet.gateway), boot(internet.device1), boot(internet.device2)
            )
            made.configure_gateway()
            made.gateway.run("systemctl", "enable", "--now", SOCKET, GATEWAY)
            made._configure_agent()
            made._configure_connector()
            yield made

    # What is configured.

    def configure_gateway(self, **changes: Any) -> None:
        """Write gateway.yaml; `changes` are more of its top-level keys."""
        self.gateway.write("/etc/zgate/policy.yaml", json.dumps(_POLICY))
        config = {
            "policy_file": "policy.yaml",
            "server_names": [str(self.gateway.address)],
            "routes": ["10.20.0.0/24", "10.77.0.0/24", "10.101.0.0/16"],
        }
        self.gateway.write("/etc/zgate/gateway.yaml", json.dumps({**config, **changes}))

    def write_policy(self, **more_clients: Any) -> None:
        """Another policy, with more clients in it."""
        clients = {**_POLICY["clients"], **more_clients}  # type: ignore[dict-item]
        text = json.dumps({**_POLICY, "clients": clients})
        self.gateway.write("/etc/zgate/policy.yaml", text)

    def _configure_agent(self) -> None:
        self._hand_over("alice", self.device, "/etc/zgate/credentials/agents/laptop")
        config = {
            "gateway": str(self.gateway.address),
            "connect_timeout_s": TIMEOUT_S,  # a first attempt may last as long as a busy start
            "dns": "off",
            **_CREDENTIALS,
        }
        self.device.write("/etc/zgate/agents/laptop.yaml", json.dumps(config))

    def _configure_connector(self) -> None:
        self._hand_over("beside", self.beside, "/etc/zgate/credentials/connectors/beside")
        self.beside.write("/srv/wiki.py", _WIKI_PROGRAM)
        self.beside.run("systemd-run", "--unit=wiki", "python3", "/srv/wiki.py")
        self.offer(services=[{"id": "wiki", "ports": [80], "backend": "127.0.0.1:8080"}])

    def offer(self, **offers: Any) -> None:
        """The connector's configuration, with these offers."""
        config = {"gateway": str(self.gateway.address), **_CREDENTIALS, **offers}
        self.beside.write("/etc/zgate/connectors/beside.yaml", json.dumps(config))

    def _hand_over(self, name: str, machine: Machine, folder: str) -> None:
        """Issue a certificate on the gateway and put it where its owner's unit looks."""
        self.gateway.run("zgatectl", "pki", "issue", name, "--out", f"/root/{name}")
        machine.run("mkdir", "-p", "-m", "700", folder)
        for source, target in (
            (f"/root/{name}/ca.crt", "ca.crt"),
            (f"/root/{name}/{name}.crt", "client.crt"),
            (f"/root/{name}/{name}.key", "client.key"),
        ):
            machine.write(f"{folder}/{target}", self.gateway.read(source), mode="600")

    # What is asked.

    def sessions(self) -> dict[str, dict[str, Any]]:
        """The gateway's sessions by client; none while it does not answer."""
        answer = self.gateway.run("zgatectl", "--json", "sessions", check=False)
        found = json.loads(answer.stdout or "{}") if answer.returncode == 0 else {}
        entries = found.get("sessions", found) if isinstance(found, dict) else found
        return {one["client"]: one for one in entries}

    def wait_session(self, client: str) -> dict[str, Any]:
        """Wait until a client has a session; it."""
        return wait_until(lambda: self.sessions().get(client), TIMEOUT_S, f"a session of {client}")

    def agent_status(self) -> dict[str, Any]:
        """What the agent says of itself."""
        answer = self.device.run(
            *("zgate-agent", "status", "--json", "--runtime-dir", "/run/zgate-agent/laptop"),
            check=False,
        )
        found: dict[str, Any] = json.loads(answer.stdout)
        return found

    def wait_connected(self) -> dict[str, Any]:
        """Wait until the agent can send packets into the tunnel; its status."""

        def connected() -> dict[str, Any] | None:
            status = self.agent_status()
            return status if status["state"] == "connected" and status["routes"] else None

        return wait_until(connected, TIMEOUT_S, "the agent's session")

    def reaches_office(self) -> bool:
        """Whether a ping from the device comes back from the office."""
        office = str(self.internet.office.ipv4)
        return self.device.run("ping", "-c1", "-W1", office, check=False).returncode == 0

    def processes(self, machine: Machine, unit: str) -> list[dict[str, str]]:
        """/proc/PID/status of each process of a unit."""
        group = machine.unit(unit, "ControlGroup")["ControlGroup"]
        script = (
            f"for p in $(cat '/sys/fs/cgroup{group}/cgroup.procs'); do cat /proc/$p/status; done"
        )
        text = "\n" + machine.shell(script)
        return [
            dict(line.split(":\t", 1) for line in one.splitlines() if ":\t" in line)
            for one in ("Name:" + part for part in text.split("\nName:")[1:])
        ]


_CREDENTIALS = {
    "ca": "credential:ca.crt",
    "certificate": "credential:client.crt",
    "key": "credential:client.key",
}


def main_pid(machine: Machine, unit: str) -> int:
    """The main process's ID inside; 0 while there is none."""
    return int(machine.unit(unit, "MainPID")["MainPID"])


def wait_active(machine: Machine, unit: str, *, other_than: int = 0) -> int:
    """Wait until a unit is up, as another process than that; its process ID."""

    def found() -> int:
        state = machine.unit(unit, "ActiveState", "SubState", "MainPID")
        is_up = (state["ActiveState"], state["SubState"]) == ("active", "running")
        pid = int(state["MainPID"])
        return pid if is_up and pid != other_than else 0

    return wait_until(found, TIMEOUT_S, f"{unit} to be up")


@contextmanager
def drop_in(machine: Machine, unit: str, text: str) -> Iterator[None]:
    """More lines for a unit, until the block ends."""
    folder = Path("/etc/systemd/system") / f"{unit}.d"
    machine.write(str(folder / "test.conf"), textwrap.dedent(text))
    machine.run("systemctl", "daemon-reload")
    try:
        yield
    finally:
        machine.run("rm", folder / "test.conf")
        machine.run("systemctl", "daemon-reload")
