"""Everything that a run found out, and how rounds become medians."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.metrics import METRICS, Metric, Sample
from bench.peers.peer import Step
from bench.stats import median


@dataclass(slots=True)
class PeerResults:
    """One peer's rounds. A round that failed has its reason in `failures` and no sample."""

    name: str
    title: str
    version: str = ""
    samples: list[Sample] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    # By UDP payload size: rounds in which the generator, not the peer, was the limit.
    generator_limited_rounds: Counter[int] = field(default_factory=Counter)

    def medians(self) -> Sample:
        """One number for each metric that was measured in any round."""
        return combine(self.samples)

    def spread(self, metric: Metric) -> tuple[float, float] | None:
        """The lowest and the highest round; None with less than two."""
        values = [sample[metric.key] for sample in self.samples if metric.key in sample]
        return (min(values), max(values)) if len(values) > 1 else None

    def is_generator_limited(self, payload_bytes: int) -> bool:
        """Tell whether the generator was the limit in at least half of the rounds."""
        limited = self.generator_limited_rounds[payload_bytes]
        return limited > 0 and 2 * limited >= len(self.samples)


@dataclass(slots=True)
class SectionResults:
    """What one section found: values of its rounds by key, and what the reader has to know."""

    name: str
    title: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tables: list[tuple[str, list[str], list[list[str]]]] = field(default_factory=list)
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the run was made."""

    rounds: int
    tcp_seconds: float
    offloads: bool
    steps: frozenset[Step] = frozenset(Step)

    @property
    def summary(self) -> str:
        """What the numbers of the table are."""
        repeated = (
            f"medians of {self.rounds} interleaved rounds" if self.rounds > 1 else "one round"
        )
        offloads = "on" if self.offloads else "off"
        return f"{repeated}; TCP flows of {self.tcp_seconds:g} s, one stream; offloads {offloads}"


@dataclass(slots=True)
class Results:
    """A whole run. `facts` are lines about the machine and the versions, in order."""

    settings: Settings
    facts: dict[str, str]
    peers: list[PeerResults]
    sections: list[SectionResults] = field(default_factory=list)
    is_busy: bool = False  # the machine had other work when the run began

    def findings(self) -> dict[str, float]:
        """Every median, by the name of its peer or section, a point, and its key."""
        found = {
            f"{peer.name}.{key}": value
            for peer in self.peers
            for key, value in peer.medians().items()
        }
        for section in self.sections:
            for key, values in section.samples.items():
                found[f"{section.name}.{key}"] = median(values)
        return found

    @property
    def has_failures(self) -> bool:
        """Whether something could not be measured that should have been."""
        return any(peer.failures for peer in self.peers) or any(
            section.failure for section in self.sections
        )


def combine(samples: Sequence[Sample]) -> Sample:
    """Combine rounds as each metric says (mostly the median); gaps are left out."""
    combined = {}
    for metric in METRICS:
        values = [sample[metric.key] for sample in samples if metric.key in sample]
        if values:
            combined[metric.key] = metric.combine(values)
    return combined
