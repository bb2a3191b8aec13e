"""What zgate has to reach: each number of the table "at least" and "aim", and how it is judged.

A number is a value, or its ratio to a reference of the same run. Bounds are lines over the
reference: `factor` x reference + `constant`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench import metrics
from bench.metrics import Better
from bench.sections.wan import CONTROLS
from bench.stats import ratio

SUBJECT = "zgate"
HIGHER, LOWER = Better.HIGHER, Better.LOWER
TITLES = {"bare": "no QUIC", "null-cipher": "null cipher"}

Findings = Mapping[str, float]  # medians, by "peer or section.key"


@dataclass(frozen=True, slots=True)
class Bound:
    """What is enough: `factor` times the reference, plus `constant` in the value's unit."""

    factor: float = 0.0
    constant: float = 0.0

    def value(self, reference: float) -> float:
        """The bound in the value's unit."""
        return self.factor * reference + self.constant

    def text(self, reference: str, unit: str) -> str:
        """In words: "6 x openvpn", "2 x idle + 2 ms", "60 per s"."""
        parts = [f"{self.factor:g} x {reference}"] if self.factor else []
        if self.constant or not parts:
            parts.append(f"{self.constant:g}{f' {unit}' if unit else ''}")
        return " + ".join(parts)


@dataclass(frozen=True, slots=True)
class Target:
    """One row. `value` and `reference` are keys of the findings.

    `scale`: from the value to what is printed. `enough`: another finding that makes the row met
    when it is at least this, with the words for it.
    """

    title: str
    value: str
    better: Better
    at_least: Bound
    aim: Bound | None = None
    reference: str = ""
    reference_title: str = ""
    unit: str = ""
    scale: float = 1.0
    digits: int = 2
    enough: tuple[str, float, str] | None = None

    def bound_text(self, bound: Bound | None) -> str:
        """A bound in words; empty without one."""
        if bound is None:
            return ""
        word = "≥" if self.better is HIGHER else "≤"
        return f"{word} {bound.text(self.reference_title, self.unit)}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A target and what became of it; `is_met` and `reaches_aim` are None where unknown."""

    target: Target
    value: float | None = None
    reference: float | None = None
    is_met: bool | None = None
    reaches_aim: bool | None = None
    because: str = ""  # why it is met though the bound is not reached

    @property
    def ratio(self) -> float | None:
        """Value to reference; None without either."""
        return ratio(self.value, self.reference)


def _peers(metric: metrics.Metric, reference: str, least: float, aim: float) -> Target:
    """The same metric of zgate and another peer."""
    return Target(
        metric.title,
        f"{SUBJECT}.{metric.key}",
        metric.better,
        Bound(least),
        Bound(aim),
        f"{reference}.{metric.key}",
        TITLES.get(reference, reference),
    )


def _queue(metric: metrics.Metric) -> Target:
    return Target(
        metric.title,
        f"{SUBJECT}.{metric.key}",
        LOWER,
        Bound(2.0, 2.0),
        Bound(1.0, 1.0),
        f"{SUBJECT}.{metrics.RTT_IDLE.key}",
        "idle",
        "ms",
        digits=2,
    )


def _both_ways(
    title: str,
    section: str,
    value: str,
    reference: str,
    name: str,
    least: float,
    aim: float | None = None,
) -> list[Target]:
    """`value` and `reference` hold {} for the direction."""
    return [
        Target(
            f"{title}, TCP {way}",
            f"{section}.{value.format(way)}_mbit_per_s",
            HIGHER,
            Bound(least),
            None if aim is None else Bound(aim),
            f"{section}.{reference.format(way)}_mbit_per_s",
            name,
            "Mbit/s",
            digits=1,
        )
        for way in ("up", "down")
    ]


def _workers(way: str) -> Target:
    return Target(
        f"two workers, two clients, TCP {way}",
        f"workers.2_{way}_mbit_per_s",
        HIGHER,
        Bound(1.6),
        None,
        f"workers.1_{way}_mbit_per_s",
        "one worker",
        "Mbit/s",
        digits=0,
        enough=(f"workers.2_{way}_busy_share", 0.95, "of the machine's cores busy"),
    )


