"""Rules that overlap and want the opposite: where a reader may guess wrong who wins.

An exception before a wider rule is how policies are written, and a rule that is hidden is a finding
of its own. What is told here is the rest: each of two rules with contrary actions matches something
that the other does not, and something that both do, so that their order decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from zgate_bpf.tables import Action

from zgate_gateway.policy.destinations import Node, build_tree
from zgate_gateway.policy.rules import Rule
from zgate_gateway.policy.services import ANY_PROTOCOL, IpNetwork, Service

#: Pairs looked at in one list of rules, a second's worth, and pairs told.
_MAX_PAIRS = 200_000
_MAX_TOLD = 100
_CONTRARY = {Action.ALLOW: Action.DENY, Action.DENY: Action.ALLOW}


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two rules, by position; the first decides in ``network`` what both match."""

    first: int
    second: int
    network: IpNetwork


@dataclass(slots=True)
class Overlaps:
    """What was found; ``complete`` is False if there was too much to look at or to tell."""

    found: list[Overlap]
    complete: bool = True


def find_overlaps(rules: Sequence[Rule]) -> Overlaps:
    """Return the pairs, by their second rule."""
    answer = Overlaps([])
    seen: set[tuple[int, int]] = set()
    for count, (first, second, node) in enumerate(_contrary(rules)):
        if count >= _MAX_PAIRS or len(answer.found) >= _MAX_TOLD:
            answer.complete = False
            break
        if (first, second) in seen:
            continue
        if _share_a_service(rules[first], rules[second], node.family):
            seen.add((first, second))
            if not (contains(rules[first], rules[second]) or contains(rules[second], rules[first])):
                answer.found.append(Overlap(first, second, node.network))
    answer.found.sort(key=lambda overlap: (overlap.second, overlap.first))
    return answer


def _contrary(rules: Sequence[Rule]) -> Iterator[tuple[int, int, Node]]:
    """Pairs of rules with contrary actions that meet in a prefix: the longer one of the two."""
    tree = build_tree(rules)
    split = [_by_action(rules, node) for node in tree]
    for position, node in enumerate(tree):
        place: int | None = position
        while place is not None:
            for action, own_rules in split[position].items():
                others = split[place].get(_CONTRARY[action], ())
                for own, other in product(own_rules, others):
                    if place != position or own < other:
                        yield min(own, other), max(own, other), node
            place = tree[place].parent


def _by_action(rules: Sequence[Rule], node: Node) -> dict[Action, list[int]]:
    split: dict[Action, list[int]] = {}
    for index in node.rules:
        split.setdefault(rules[index].action, []).append(index)
    return split


def _share_a_service(one: Rule, other: Rule, family: int) -> bool:
    return _intersect(one.services(family), other.services(family))


@lru_cache(maxsize=4096)
def _intersect(some: tuple[Service, ...], others: tuple[Service, ...]) -> bool:
    return any(
        (a.protocol == b.protocol or ANY_PROTOCOL in (a.protocol, b.protocol))
        and a.first <= b.last
        and b.first <= a.last
        for a in some
        for b in others
    )


def contains(outer: Rule, inner: Rule) -> bool:
    """Whether ``outer`` by itself matches whatever ``inner`` matches."""
    if not all(_serves(outer, inner, family) for family in (4, 6)):
        return False
    known = {_key(network, network.prefixlen) for network in outer.destinations}
    return all(
        any(_key(network, bits) in known for bits in range(network.prefixlen + 1))
        for network in inner.destinations
        if inner.services(network.version)
    )


def _key(network: IpNetwork, bits: int) -> tuple[int, int, int]:
    """The network of ``bits`` bits around this one, as something that is quick to compare."""
    shift = network.max_prefixlen - bits
    return network.version, int(network.network_address) >> shift, bits


def _serves(outer: Rule, inner: Rule, family: int) -> bool:
    return all(
        any(
            other.protocol in (service.protocol, ANY_PROTOCOL)
            and other.first <= service.first
            and service.last <= other.last
            for other in outer.services(family)
        )
        for service in inner.services(family)
    )
