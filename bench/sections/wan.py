"""A long path with losses: TCP through the tunnel against TCP beside it.

The link between client and gateway is an emulated WAN (zgate_lab.wan). Both flows cross it, one
after the other: one inside the tunnel, one routed. Both ends' TCP are the kernel's own.
"""

from ipaddress import IPv4Interface, IPv4Network

from zgate_lab.wan import WanSettings

from bench.hosts import SERVER, UPLINK, Hosts
from bench.load.tcp import Direction, run_tcp
from bench.peers.zgate import Zgate
from bench.sections.section import Record, Section

RTT_MS = 20.0
LOSS = 0.01
#: Losses are chance: a short flow says more about it than about the tunnel.
FLOW_SECONDS = 8.0
CONTROL_SECONDS = 4.0

# The server's second address, which no tunnel leads to.
BESIDE_NETWORK = IPv4Network("10.31.0.0/24")
BESIDE_GATEWAY = IPv4Interface("10.31.0.1/24")
BESIDE_SERVER = IPv4Interface("10.31.0.2/24")


def measure(record: Record) -> None:
    """The lossy path in every round, the path without losses once."""
    lossy = WanSettings(delay_ms=RTT_MS / 2, loss=LOSS)
    _measure_path(record, lossy, "lossy", record.settings.rounds, FLOW_SECONDS)
    clean = WanSettings(delay_ms=RTT_MS / 2)
    _measure_path(record, clean, "clean", 1, CONTROL_SECONDS)


def _measure_path(
    record: Record, path: WanSettings, name: str, rounds: int, seconds: float
) -> None:
    with Hosts.open(wan=path) as hosts:
        _add_way_beside(hosts)
        control = hosts.client.sysctl("net.ipv4.tcp_congestion_control")
        record.note(f"inner TCP and TCP beside: {control}, both ends")
        with Zgate(hosts).running():
            for number in range(1, rounds + 1):
                for direction in Direction:
                    for way, target in (("beside", BESIDE_SERVER), ("tunnel", SERVER)):
                        record.show(f"{name}, round {number}, {way}, TCP {direction.value}")
                        flow = run_tcp(hosts.client, hosts.server, target.ip, direction, seconds)
                        key = f"{name}_{way}_{direction.value}_mbit_per_s"
                        record.put(key, flow.mbit_per_s)


def _add_way_beside(hosts: Hosts) -> None:
    hosts.gateway.sysctl("net.ipv4.ip_forward", 1)
    hosts.gateway.ip(f"addr add {BESIDE_GATEWAY} dev inside")
    hosts.server.ip(f"addr add {BESIDE_SERVER} dev eth0")
    hosts.client.ip(f"route add {BESIDE_NETWORK} via {UPLINK.ip}")


WAN = Section("wan", "1% loss, 20 ms RTT", measure)
