"""Links without segmentation offloads, nearer to a real card: zgate and OpenVPN again."""

from bench.hosts import SERVER, Hosts
from bench.load.tcp import Direction, run_tcp
from bench.peers.openvpn import OpenVpn
from bench.peers.zgate import Zgate
from bench.sections.section import Record, Section

ROUNDS = 2


def measure(record: Record) -> None:
    """Each round: OpenVPN up and down, zgate up and down."""
    with Hosts.open(offloads=False) as hosts:
        peers = [OpenVpn(hosts), Zgate(hosts)]
        for number in range(1, min(ROUNDS, record.settings.rounds) + 1):
            for peer in peers:
                with peer.running():
                    for direction in Direction:
                        record.show(f"round {number}, {peer.title}, TCP {direction.value}")
                        flow = run_tcp(
                            hosts.client,
                            hosts.server,
                            SERVER.ip,
                            direction,
                            record.settings.tcp_seconds,
                        )
                        record.put(f"{peer.name}_{direction.value}_mbit_per_s", flow.mbit_per_s)


OFFLOADS = Section("offloads", "offloads off", measure, OpenVpn.programs)
