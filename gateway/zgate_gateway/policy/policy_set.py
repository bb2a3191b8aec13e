"""All policies of a gateway: what a policy file says, for every client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from zgate_bpf.limits import UNLIMITED, ClientLimits
from zgate_bpf.tables import Action, CompiledPolicy
from zgate_config import (
    ConfigError,
    Document,
    Mistake,
    format_key_path,
    parse_document,
    read_document,
    validate,
)

from zgate_gateway.policy.capacity import (
    MAX_POLICIES,
    MAX_RULES,
    MAX_SERVICES,
    count_policies,
)
from zgate_gateway.policy.compiler import PolicyTooLarge, compile_policy
from zgate_gateway.policy.connectors import ConnectorRights, joined, rights_of
from zgate_gateway.policy.expectations import Expectation, Outcome, run_expectations
from zgate_gateway.policy.flow_sets import allows_something
from zgate_gateway.policy.limits import first_said, limits_of
from zgate_gateway.policy.model import ActionName, PolicyModel, SubjectModel
from zgate_gateway.policy.narrowing import narrowed
from zgate_gateway.policy.periods import Schedule, boundaries, rules_at, schedule
from zgate_gateway.policy.rules import Rule
from zgate_gateway.policy.service_names import (
    DEFAULT_POOLS,
    ServicePools,
    Services,
    is_pattern,
    with_stand_ins,
)
from zgate_gateway.policy.services import IpAddress, echo_request


@dataclass(frozen=True, slots=True)
class NextChange:
    """When time alone will have another rule decide; ``rule`` None: the default action."""

    at: datetime
    action: Action
    rule: Rule | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """The compiler's side of "why?": the verdict and the rule that gave it.

    :ivar rule: None if no rule matched; then ``action`` is the policy's default.
    :ivar rule_index: position in the client's rules.
    :ivar out_of_time: rules that match and come before, but do not hold at the time asked for.
    :ivar next_change: when time changes the answer; None: never.
    """

    action: Action
    rule: Rule | None = None
    rule_index: int | None = None
    out_of_time: tuple[Rule, ...] = ()
    next_change: NextChange | None = None

    @property
    def rule_id(self) -> str | None:
        """The rule's name."""
        return self.rule.id if self.rule is not None else None

    @property
    def rule_path(self) -> str | None:
        """Where in the file the rule is: ``clients.alice.rules[0]``."""
        return self.rule.path if self.rule is not None else None

    @property
    def line(self) -> int | None:
        """The line of the file on which the rule begins."""
        return self.rule.line if self.rule is not None else None


