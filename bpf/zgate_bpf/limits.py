"""What a client may use: bandwidth, and new flows per second.

The limits stand in a generation's ``assignments``, beside the client's policy, and change with
it. The kernel keeps, for each of them, the time at which what was used so far would be paid
back at the limit's rate (the generic cell rate algorithm, ITU-T I.371): what would push it
further ahead than a burst is dropped and not charged. docs/adr says what a race can do.

This module imports nothing privileged.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_BANDWIDTH_MBIT = 100_000
"""The highest rate that can be a limit; beyond, a packet's cost in whole ns is too coarse."""

MAX_NEW_FLOWS_PER_S = 1_000_000
"""The most new flows per second that can be a limit."""

COST_SHIFT = 18
"""A byte's cost is in units of 2**-18 ns."""

FLOW_BURST_NS = 1_000_000_000
"""New flows of one second may come at once."""

_LEAST_BURST_BYTES = 2 * 65_536  # two of the largest super-packets
_LEAST_BURST_NS = 100_000_000
_NS_PER_BYTE_AT_1_MBIT = 8_000


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """The limits of one client; ``None``: there is none.

    :ivar bandwidth_mbit: Mbit/s (10**6 bits) of IP packets, up and down each, 1 to
        :data:`MAX_BANDWIDTH_MBIT`. 100 ms of it may come at once, and never less than 128 KiB.
    :ivar new_flows_per_s: flows that may begin, 1 to :data:`MAX_NEW_FLOWS_PER_S`; as many may
        begin at once.

    Raises:
        ValueError: a limit is not a whole number in its range.
    """

    bandwidth_mbit: int | None = None
    new_flows_per_s: int | None = None

    def __post_init__(self) -> None:
        _check("bandwidth_mbit", self.bandwidth_mbit, MAX_BANDWIDTH_MBIT)
        _check("new_flows_per_s", self.new_flows_per_s, MAX_NEW_FLOWS_PER_S)

    @property
    def byte_cost(self) -> int:
        """How long a byte takes at the limit, in 2**-``COST_SHIFT`` ns; 0: no limit."""
        if self.bandwidth_mbit is None:
            return 0
        return round((_NS_PER_BYTE_AT_1_MBIT << COST_SHIFT) / self.bandwidth_mbit)

    @property
    def burst_ns(self) -> int:
        """How much may come at once, as the time that it takes at the limit; 0: no limit."""
        if self.bandwidth_mbit is None:
            return 0
        return max(_LEAST_BURST_NS, _LEAST_BURST_BYTES * self.byte_cost >> COST_SHIFT)

    @property
    def flow_cost_ns(self) -> int:
        """The time between new flows at the limit; 0: no limit."""
        return 0 if self.new_flows_per_s is None else FLOW_BURST_NS // self.new_flows_per_s


def _check(name: str, value: int | None, most: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(
            f"{name} is {value!r}: it must be a whole number from 1 to {most}, or None for no limit"
        )


UNLIMITED = ClientLimits()
"""No limits at all."""
