"""The tests that a policy file carries: what must come out, kept beside the rules.

They are asked of the compiled tables (:mod:`zgate_gateway.policy.lookup`), which is what the kernel
gets. A file of which one fails is not loaded, wherever it is loaded.

No answer depends on when it is asked for: a test is about the time that it names, or about all
times. Else a file that is good today would keep the gateway from starting tomorrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from zgate_bpf.tables import Action, CompiledPolicy

from zgate_gateway.policy.compiler import compile_policy
from zgate_gateway.policy.lookup import Tables
from zgate_gateway.policy.model import ActionName, PolicyTestModel
from zgate_gateway.policy.periods import boundaries, rules_at
from zgate_gateway.policy.rules import Rule, time_text
from zgate_gateway.policy.service_names import Services
from zgate_gateway.policy.services import PROTOCOL_NUMBERS, IpAddress, echo_request

_BEFORE_ALL_TIMES = datetime.min.replace(tzinfo=UTC)

RulesFor = Callable[[str, Iterable[str]], tuple[Rule, ...]]


class Packet(NamedTuple):
    """What is asked of the tables; ``port`` is type and code for ICMP."""

    destination: IpAddress
    protocol: int
    port: int


@dataclass(frozen=True, slots=True)
class Expectation:
    """One entry of ``tests:``, ready to be asked.

    :ivar destination: None: ``service_name`` is the name of the service that is asked for.
    :ivar protocol: as written, so that it means the right number in each family.
    :ivar port: destination port; None for protocols that have none.
    :ivar rule: id of the rule that must decide; None: whichever does.
    :ivar at: the time for which it asks; None: for all times.
    :ivar line: line in the file.
    """

    client: str
    groups: tuple[str, ...]
    destination: IpAddress | None
    service_name: str | None
    protocol: str
    port: int | None
    expect: Action
    rule: str | None
    path: str
    line: int
    at: datetime | None = None

    @classmethod
    def from_model(cls, model: PolicyTestModel, path: str, line: int) -> Expectation:
        """Make one of what the file says."""
        return cls(
            client=model.client,
            groups=model.groups,
            destination=model.destination,
            service_name=model.service,
            protocol=str(model.protocol),
            port=model.port,
            expect=Action.ALLOW if model.expect is ActionName.ALLOW else Action.DENY,
            rule=model.rule,
            path=path,
            line=line,
            at=model.at,
        )

    def packets(self, services: Services) -> list[Packet]:
        """The packets that it asks for: one for each virtual IP, where it is about a service."""
        if self.destination is not None:
            return [self._packet(self.destination, self._number(self.destination.version))]
        addresses = services[self.service_name or ""]
        numbered = [(one, self._number(one.version)) for one in addresses]
        return [self._packet(one, number) for one, number in numbered if number is not None]

    def _number(self, family: int) -> int | None:
        if self.protocol.isdecimal():
            return int(self.protocol)
        return PROTOCOL_NUMBERS[self.protocol][family == 6]

    def _packet(self, destination: IpAddress, number: int | None) -> Packet:
        assert number is not None, "the model refuses protocols that the family does not have"
        port = self.port
        if port is None:
            port = echo_request(destination.version, number)
        return Packet(destination, number, port)

    @property
    def question(self) -> str:
        """``alice (staff) -> 10.20.0.5 tcp/443``, or ``alice -> pacs tcp/104``."""
        who = f"{self.client} ({', '.join(self.groups)})" if self.groups else self.client
        what = self.protocol if self.port is None else f"{self.protocol}/{self.port}"
        when = "" if self.at is None else f" at {time_text(self.at)}"
        return f"{who} -> {self.service_name or self.destination} {what}{when}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out of one test. ``rule`` None: no rule matched, the default action decided.

    :ivar family: of a test about a service: the address family in which this came out.
    :ivar since: of a test about all times the first at which this came out; None: it always does.
    """

    expectation: Expectation
    action: Action
    rule: Rule | None
    since: datetime | None = None
    family: int | None = None

    @property
    def passed(self) -> bool:
        """Whether the action is the expected one, and the rule too where the test names one."""
        wanted = self.expectation
        return self.action is wanted.expect and (
            wanted.rule is None or (self.rule is not None and self.rule.id == wanted.rule)
        )

    @property
    def text(self) -> str:
        """One line: the question, what was expected, what came out."""
        wanted = self.expectation
        by = f' by rule "{wanted.rule}"' if wanted.rule is not None else ""
        expected = f"{wanted.question}: expected {wanted.expect.name.lower()}{by}"
        return expected if self.passed else f"{expected}, got {self.answer}"

    @property
    def answer(self) -> str:
        """``deny by rule "rest" (line 17)``, or by the default action."""
        action = self.action.name.lower()
        by = "default_action (no rule matches)"
        if self.rule is not None:
            by = f'rule "{self.rule.id}" (line {self.rule.line})'
        if self.family is not None:
            by += f" over IPv{self.family}"
        if self.since is None:
            return f"{action} by {by}"
        return f"{action} by {by} from {time_text(self.since)} on: say with `at` when it is asked"


def run_expectations(
    expectations: Iterable[Expectation],
    rules_for: RulesFor,
    default_action: Action,
    services: Services,
) -> tuple[Outcome, ...]:
    """Ask every test of the tables; ``services`` has all that the tests name.

    Raises :class:`zgate_gateway.policy.PolicyTooLarge`.
    """
    asked = _Tables(default_action)
    outcomes = []
    for wanted in expectations:
        rules = rules_for(wanted.client, wanted.groups)
        found = (
            outcome
            for packet in wanted.packets(services)
            for outcome in _outcomes(wanted, packet, rules, asked)
        )
        first = next(found)
        outcomes.append(next((one for one in (first, *found) if not one.passed), first))
    return tuple(outcomes)


class _Tables:
    """Compiled tables, made once for each list of rules that means the same."""

    def __init__(self, default_action: Action) -> None:
        self.default_action = default_action
        # By identity; the tuple keeps the policy, and so its identity, alive.
        self._made: dict[int, tuple[CompiledPolicy, Tables]] = {}

    def of(self, rules: Sequence[Rule]) -> Tables:
        compiled = compile_policy(rules, self.default_action)
        if id(compiled) not in self._made:
            self._made[id(compiled)] = compiled, Tables(compiled)
        return self._made[id(compiled)][1]


def _outcomes(
    wanted: Expectation, packet: Packet, rules: tuple[Rule, ...], asked: _Tables
) -> Iterator[Outcome]:
    """What comes out at the time asked for, or at every time at which it may be something else."""
    family = None if wanted.service_name is None else packet.destination.version
    if wanted.at is not None:
        times = [wanted.at]
    else:
        times = [_BEFORE_ALL_TIMES, *boundaries(rule for rule in rules if rule.matches(*packet))]
    for time in times:
        index = asked.of(rules_at(rules, time)).rule(*packet)
        rule = None if index is None else rules[index]
        since = None if time in (wanted.at, _BEFORE_ALL_TIMES) else time
        action = asked.default_action if rule is None else rule.action
        yield Outcome(wanted, action, rule, since, family)
