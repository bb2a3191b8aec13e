"""Rules to tables: first match by two lookups and a chain of parents.

Every destination prefix that rules name becomes a list of services. What a decision means is the
list of the longest prefix around a packet's destination, and in it the longest service prefix
around its protocol and port. Two things make that the *first matching rule*:

* Inside a list, a service prefix is kept only if its rule comes before those of all the shorter
  prefixes around it (:func:`zgate_gateway.policy.services.resolve`).
* A rule for an enclosing destination prefix may come first too. So a list names the list of the
  next enclosing prefix as its parent; the kernel looks there as well, and the lowest rule wins.

How the kernel searches is not said here: by binary searches over prefix lengths and over intervals
of services (:mod:`zgate_bpf.encoding`, docs/adr/0004-classification.md). Its work grows with the
lists in a chain, so parents are merged into their children where that is cheap (:class:`_Builder`).
Memory stays linear in the rules: a list takes in at most twice its own size, or 16 entries, plus
4,096 entries for the whole policy. Chains longer than a decision may visit
(:data:`zgate_bpf.tables.MAX_LIST_DEPTH`) are cut by merging everything above into every eighth
prefix of a deep nest.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from zgate_bpf.tables import (
    MAX_LIST_DEPTH,
    MAX_RULES_PER_POLICY,
    Action,
    CompiledPolicy,
    Destination,
    ServiceList,
    ServicePrefix,
)

from zgate_gateway.policy.capacity import MAX_RULES
from zgate_gateway.policy.destinations import Node, build_tree, own_entries
from zgate_gateway.policy.rules import Rule
from zgate_gateway.policy.services import ANY_PROTOCOL, ANYTHING, Entries, merge, resolve

#: A list takes its parent in if the parent has no more entries than this,
_FREE_ENTRIES = 16
#: or than this many times its own,
_FREE_FACTOR = 2
#: or while this many further entries have not been spent in the policy.
_EXTRA_ENTRIES = 4096
_ANCHOR_SPACING = MAX_LIST_DEPTH // 2
_CACHED_POLICIES = 1024


class PolicyTooLarge(ValueError):
    """More rules than a policy can hold."""


_Key = tuple[Action, tuple[bytes, ...]]
_cache: OrderedDict[_Key, CompiledPolicy] = OrderedDict()
_cache_lock = threading.Lock()


def compile_policy(rules: Sequence[Rule], default_action: Action) -> CompiledPolicy:
    """Compile rules in first-match order; ``rules[i]`` is rule ``i`` of the result.

    Lists of rules that mean the same give the same object, so that clients share it (the last
    1,024 results are kept). Raises :class:`PolicyTooLarge`.
    """
    if len(rules) > MAX_RULES:
        raise PolicyTooLarge(
            f"{len(rules)} rules in one policy; the gateway takes {MAX_RULES}: "
            "remove rules, or split the client's groups"
        )
    key = default_action, tuple(rule.meaning for rule in rules)
    with _cache_lock:
        compiled = _cache.get(key)
        if compiled is None:
            compiled = _cache[key] = _compile(rules, default_action)
        _cache.move_to_end(key)
        if len(_cache) > _CACHED_POLICIES:
            _cache.popitem(last=False)
    return compiled


def _compile(rules: Sequence[Rule], default_action: Action) -> CompiledPolicy:
    builder = _Builder(rules)
    for node in builder.tree:
        builder.place(node)
    return CompiledPolicy(
        rules=tuple(rule.action for rule in rules),
        lists=tuple(ServiceList(item.parent, _to_table(item.entries)) for item in builder.lists),
        destinations=tuple(builder.destinations),
        default_action=default_action,
    )


def _to_table(entries: Entries) -> tuple[ServicePrefix, ...]:
    return tuple(
        ServicePrefix(
            None if prefix.protocol == ANY_PROTOCOL else prefix.protocol,
            prefix.port,
            prefix.bits,
            rule,
        )
        for prefix, rule in entries.items()
    )


@dataclass(frozen=True, slots=True)
class _List:
    """A service list. ``first_rule`` is the lowest rule in it and in all of its parents."""

    entries: Entries
    parent: int | None
    first_rule: int


class _Builder:
    """Lists and destinations under construction, filled from the shortest prefixes down."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.tree = build_tree(rules)
        self.lists: list[_List] = []
        self.destinations: list[Destination] = []
        self._rules = rules
        self._list_of_node: list[int] = []
        self._own: dict[tuple[int, tuple[int, ...]], Entries] = {}
        self._made: dict[tuple[int, tuple[int, ...], int | None, bool], int] = {}
        self._extra_entries = _EXTRA_ENTRIES

    def place(self, node: Node) -> None:
        """Give the node a list; prefixes that their parent's list decides as well need none."""
        parent = self._list_of_node[node.parent] if node.parent is not None else None
        is_anchor = (
            node.depth > 0 and node.depth % _ANCHOR_SPACING == 0 and node.height >= _ANCHOR_SPACING
        )
        key = (node.family, node.rules, parent, is_anchor)
        index = self._made.get(key)
        if index is None:
            index = self._made[key] = self._make(node, parent, is_anchor)
        self._list_of_node.append(index)
        if index != parent:
            self.destinations.append(Destination(node.network, index))

    def _make(self, node: Node, parent: int | None, is_anchor: bool) -> int:
        """Return the index of the list for these rules below that parent."""
        own = self._own_entries(node)
        if parent is None or self._decides_alone(own, parent):
            return self._append(own, None)
        if is_anchor:
            return self._append(self._with_all_parents(own, parent), None)
        above = self.lists[parent]
        if not self._is_cheap(len(above.entries), len(own)):
            return self._append(own, parent)
        merged = resolve(merge(own, above.entries))
        return parent if merged == above.entries else self._append(merged, above.parent)

    def _own_entries(self, node: Node) -> Entries:
        key = node.family, node.rules
        if key not in self._own:
            self._own[key] = own_entries(self._rules, node)
        return self._own[key]

    def _decides_alone(self, own: Entries, parent: int) -> bool:
        """Whether a rule here for everything comes before all rules of the parents."""
        return own.get(ANYTHING, MAX_RULES_PER_POLICY) < self.lists[parent].first_rule

    def _is_cheap(self, size: int, own_size: int) -> bool:
        if size <= max(_FREE_ENTRIES, _FREE_FACTOR * own_size):
            return True
        if size > self._extra_entries:
            return False
        self._extra_entries -= size
        return True

    def _with_all_parents(self, own: Entries, parent: int) -> Entries:
        merged, position = own, self.lists[parent]
        while True:
            merged = merge(merged, position.entries)
            if position.parent is None:
                return resolve(merged)
            position = self.lists[position.parent]

    def _append(self, entries: Entries, parent: int | None) -> int:
        first_rule = min(entries.values())
        if parent is not None:
            first_rule = min(first_rule, self.lists[parent].first_rule)
        self.lists.append(_List(entries, parent, first_rule))
        return len(self.lists) - 1
