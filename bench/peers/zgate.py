"""zgate itself: the real command lines, a certificate for each end, a policy, masquerade."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

from bench.build import build_null_cipher
from bench.errors import MeasurementFailed
from bench.hosts import SERVER_NETWORK, UPLINK, Hosts
from bench.peers.peer import Peer, Step

BIN = Path(sys.executable).parent
START_TIMEOUT_S = 60.0
SERVER_NAME = "gateway.bench"
GATEWAY_NAME = "gateway"
CLIENT_NAME = "bench"
POLICY_FILE = "policy.json"
GATEWAY_FILE = "gateway.json"
AGENT_FILE = "agent.json"


def policy_for(clients: Sequence[str]) -> dict[str, object]:
    """One rule for each client: the server's network."""
    rule = {
        "id": "allow-server-network",
        "type": "ip_cidr",
        "action": "allow",
        "destinations": [str(SERVER_NETWORK)],
    }
    return {
        "version": "1.0",
        "metadata": {"name": "bench"},
        "default_action": "deny",
        "clients": {client: {"rules": [rule]} for client in clients},
    }


class Zgate(Peer):
    """One zgate-gateway and one zgate-agent."""

    name = "zgate"
    title = "zgate"
    # Of both ends' processes, beside what they inherit.
    environment: Mapping[str, str] | None = None

    def __init__(self, hosts: Hosts, *, more_clients: Sequence[str] = ()):
        super().__init__(hosts)
        self._clients = (CLIENT_NAME, *more_clients)
        self._directory = hosts.directory(self.name)
        self._has_files = False

    def start(self) -> None:
        self._ensure_files()
        gateway = self._spawn(
            self.hosts.gateway,
            "zgate-gateway",
            *(BIN / "zgate-gateway", "--config", self._directory / GATEWAY_FILE),
            environment=self.environment,
        )
        gateway.wait_for_output('"ready: ', START_TIMEOUT_S)
        self.gateway_process = gateway
        self._spawn(
            self.hosts.client,
            "zgate-agent",
            *(BIN / "zgate-agent", "run", "--config", self._directory / AGENT_FILE),
            environment=self.environment,
        )

    def version(self) -> str:
        log = self.gateway_process.output() if self.gateway_process else ""
        engine = re.search(r"engine (\w+)", log)
        return f"zgate {version('zgate')}, engine {engine[1] if engine else 'unknown'}"

    def _ensure_files(self) -> None:
        if not self._has_files:
            self._write_files()
            self._has_files = True

    def _write_gateway_file(self) -> None:
        """Write it anew, for a start with other settings."""
        self._ensure_files()
        self._write(GATEWAY_FILE, self._gateway_config())

    def _write_files(self) -> None:
        self._zgatectl("init")
        self._issue(GATEWAY_NAME, "server", "--dns", SERVER_NAME, "--ip", str(UPLINK.ip))
        for client in self._clients:
            self._issue(client, "client")
        self._write(POLICY_FILE, policy_for(self._clients))
        self._write(GATEWAY_FILE, self._gateway_config())
        self._write(AGENT_FILE, self._agent_config())

    def _gateway_config(self) -> dict[str, object]:
        return {
            "state_dir": self._file("state"),
            "runtime_dir": self._file("run"),
            "socket_path": self._file("gateway.sock"),
            "policy_file": self._file(POLICY_FILE),
            "pki": {"crl": self._file("pki/crl.pem"), **self._credentials(GATEWAY_NAME)},
            "routes": [str(SERVER_NETWORK)],
            "audit": {"path": self._file("audit.jsonl")},
        }

    def _agent_config(self, client: str = CLIENT_NAME) -> dict[str, object]:
        return {
            "gateway": f"{UPLINK.ip}:443",
            "server_name": SERVER_NAME,
            "runtime_dir": self._file("agent-run"),
            **self._credentials(client),
        }

    def _credentials(self, name: str) -> dict[str, str]:
        return {
            "ca": self._file("pki/ca.crt"),
            "certificate": self._file(f"{name}/{name}.crt"),
            "key": self._file(f"{name}/{name}.key"),
        }

    def _file(self, name: str) -> str:
        return str(self._directory / name)

    def _write(self, name: str, document: dict[str, object]) -> None:
        """JSON is YAML: zgate reads both."""
        (self._directory / name).write_text(json.dumps(document, indent=2))

    def _issue(self, name: str, usage: str, *more: str) -> None:
        self._zgatectl("issue", name, "--usage", usage, *more, "--out", self._file(name))

    def _zgatectl(self, command: str, *arguments: str) -> None:
        argv = [str(BIN / "zgatectl"), "pki", command, "--dir", self._file("pki"), *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode != 0:
            raise MeasurementFailed(f"zgatectl pki {command}: {done.stderr.strip()[-300:]}")


class NullCipherZgate(Zgate):
    """The same with a build of the engine whose AEAD only copies; everything else is QUIC."""

    name = "null-cipher"
    title = "zgate, null cipher"
    steps: ClassVar[frozenset[Step]] = frozenset({Step.TCP})

    def __init__(self, hosts: Hosts):
        super().__init__(hosts)
        self.environment = build_null_cipher(hosts.directory("null-cipher-build"))

    def version(self) -> str:
        return f"{super().version()}, built with ZDP_BENCH_NULL_CIPHER"
