"""What a new policy changes, in flows: who may reach what from now on, and who no longer.

Exact, and about nothing but verdicts: rules that are renamed, split or moved without an effect are
no change. Both policies are compiled; the address space is cut where either of them has a border,
the services that one allows and the other does not are computed there, and equal pieces are put
together again as the fewest prefixes and port ranges.

A client's groups are known when it has connected before (``known``). Otherwise a client is compared
by its own rules, and each group as a client that has only this group.

Rules about services are compared with the services that the first policy is bound to, and with
stand-ins for the others that one of the two names (:mod:`zgate_gateway.policy.service_names`).
That a certificate narrows a client is not reckoned with: for it no more changes than is told.

Where rules hold for a time, both policies are compared in every period from now on, and a change
says from when until when it is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise

from zgate_bpf.limits import ClientLimits
from zgate_bpf.tables import Action, CompiledPolicy

from zgate_gateway.policy.compiler import compile_policy
from zgate_gateway.policy.connectors import RightsChange, changed_rights
from zgate_gateway.policy.flow_sets import (
    FlowSets,
    Region,
    Span,
    networks_of,
    to_spans,
)
from zgate_gateway.policy.periods import boundaries, rules_at
from zgate_gateway.policy.policy_set import PolicySet
from zgate_gateway.policy.rules import Rule
from zgate_gateway.policy.services import IpAddress, IpNetwork

#: Pieces times services above which no better grouping than by piece is looked for.
_MAX_REGROUPED = 20_000
#: Periods times rules in which two lists of rules are compared; what comes later is not looked at,
#: and that is told.
_MAX_TIMED_RULES = 60_000


@dataclass(frozen=True, slots=True)
class FlowChange:
    """Destinations and services that have another verdict now.

    :ivar action: the new verdict.
    :ivar networks: of one family, sorted, the fewest that hold these destinations.
    :ivar services: sorted.
    :ivar since: when it becomes one; None: with the policy.
    :ivar until: until just before when it is one; None: for good.
    """

    action: Action
    networks: tuple[IpNetwork, ...]
    services: tuple[Span, ...]
    since: datetime | None = None
    until: datetime | None = None

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.networks[0].version

    def contains(self, destination: IpAddress, protocol: int, port: int) -> bool:
        """Whether packets to there are among them."""
        return any(destination in network for network in self.networks) and any(
            span.contains(protocol, port) for span in self.services
        )


@dataclass(frozen=True, slots=True, order=True)
class Subject:
    """Whom a change is about: a client, a group (whoever has it alone), or everybody else.

    :ivar kind: ``client``, ``group`` or ``others``: clients without a rule.
    :ivar groups: the client's, as far as they are known.
    """

    kind: str
    name: str = ""
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SubjectChange:
    """What changes, equally, for all of these.

    :ivar limits: the old and the new ones; None: they stay.
    :ivar compared_until: what changes later is not among ``changes``; None: all is.
    """

    subjects: tuple[Subject, ...]
    changes: tuple[FlowChange, ...]
    limits: tuple[ClientLimits, ClientLimits] | None = None
    compared_until: datetime | None = None


def diff_sets(
    before: PolicySet,
    after: PolicySet,
    known: Mapping[str, Sequence[str]] | None = None,
    now: datetime | None = None,
) -> tuple[SubjectChange, ...]:
    """Return who gains and who loses what; empty: every packet is judged as before.

    ``known`` are the groups of clients that have connected. Raises
    :class:`zgate_gateway.policy.PolicyTooLarge`.
    """
    before, after = on_common_ground(before, after)
    comparison = _Comparison(before, after, now or datetime.now(UTC))
    found: dict[SubjectChange, list[Subject]] = {}
    for subject in _subjects(before, after, known or {}):
        change = comparison.of(subject)
        if change.changes or change.limits or change.compared_until:
            found.setdefault(change, []).append(subject)
    return tuple(replace(change, subjects=tuple(who)) for change, who in found.items())


def diff_rights(before: PolicySet, after: PolicySet) -> tuple[RightsChange, ...]:
    """Return which connectors may offer something else."""
    return (
        *changed_rights("connector", before.connectors, after.connectors),
        *changed_rights("connector group", before.connector_groups, after.connector_groups),
    )


def on_common_ground(before: PolicySet, after: PolicySet) -> tuple[PolicySet, PolicySet]:
    """Bind both sets to the same services."""
    before = before.on_trial(before.services, after.service_patterns())
    return before, after.bound_to(before.services)


class _Comparison:
    """Two policy sets, subject by subject."""

    def __init__(self, before: PolicySet, after: PolicySet, now: datetime) -> None:
        self._before, self._after, self._now = before, after, now
        # By identity: clients of equal rules share a compiled policy. The pair keeps it alive.
        self._done: dict[tuple[int, int], tuple[object, tuple[FlowChange, ...]]] = {}

    def of(self, subject: Subject) -> SubjectChange:
        """What changes for one; ``subjects`` is left empty."""
        limits = _limits(self._before, subject), _limits(self._after, subject)
        changed_limits = limits if limits[0] != limits[1] else None
        if _meaning(self._before, subject) == _meaning(self._after, subject):
            return SubjectChange((), (), changed_limits)
        old, new = _rules(self._before, subject), _rules(self._after, subject)
        starts = [self._now, *boundaries((*old, *new), self._now)]
        most = max(1, _MAX_TIMED_RULES // (len(old) + len(new) + 1))
        compared_until = starts[most] if len(starts) > most else None
        periods = [
            self._between(rules_at(old, start), rules_at(new, start)) for start in starts[:most]
        ]
        changes = _over_time(starts, periods)
        return SubjectChange((), changes, changed_limits, compared_until)

    def _between(self, old: Sequence[Rule], new: Sequence[Rule]) -> tuple[FlowChange, ...]:
        pair = (
            compile_policy(old, self._before.default_action),
            compile_policy(new, self._after.default_action),
        )
        key = id(pair[0]), id(pair[1])
        if key not in self._done:
            self._done[key] = pair, diff_policies(*pair)
        return self._done[key][1]


def _over_time(
    starts: Sequence[datetime], periods: Sequence[tuple[FlowChange, ...]]
) -> tuple[FlowChange, ...]:
    """Join changes that are the same in one period after the other."""
    lasting: dict[FlowChange, datetime | None] = {}
    ended: list[FlowChange] = []
    for index, changes in enumerate(periods):
        over = lasting.keys() - set(changes)
        ended += [
            replace(change, since=lasting.pop(change), until=starts[index])
            for change in tuple(lasting)
            if change in over
        ]
        for change in changes:
            lasting.setdefault(change, starts[index] if index else None)
    ended += [replace(change, since=since) for change, since in lasting.items()]
    return tuple(sorted(ended, key=lambda change: (change.since or starts[0], _order(change))))


def _subjects(
    before: PolicySet, after: PolicySet, known: Mapping[str, Sequence[str]]
) -> Iterator[Subject]:
    for name in sorted(before.clients.keys() | after.clients.keys() | known.keys()):
        yield Subject("client", name, tuple(known.get(name, ())))
    for name in sorted(before.groups.keys() | after.groups.keys()):
        yield Subject("group", name)
    yield Subject("others")


def _meaning(policy_set: PolicySet, subject: Subject) -> tuple[Action, list[bytes]]:
    rules = _rules(policy_set, subject)
    return policy_set.default_action, [rule.meaning for rule in rules]


def _limits(policy_set: PolicySet, subject: Subject) -> ClientLimits:
    match subject.kind:
        case "client":
            return policy_set.limits_for(subject.name, subject.groups)
        case "group":
            return policy_set.limits_for("", (subject.name,))
        case _:
            return policy_set.default_limits


def _rules(policy_set: PolicySet, subject: Subject) -> tuple[Rule, ...]:
    match subject.kind:
        case "client":
            return policy_set.rules_for(subject.name, subject.groups)
        case "group":
            return policy_set.groups.get(subject.name, ())
        case _:
            return ()


def diff_policies(before: CompiledPolicy, after: CompiledPolicy) -> tuple[FlowChange, ...]:
    """Return where the verdicts of two policies differ."""
    if before is after:
        return ()
    old, new = FlowSets(before), FlowSets(after)
    changes: list[FlowChange] = []
    for family in (4, 6):
        gained: list[_Piece] = []
        lost: list[_Piece] = []
        known: dict[tuple[int | None, int | None], tuple[tuple[Span, ...], tuple[Span, ...]]] = {}
        for first, last, old_list, new_list in _overlay(old.regions(family), new.regions(family)):
            key = old_list, new_list
            if key not in known:
                was, becomes = old.allowed(old_list), new.allowed(new_list)
                known[key] = becomes.without(was), was.without(becomes)
            for pieces, spans in zip((gained, lost), known[key], strict=True):
                if spans:
                    pieces.append(_Piece(first, last, spans))
        changes += _grouped(Action.ALLOW, gained, family)
        changes += _grouped(Action.DENY, lost, family)
    return tuple(sorted(changes, key=_order))


@dataclass(frozen=True, slots=True)
class _Piece:
    """Addresses, and the services that change for them."""

    first: int
    last: int
    spans: tuple[Span, ...]


def _overlay(
    some: Iterator[Region], others: Iterator[Region]
) -> Iterator[tuple[int, int, int | None, int | None]]:
    """Cut the address space where either side has a border."""
    one, other = next(some), next(others)
    position = 0
    while True:
        last = min(one.last, other.last)
        yield position, last, one.service_list, other.service_list
        position = last + 1
        try:  # both sides end with the address space
            one, other = (
                next(some) if one.last == last else one,
                next(others) if other.last == last else other,
            )
        except StopIteration:
            return


def _grouped(action: Action, pieces: Sequence[_Piece], family: int) -> list[FlowChange]:
    """Put pieces together: by equal services or by equal addresses, whichever is less to read."""
    ways = [_by_services(action, pieces, family), _by_addresses(action, pieces, family)]
    return min((way for way in ways if way is not None), key=_size)


def _size(changes: Sequence[FlowChange]) -> int:
    return sum(1 + len(change.networks) + len(change.services) for change in changes)


def _by_services(action: Action, pieces: Sequence[_Piece], family: int) -> list[FlowChange]:
    ranges: dict[tuple[Span, ...], list[tuple[int, int]]] = {}
    for piece in pieces:
        ranges.setdefault(piece.spans, []).append((piece.first, piece.last))
    return [
        FlowChange(action, tuple(networks_of(found, family)), spans)
        for spans, found in ranges.items()
    ]


def _by_addresses(action: Action, pieces: Sequence[_Piece], family: int) -> list[FlowChange] | None:
    """Each service with all of its addresses; None if that is too much to compute."""
    spans = {span for piece in pieces for span in piece.spans}
    count = sum(len(piece.spans) for piece in pieces)
    if count * len(spans) > _MAX_REGROUPED:
        return None
    atoms = _atoms(spans)
    if count * len(atoms) > _MAX_REGROUPED:
        return None
    places: dict[tuple[int, ...], list[Span]] = {}
    for atom in atoms:
        where = tuple(
            index
            for index, piece in enumerate(pieces)
            if any(span.contains(atom.protocol, atom.port) for span in piece.spans)
        )
        if where:
            places.setdefault(where, []).append(atom)
    return [
        FlowChange(
            action,
            tuple(networks_of(((pieces[i].first, pieces[i].last) for i in where), family)),
            _join(found),
        )
        for where, found in places.items()
    ]


def _atoms(spans: Iterable[Span]) -> list[Span]:
    """Cut spans so that no two overlap in part; sorted."""
    atoms = []
    spans = list(spans)
    for protocol, last_protocol in _cut((s.protocol, s.last_protocol) for s in spans):
        inside = [s for s in spans if s.protocol <= protocol <= s.last_protocol]
        for port, last_port in _cut((s.port, s.last_port) for s in inside):
            if any(s.port <= port <= s.last_port for s in inside):
                atoms.append(Span(protocol, last_protocol, port, last_port))
    return atoms


def _cut(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The stretches between all the borders of these ranges."""
    borders = sorted({border for first, last in ranges for border in (first, last + 1)})
    return ((first, after - 1) for first, after in pairwise(borders))


def _join(atoms: Sequence[Span]) -> tuple[Span, ...]:
    """Join what touches; ``atoms`` are sorted and do not overlap."""
    ports: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for atom in atoms:
        found = ports.setdefault((atom.protocol, atom.last_protocol), [])
        if found and found[-1][1] + 1 == atom.port:
            found[-1] = (found[-1][0], atom.last_port)
        else:
            found.append((atom.port, atom.last_port))
    return to_spans((first, last, tuple(ranges)) for (first, last), ranges in ports.items())


def _order(change: FlowChange) -> tuple[object, ...]:
    first = change.networks[0]
    return (
        change.action is Action.DENY,
        change.family,
        int(first.network_address),
        first.prefixlen,
        change.services,
    )