TARGETS: tuple[Target, ...] = (
    _peers(metrics.TCP_UP, "openvpn", 6, 10),
    _peers(metrics.TCP_DOWN, "openvpn", 6, 10),
    _peers(metrics.TCP_UP, "wireguard-go", 8, 14),
    _peers(metrics.TCP_DOWN, "wireguard-go", 8, 14),
    _peers(metrics.CPU_UP, "openvpn", 0.2, 0.1),
    _peers(metrics.CPU_DOWN, "openvpn", 0.2, 0.1),
    _peers(metrics.TCP_UP, "null-cipher", 0.7, 0.9),
    _peers(metrics.TCP_DOWN, "null-cipher", 0.7, 0.9),
    _peers(metrics.TCP_UP, "bare", 0.7, 0.9),
    _peers(metrics.TCP_DOWN, "bare", 0.7, 0.9),
    *(_peers(metrics.UDP[size], "openvpn", 2, 4) for size in metrics.UDP_PAYLOADS_BYTES),
    _peers(metrics.RTT_IDLE, "openvpn", 1.0, 0.8),
    _queue(metrics.RTT_UP),
    _queue(metrics.RTT_DOWN),
    Target(
        metrics.LOSS_TCP.title,
        f"{SUBJECT}.{metrics.LOSS_TCP.key}",
        LOWER,
        Bound(),
        None,
        unit="%",
        scale=100,
    ),
    *_both_ways("offloads off", "offloads", "zgate_{}", "openvpn_{}", "openvpn", 2, 4),
    *(
        target
        for control in CONTROLS
        for target in _both_ways(
            f"1% loss, 20 ms RTT, {control}",
            "wan",
            f"lossy_{control}_tunnel_{{}}",
            f"lossy_{control}_beside_{{}}",
            "TCP beside",
            0.8,
            1.0,
        )
    ),
    _workers("up"),
    _workers("down"),
    *_both_ways(
        "application connector",
        "connectors",
        "application_{}",
        "subnet_{}",
        "subnet connector",
        0.5,
    ),
    Target(
        "new sessions per second and core",
        "sessions.sessions_per_cpu_s",
        HIGHER,
        Bound(constant=60),
        Bound(constant=200),
        unit="per s",
        digits=0,
    ),
    Target(
        "memory per idle session, 2,000 held",
        "sessions.kb_per_session",
        LOWER,
        Bound(constant=200),
        Bound(constant=64),
        unit="kB",
        digits=1,
    ),
    Target(
        "TCP up under a junk flood",
        "flood.flood_mbit_per_s",
        HIGHER,
        Bound(0.8),
        None,
        "flood.calm_mbit_per_s",
        "without it",
        "Mbit/s",
        digits=0,
    ),
    Target(
        "a new client connects under a flood",
        "flood.connect_s",
        LOWER,
        Bound(constant=10),
        None,
        unit="s",
        digits=1,
    ),
)


def judge(findings: Findings, targets: Sequence[Target] = TARGETS) -> list[Outcome]:
    """Every target with what was found."""
    return [_judge_one(findings, target) for target in targets]


def _judge_one(findings: Findings, target: Target) -> Outcome:
    value = findings.get(target.value)
    reference = findings.get(target.reference) if target.reference else 0.0
    if value is None or reference is None:
        return Outcome(target)
    is_met = _is_within(target, target.at_least, value, reference)
    reaches_aim = None if target.aim is None else _is_within(target, target.aim, value, reference)
    because = ""
    if not is_met and target.enough is not None:
        key, least, words = target.enough
        other = findings.get(key, 0.0)
        if other >= least:
            is_met, because = True, f"{other:.0%} {words}"
    return Outcome(
        target, value, reference if target.reference else None, is_met, reaches_aim, because
    )


def _is_within(target: Target, bound: Bound, value: float, reference: float) -> bool:
    limit = bound.value(reference)
    if target.better is HIGHER:
        return value >= limit
    return value <= limit
