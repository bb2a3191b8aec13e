"""What is allowed in a policy but is hardly meant: rules that nothing ever reaches, for one.

That check is exact: a rule is reported if and only if no packet exists that it decides, even if it
takes several earlier rules together to hide it. Each client's and each group's rules are looked at
by themselves; which groups a client has is not known before it connects. So a client's own rule for
everything, which hides whatever groups it has, is told as well; and, as a note, rules with contrary
actions that overlap (:mod:`zgate_gateway.policy.overlaps`).

Rules that hold for a time are looked at from now on: one that is over is told, and one is reported
as never reached if it decides nothing in any period that lies ahead.

Rules about services are looked at with the services that are known, and with stand-ins for those
that are only named (:mod:`zgate_gateway.policy.service_names`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from zgate_bpf.tables import NO_RULE, Action

from zgate_gateway.policy.destinations import Node, build_tree, own_entries
from zgate_gateway.policy.model import RuleType
from zgate_gateway.policy.overlaps import contains, find_overlaps
from zgate_gateway.policy.periods import boundaries, rules_at
from zgate_gateway.policy.policy_set import PolicySet
from zgate_gateway.policy.rules import Rule, time_text
from zgate_gateway.policy.service_names import Services, is_pattern, matches, name_of
from zgate_gateway.policy.services import (
    ANY_PROTOCOL,
    ANYTHING,
    LAST_PORT,
    PORT_SPACE_BITS,
    Entries,
    Prefix,
    prefixes_of,
)

#: Lookups for one list of rules, some seconds' worth. Only deep nests of large lists come near it.
_MAX_WORK = 10_000_000
#: Rules times periods that are looked at in one list of rules: some seconds' worth as well.
_MAX_TIMED_RULES = 30_000
_PROTOCOLS = 256


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to look at. The policy can be used as it is.

    :ivar text: one line that names the rule, its line and what is odd.
    :ivar path: where in the file; empty for the file as a whole.
    :ivar line: line in the file.
    :ivar is_note: worth knowing, but nothing speaks against it.
    """

    text: str
    path: str
    line: int
    rule_id: str | None = None
    is_note: bool = False


def check_policy(
    policy_set: PolicySet, now: datetime | None = None, *, services: Services | None = None
) -> list[Finding]:
    """Return what is odd in a policy, in the order of the file; ``services``: those known."""
    now = now or datetime.now(UTC)
    findings = list(_waiting(policy_set, services or {}))
    policy_set = policy_set.on_trial(services)
    if policy_set.default_action is Action.ALLOW:
        text = "default_action is allow: whatever no rule denies passes, for every certificate"
        findings.append(Finding(text, "default_action", policy_set.default_action_line))
    for subjects in (policy_set.clients, policy_set.groups):
        for rules in subjects.values():
            findings.extend(check_rules(rules, now))
            findings.extend(_overlapping(rules, now, policy_set.services))
    if any(policy_set.groups.values()):
        for name, rules in policy_set.clients.items():
            findings.extend(_hides_groups(name, rules))
    return sorted(findings, key=lambda finding: finding.line)


def _waiting(policy_set: PolicySet, services: Services) -> Iterator[Finding]:
    """Names with ``*`` that match no service yet."""
    known = {*services, *policy_set.service_names()}
    for rules in (*policy_set.clients.values(), *policy_set.groups.values()):
        for rule in rules:
            for name in rule.service_names:
                if is_pattern(name) and not any(matches(name, one) for one in known):
                    text = f'rule "{rule.id}": no service is known that "{name}" matches'
                    yield Finding(text, rule.path, rule.line, rule.id, is_note=True)


def check_rules(rules: Sequence[Rule], now: datetime | None = None) -> list[Finding]:
    """Return what is odd in one list of rules."""
    now = now or datetime.now(UTC)
    findings = [*_meaningless(rules), *_expired(rules, now)]
    reach = _reach(rules, now)
    if reach.complete:
        for index in sorted(reach.named - reach.decides):
            findings.append(_hidden(rules, index, reach.hidden_by.get(index)))
    elif rules:
        text = (
            "not checked for rules that are never reached: "
            "too many rules inside one another, or too many times at which they begin and end"
        )
        findings.append(Finding(text, rules[0].path.rpartition("[")[0], rules[0].line))
    return findings


def _expired(rules: Sequence[Rule], now: datetime) -> Iterator[Finding]:
    for rule in rules:
        if rule.expires_at is not None and rule.is_expired(now):
            text = f'rule "{rule.id}" ended at {time_text(rule.expires_at)}: it can be removed'
            yield Finding(text, rule.path, rule.line, rule.id)


