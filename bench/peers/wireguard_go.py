"""Debian's wireguard-go: WireGuard in userspace, its own defaults (MTU 1420)."""

import contextlib
import socket
from pathlib import Path
from typing import ClassVar

from zgate_lab.lab import Namespace
from zgate_lab.process import Process

from bench.hosts import SERVER_NETWORK, UPLINK, Hosts
from bench.peers.peer import Peer, find, first_line

PORT = 51820
MTU_BYTES = 1420
GATEWAY_ADDRESS = "10.7.0.1"
CLIENT_ADDRESS = "10.7.0.2"
START_TIMEOUT_S = 10.0
# wireguard-go's control sockets lie in a folder of the whole machine, namespace or not.
SOCKET_DIRECTORY = Path("/var/run/wireguard")
SOCKET_PREFIX = "zgb"


class WireGuardGo(Peer):
    """One wireguard-go process at each end."""

    name = "wireguard-go"
    title = "wireguard-go"
    programs: ClassVar[dict[str, str]] = {"wireguard-go": "wireguard-go", "wg": "wireguard-tools"}

    def __init__(self, hosts: Hosts):
        super().__init__(hosts)
        remove_dead_sockets()
        run_id = hosts.lab.run.run_id
        self._gateway_device = f"{SOCKET_PREFIX}{run_id}g"
        self._client_device = f"{SOCKET_PREFIX}{run_id}c"
        directory = hosts.directory("wireguard-go")
        self._gateway_key = directory / "gateway.key"
        self._client_key = directory / "client.key"
        self._gateway_public = self._make_key(self._gateway_key)
        self._client_public = self._make_key(self._client_key)

    def start(self) -> None:
        self._undo.enter_context(self.hosts.forwarding())
        gateway, client = self.hosts.gateway, self.hosts.client
        self.gateway_process = self._start_end(gateway, self._gateway_device)
        self._start_end(client, self._client_device)
        gateway.run(
            *("wg", "set", self._gateway_device, "listen-port", str(PORT)),
            *("private-key", self._gateway_key, "peer", self._client_public),
            *("allowed-ips", f"{CLIENT_ADDRESS}/32"),
        )
        client.run(
            *("wg", "set", self._client_device, "private-key", self._client_key),
            *("peer", self._gateway_public, "endpoint", f"{UPLINK.ip}:{PORT}"),
            *("allowed-ips", f"{GATEWAY_ADDRESS}/32,{SERVER_NETWORK}"),
        )
        self._bring_up(gateway, self._gateway_device, GATEWAY_ADDRESS)
        self._bring_up(client, self._client_device, CLIENT_ADDRESS)
        client.ip(f"route add {SERVER_NETWORK} dev {self._client_device}")

    def _start_end(self, namespace: Namespace, device: str) -> Process:
        control = SOCKET_DIRECTORY / f"{device}.sock"
        self._undo.callback(control.unlink, missing_ok=True)
        process = self._spawn(
            namespace,
            device,
            *(find("wireguard-go") or "wireguard-go", "--foreground", device),
            environment={"LOG_LEVEL": "error"},
        )
        process.wait_for(lambda: is_served(control), START_TIMEOUT_S, "its control socket")
        return process

    @staticmethod
    def _bring_up(namespace: Namespace, device: str, address: str) -> None:
        namespace.ip(f"addr add {address}/24 dev {device}", f"link set {device} mtu {MTU_BYTES} up")

    def _make_key(self, file: Path) -> str:
        """Write a private key; return the public one."""
        private = self.hosts.client.run("wg", "genkey").stdout
        file.touch(mode=0o600)
        file.write_text(private)
        return self.hosts.client.run("wg", "pubkey", stdin=private).stdout.strip()

    def version(self) -> str:
        return first_line(find("wireguard-go") or "wireguard-go", "--version")


def is_served(control: Path) -> bool:
    """Tell whether a process listens on a control socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(control))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True


def remove_dead_sockets(directory: Path = SOCKET_DIRECTORY) -> None:
    """Remove the control sockets of benches that were killed."""
    for control in directory.glob(f"{SOCKET_PREFIX}*.sock"):
        with contextlib.suppress(OSError):
            if not is_served(control):
                control.unlink(missing_ok=True)
