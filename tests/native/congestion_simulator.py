"""The simulator of ``simulator/``, seen from Python."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from .build import load

SOURCES = (
    "ranges.c",
    "queue.c",
    "recovery.c",
    "recovery_ack.c",
    "recovery_ecn.c",
    "recovery_loss.c",
    "recovery_pacing.c",
    "recovery_rtt.c",
    "recovery_sent.c",
    "congestion.c",
    "congestion_cubic.c",
    "congestion_model.c",
)
# One translation unit, in this order.
PARTS = ("types.c", "events.c", "bottleneck.c", "reno.c", "sender.c", "receiver.c", "run.c")
MAX_FLOWS = 4
BUCKETS = 600
BUCKET_S = 0.1
PACKET_BYTES = 1400

ENGINE, RENO, ENGINE_WITH_RENO_INSIDE = range(3)
NONE, MODEL, CUBIC = range(3)

_FLOW_INTS = ("kind", "congestion", "packet_bytes")
_FLOW_DOUBLES = (
    *("start_s", "stop_s", "source_rate", "source_rate_at_s", "new_source_rate"),
    *("on_s", "off_s", "extra_delay_s"),
)
_CONFIG_DOUBLES = (
    *("seconds", "measure_from_s", "rate", "buffer_bytes", "delay_s", "loss", "ack_loss"),
    *("reorder", "mark_above_bytes", "rate_at_s", "new_rate", "delay_at_s", "new_delay_s"),
    *("outage_from_s", "outage_to_s", "loss_from_s", "loss_to_s", "loss_then"),
    *("stall_every_s", "stall_s", "timer_slack_s", "ack_delay_s"),
)
_CONFIG_INTS = ("ack_packets", "foreign_every", "seed", "flow_count", "tell_path_changed")
_RESULT_DOUBLES = (
    *("delivered_bytes", "sent_packets", "lost_packets", "spurious_packets"),
    *("really_lost_packets", "queue_drops", "probe_timeouts", "persistent", "ce_packets"),
    *("window_bytes", "least_rtt_s", "smoothed_rtt_s", "packet_threshold", "memory_bytes"),
    *("pacing", "queue_wait_mean_s", "queue_wait_p95_s"),
)


class _FlowConfig(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in _FLOW_INTS),
        *((name, ctypes.c_double) for name in _FLOW_DOUBLES),
    ]


class _Config(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_double) for name in _CONFIG_DOUBLES),
        *((name, ctypes.c_int32) for name in _CONFIG_INTS),
        ("flows", _FlowConfig * MAX_FLOWS),
    ]


class _FlowResult(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_double) for name in _RESULT_DOUBLES),
        ("buckets", ctypes.c_double * BUCKETS),
        ("phase", ctypes.c_char * 32),
    ]


class _Result(ctypes.Structure):
    _fields_ = [
        ("wait_mean_s", ctypes.c_double),
        ("wait_p95_s", ctypes.c_double),
        ("wait_max_s", ctypes.c_double),
        ("dropped_packets", ctypes.c_double),
        ("utilisation", ctypes.c_double),
        ("flows", _FlowResult * MAX_FLOWS),
    ]


@dataclass(frozen=True)
class Flow:
    """A sender; see ``struct flow_config``."""

    kind: int = ENGINE
    congestion: int = MODEL
    packet_bytes: int = PACKET_BYTES
    start_s: float = 0.0
    stop_s: float = 0.0
    source_rate: float = 0.0
    source_rate_at_s: float = 0.0
    new_source_rate: float = 0.0
    on_s: float = 0.0
    off_s: float = 0.0
    extra_delay_s: float = 0.0


@dataclass(frozen=True)
class Network:
    """A path; see ``struct config``. Rates in bytes per second; ``seed`` makes all chance."""

    seconds: float = 20.0
    measure_from_s: float = 3.0
    rate: float = 12.5e6
    buffer_bytes: float = 500e3
    delay_s: float = 0.02
    loss: float = 0.0
    ack_loss: float = 0.0
    reorder: float = 0.0
    mark_above_bytes: float = 0.0
    rate_at_s: float = 0.0
    new_rate: float = 0.0
    delay_at_s: float = 0.0
    new_delay_s: float = 0.0
    outage_from_s: float = 0.0
    outage_to_s: float = 0.0
    loss_from_s: float = 0.0
    loss_to_s: float = 0.0
    loss_then: float = 0.0
    stall_every_s: float = 0.0
    stall_s: float = 0.0
    timer_slack_s: float = 0.0
    ack_delay_s: float = 0.002
    ack_packets: int = 20
    foreign_every: int = 50
    seed: int = 1
    tell_path_changed: int = 0

    def run(self, *flows: Flow) -> _Result:
        config, result = _Config(flow_count=len(flows)), _Result()
        for field in fields(self):
            setattr(config, field.name, getattr(self, field.name))
        for index, flow in enumerate(flows):
            for field in fields(flow):
                setattr(config.flows[index], field.name, getattr(flow, field.name))
        library().simulate(ctypes.byref(config), ctypes.byref(result))
        return result


@cache
def library() -> ctypes.CDLL:
    folder = Path(__file__).with_name("simulator")
    parts = (f'#line 1 "{name}"\n{(folder / name).read_text()}' for name in PARTS)
    return load(*SOURCES, shim="".join(parts))


def mean_rate(flow: _FlowResult, begin_s: float, end_s: float) -> float:
    """Bytes per second that arrived from ``begin_s`` to ``end_s``."""
    begin, end = round(begin_s / BUCKET_S), round(end_s / BUCKET_S)
    return sum(flow.buckets[begin:end]) / (end - begin) / BUCKET_S


def rates(result: _Result, network: Network, count: int) -> Sequence[float]:
    """Each flow's share of the bottleneck's rate in the measured time."""
    span = network.seconds - network.measure_from_s
    return [result.flows[i].delivered_bytes / span / network.rate for i in range(count)]
