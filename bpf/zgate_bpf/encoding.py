"""From a compiled policy to the entries of the kernel's tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from zgate_bpf import layouts
from zgate_bpf.errors import CapacityError
from zgate_bpf.layouts import MAX_RULE_STEPS, NO_INTERVAL, NO_LIST
from zgate_bpf.maps import index_key
from zgate_bpf.prefix_search import IpNetwork, Plan, make_plan, with_marks
from zgate_bpf.tables import (
    MAX_LIST_DEPTH,
    MAX_RULES_PER_POLICY,
    NO_RULE,
    CompiledPolicy,
    ServicePrefix,
)

Entry = tuple[bytes, bytes]

_PORT_BITS = 16
_SERVICE_SPACE = 1 << (8 + _PORT_BITS)

FOREVER_NS = (1 << 64) - 1
"""The end of a policy that has none."""


@dataclass(frozen=True, slots=True)
class Period:
    """How long a policy holds.

    :ivar until_ns: CLOCK_MONOTONIC.
    :ivar next_policy: the policy that holds from then on; 0: none, and nothing passes.
    """

    until_ns: int = FOREVER_NS
    next_policy: int = 0


ALWAYS = Period()


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a policy lies in the tables of its generation.

    :ivar list_base: its list 0.
    :ivar rule_base: its rule 0.
    :ivar interval_base: the first of its intervals.
    """

    policy_id: int
    list_base: int
    rule_base: int
    interval_base: int


def check_policy(policy: CompiledPolicy) -> None:
    """Refuse what the kernel could not mean.

    Raises:
        ValueError: the policy contradicts itself.
        CapacityError: too many rules, or lists nested too deeply.
    """
    if len(policy.rules) > MAX_RULES_PER_POLICY:
        raise CapacityError("rules of one policy", len(policy.rules), MAX_RULES_PER_POLICY)
    for index, service_list in enumerate(policy.lists):
        seen = set()
        for prefix in service_list.entries:
            _check_prefix(policy, prefix)
            key = (prefix.protocol, prefix.port, prefix.port_bits)
            if key in seen:
                raise ValueError(f"list {index} holds the prefix {key} twice")
            seen.add(key)
    _check_nesting(policy)
    networks = set()
    for destination in policy.destinations:
        if not 0 <= destination.service_list < len(policy.lists):
            raise ValueError(f"{destination.network} has no list {destination.service_list}")
        if destination.network in networks:
            raise ValueError(f"{destination.network} is there twice")
        networks.add(destination.network)


def _check_prefix(policy: CompiledPolicy, prefix: ServicePrefix) -> None:
    if not 0 <= prefix.rule < len(policy.rules):
        raise ValueError(f"{prefix} names a rule that is not there")
    if prefix.protocol is None and prefix.port_bits:
        raise ValueError(f"{prefix} has a port but no protocol")
    if prefix.protocol is not None and not 0 <= prefix.protocol <= 255:
        raise ValueError(f"{prefix}: protocols are 0 to 255")
    if not 0 <= prefix.port_bits <= _PORT_BITS:
        raise ValueError(f"{prefix}: a port has {_PORT_BITS} bits")
    if not 0 <= prefix.port <= 0xFFFF or prefix.port & (0xFFFF >> prefix.port_bits):
        raise ValueError(f"{prefix} has bits behind its prefix")


def _check_nesting(policy: CompiledPolicy) -> None:
    for index in range(len(policy.lists)):
        depth = 0
        at: int | None = index
        while at is not None:
            if not 0 <= at < len(policy.lists):
                raise ValueError(f"list {index} has a parent {at} that is not there")
            depth += 1
            if depth > MAX_LIST_DEPTH:
                raise CapacityError("nested destination prefixes", depth, MAX_LIST_DEPTH)
            at = policy.lists[at].parent


def encode_policy(
    policy: CompiledPolicy, placement: Placement, period: Period = ALWAYS
) -> dict[str, list[Entry]]:
    """The entries of each table, by the table's name."""
    plans = _plans(policy)
    lists, intervals = _lists(policy, placement)
    return {
        "rules": [
            (index_key(placement.rule_base + index), layouts.RULE.pack(action))
            for index, action in enumerate(policy.rules)
        ],
        "lists": lists,
        "intervals": intervals,
        "destinations": list(_destinations(policy, placement, plans)),
        "policies": [(index_key(placement.policy_id), _policy(policy, plans, period))],
    }


# Destinations.


def _plans(policy: CompiledPolicy) -> dict[int, tuple[Plan, int]]:
    """For each family how it is searched, and the number of the first of its steps."""
    plans: dict[int, tuple[Plan, int]] = {}
    base = 0
    for family in (4, 6):
        lengths = (d.network.prefixlen for d in policy.destinations if d.network.version == family)
        plan = make_plan(lengths, base)
        plans[family] = plan, base
        base += len(plan.steps)
    return plans


def _policy(policy: CompiledPolicy, plans: dict[int, tuple[Plan, int]], period: Period) -> bytes:
    steps = b"".join(
        bytes((step.bits, step.longer, step.shorter, 0))
        for plan, _ in plans.values()
        for step in plan.steps
    )
    return layouts.POLICY.pack(
        period.until_ns,
        period.next_policy,
        policy.default_action,
        plans[4][0].first,
        plans[6][0].first,
        steps,
    )


