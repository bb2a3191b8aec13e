"""What is allowed in a policy but is hardly meant: rules that nothing ever reaches.

The check is exact: a rule is reported if and only if no packet exists that it decides, even if it
takes several earlier rules together to hide it. Each client's and each group's rules are looked at
by themselves; which groups a client has is not known before it connects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zgate_bpf.tables import Action

from zgate_gateway.policy.destinations import Node, build_tree, own_entries
from zgate_gateway.policy.policy_set import PolicySet
from zgate_gateway.policy.rules import Rule
from zgate_gateway.policy.services import (
    ANY_PROTOCOL,
    ANYTHING,
    LAST_PORT,
    PORT_SPACE_BITS,
    Entries,
    Prefix,
    merge,
    prefixes_of,
    resolve,
)

#: Table entries looked at for one list of rules. Only deep nests of large lists come near it.
_MAX_WORK = 5_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to look at. The policy can be used as it is.

    :ivar text: one line that names the rule, its line and what is odd.
    :ivar path: where in the file; empty for the file as a whole.
    :ivar line: line in the file.
    """

    text: str
    path: str
    line: int
    rule_id: str | None = None


def check_policy(policy_set: PolicySet) -> list[Finding]:
    """Return what is odd in a policy, in the order of the file."""
    findings: list[Finding] = []
    if policy_set.default_action is Action.ALLOW:
        text = "default_action is allow: whatever no rule denies passes, for every certificate"
        findings.append(Finding(text, "default_action", policy_set.default_action_line))
    for subjects in (policy_set.clients, policy_set.groups):
        for rules in subjects.values():
            findings.extend(check_rules(rules))
    return sorted(findings, key=lambda finding: finding.line)


def check_rules(rules: Sequence[Rule]) -> list[Finding]:
    """Return what is odd in one list of rules."""
    reach = _Reach(rules)
    complete = reach.walk()
    findings = list(_meaningless(rules))
    if complete:
        for index in sorted(reach.named - reach.decides):
            findings.append(_hidden(rules, index, reach.hidden_by[index]))
    elif rules:
        text = "not checked for rules that are never reached: too many rules inside one another"
        findings.append(Finding(text, rules[0].path.rpartition("[")[0], rules[0].line))
    return findings


def _meaningless(rules: Sequence[Rule]) -> Iterator[Finding]:
    for rule in rules:
        if not any(rule.services(network.version) for network in rule.destinations):
            text = (
                f'rule "{rule.id}" never matches: its protocols or ICMP types '
                "do not exist in the address family of its destinations"
            )
            yield Finding(text, rule.path, rule.line, rule.id)


def _hidden(rules: Sequence[Rule], index: int, by: int) -> Finding:
    rule, earlier = rules[index], rules[by]
    who = f'rule "{earlier.id}" (line {earlier.line})'
    if _contains(earlier, rule):
        why = f"{who} matches everything that it matches, and comes first"
    else:
        why = f"rules before it, {who} among them, together match everything that it matches"
    contrary = f", and does the opposite ({earlier.action.name.lower()})"
    text = f'rule "{rule.id}" is never reached: {why}'
    if earlier.action is not rule.action:
        text += contrary
    return Finding(text, rule.path, rule.line, rule.id)


def _contains(outer: Rule, inner: Rule) -> bool:
    """Whether ``outer`` by itself matches whatever ``inner`` matches."""
    return all(
        any(
            other.version == network.version
            and other.prefixlen <= network.prefixlen
            and network.network_address in other
            for other in outer.destinations
        )
        and _serves(outer, inner, network.version)
        for network in inner.destinations
        if inner.services(network.version)
    )


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


class _Reach:
    """Walks the destination prefixes and notes which rules decide anything in them.

    :ivar named: rules that match anything at all by themselves.
    :ivar decides: rules that at least one packet reaches.
    :ivar hidden_by: for a rule that lost, a rule that won where it could have matched.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._tree = build_tree(rules)
        self._own: dict[tuple[int, tuple[int, ...]], Entries] = {}
        self._seen: dict[tuple[int, tuple[int, ...], int | None], int] = {}
        self._in_force: list[Entries] = []
        self._work = 0
        self.named: set[int] = set()
        self.decides: set[int] = set()
        self.hidden_by: dict[int, int] = {}

    def walk(self) -> bool:
        """Look at every prefix; False if that would take too long."""
        which: list[int] = []
        for node in self._tree:
            parent = which[node.parent] if node.parent is not None else None
            position = self._position(node, parent)
            which.append(position)
            self._note(node, self._in_force[position])
            if self._work > _MAX_WORK:
                return False
        return True

    def _position(self, node: Node, parent: int | None) -> int:
        """Where in ``_in_force`` the entries are that decide in this prefix."""
        key = node.family, node.rules, parent
        if key not in self._seen:
            entries = own_entries(self._rules, node)
            if parent is not None:
                entries = resolve(merge(entries, self._in_force[parent]))
            self._work += len(entries)
            self._seen[key] = len(self._in_force)
            self._in_force.append(entries)
        return self._seen[key]

    def _note(self, node: Node, in_force: Entries) -> None:
        self.named.update(node.rules)
        if not node.is_hidden and not self.decides.issuperset(in_force.values()):
            self.decides.update(_deciding(in_force))
            self._work += len(in_force)
        for index in node.rules:
            if index not in self.hidden_by:
                prefix = prefixes_of(self._rules[index].services(node.family))[0]
                self.hidden_by[index] = _lookup(in_force, prefix)


def _lookup(entries: Entries, prefix: Prefix) -> int:
    """Return the rule that decides at the first port of ``prefix``, which a rule names."""
    for bits in range(PORT_SPACE_BITS, -1, -1):
        port = prefix.port & ~(LAST_PORT >> bits)
        rule = entries.get(Prefix(prefix.protocol, port, bits))
        if rule is not None:
            return rule
    return entries[ANYTHING]


def _deciding(entries: Entries) -> set[int]:
    """Return the rules of entries that longer prefixes do not cover completely."""
    uncovered = {prefix: prefix.last - prefix.port + 1 for prefix in entries}
    uncovered[ANYTHING] = 256 * (LAST_PORT + 1)
    enclosing: list[Prefix] = []
    for prefix in entries:
        if prefix == ANYTHING:
            continue
        while enclosing and (
            enclosing[-1].protocol != prefix.protocol or enclosing[-1].last < prefix.port
        ):
            enclosing.pop()
        uncovered[enclosing[-1] if enclosing else ANYTHING] -= prefix.last - prefix.port + 1
        enclosing.append(prefix)
    return {rule for prefix, rule in entries.items() if uncovered[prefix]}