@dataclass(frozen=True, slots=True, eq=False)
class PolicySet:
    """What one policy file says. Nothing in it changes once it is made.

    :ivar source: the file; None for the empty set and for text that was checked.
    :ivar sha256: of the file's bytes, in hexadecimal; None for the empty set.
    :ivar name: ``metadata.name`` of the file.
    :ivar clients: the rules written under each client's name.
    :ivar groups: the rules written under each group's name.
    :ivar client_limits: the limits written under each client's name, where there are any.
    :ivar group_limits: those under each group's.
    :ivar default_limits: those of whoever has no other.
    :ivar default_action_line: where ``default_action`` is written, or would be.
    :ivar expectations: the file's own tests; of a set that was loaded, they all passed.
    :ivar connectors: what connectors may offer, by name; ``connector_groups`` by their groups.
    :ivar services: the services that the rules are bound to, with their virtual IPs. A set
        that was just read has none: its rules about services match nothing yet.
    :ivar pools: where the gateway's services have their virtual IPs.
    :ivar is_temporary: whether any of its rules holds only for a time.
    """

    default_action: Action = Action.DENY
    clients: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
    groups: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
    client_limits: Mapping[str, ClientLimits] = field(default_factory=dict)
    group_limits: Mapping[str, ClientLimits] = field(default_factory=dict)
    default_limits: ClientLimits = UNLIMITED
    source: Path | None = None
    sha256: str | None = None
    name: str = ""
    default_action_line: int = 1
    expectations: tuple[Expectation, ...] = ()
    connectors: Mapping[str, ConnectorRights] = field(default_factory=dict)
    connector_groups: Mapping[str, ConnectorRights] = field(default_factory=dict)
    services: Services = field(default_factory=dict)
    pools: ServicePools = DEFAULT_POOLS
    is_temporary: bool = field(init=False)

    def __post_init__(self) -> None:
        is_temporary = any(rule.is_temporary for rule in self._rules())
        object.__setattr__(self, "is_temporary", is_temporary)

    def _rules(self) -> Iterator[Rule]:
        for rules in (*self.clients.values(), *self.groups.values()):
            yield from rules

    @classmethod
    def empty(cls) -> PolicySet:
        """Return the policy of a gateway without a policy file: everything is denied."""
        return cls()

    @classmethod
    def load(
        cls, path: Path, *, must_pass: bool = True, pools: ServicePools = DEFAULT_POOLS
    ) -> PolicySet:
        """Read a policy file, and run its own tests.

        It is not bound to any services yet. Raises :class:`zgate_config.ConfigError`, also for
        tests that fail if they ``must_pass``.
        """
        return cls._from_document(read_document(path), path, must_pass, pools)

    @classmethod
    def parse(
        cls,
        text: str | bytes,
        name: str = "policy.yaml",
        *,
        source: Path | None = None,
        must_pass: bool = True,
        pools: ServicePools = DEFAULT_POOLS,
    ) -> PolicySet:
        """Read the contents of a policy file called ``name``; as :meth:`load`.

        ``source`` is the file that the text is going to be, if it is going to be one.
        """
        return cls._from_document(parse_document(text, name), source, must_pass, pools)

    @classmethod
    def _from_document(
        cls, document: Document, source: Path | None, must_pass: bool, pools: ServicePools
    ) -> PolicySet:
        model = validate(document, PolicyModel)
        mistakes = sorted(_semantic_mistakes(document, model), key=lambda found: found.line or 0)
        if mistakes:
            raise ConfigError(mistakes)
        made = cls(
            default_action=(
                Action.ALLOW if model.default_action is ActionName.ALLOW else Action.DENY
            ),
            clients=_rules(document, "clients", model.clients),
            groups=_rules(document, "groups", model.groups),
            client_limits=_limits(model.clients),
            group_limits=_limits(model.groups),
            default_limits=limits_of(model.default_limits),
            source=source,
            sha256=document.sha256,
            name=model.metadata.name,
            default_action_line=document.line_of(("default_action",)),
            expectations=_expectations(document, model),
            connectors=rights_of(model.connectors),
            connector_groups=rights_of(model.connector_groups),
            pools=pools,
        )
        made._refuse_what_does_not_fit(document)
        if must_pass:
            made._refuse_if_a_test_fails(document)
        return made

    def _refuse_what_does_not_fit(self, document: Document) -> None:
        services, room = len(self._named_services()), min(MAX_SERVICES, self.pools.room)
        if services > room:
            text = f"expected at most {room} names of services, got {services}"
            raise ConfigError([document.mistake(("clients",), text)])
        policies = count_policies(self.on_trial().clients.values())
        if policies > MAX_POLICIES:
            text = f"expected at most {MAX_POLICIES} clients with different rules, got {policies}"
            raise ConfigError([document.mistake(("clients",), text)])

    def _refuse_if_a_test_fails(self, document: Document) -> None:
        try:
            failed = [
                Mistake(
                    document.name,
                    outcome.expectation.line,
                    ("tests", index),
                    f"test failed: {outcome.text}",
                )
                for index, outcome in enumerate(self.run_tests())
                if not outcome.passed
            ]
        except PolicyTooLarge as error:
            raise ConfigError([document.mistake(("tests",), str(error))]) from error
        if failed:
            raise ConfigError(failed)

    def run_tests(self) -> tuple[Outcome, ...]:
        """Run the file's own tests on the compiled tables, in the order of the file.

        Whatever the gateway's services are: a file whose tests pass today is to pass tomorrow.
        """
        tried = self.on_trial()
        return run_expectations(
            self.expectations, tried.rules_for, self.default_action, tried.services
        )

    # Services.

    def bound_to(self, services: Services) -> PolicySet:
        """Return the set with the virtual IPs that services have, for whatever was bound before."""
        return replace(
            self,
            clients=_bound(self.clients, services),
            groups=_bound(self.groups, services),
            services=dict(services),
        )

    def means_as(self, other: PolicySet) -> bool:
        """Whether the rules of this set, which are those of the other, match the same packets."""
        pairs = zip(self._rules(), other._rules(), strict=True)
        return all(one.destinations == before.destinations for one, before in pairs)

    def on_trial(self, known: Services | None = None, also: Iterable[str] = ()) -> PolicySet:
        """Return the set bound to known services, and to stand-ins for all that it (or ``also``)
        names beside them: to be looked at, not to be put in force.
        """
        names = {*self._named_services(), *also}
        return self.bound_to(with_stand_ins(names, known or {}, self.pools))

    def service_names(self) -> frozenset[str]:
        """The services that rules name in full: those that must have virtual IPs."""
        return frozenset(name for name in self.service_patterns() if not is_pattern(name))

    def service_patterns(self) -> frozenset[str]:
        """What rules name services by: names and patterns."""
        return frozenset(name for rule in self._rules() for name in rule.service_names)

    def _named_services(self) -> frozenset[str]:
        tested = (one.service_name for one in self.expectations if one.service_name is not None)
        return self.service_patterns().union(tested)

    def connector_rights(self, name: str, groups: Iterable[str] = ()) -> ConnectorRights:
        """Return what a connector may offer by its name and by its groups, all together."""
        entries = [self.connectors.get(name)]
        entries += [self.connector_groups.get(group) for group in groups]
        return joined(entry for entry in entries if entry is not None)

    def may_reach(
        self,
        client: str,
        groups: Iterable[str],
        service: str,
        *,
        reaches: Sequence[str] | None = None,
        at: datetime | None = None,
    ) -> bool:
        """Whether any packet of a client to a service passes, at a time or now."""
        addresses = self.services.get(service, ())
        rules = rules_at(self.rules_for(client, groups, reaches), at or datetime.now(UTC))
        default_action = self.default_for(reaches)
        return any(allows_something(rules, default_action, address) for address in addresses)

    @property
    def client_count(self) -> int:
        """How many clients have an entry."""
        return len(self.clients)

    @property
    def group_count(self) -> int:
        """How many groups have an entry."""
        return len(self.groups)

    @property
    def rule_count(self) -> int:
        """How many rules are written in the file."""
        return sum(map(len, [*self.clients.values(), *self.groups.values()]))

    # Clients. ``reaches``: the services that a client's certificate narrows it to, if it does.

    def rules_for(
        self, client: str, groups: Iterable[str] = (), reaches: Sequence[str] | None = None
    ) -> tuple[Rule, ...]:
        """Return a client's rules in first-match order: its own, then those of its groups."""
        rules = self.clients.get(client, ())
        for group in dict.fromkeys(groups):
            rules += self.groups.get(group, ())
        return rules if reaches is None else narrowed(rules, reaches, self.services)

    def default_for(self, reaches: Sequence[str] | None) -> Action:
        """Return what becomes of packets for which no rule decides."""
        return self.default_action if reaches is None else Action.DENY

    def limits_for(self, client: str, groups: Iterable[str] = ()) -> ClientLimits:
        """Return a client's limits: each from its own, its groups', or the default ones."""
        said = [self.client_limits.get(client, UNLIMITED)]
        said += [self.group_limits.get(group, UNLIMITED) for group in groups]
        return first_said([*said, self.default_limits])

    def compiled_for(
        self,
        client: str,
        groups: Iterable[str] = (),
        at: datetime | None = None,
        *,
        reaches: Sequence[str] | None = None,
    ) -> CompiledPolicy:
        """Return :meth:`rules_for`, compiled; one object for all whose rules mean the same.

        As they are at a time; without one, now.
        """
        rules = rules_at(self.rules_for(client, groups, reaches), at or datetime.now(UTC))
        return compile_policy(rules, self.default_for(reaches))

    def schedule_for(
        self,
        client: str,
        groups: Iterable[str],
        now: datetime,
        *,
        reaches: Sequence[str] | None = None,
    ) -> Schedule:
        """Return :meth:`rules_for`, compiled for the time from ``now`` on."""
        rules = self.rules_for(client, groups, reaches)
        return schedule(rules, self.default_for(reaches), now)

    def explain(
        self,
        client: str,
        groups: Iterable[str],
        destination: IpAddress,
        protocol: int,
        port: int | None = None,
        *,
        at: datetime | None = None,
        reaches: Sequence[str] | None = None,
    ) -> Explanation:
        """Say what becomes of a packet from ``client``, and why; at a time, or now.

        ``port`` is the destination port, or ``type << 8 | code`` for ICMP. Without it: an echo
        request for ICMP, port 0 for everything else.
        """
        if port is None:
            port = echo_request(destination.version, protocol)
        rules = self.rules_for(client, groups, reaches)
        default_action = self.default_for(reaches)
        return explain(
            rules, default_action, destination, protocol, port, at=at or datetime.now(UTC)
        )