def _overlapping(rules: Sequence[Rule], now: datetime, services: Services) -> Iterator[Finding]:
    overlaps = find_overlaps(rules)
    for overlap in overlaps.found:
        first, second = rules[overlap.first], rules[overlap.second]
        if not _ever_hold_together(first, second, now):
            continue
        text = (
            f'rule "{second.id}" ({second.action.name.lower()}) overlaps with rule "{first.id}" '
            f"(line {first.line}, {first.action.name.lower()}), which comes first and decides "
            f"what both match in {name_of(overlap.network, services)}"
        )
        yield Finding(text, second.path, second.line, second.id, is_note=True)
    if not overlaps.complete:
        text = "more rules with contrary actions overlap than are told here"
        yield Finding(text, rules[0].path.rpartition("[")[0], rules[0].line, is_note=True)


def _ever_hold_together(one: Rule, other: Rule, now: datetime) -> bool:
    """Whether there is a time from now on at which both hold: then it begins with one of these."""
    begins = (now, *(rule.not_before for rule in (one, other) if rule.not_before is not None))
    at = max(begins)
    return one.holds(at) and other.holds(at)


def _hides_groups(client: str, rules: Sequence[Rule]) -> Iterator[Finding]:
    for rule in rules:
        if rule.type is RuleType.DEFAULT and not rule.is_temporary:
            text = (
                f'rule "{rule.id}" matches everything: whatever groups {client} has, '
                "their rules are never reached"
            )
            yield Finding(text, rule.path, rule.line, rule.id)
            return


def _meaningless(rules: Sequence[Rule]) -> Iterator[Finding]:
    for rule in rules:
        if not _matches_something(rule):
            text = (
                f'rule "{rule.id}" never matches: its protocols or ICMP types '
                "do not exist in the address family of its destinations"
            )
            yield Finding(text, rule.path, rule.line, rule.id)


def _matches_something(rule: Rule) -> bool:
    return any(rule.services(network.version) for network in rule.destinations)


def _hidden(rules: Sequence[Rule], index: int, by: int | None) -> Finding:
    rule = rules[index]
    text = f'rule "{rule.id}" is never reached: '
    if by is None:
        text += "rules before it together match everything that it matches"
        return Finding(text, rule.path, rule.line, rule.id)
    earlier = rules[by]
    who = f'rule "{earlier.id}" (line {earlier.line}, {earlier.action.name.lower()})'
    if contains(earlier, rule):
        text += f"{who} comes first and matches everything that it matches"
    else:
        text += f"rules before it together match everything that it matches, {who} among them"
    return Finding(text, rule.path, rule.line, rule.id)


class _Named:
    """What the rules of one destination prefix name."""

    def __init__(self, entries: Entries) -> None:
        self.entries = entries

    @cached_property
    def inner(self) -> set[Prefix]:
        """Prefixes that contain a longer one that is named; :data:`ANYTHING` is not among them."""
        return {
            Prefix(prefix.protocol, prefix.port & ~(LAST_PORT >> bits), bits)
            for prefix in self.entries
            for bits in range(prefix.bits)
        }

    @property
    def protocols(self) -> set[int]:
        """Protocols that are named by number."""
        return {prefix.protocol for prefix in self.entries} - {ANY_PROTOCOL}


@dataclass(slots=True)
class _Reached:
    """What was found out about a list of rules, for all periods that lie ahead together."""

    named: set[int]
    decides: set[int]
    hidden_by: dict[int, int]
    complete: bool


def _reach(rules: Sequence[Rule], now: datetime) -> _Reached:
    """Look at one period after the other, but only where a rule holds that is not known to decide.

    So a list of which every rule decides something today takes no longer for having times.
    """
    found = _Reached(set(), set(), {}, complete=True)
    work = looked_at = 0
    matching = [index for index, rule in enumerate(rules) if _matches_something(rule)]
    for start in (now, *boundaries(rules, now)):
        if all(index in found.decides for index in matching if rules[index].holds(start)):
            continue
        looked_at += len(rules)
        if work and looked_at > _MAX_TIMED_RULES:
            found.complete = False
            break
        one = _Reach(rules_at(rules, start), work)
        found.complete = one.walk() and found.complete
        work = one.work
        found.named |= one.named
        found.decides |= one.decides
        found.hidden_by.update(one.hidden_by)
    return found


