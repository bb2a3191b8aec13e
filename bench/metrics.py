"""What is measured: names, units, which direction is better, how rounds become one number."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import fmean

from bench.stats import median


class Better(Enum):
    """Which values one wants."""

    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table. `digits` after the point when printed; `factor` from value to print."""

    key: str
    title: str
    unit: str
    better: Better
    digits: int = 0
    factor: float = 1.0
    combine: Callable[[Sequence[float]], float] = median
    is_headline: bool = False  # shown while the bench runs


HIGHER, LOWER = Better.HIGHER, Better.LOWER
UDP_PAYLOADS_BYTES = (64, 1200)

TCP_UP = Metric("tcp_up_mbit_per_s", "TCP up", "Mbit/s", HIGHER, is_headline=True)
TCP_DOWN = Metric("tcp_down_mbit_per_s", "TCP down", "Mbit/s", HIGHER, is_headline=True)
UDP = {
    size: Metric(
        f"udp_{size}_packets_per_s",
        f"UDP {size} bytes up, loss ≤ 1%",
        "kpackets/s",
        HIGHER,
        digits=1,
        factor=1e-3,
        is_headline=True,
    )
    for size in UDP_PAYLOADS_BYTES
}
RTT_IDLE = Metric("rtt_idle_ms", "RTT idle, median", "ms", LOWER, 3, is_headline=True)
RTT_IDLE_P99 = Metric("rtt_idle_p99_ms", "RTT idle, p99", "ms", LOWER, 3)
RTT_UP = Metric("rtt_tcp_up_ms", "RTT during TCP up, median", "ms", LOWER, 2)
RTT_UP_P99 = Metric("rtt_tcp_up_p99_ms", "RTT during TCP up, p99", "ms", LOWER, 2)
RTT_DOWN = Metric("rtt_tcp_down_ms", "RTT during TCP down, median", "ms", LOWER, 2)
RTT_DOWN_P99 = Metric("rtt_tcp_down_p99_ms", "RTT during TCP down, p99", "ms", LOWER, 2)
# Losses are rare: a median would hide them.
LOSS_IDLE = Metric("ping_loss_idle", "ping loss idle, mean", "%", LOWER, 2, 100, fmean)
LOSS_TCP = Metric("ping_loss_tcp", "ping loss during TCP, mean", "%", LOWER, 2, 100, fmean)
CPU_UP = Metric("cpu_up_s_per_gbit", "gateway CPU, TCP up", "s/Gbit", LOWER, 3)
CPU_DOWN = Metric("cpu_down_s_per_gbit", "gateway CPU, TCP down", "s/Gbit", LOWER, 3)
MEMORY = Metric("gateway_memory_mb", "gateway memory, peak", "MB", LOWER, 1, combine=max)

METRICS: tuple[Metric, ...] = (
    TCP_UP,
    TCP_DOWN,
    *UDP.values(),
    RTT_IDLE,
    RTT_IDLE_P99,
    RTT_UP,
    RTT_UP_P99,
    RTT_DOWN,
    RTT_DOWN_P99,
    LOSS_IDLE,
    LOSS_TCP,
    CPU_UP,
    CPU_DOWN,
    MEMORY,
)

Sample = dict[str, float]  # by Metric.key; a metric that a peer cannot have is left out
