"""A long path with losses: TCP through the tunnel against TCP beside it.

The link between client and gateway is an emulated WAN (zgate_lab.wan). Both flows cross it, one
after the other: one inside the tunnel, one routed, both with the same congestion control.
"""

from ipaddress import IPv4Interface, IPv4Network

from zgate_lab.wan import WanSettings

from bench.hosts import SERVER, UPLINK, Hosts
from bench.load.tcp import Direction, run_tcp
from bench.peers.zgate import Zgate
from bench.sections.section import Record, Section

RTT_MS = 20.0
LOSS = 0.01
#: The kernel's congestion controls of the inner flows and of those beside, with the length of a
#: flow. Losses slow cubic (Linux's default) down to a few Mbit/s, so that chance says more than the
#: tunnel in a short flow; bbr fills the path, so that the tunnel has to fill it, too.
CONTROLS = {"cubic": 6.0, "bbr": 3.0}
CLEAN_SECONDS = 2.5

# The server's second address, which no tunnel leads to.
BESIDE_NETWORK = IPv4Network("10.31.0.0/24")
BESIDE_GATEWAY = IPv4Interface("10.31.0.1/24")
BESIDE_SERVER = IPv4Interface("10.31.0.2/24")


def measure(record: Record) -> None:
    """The lossy path in every round, the path without losses once."""
    lossy = WanSettings(delay_ms=RTT_MS / 2, loss=LOSS)
    _measure_path(record, lossy, "lossy", record.settings.rounds)
    _measure_path(record, WanSettings(delay_ms=RTT_MS / 2), "clean", 1)


def _measure_path(record: Record, path: WanSettings, name: str, rounds: int) -> None:
    with Hosts.open(wan=path) as hosts:
        _add_way_beside(hosts)
        controls = available_controls(hosts)
        for missing in CONTROLS.keys() - controls:
            record.note(f"{missing}: not in this kernel")
        with Zgate(hosts).running():
            for number in range(1, rounds + 1):
                for control in sorted(controls & CONTROLS.keys()):
                    _measure_round(record, hosts, f"{name}_{control}", number, control)


def _measure_round(record: Record, hosts: Hosts, name: str, number: int, control: str) -> None:
    for direction in Direction:
        for way, target in (("beside", BESIDE_SERVER), ("tunnel", SERVER)):
            record.show(f"{name}, round {number}, {way}, TCP {direction.value}")
            seconds = CONTROLS[control] if name.startswith("lossy") else CLEAN_SECONDS
            flow = run_tcp(
                *(hosts.client, hosts.server, target.ip, direction, seconds), congestion=control
            )
            record.put(f"{name}_{way}_{direction.value}_mbit_per_s", flow.mbit_per_s)


def available_controls(hosts: Hosts) -> set[str]:
    """The congestion controls that the kernel has."""
    return set(hosts.client.sysctl("net.ipv4.tcp_available_congestion_control").split())


def _add_way_beside(hosts: Hosts) -> None:
    hosts.gateway.sysctl("net.ipv4.ip_forward", 1)
    hosts.gateway.ip(f"addr add {BESIDE_GATEWAY} dev inside")
    hosts.server.ip(f"addr add {BESIDE_SERVER} dev eth0")
    hosts.client.ip(f"route add {BESIDE_NETWORK} via {UPLINK.ip}")


WAN = Section("wan", "1% loss, 20 ms RTT", measure)
