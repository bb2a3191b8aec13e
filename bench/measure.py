"""One turn: everything that is measured of one peer in one round, in a fixed order."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bench import metrics
from bench.cpu import cpu_seconds, peak_memory_mb, reset_peak_memory
from bench.hosts import SERVER, Hosts
from bench.load.rtt import PingSeries, RttResult
from bench.load.tcp import Direction, TcpResult, run_tcp
from bench.load.udp import UdpProbe, probe_udp
from bench.metrics import Metric, Sample
from bench.peers.peer import Peer, Step
from bench.search import Goodput, find_goodput

# Where the scheduler has put both ends' processes decides more than they do, on few cores; each
# series has another luck. A tunnel that has just come up still looks for its path's MTU.
IDLE_SERIES = 4
IDLE_SECONDS = 1.0
SETTLE_S = 0.5
# The flow beside the pings needs a moment to start, and must not end before them.
FLOW_START_S = 0.5
FLOW_END_S = 0.3
UDP_PROBE_SECONDS = 0.5

RTT_METRICS: dict[Direction, tuple[Metric, Metric]] = {
    Direction.UP: (metrics.RTT_UP, metrics.RTT_UP_P99),
    Direction.DOWN: (metrics.RTT_DOWN, metrics.RTT_DOWN_P99),
}
TCP_METRICS: dict[Direction, tuple[Metric, Metric]] = {
    Direction.UP: (metrics.TCP_UP, metrics.CPU_UP),
    Direction.DOWN: (metrics.TCP_DOWN, metrics.CPU_DOWN),
}


@dataclass(slots=True)
class Turn:
    """Measures one running peer. `hints`: earlier UDP rates by payload size, updated here."""

    hosts: Hosts
    peer: Peer
    tcp_seconds: float
    hints: dict[int, float]
    show: Callable[[str], None]
    steps: frozenset[Step] = frozenset(Step)
    sample: Sample = field(default_factory=dict)
    generator_limited_bytes: set[int] = field(default_factory=set)

    def run(self) -> Sample:
        """Measure everything; the sample also stays in `sample` if something fails."""
        gateway = self.peer.gateway_process
        if gateway is not None:
            reset_peak_memory(gateway.pid)
        steps = self.steps & self.peer.steps
        if Step.IDLE in steps:
            self._measure_idle()
        if Step.TCP in steps:
            losses = [self._measure_tcp(direction) for direction in Direction]
            self.sample[metrics.LOSS_TCP.key] = sum(losses) / len(losses)
        if Step.UDP in steps:
            for size in metrics.UDP_PAYLOADS_BYTES:
                self._measure_udp(size)
        if gateway is not None and Step.UDP in steps:
            self.sample[metrics.MEMORY.key] = peak_memory_mb(gateway.pid)
        return self.sample

    def _measure_idle(self) -> None:
        self.show("RTT idle")
        time.sleep(SETTLE_S)
        series = [
            PingSeries(self.hosts.client, SERVER.ip, IDLE_SECONDS).result()
            for _ in range(IDLE_SERIES)
        ]
        rtt = RttResult(
            sum(one.sent for one in series), tuple(t for one in series for t in one.times_ms)
        )
        self._put_rtt(rtt, metrics.RTT_IDLE, metrics.RTT_IDLE_P99)
        self.sample[metrics.LOSS_IDLE.key] = rtt.loss

    def _measure_tcp(self, direction: Direction) -> float:
        """Run the flow with pings beside it; return the share of pings lost."""
        self.show(f"TCP {direction.value}")
        throughput, cost = TCP_METRICS[direction]
        series = PingSeries(
            self.hosts.client,
            SERVER.ip,
            max(self.tcp_seconds - FLOW_END_S, 2 * FLOW_START_S),
            skip_s=FLOW_START_S,
        )
        try:
            used_before_s = self._gateway_cpu_s()
            result = self._run_flow(direction)
            used_s = self._gateway_cpu_s() - used_before_s
            rtt = series.result()
        finally:
            series.cancel()
        self.sample[throughput.key] = result.bits_per_s / 1e6
        if self.peer.gateway_process is not None and result.gbit:
            self.sample[cost.key] = used_s / result.gbit
        self._put_rtt(rtt, *RTT_METRICS[direction])
        return rtt.loss

    def _run_flow(self, direction: Direction) -> TcpResult:
        return run_tcp(self.hosts.client, self.hosts.server, SERVER.ip, direction, self.tcp_seconds)

    def _gateway_cpu_s(self) -> float:
        process = self.peer.gateway_process
        return cpu_seconds(process.pid) if process is not None else 0.0

    def _put_rtt(self, rtt: RttResult, middle: Metric, p99: Metric) -> None:
        self.sample[middle.key] = rtt.median_ms
        self.sample[p99.key] = rtt.p99_ms

    def _measure_udp(self, size: int) -> None:
        found = find_goodput(
            lambda rate_per_s: self._probe(size, rate_per_s), hint_per_s=self.hints.get(size)
        )
        self._keep_goodput(size, found)

    def _probe(self, size: int, rate_per_s: float) -> UdpProbe:
        self.show(f"UDP {size} bytes, {rate_per_s / 1e3:.1f} kpackets/s")
        return probe_udp(
            sender=self.hosts.client.name,
            receiver=self.hosts.server.name,
            target=SERVER.ip,
            payload_bytes=size,
            rate_per_s=rate_per_s,
            duration_s=UDP_PROBE_SECONDS,
        )

    def _keep_goodput(self, size: int, found: Goodput) -> None:
        self.sample[metrics.UDP[size].key] = found.packets_per_s
        if found.packets_per_s:
            self.hints[size] = found.packets_per_s
        if found.limited_by_generator:
            self.generator_limited_bytes.add(size)