class _Reach:
    """Finds out which rules decide at least one packet.

    A rule decides a packet in a destination prefix if, of what the rules there and around it name,
    nothing with a lower rule covers the whole of one of its own service prefixes. What covers it
    can be one prefix around it, or many inside it together.

    :ivar named: rules that match anything at all by themselves.
    :ivar decides: rules that at least one packet reaches.
    :ivar hidden_by: for a rule that lost, a rule that comes before it where it could have matched.
    :ivar work: lookups so far, those counted that were made before.
    """

    def __init__(self, rules: Sequence[Rule], work: int) -> None:
        self._rules = rules
        self._tree = build_tree(rules)
        self._lists = _named_by_all(rules, self._tree)
        self.work = work
        self.named = {index for node in self._tree for index in node.rules}
        self.decides: set[int] = set()
        self.hidden_by: dict[int, int] = {}

    def walk(self) -> bool:
        """Look at every prefix; False if that would take too long."""
        for position, node in enumerate(self._tree):
            for index in node.rules:
                if index not in self.decides and self._decides_in(position, index):
                    self.decides.add(index)
            if self.work > _MAX_WORK:
                return False
        return True

    def _decides_in(self, position: int, index: int) -> bool:
        """Whether a rule decides a packet to the prefix at ``position``, one of its own."""
        node = self._tree[position]
        prefixes = prefixes_of(self._rules[index].services(node.family))
        if self._all_covered(position, prefixes, index):
            return False
        if not node.is_hidden:
            return True
        return any(
            not self._all_covered(place, prefixes, index) for place in self._places_inside(position)
        )

    def _all_covered(self, position: int, prefixes: Sequence[Prefix], index: int) -> bool:
        chain = self._chain(position)
        return all(self._is_covered(chain, prefix, index) for prefix in prefixes)

    def _places_inside(self, position: int) -> Iterator[int]:
        """Where packets to a prefix that others cover completely are looked up, while it pays."""
        for place in range(position + 1, len(self._tree)):
            below = self._tree[place]
            if below.depth <= self._tree[position].depth or self.work > _MAX_WORK:
                return
            if not below.is_hidden:
                yield place

    def _chain(self, position: int) -> list[_Named]:
        """What is named for a prefix and for those around it."""
        chain: list[_Named] = []
        place: int | None = position
        while place is not None:
            chain.append(self._lists[place])
            place = self._tree[place].parent
        return chain

    def _is_covered(self, chain: Sequence[_Named], prefix: Prefix, index: int) -> bool:
        """Whether rules before ``index`` take every packet of ``prefix``."""
        self.work += len(chain)
        if any(self._comes_before(named, ANYTHING, index) for named in chain):
            return True
        if prefix == ANYTHING:
            protocols = set().union(*(named.protocols for named in chain))
            return len(protocols) == _PROTOCOLS and all(
                self._is_covered(chain, Prefix(protocol, 0, 0), index) for protocol in protocols
            )
        for bits in range(prefix.bits + 1):
            around = Prefix(prefix.protocol, prefix.port & ~(LAST_PORT >> bits), bits)
            if any(self._comes_before(named, around, index) for named in chain):
                return True
        return self._is_filled(chain, prefix, index)

    def _is_filled(self, chain: Sequence[_Named], prefix: Prefix, index: int) -> bool:
        """Whether longer prefixes of rules before ``index`` fill ``prefix`` together."""
        self.work += len(chain)
        inside = [named for named in chain if prefix in named.inner]
        if not inside:
            return False
        bits = prefix.bits + 1
        return all(
            any(self._comes_before(named, half, index) for named in inside)
            or self._is_filled(inside, half, index)
            for half in (
                Prefix(prefix.protocol, prefix.port, bits),
                Prefix(prefix.protocol, prefix.port | 1 << (PORT_SPACE_BITS - bits), bits),
            )
        )

    def _comes_before(self, named: _Named, prefix: Prefix, index: int) -> bool:
        rule = named.entries.get(prefix, NO_RULE)
        if rule < index:
            self.hidden_by.setdefault(index, rule)
        return rule < index


def _named_by_all(rules: Sequence[Rule], tree: Sequence[Node]) -> list[_Named]:
    made: dict[tuple[int, tuple[int, ...]], _Named] = {}
    for node in tree:
        key = node.family, node.rules
        if key not in made:
            made[key] = _Named(own_entries(rules, node))
    return [made[node.family, node.rules] for node in tree]
