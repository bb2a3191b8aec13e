"""Longest prefix by binary search over prefix lengths: the plan, and the marks that it needs.

The lengths that a policy uses are put into a balanced binary tree. A search asks for the
address's prefix of the tree's length; if the table has it, a longer one may exist, else only
a shorter one (Waldvogel et al., "Scalable High Speed IP Routing Lookups", 1997). So that a
search does not turn to shorter lengths too early, every prefix leaves marks at the lengths
where its search must go on to longer ones; a mark carries the longest real prefix around it,
so that nothing has to be taken back. For n lengths a search asks log2(n + 1) times: three
times for seven, six for all of IPv4, eight for all of IPv6.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

IpNetwork = IPv4Network | IPv6Network

NO_STEP = 0xFF
"""A search ends here."""

_ADDRESS_BITS = {4: 32, 6: 128}


@dataclass(frozen=True, slots=True)
class Step:
    """One question of a search. :ivar longer: the next step if there is such a prefix."""

    bits: int
    longer: int
    shorter: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The order in which one family's lengths are asked for. :ivar first: its first step."""

    first: int
    steps: tuple[Step, ...]

    def marks(self, bits: int, base: int) -> Iterable[int]:
        """The shorter lengths at which the search for a prefix of this length goes on."""
        at = self.first
        while at != NO_STEP:
            step = self.steps[at - base]
            if step.bits == bits:
                return
            if step.bits < bits:
                yield step.bits
                at = step.longer
            else:
                at = step.shorter
        raise ValueError(f"the plan does not ask for {bits} bits")


def make_plan(lengths: Iterable[int], base: int) -> Plan:
    """A balanced tree over these lengths, whose steps are numbered from ``base`` on."""
    steps: list[Step] = []

    def build(part: list[int]) -> int:
        if not part:
            return NO_STEP
        middle = len(part) // 2
        at = len(steps)
        steps.append(Step(part[middle], NO_STEP, NO_STEP))
        longer = build(part[middle + 1 :])
        steps[at] = Step(part[middle], longer, build(part[:middle]))
        return base + at

    first = build(sorted(set(lengths)))
    return Plan(first, tuple(steps))


def with_marks(
    prefixes: Mapping[IpNetwork, int], plan: Plan, base: int, family: int
) -> dict[tuple[int, int], int | None]:
    """What the table of one family holds: (bits, address) to the prefix's value, or a mark's.

    The value of a mark is that of the longest prefix around it, ``None`` if there is none.
    """
    whole = _ADDRESS_BITS[family]
    table: dict[tuple[int, int], int | None] = {
        (network.prefixlen, int(network.network_address)): value
        for network, value in prefixes.items()
    }
    real = dict(table)
    lengths = sorted({bits for bits, _ in real})
    marks = {bits: tuple(plan.marks(bits, base)) for bits in lengths}
    for bits, address in real:
        for shorter in marks[bits]:
            key = shorter, address >> (whole - shorter) << (whole - shorter)
            if key not in table:
                table[key] = _longest(real, lengths, key, whole)
    return table


def _longest(
    real: Mapping[tuple[int, int], int | None],
    lengths: list[int],
    key: tuple[int, int],
    whole: int,
) -> int | None:
    """The value of the longest of the prefixes that contain this one."""
    bits, address = key
    for length in reversed(lengths):
        if length <= bits:
            around = length, address >> (whole - length) << (whole - length)
            if around in real:
                return real[around]
    return None
