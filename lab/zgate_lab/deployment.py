"""zgate as it is deployed, in a lab: the real command lines with files that they made themselves.

What the demo, the end-to-end tests and the bench start; nothing here imports gateway or agent.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zgate_lab.errors import LabError
from zgate_lab.internet import Host, Internet
from zgate_lab.process import Process
from zgate_lab.unix_http import get_json
from zgate_lab.waiting import SLOWNESS, wait_until

BIN = Path(sys.executable).parent
SERVER_NAME = "gateway.demo"
START_TIMEOUT_S = 30.0
COMMAND_TIMEOUT_S = 60.0
# Before an agent changes it: nobody answers there.
RESOLV_CONF = "nameserver 127.0.0.1\n"
ROUTES = ("10.20.0.0/24", "10.66.0.0/24", "fd00:20::/64", "fd00:66::/64")


class CommandFailed(LabError):
    """A zgate command ended with another status than 0."""

    def __init__(self, command: Sequence[str], status: int, output: str) -> None:
        super().__init__(f"{' '.join(command)}: status {status}: {output.strip()}")
        self.status = status
        self.output = output


class Deployment:
    """One gateway, its clients, their certificates and files, in the `Internet` topology.

    Attributes:
        host: where the gateway runs.
        environment: what is added to the gateway's.
    """

    def __init__(self, internet: Internet, policy: str, host: Host | None = None) -> None:
        self.internet = internet
        self.host = host or internet.gateway
        self.name = self.host.namespace.role
        self.directory = internet.lab.directory
        if host is not None:
            self.directory = internet.lab.directory / self.name
            self.directory.mkdir()
        self.socket = self.directory / "gateway.sock"
        self.audit_file = self.directory / "audit.jsonl"
        self.policy_file = self.directory / "policy.yaml"
        self.pki = self.directory / "pki"
        self.policy_file.write_text(policy)
        self.gateway: Process | None = None
        self.agents: dict[str, Process] = {}
        self.environment: dict[str, str] = {}

    # Identities.

    def make_identities(self, clients: Mapping[str, Sequence[str]]) -> None:
        """A CA, the gateway's certificate, and one for each client with its groups."""
        self.run_pki("init")
        self.issue_own()
        for name, groups in clients.items():
            self.issue(name, "client", *(word for group in groups for word in ("--group", group)))

    def issue_own(self) -> None:
        """The gateway's own certificate."""
        self.issue("gateway", "server", "--dns", SERVER_NAME, "--ip", str(self.host.ipv4))

    def issue(self, name: str, usage: str, *more: str) -> Path:
        """Issue a certificate; its files are `NAME.crt` and `NAME.key` in the returned folder."""
        out = self.directory / name
        self.run_pki("issue", name, "--usage", usage, *more, "--out", str(out))
        return out

    def revoke(self, name: str) -> None:
        """Revoke all certificates of a client."""
        self.run_pki("revoke", name)

    def run_pki(self, command: str, *arguments: str) -> str:
        """Run `zgatectl pki COMMAND` on this deployment's authority; its output."""
        return self.run("pki", command, "--dir", str(self.pki), *arguments)

    # The gateway.

    def gateway_config(self) -> dict[str, Any]:
        """The gateway's configuration, as the file will hold it."""
        own = self.directory / "gateway"
        return {
            "state_dir": str(self.directory / "state"),
            "runtime_dir": str(self.directory / "run"),
            "socket_path": str(self.socket),
            "policy_file": str(self.policy_file),
            "pki": {
                "ca": str(self.pki / "ca.crt"),
                "crl": str(self.pki / "crl.pem"),
                "certificate": str(own / "gateway.crt"),
                "key": str(own / "gateway.key"),
            },
            "routes": list(ROUTES),
            "audit": {"path": str(self.audit_file)},
        }

    def start_gateway(self, **changes: Any) -> Process:
        """Start the daemon and wait until it is ready; `changes` replace top-level keys."""
        process = self.spawn_gateway(**changes)
        # The log is one file over restarts: ready is who answers on the socket.
        process.wait_for(lambda: self._is_ready(process), START_TIMEOUT_S, "ready")
        return process

    def spawn_gateway(self, **changes: Any) -> Process:
        """Start the daemon; returns at once. It may end at once, too."""
        config_file = self.directory / "gateway.yaml"
        config_file.write_text(json.dumps({**self.gateway_config(), **changes}, indent=2))
        self.gateway = self.host.namespace.spawn(
            self.name,
            BIN / "zgate-gateway",
            "--config",
            config_file,
            environment=self.environment,
        )
        return self.gateway

    def _is_ready(self, process: Process) -> bool:
        status = self.gateway_status()
        return status.get("pid") == process.pid and status.get("state") == "ready"

    # Agents.

    def agent_config(self, name: str) -> dict[str, Any]:
        """An agent's configuration, as the file will hold it."""
        own = self.directory / name
        return {
            "gateway": f"{self.host.ipv4}:443",
            "server_name": SERVER_NAME,
            "ca": str(self.pki / "ca.crt"),
            "certificate": str(own / f"{name}.crt"),
            "key": str(own / f"{name}.key"),
            "runtime_dir": str(self.directory / f"{name}-run"),
            "dns": "resolv.conf",
            "resolv_conf": str(self.resolv_conf(name)),
        }

    def resolv_conf(self, name: str) -> Path:
        """What stands for /etc/resolv.conf on an agent's device: the lab has network namespaces
        only, and the host's own file is the host's."""
        return self.directory / f"{name}-resolv.conf"

    def spawn_agent(self, name: str, device: Host, **changes: Any) -> Process:
        """Start an agent on a device; returns at once."""
        return self.spawn_agent_with(name, device, {**self.agent_config(name), **changes})

    def spawn_agent_with(self, name: str, device: Host, config: Mapping[str, Any]) -> Process:
        """The same with a whole configuration."""
        self.resolv_conf(name).write_text(RESOLV_CONF)
        config_file = self.directory / f"{name}.yaml"
        config_file.write_text(json.dumps(config, indent=2))
        process = device.namespace.spawn(name, BIN / "zgate-agent", "run", "--config", config_file)
        self.agents[name] = process
        return process

    def start_agent(self, name: str, device: Host, **changes: Any) -> dict[str, Any]:
        """Start an agent and wait until it is connected; its session as the gateway sees it."""
        return self.wait_connected(name, self.spawn_agent(name, device, **changes))

    def wait_connected(self, name: str, process: Process) -> dict[str, Any]:
        """Wait until gateway and agent agree that the session is up and packets can go."""
        session = process.wait_for(
            lambda: self.sessions().get(name) if self.is_connected(name) else None,
            START_TIMEOUT_S,
            f"the session of {name}",
        )
        return session or {}

    def reconnect(self, name: str) -> dict[str, Any]:
        """SIGHUP: the agent drops its session and dials anew; the new session."""
        before = self.sessions().get(name, {}).get("session_id")
        agent = self.agents[name]
        agent.signal(signal.SIGHUP)

        def is_another() -> bool:
            return bool(self.sessions().get(name, {}).get("session_id") not in (None, before))

        agent.wait_for(is_another, START_TIMEOUT_S, f"a new session of {name}")
        return self.wait_connected(name, agent)

    def is_connected(self, name: str) -> bool:
        """Whether the agent has a session, and the host's network set up for it."""
        status = self.agent_status(name)
        return bool(status.get("state") == "connected" and status["routes"])

    def agent_status(self, name: str) -> dict[str, Any]:
        """What the agent says of itself; empty when it does not answer.

        The very document that `zgate-agent status --json` prints.
        """
        answer = get_json(self.directory / f"{name}-run" / "agent.sock", "/v1/status")
        return answer or {}

    def wait_agent(
        self, name: str, state: str, timeout_s: float = START_TIMEOUT_S
    ) -> dict[str, Any]:
        """Wait until the agent is in a state; its status then."""

        def status() -> dict[str, Any]:
            answer = self.agent_status(name)
            return answer if answer.get("state") == state else {}

        return self.agents[name].wait_for(status, timeout_s, f"state {state} of {name}")

    # Questions.

    def run_agent(self, *arguments: str) -> str:
        """Run zgate-agent on this host, as `run` runs zgatectl; its output."""
        return self._run("zgate-agent", *arguments)

    def run(self, *arguments: str) -> str:
        """Run zgatectl on this host; its output.

        Raises:
            CommandFailed: it ended with another status than 0.
        """
        return self._run("zgatectl", *arguments)

    def _run(self, program: str, *arguments: str) -> str:
        command = [str(BIN / program), *arguments]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_TIMEOUT_S * SLOWNESS,
        )
        if done.returncode:
            raise CommandFailed(command, done.returncode, done.stderr or done.stdout)
        return done.stdout

    def ask(self, *arguments: str) -> Any:
        """Ask the gateway: `zgatectl ... --json`, parsed."""
        return json.loads(self.run("--socket", str(self.socket), *arguments, "--json"))

    def gateway_status(self) -> dict[str, Any]:
        """The document that `zgatectl status --json` prints; empty when nobody answers."""
        return get_json(self.socket, "/v1/status") or {}

    def sessions(self) -> dict[str, dict[str, Any]]:
        """The sessions that are up, by client."""
        answer = get_json(self.socket, "/v1/sessions") or {"sessions": []}
        return {session["client"]: session for session in answer["sessions"]}

    def counters(self, client: str) -> dict[str, int]:
        """The kernel's counters of a connected client."""
        try:
            return dict(self.sessions()[client]["counters"])
        except KeyError:
            raise LabError(f"{client} has no session") from None

    def audit(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """The audit records of an event whose fields have these values."""
        if not self.audit_file.exists():
            return []
        whole = self.audit_file.read_text().rpartition("\n")[0]  # one may be half written
        records = [json.loads(line) for line in whole.splitlines()]
        return [
            record
            for record in records
            if record["event"] == event
            and all(record.get(name) == value for name, value in fields.items())
        ]

    def wait_audit(self, event: str, timeout_s: float = 5.0, **fields: Any) -> dict[str, Any]:
        """Wait for an audit record; the first that fits."""
        found = wait_until(
            lambda: self.audit(event, **fields), timeout_s, f"the audit record {event} {fields}"
        )
        return found[0]

    def stop(self) -> dict[str, int]:
        """SIGTERM to all, agents first; exit statuses by name."""
        statuses = {name: agent.stop() for name, agent in self.agents.items()}
        if self.gateway is not None:
            statuses["gateway"] = self.gateway.stop()
        return statuses
