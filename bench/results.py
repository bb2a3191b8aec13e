"""Everything that a run found out, and how rounds become medians."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.metrics import METRICS, Sample


@dataclass(slots=True)
class PeerResults:
    """One peer's rounds. A round that failed has its reason in `failures` and no sample."""

    name: str
    title: str
    version: str = ""
    samples: list[Sample] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    # UDP payload sizes at which the generator, not the peer, was the limit in some round.
    generator_limited_bytes: set[int] = field(default_factory=set)

    def medians(self) -> Sample:
        """One number for each metric that was measured in any round."""
        return combine(self.samples)


@dataclass(frozen=True, slots=True)
class Settings:
    """How the run was made."""

    rounds: int
    tcp_seconds: float
    offloads: bool


@dataclass(slots=True)
class Results:
    """A whole run. `facts` are lines about the machine and the versions, in order."""

    settings: Settings
    facts: dict[str, str]
    peers: list[PeerResults]


def combine(samples: Sequence[Sample]) -> Sample:
    """Combine rounds as each metric says (mostly the median); gaps are left out."""
    combined = {}
    for metric in METRICS:
        values = [sample[metric.key] for sample in samples if metric.key in sample]
        if values:
            combined[metric.key] = metric.combine(values)
    return combined
