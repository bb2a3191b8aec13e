"""The tests that a policy file carries: what must come out, kept beside the rules.

They are asked of the compiled tables (:mod:`zgate_gateway.policy.lookup`), which is what the kernel
gets. A file of which one fails is not loaded, wherever it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from zgate_bpf.tables import Action, CompiledPolicy

from zgate_gateway.policy.compiler import compile_policy
from zgate_gateway.policy.lookup import Tables
from zgate_gateway.policy.model import ActionName, PolicyTestModel
from zgate_gateway.policy.rules import Rule
from zgate_gateway.policy.services import PROTOCOL_NUMBERS, IpAddress, echo_request

RulesFor = Callable[[str, Iterable[str]], tuple[Rule, ...]]


@dataclass(frozen=True, slots=True)
class Expectation:
    """One entry of ``tests:``, ready to be asked.

    :ivar port: destination port; for ICMP the echo request's type and code.
    :ivar service: protocol and port as people write them: ``tcp/443``, ``icmp``.
    :ivar rule: id of the rule that must decide; None: whichever does.
    :ivar line: line in the file.
    """

    client: str
    groups: tuple[str, ...]
    destination: IpAddress
    protocol: int
    port: int
    service: str
    expect: Action
    rule: str | None
    path: str
    line: int

    @classmethod
    def from_model(cls, model: PolicyTestModel, path: str, line: int) -> Expectation:
        """Make one of what the file says."""
        family = model.destination.version
        name = str(model.protocol)
        number = int(name) if name.isdecimal() else PROTOCOL_NUMBERS[name][family == 6]
        assert number is not None, "the model refuses protocols that the family does not have"
        return cls(
            client=model.client,
            groups=model.groups,
            destination=model.destination,
            protocol=number,
            port=model.port if model.port is not None else echo_request(family, number),
            service=name if model.port is None else f"{name}/{model.port}",
            expect=Action.ALLOW if model.expect is ActionName.ALLOW else Action.DENY,
            rule=model.rule,
            path=path,
            line=line,
        )

    @property
    def question(self) -> str:
        """``alice (staff) -> 10.20.0.5 tcp/443``."""
        who = f"{self.client} ({', '.join(self.groups)})" if self.groups else self.client
        return f"{who} -> {self.destination} {self.service}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out of one test. ``rule`` None: no rule matched, the default action decided."""

    expectation: Expectation
    action: Action
    rule: Rule | None

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
        if self.rule is None:
            return f"{action} by default_action (no rule matches)"
        return f'{action} by rule "{self.rule.id}" (line {self.rule.line})'


def run_expectations(
    expectations: Iterable[Expectation], rules_for: RulesFor, default_action: Action
) -> tuple[Outcome, ...]:
    """Ask every test of the tables. Raises :class:`zgate_gateway.policy.PolicyTooLarge`."""
    tables: dict[int, tuple[CompiledPolicy, Tables]] = {}
    outcomes = []
    for wanted in expectations:
        rules = rules_for(wanted.client, wanted.groups)
        compiled = compile_policy(rules, default_action)
        # By identity; the tuple keeps the policy, and so its identity, alive.
        if id(compiled) not in tables:
            tables[id(compiled)] = compiled, Tables(compiled)
        _, table = tables[id(compiled)]
        index = table.rule(wanted.destination, wanted.protocol, wanted.port)
        rule = None if index is None else rules[index]
        outcomes.append(Outcome(wanted, default_action if rule is None else rule.action, rule))
    return tuple(outcomes)
