"""Two workers against one, with two clients that send and receive at the same time."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import IPv4Interface

from zgate_gateway.config import GatewayConfig
from zgate_lab.lab import Namespace, Port

from bench.cpu import machine_busy_seconds
from bench.hosts import SERVER, Hosts
from bench.load.tcp import PORT, Direction, run_tcp
from bench.peers.zgate import BIN, Zgate
from bench.sections.section import Record, Section

OTHER_CLIENT = IPv4Interface("198.51.100.2/24")
OTHER_UPLINK = IPv4Interface("198.51.100.1/24")
OTHER_NAME = "bench-2"
WORKERS = (1, 2)
ROUNDS = 2


class TwoClients(Zgate):
    """One gateway with so many workers, and two agents on hosts of their own."""

    name = "workers"
    workers = 1

    def __init__(self, hosts: Hosts, other: Namespace):
        super().__init__(hosts, more_clients=(OTHER_NAME,))
        self._other = other

    def start(self) -> None:
        self._write_gateway_file()
        super().start()
        gateway = {"gateway": f"{OTHER_UPLINK.ip}:443", "runtime_dir": self._file("agent-run-2")}
        self._write("agent-2.json", {**self._agent_config(OTHER_NAME), **gateway})
        self._spawn(
            self._other,
            "zgate-agent-2",
            *(BIN / "zgate-agent", "run", "--config", self._file("agent-2.json")),
        )

    def _gateway_config(self) -> dict[str, object]:
        return {**super()._gateway_config(), "workers": self.workers}

    def _server_answers(self) -> bool:
        ping = ("ping", "-n", "-q", "-c", "1", "-W", "0.3", str(SERVER.ip))
        return super()._server_answers() and self._other.run(*ping, check=False).returncode == 0


def measure(record: Record) -> None:
    """One worker, two workers, and again."""
    if "workers" not in GatewayConfig.model_fields:
        record.note("not available: the gateway has no setting `workers`")
        return
    with Hosts.open() as hosts, _second_client(hosts) as other:
        peer = TwoClients(hosts, other)
        for number in range(1, min(ROUNDS, record.settings.rounds) + 1):
            for peer.workers in WORKERS:
                with peer.running():
                    for direction in Direction:
                        record.show(f"round {number}, {peer.workers} workers, {direction.value}")
                        total, busy = _run_both(hosts, other, direction, record)
                        key = f"{peer.workers}_{direction.value}"
                        record.put(f"{key}_mbit_per_s", total)
                        record.put(f"{key}_busy_share", busy)


@contextmanager
def _second_client(hosts: Hosts) -> Iterator[Namespace]:
    other = hosts.lab.add_namespace("client2")
    hosts.lab.connect(
        Port(other, "eth0", (OTHER_CLIENT,)), Port(hosts.gateway, "uplink2", (OTHER_UPLINK,))
    )
    yield other


def _run_both(
    hosts: Hosts, other: Namespace, direction: Direction, record: Record
) -> tuple[float, float]:
    """The sum of both flows in Mbit/s, and the share of all processors' time that was used."""
    seconds = record.settings.tcp_seconds

    def run(client: Namespace, port: int) -> float:
        flow = run_tcp(client, hosts.server, SERVER.ip, direction, seconds, port=port)
        return flow.mbit_per_s

    before = machine_busy_seconds()
    with ThreadPoolExecutor(2) as pool:
        flows = pool.map(run, (hosts.client, other), (PORT, PORT + 1))
        total = sum(flows)
    after = machine_busy_seconds()
    return total, (after.busy_s - before.busy_s) / (after.all_s - before.all_s)


WORKERS_SECTION = Section("workers", "two workers, two clients", measure)