def explain(
    rules: Sequence[Rule],
    default_action: Action,
    destination: IpAddress,
    protocol: int,
    port: int,
    *,
    at: datetime,
) -> Explanation:
    """Say what ``rules`` make of a packet; see :meth:`PolicySet.explain`."""
    matching = [
        (index, rule)
        for index, rule in enumerate(rules)
        if rule.matches(destination, protocol, port)
    ]
    index, rule = _first_that_holds(matching, at)
    return Explanation(
        action=default_action if rule is None else rule.action,
        rule=rule,
        rule_index=index,
        out_of_time=tuple(
            other
            for place, other in matching
            if not other.holds(at) and (index is None or place < index)
        ),
        next_change=_next_change(matching, default_action, at),
    )


_Matching = Sequence[tuple[int, Rule]]


def _first_that_holds(matching: _Matching, at: datetime) -> tuple[int, Rule] | tuple[None, None]:
    return next((found for found in matching if found[1].holds(at)), (None, None))


def _next_change(matching: _Matching, default_action: Action, at: datetime) -> NextChange | None:
    now, _ = _first_that_holds(matching, at)
    for time in boundaries((rule for _, rule in matching), at):
        then, rule = _first_that_holds(matching, time)
        if then != now:
            return NextChange(time, default_action if rule is None else rule.action, rule)
    return None


