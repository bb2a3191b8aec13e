"""zgate's packet engine with the QUIC layer replaced by a null cipher: `native/bare.c`."""

from typing import ClassVar

from zgate_lab.lab import Namespace
from zgate_lab.process import Process

from bench.build import build_bare
from bench.hosts import SERVER_NETWORK, UPLINK, Hosts
from bench.peers.peer import Peer, Step

PORT = 4000
DEVICE = "tunbare"
MTU_BYTES = 1420
GATEWAY_ADDRESS = "10.9.0.1"
CLIENT_ADDRESS = "10.9.0.2"
START_TIMEOUT_S = 10.0


class Bare(Peer):
    """One program at each end; the gateway only routes."""

    name = "bare"
    title = "no QUIC"
    steps: ClassVar[frozenset[Step]] = frozenset({Step.TCP})

    def __init__(self, hosts: Hosts):
        super().__init__(hosts)
        self._program = build_bare(hosts.directory("bare"))

    def start(self) -> None:
        self._undo.enter_context(self.hosts.forwarding())
        gateway, client = self.hosts.gateway, self.hosts.client
        self.gateway_process = self._start_end("bare-gateway", gateway, GATEWAY_ADDRESS)
        self._start_end("bare-client", client, CLIENT_ADDRESS, str(UPLINK.ip))
        client.ip(f"route add {SERVER_NETWORK} dev {DEVICE}")

    def _start_end(self, name: str, namespace: Namespace, address: str, *peer: str) -> Process:
        process = self._spawn(namespace, name, self._program, DEVICE, str(PORT), *peer)
        process.wait_for_output("^ready", START_TIMEOUT_S)
        namespace.ip(f"addr add {address}/24 dev {DEVICE}", f"link set {DEVICE} mtu {MTU_BYTES} up")
        return process

    def version(self) -> str:
        return "bench/native/bare.c"