def _destinations(
    policy: CompiledPolicy, placement: Placement, plans: dict[int, tuple[Plan, int]]
) -> Iterator[Entry]:
    for family, (plan, base) in plans.items():
        prefixes: dict[IpNetwork, int] = {
            d.network: placement.list_base + d.service_list
            for d in policy.destinations
            if d.network.version == family
        }
        size = 4 if family == 4 else 16
        for (bits, address), value in with_marks(prefixes, plan, base, family).items():
            yield (
                layouts.DESTINATION_KEY.pack(
                    placement.policy_id, family, bits, address.to_bytes(size)
                ),
                layouts.DESTINATION.pack(NO_LIST if value is None else value),
            )


# Services.


@dataclass(frozen=True, slots=True)
class _List:
    """A list as it is looked up. :ivar steps: intervals visited in it and in its parents."""

    intervals: list[tuple[int, int]]
    parent: int | None
    lowest: int
    steps: int


def _build_lists(policy: CompiledPolicy) -> list[_List]:
    """Lists whose chain of parents would take the kernel too long take their parents in."""
    built: dict[int, _List] = {}

    def build(index: int) -> _List:
        if index not in built:
            service_list = policy.lists[index]
            own = cut_intervals(service_list.entries)
            above = None if service_list.parent is None else build(service_list.parent)
            built[index] = _chained(own, service_list.parent, above, built)
        return built[index]

    return [build(index) for index in range(len(policy.lists))]


def _chained(
    own: list[tuple[int, int]], parent: int | None, above: _List | None, built: dict[int, _List]
) -> _List:
    steps = len(own).bit_length()
    lowest = min((rule for _, rule in own), default=NO_RULE)
    if above is None:
        return _List(own, None, lowest, steps)
    if steps + above.steps <= MAX_RULE_STEPS:
        return _List(own, parent, min(lowest, above.lowest), steps + above.steps)
    at: _List | None = above
    while at is not None:
        own = _merge(own, at.intervals)
        at = None if at.parent is None else built[at.parent]
    return _List(own, None, min(lowest, above.lowest), len(own).bit_length())


def _merge(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Everywhere the lower rule of both."""
    merged: list[tuple[int, int]] = []
    i = j = 0
    for start in sorted({at for at, _ in one} | {at for at, _ in other}):
        while i + 1 < len(one) and one[i + 1][0] <= start:
            i += 1
        while j + 1 < len(other) and other[j + 1][0] <= start:
            j += 1
        rule = min(one[i][1], other[j][1])
        if not merged or merged[-1][1] != rule:
            merged.append((start, rule))
    return merged


def _lists(policy: CompiledPolicy, placement: Placement) -> tuple[list[Entry], list[Entry]]:
    lists: list[Entry] = []
    flat: list[Entry] = []
    built = _build_lists(policy)
    for index, item in enumerate(built):
        base = placement.interval_base + len(flat)
        above = NO_RULE if item.parent is None else built[item.parent].lowest
        record = layouts.SERVICE_LIST.pack(
            base + len(item.intervals) // 2,
            NO_LIST if item.parent is None else placement.list_base + item.parent,
            _global_rule(placement, above),
        )
        lists.append((index_key(placement.list_base + index), record))
        tree = _tree(len(item.intervals), base)
        for at, ((start, rule), links) in enumerate(zip(item.intervals, tree, strict=True)):
            interval = layouts.INTERVAL.pack(start, _global_rule(placement, rule), *links)
            flat.append((index_key(base + at), interval))
    return lists, flat


def _tree(count: int, base: int) -> list[tuple[int, int]]:
    """For each of so many sorted things those at which a search goes on before and behind it."""
    links = [(NO_INTERVAL, NO_INTERVAL)] * count

    def root(first: int, end: int) -> int:
        if first == end:
            return NO_INTERVAL
        middle = first + (end - first) // 2
        links[middle] = root(first, middle), root(middle + 1, end)
        return base + middle

    root(0, count)
    return links


def _global_rule(placement: Placement, rule: int) -> int:
    return NO_RULE if rule == NO_RULE else placement.rule_base + rule


def cut_intervals(entries: Iterable[ServicePrefix]) -> list[tuple[int, int]]:
    """Nested prefixes to intervals: where each begins, and its rule or ``NO_RULE``.

    The first begins at 0, the last ends with the space of protocols and ports. Prefixes either
    nest or do not touch; the longest around a service is the one that decides there.
    """
    anything = NO_RULE
    spans: list[tuple[int, int, int]] = []  # first, minus size, rule: outer before inner
    for prefix in entries:
        if prefix.protocol is None:
            anything = prefix.rule
            continue
        first = prefix.protocol << _PORT_BITS | prefix.port
        spans.append((first, -(1 << (_PORT_BITS - prefix.port_bits)), prefix.rule))
    cut = [(0, anything)]
    open_spans = [(_SERVICE_SPACE, anything)]
    for first, minus_size, rule in sorted(spans):
        _close_spans(cut, open_spans, first)
        _begin(cut, first, rule)
        open_spans.append((first - minus_size, rule))
    _close_spans(cut, open_spans, _SERVICE_SPACE - 1)
    return cut


def _close_spans(cut: list[tuple[int, int]], open_spans: list[tuple[int, int]], at: int) -> None:
    """What ended by now ended: behind it, what is around it goes on."""
    while open_spans[-1][0] <= at:
        end, _ = open_spans.pop()
        _begin(cut, end, open_spans[-1][1])


def _begin(cut: list[tuple[int, int]], at: int, rule: int) -> None:
    if cut[-1][0] == at:
        cut.pop()
    if not cut or cut[-1][1] != rule:
        cut.append((at, rule))
