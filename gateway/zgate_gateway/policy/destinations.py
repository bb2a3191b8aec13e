"""The destination prefixes of a list of rules, as a tree: who encloses whom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zgate_gateway.policy.rules import Rule
from zgate_gateway.policy.services import Entries, IpNetwork, prefixes_of, resolve

_Key = tuple[int, int, int]


@dataclass(slots=True)
class Node:
    """A destination prefix that rules name.

    :ivar rules: indexes of the rules that name exactly this prefix, ascending.
    :ivar parent: the next shorter prefix around it, by position in the tree's list.
    :ivar depth: prefixes around it.
    :ivar height: the most prefixes below it, one inside the other.
    :ivar covered: how many of its addresses belong to prefixes below it.
    """

    network: IpNetwork
    rules: tuple[int, ...]
    parent: int | None
    depth: int = 0
    height: int = 0
    covered: int = 0

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.network.version

    @property
    def is_hidden(self) -> bool:
        """Whether longer prefixes cover it, so that no packet is looked up in it first."""
        return self.covered == self.network.num_addresses


def build_tree(rules: Sequence[Rule]) -> list[Node]:
    """Return the prefixes, parents before children, IPv4 before IPv6."""
    named = _rules_by_prefix(rules)
    nodes: list[Node] = []
    open_nodes: list[tuple[int, int, int]] = []  # family, last address, position
    for key in sorted(named):
        family, first, _ = key
        while open_nodes and (open_nodes[-1][0], open_nodes[-1][1]) < (family, first):
            open_nodes.pop()
        network, indexes = named[key]
        parent = open_nodes[-1][2] if open_nodes else None
        depth = nodes[parent].depth + 1 if parent is not None else 0
        open_nodes.append((family, first + network.num_addresses - 1, len(nodes)))
        nodes.append(Node(network, tuple(indexes), parent, depth))
    for node in reversed(nodes):
        if node.parent is not None:
            above = nodes[node.parent]
            above.height = max(above.height, node.height + 1)
            above.covered += node.network.num_addresses
    return nodes


def _rules_by_prefix(rules: Sequence[Rule]) -> dict[_Key, tuple[IpNetwork, list[int]]]:
    named: dict[_Key, tuple[IpNetwork, list[int]]] = {}
    for index, network in _destinations(rules):
        key = network.version, int(network.network_address), network.prefixlen
        if key in named:
            named[key][1].append(index)
        else:
            named[key] = (network, [index])
    return named


def _destinations(rules: Sequence[Rule]) -> Iterator[tuple[int, IpNetwork]]:
    for index, rule in enumerate(rules):
        for network in rule.destinations:
            if rule.services(network.version):
                yield index, network


def own_entries(rules: Sequence[Rule], node: Node) -> Entries:
    """Return what the node's own rules name, resolved."""
    entries: Entries = {}
    for index in node.rules:
        for prefix in prefixes_of(rules[index].services(node.family)):
            entries.setdefault(prefix, index)  # ascending: the first is the lowest
    return resolve(entries)
