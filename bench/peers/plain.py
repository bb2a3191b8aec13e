"""No tunnel at all: what the links and this machine can do, for context."""

from bench.hosts import SERVER_NETWORK, UPLINK
from bench.peers.peer import Peer


class Plain(Peer):
    """The client routes to the server's network through the gateway."""

    name = "plain"
    title = "no tunnel"

    def start(self) -> None:
        self._undo.enter_context(self.hosts.forwarding())
        route = f"{SERVER_NETWORK} via {UPLINK.ip}"
        self.hosts.client.ip(f"route add {route}")
        self._undo.callback(self.hosts.client.ip, f"route del {route}")

    def version(self) -> str:
        return "veth"
