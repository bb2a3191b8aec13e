"""What a client may do per second, and where that is said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from zgate_gateway.policy.model import LimitsModel


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one client; None: unlimited.

    :ivar bandwidth_mbit: million bits of IP packets per second, in each direction by itself.
    :ivar new_flows_per_s: flows that it may open.
    """

    bandwidth_mbit: int | None = None
    new_flows_per_s: int | None = None

    @classmethod
    def from_model(cls, model: LimitsModel | None) -> Limits:
        """Make limits of what the file says."""
        return UNLIMITED if model is None else cls(model.bandwidth_mbit, model.new_flows_per_s)

    def __bool__(self) -> bool:
        """Whether anything is limited."""
        return self != UNLIMITED

    @property
    def text(self) -> str:
        """``50 Mbit/s, 200 new flows/s``, or ``unlimited``."""
        parts = []
        if self.bandwidth_mbit is not None:
            parts.append(f"{self.bandwidth_mbit} Mbit/s")
        if self.new_flows_per_s is not None:
            parts.append(f"{self.new_flows_per_s} new flows/s")
        return ", ".join(parts) or "unlimited"


UNLIMITED = Limits()


def first_of(said: Iterable[Limits]) -> Limits:
    """Return for each key what is said first."""
    bandwidth_mbit = new_flows_per_s = None
    for limits in said:
        if bandwidth_mbit is None:
            bandwidth_mbit = limits.bandwidth_mbit
        if new_flows_per_s is None:
            new_flows_per_s = limits.new_flows_per_s
    return Limits(bandwidth_mbit, new_flows_per_s)
