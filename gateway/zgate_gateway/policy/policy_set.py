"""All policies of a gateway: what a policy file says, for every client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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

from zgate_gateway.policy.capacity import MAX_POLICIES, MAX_RULES, count_policies
from zgate_gateway.policy.compiler import PolicyTooLarge, compile_policy
from zgate_gateway.policy.expectations import Expectation, Outcome, run_expectations
from zgate_gateway.policy.limits import first_said, limits_of
from zgate_gateway.policy.model import ActionName, PolicyModel, SubjectModel
from zgate_gateway.policy.periods import Schedule, boundaries, rules_at, schedule
from zgate_gateway.policy.rules import Rule
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
    is_temporary: bool = field(init=False)

    def __post_init__(self) -> None:
        lists = (*self.clients.values(), *self.groups.values())
        is_temporary = any(rule.is_temporary for rules in lists for rule in rules)
        object.__setattr__(self, "is_temporary", is_temporary)

    @classmethod
    def empty(cls) -> PolicySet:
        """Return the policy of a gateway without a policy file: everything is denied."""
        return cls()

    @classmethod
    def load(cls, path: Path, *, must_pass: bool = True) -> PolicySet:
        """Read a policy file, and run its own tests.

        Raises :class:`zgate_config.ConfigError`, also for tests that fail if they ``must_pass``.
        """
        return cls._from_document(read_document(path), path, must_pass=must_pass)

    @classmethod
    def parse(
        cls,
        text: str | bytes,
        name: str = "policy.yaml",
        *,
        source: Path | None = None,
        must_pass: bool = True,
    ) -> PolicySet:
        """Read the contents of a policy file called ``name``; as :meth:`load`.

        ``source`` is the file that the text is going to be, if it is going to be one.
        """
        return cls._from_document(parse_document(text, name), source, must_pass=must_pass)

    @classmethod
    def _from_document(
        cls, document: Document, source: Path | None, *, must_pass: bool
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
        )
        policies = count_policies(made.clients.values())
        if policies > MAX_POLICIES:
            text = f"expected at most {MAX_POLICIES} clients with different rules, got {policies}"
            raise ConfigError([document.mistake(("clients",), text)])
        if must_pass:
            made._refuse_if_a_test_fails(document)
        return made

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
        """Run the file's own tests on the compiled tables, in the order of the file."""
        return run_expectations(self.expectations, self.rules_for, self.default_action)

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

    def rules_for(self, client: str, groups: Iterable[str] = ()) -> tuple[Rule, ...]:
        """Return a client's rules in first-match order: its own, then those of its groups."""
        rules = self.clients.get(client, ())
        for group in dict.fromkeys(groups):
            rules += self.groups.get(group, ())
        return rules

    def limits_for(self, client: str, groups: Iterable[str] = ()) -> ClientLimits:
        """Return a client's limits: each from its own, its groups', or the default ones."""
        said = [self.client_limits.get(client, UNLIMITED)]
        said += [self.group_limits.get(group, UNLIMITED) for group in groups]
        return first_said([*said, self.default_limits])

    def compiled_for(
        self, client: str, groups: Iterable[str] = (), at: datetime | None = None
    ) -> CompiledPolicy:
        """Return :meth:`rules_for`, compiled; one object for all whose rules mean the same.

        As they are at a time; without one, now.
        """
        rules = rules_at(self.rules_for(client, groups), at or datetime.now(UTC))
        return compile_policy(rules, self.default_action)

    def schedule_for(self, client: str, groups: Iterable[str], now: datetime) -> Schedule:
        """Return :meth:`rules_for`, compiled for the time from ``now`` on."""
        return schedule(self.rules_for(client, groups), self.default_action, now)

    def explain(
        self,
        client: str,
        groups: Iterable[str],
        destination: IpAddress,
        protocol: int,
        port: int | None = None,
        *,
        at: datetime | None = None,
    ) -> Explanation:
        """Say what becomes of a packet from ``client``, and why; at a time, or now.

        ``port`` is the destination port, or ``type << 8 | code`` for ICMP. Without it: an echo
        request for ICMP, port 0 for everything else.
        """
        if port is None:
            port = echo_request(destination.version, protocol)
        rules = self.rules_for(client, groups)
        return explain(
            rules, self.default_action, destination, protocol, port, at=at or datetime.now(UTC)
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
