"""What zgate has to reach, relative to the other peers in the same run."""

from collections.abc import Mapping
from dataclasses import dataclass

from bench import metrics
from bench.metrics import Better, Metric, Sample
from bench.stats import ratio

SUBJECT = "zgate"


@dataclass(frozen=True, slots=True)
class Target:
    """`metric` of zgate against the same metric of `reference`: at least (or most) `factor`."""

    metric: Metric
    reference: str
    factor: float

    @property
    def text(self) -> str:
        """The target in words."""
        word = "at least" if self.metric.better is Better.HIGHER else "at most"
        return f"{self.metric.title}: {word} {self.factor:g} x {self.reference}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A target and what became of it; `is_met` is None when there is nothing to compare."""

    target: Target
    ratio: float | None
    is_met: bool | None


# Of the packet engine in Python. Another engine gets a list of its own.
PYTHON_ENGINE: tuple[Target, ...] = (
    Target(metrics.TCP_UP, "openvpn", 0.35),
    Target(metrics.TCP_DOWN, "openvpn", 0.35),
    Target(metrics.RTT_IDLE, "openvpn", 3.0),
)


def judge(
    medians: Mapping[str, Sample], targets: tuple[Target, ...] = PYTHON_ENGINE
) -> list[Outcome]:
    """Compare the medians (by peer, then by metric) with the targets."""
    return [_judge_one(medians, target) for target in targets]


def _judge_one(medians: Mapping[str, Sample], target: Target) -> Outcome:
    key = target.metric.key
    value = medians.get(SUBJECT, {}).get(key)
    reached = ratio(value, medians.get(target.reference, {}).get(key))
    if reached is None:
        return Outcome(target, None, None)
    if target.metric.better is Better.HIGHER:
        return Outcome(target, reached, reached >= target.factor)
    return Outcome(target, reached, reached <= target.factor)