def _bound(
    subjects: Mapping[str, tuple[Rule, ...]], services: Services
) -> dict[str, tuple[Rule, ...]]:
    return {
        name: tuple(rule.bound_to(services) for rule in rules) for name, rules in subjects.items()
    }


def _limits(subjects: Mapping[str, SubjectModel]) -> dict[str, ClientLimits]:
    return {
        name: limits_of(subject.limits)
        for name, subject in subjects.items()
        if subject.limits is not None
    }


def _rules(
    document: Document, key: str, subjects: Mapping[str, SubjectModel]
) -> dict[str, tuple[Rule, ...]]:
    return {
        name: tuple(
            Rule.from_model(
                rule, format_key_path(path := (key, name, "rules", index)), document.line_of(path)
            )
            for index, rule in enumerate(subject.rules)
        )
        for name, subject in subjects.items()
    }


def _expectations(document: Document, model: PolicyModel) -> tuple[Expectation, ...]:
    return tuple(
        Expectation.from_model(
            test, format_key_path(path := ("tests", index)), document.line_of(path)
        )
        for index, test in enumerate(model.tests)
    )


def _semantic_mistakes(document: Document, model: PolicyModel) -> Iterator[Mistake]:
    """What only shows when several rules are seen together."""
    for key, subjects in (("clients", model.clients), ("groups", model.groups)):
        for name, subject in subjects.items():
            count = len(subject.rules)
            if count > MAX_RULES:
                text = f"expected at most {MAX_RULES} rules, got {count}"
                yield document.mistake((key, name, "rules"), text)
            seen: Counter[str] = Counter()
            for index, rule in enumerate(subject.rules):
                seen[rule.id] += 1
                if seen[rule.id] == 2:
                    path = (key, name, "rules", index, "id")
                    yield document.mistake(
                        path, f'expected an id of its own, got "{rule.id}" again'
                    )
