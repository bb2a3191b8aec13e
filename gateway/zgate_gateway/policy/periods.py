"""Rules that hold only for a time: what holds when, and what the kernel is given of it.

Between two *boundaries* (a rule begins, a rule ends) nothing changes with time. So a list of rules
is compiled once for each period between them, and the kernel goes from one to the next by itself,
by its own clock (:class:`Schedule`). A rule keeps its number in every period: where it does not
hold it matches nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from zgate_bpf.layouts import MAX_PERIODS
from zgate_bpf.tables import Action, CompiledPolicy

from zgate_gateway.policy.compiler import compile_policy
from zgate_gateway.policy.rules import Rule


def boundaries(rules: Iterable[Rule], after: datetime | None = None) -> list[datetime]:
    """Return the times at which one of the rules begins or ends, ascending; those ``after``."""
    found = {
        time
        for rule in rules
        if rule.is_temporary
        for time in (rule.not_before, rule.expires_at)
        if time is not None and (after is None or time > after)
    }
    return sorted(found)


def rules_at(rules: Sequence[Rule], at: datetime) -> tuple[Rule, ...]:
    """Return the rules as they are at that time, in the same places."""
    return tuple(
        rule.dormant() if rule.is_temporary and not rule.holds(at) else rule for rule in rules
    )


@dataclass(frozen=True, slots=True)
class Step:
    """What holds ``until`` the next step; None: from then on, for good."""

    policy: CompiledPolicy
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """What the kernel is given for one list of rules.

    :ivar steps: one after the other, at least one.
    :ivar refill_at: when the kernel should be given more, because it cannot hold all that lies
        ahead; None: it has everything.
    """

    steps: tuple[Step, ...]
    refill_at: datetime | None = None


def schedule(rules: Sequence[Rule], default_action: Action, now: datetime) -> Schedule:
    """Compile rules for every period from ``now`` on, as far as the kernel can hold them.

    Where it cannot, its last step is one that errs on the safe side: it allows only what is allowed
    at every time from then on. It is meant never to be reached, for at half of the way the kernel
    is to be given a new schedule; but if nobody is there to do so, nothing passes that should not.

    Raises :class:`zgate_gateway.policy.PolicyTooLarge`.
    """
    if not any(rule.is_temporary for rule in rules):
        return Schedule((Step(compile_policy(rules, default_action)),))
    ahead = boundaries(rules, now)
    ends = ahead[: MAX_PERIODS - 1]
    lists = [rules_at(rules, at) for at in (now, *ends)]
    refill_at = None
    if len(ahead) > len(ends):
        lists[-1] = _safe_from(rules, ends[-1])
        refill_at = ends[len(ends) // 2]
    return Schedule(
        tuple(
            Step(compile_policy(found, default_action), until)
            for found, until in zip(lists, [*ends, None], strict=True)
        ),
        refill_at,
    )


def _safe_from(rules: Sequence[Rule], at: datetime) -> tuple[Rule, ...]:
    """What allows nothing that is not allowed at every time from ``at`` on.

    Of the rules that allow, those that hold all that time; of those that deny, all that hold at
    any moment of it.
    """
    return tuple(rule if _always_counts(rule, at) else rule.dormant() for rule in rules)


def _always_counts(rule: Rule, at: datetime) -> bool:
    if rule.action is Action.DENY:
        return not rule.is_expired(at)
    return rule.expires_at is None and rule.holds(at)
