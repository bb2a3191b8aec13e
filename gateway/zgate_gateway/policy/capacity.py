"""How much policy a gateway takes: promised, tested, and refused beyond with the number.

The kernel's tables have room for more (:mod:`zgate_bpf.tables`, ``zgate_bpf.generation.Capacity``).
These are the sizes for which the cost of a decision and of a change is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zgate_bpf.layouts import MAX_SERVICES as _KERNELS_SERVICES

from zgate_gateway.policy.rules import Rule

MAX_RULES = 10_000
"""Rules of one client: its own and those of its groups."""

MAX_POLICIES = 1_000
"""Distinct lists of rules in force at a time; clients with equal rules share one."""

MAX_SERVICES = _KERNELS_SERVICES
"""Services that rules and tests of a policy name."""


def count_policies(lists: Iterable[Sequence[Rule]]) -> int:
    """How many different policies these lists of rules are; equal meaning counts once."""
    return len({tuple(rule.meaning for rule in rules) for rules in lists})
