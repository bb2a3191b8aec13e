"""What a check of a policy found, in the API's words: for ``zgatectl policy check`` and
the daemon.

It needs no gateway, no root and no kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from zgate_bpf.limits import ClientLimits
from zgate_bpf.tables import Action
from zgate_config import ConfigError

from zgate_gateway.policy.check import Finding, check_policy
from zgate_gateway.policy.compiler import PolicyTooLarge
from zgate_gateway.policy.connectors import ConnectorRights
from zgate_gateway.policy.diff import diff_rights, diff_sets, on_common_ground
from zgate_gateway.policy.expectations import Outcome
from zgate_gateway.policy.policy_set import PolicySet
from zgate_gateway.policy.service_names import DEFAULT_POOLS, ServicePools, Services

from .flow_changes import told_changes
from .schemas import (
    Limits,
    LimitsChange,
    PolicyCheck,
    PolicyDiff,
    PolicyFinding,
    PolicySubject,
    PolicyTestOutcome,
    PolicyTests,
    Rights,
    RightsChange,
    Severity,
    SubjectChange,
    VerdictAction,
)


def check_file(path: Path) -> PolicyCheck:
    """Check a policy file. A file that cannot be read is a finding, not an exception."""
    return _check(lambda: PolicySet.load(path), str(path), None)


def check_text(
    text: str,
    name: str,
    *,
    services: Services | None = None,
    pools: ServicePools = DEFAULT_POOLS,
) -> PolicyCheck:
    """Check the contents of a policy file called ``name``; ``services`` are those known."""
    return _check(lambda: PolicySet.parse(text, name, pools=pools), name, services)


def run_tests_of_file(path: Path) -> PolicyTests:
    """Run the tests that a policy file carries."""
    try:
        outcomes = PolicySet.load(path, must_pass=False).run_tests()
    except ConfigError as error:
        return PolicyTests(valid=False, findings=_mistakes(error))
    except PolicyTooLarge as error:
        finding = PolicyFinding(severity=Severity.ERROR, text=f"{path}: tests: {error}")
        return PolicyTests(valid=False, findings=[finding])
    passed = sum(outcome.passed for outcome in outcomes)
    return PolicyTests(
        valid=True,
        passed=passed,
        failed=len(outcomes) - passed,
        outcomes=[_outcome(outcome) for outcome in outcomes],
    )


def diff_files(before: Path, after: Path) -> PolicyDiff:
    """Compare two policy files; their own tests need not pass."""
    try:
        sets = [PolicySet.load(path, must_pass=False) for path in (before, after)]
        return _diff(sets[0], sets[1], None, None)
    except ConfigError as error:
        return PolicyDiff(valid=False, findings=_mistakes(error))
    except PolicyTooLarge as error:
        finding = PolicyFinding(severity=Severity.ERROR, text=f"{after}: {error}")
        return PolicyDiff(valid=False, findings=[finding])


def diff_text(
    before: PolicySet,
    revision: int,
    known: Mapping[str, Sequence[str]],
    text: str | bytes,
    name: str,
) -> PolicyDiff:
    """Compare the policy in force with the text of another one; ``known``: clients' groups."""
    try:
        after = PolicySet.parse(text, name, must_pass=False, pools=before.pools)
        return _diff(before, after, known, revision)
    except ConfigError as error:
        return PolicyDiff(valid=False, findings=_mistakes(error))
    except PolicyTooLarge as error:
        finding = PolicyFinding(severity=Severity.ERROR, text=f"{name}: {error}")
        return PolicyDiff(valid=False, findings=[finding])


def _diff(
    before: PolicySet,
    after: PolicySet,
    known: Mapping[str, Sequence[str]] | None,
    revision: int | None,
) -> PolicyDiff:
    differences = differences_of(before, after, known)
    rights = [
        RightsChange(
            kind=one.kind,
            name=one.name,
            before=rights_in(one.before),
            after=rights_in(one.after),
        )
        for one in diff_rights(before, after)
    ]
    return PolicyDiff(
        valid=True,
        changed=bool(differences or rights),
        revision=revision,
        differences=differences,
        rights=rights,
    )


def differences_of(
    before: PolicySet, after: PolicySet, known: Mapping[str, Sequence[str]] | None = None
) -> list[SubjectChange]:
    """Return the diff of two policies in the API's words. Raises PolicyTooLarge."""
    services = on_common_ground(before, after)[0].services
    return [
        SubjectChange(
            subjects=[
                PolicySubject(kind=who.kind, name=who.name, groups=list(who.groups))
                for who in found.subjects
            ],
            changes=told_changes(found.changes, services),
            limits=(
                LimitsChange(before=limits_in(found.limits[0]), after=limits_in(found.limits[1]))
                if found.limits is not None
                else None
            ),
            compared_until=found.compared_until,
        )
        for found in diff_sets(before, after, known)
    ]


def warnings_among(findings: Iterable[Finding], name: str) -> list[PolicyFinding]:
    """Return findings of a policy called ``name`` in the API's words, the notes left out."""
    return [_finding(found, name) for found in findings if not found.is_note]


def _finding(found: Finding, name: str) -> PolicyFinding:
    return PolicyFinding(
        severity=Severity.NOTE if found.is_note else Severity.WARNING,
        text=f"{name}:{found.line}: {found.path}: {found.text}",
        line=found.line,
    )


def _check(load: Callable[[], PolicySet], name: str, services: Services | None) -> PolicyCheck:
    try:
        policy_set = load()
    except ConfigError as error:
        return PolicyCheck(valid=False, findings=_mistakes(error))
    return PolicyCheck(
        valid=True,
        findings=[_finding(found, name) for found in check_policy(policy_set, services=services)],
        clients=policy_set.client_count,
        groups=policy_set.group_count,
        rules=policy_set.rule_count,
        tests=len(policy_set.expectations),
    )


def _mistakes(error: ConfigError) -> list[PolicyFinding]:
    return [
        PolicyFinding(severity=Severity.ERROR, text=str(mistake), line=mistake.line)
        for mistake in error.mistakes
    ]


def _outcome(outcome: Outcome) -> PolicyTestOutcome:
    wanted = outcome.expectation
    return PolicyTestOutcome(
        question=wanted.question,
        line=wanted.line,
        expected=action_of(wanted.expect),
        expected_rule=wanted.rule,
        action=action_of(outcome.action),
        rule_id=outcome.rule.id if outcome.rule else None,
        rule_line=outcome.rule.line if outcome.rule else None,
        passed=outcome.passed,
    )


def limits_in(limits: ClientLimits) -> Limits:
    """Return limits in the API's words."""
    return Limits(bandwidth_mbit=limits.bandwidth_mbit, new_flows_per_s=limits.new_flows_per_s)


def rights_in(rights: ConnectorRights) -> Rights:
    """Return what a connector may offer in the API's words."""
    return Rights(services=list(rights.services), routes=[str(one) for one in rights.routes])


def action_of(action: Action) -> VerdictAction:
    """Return an action in the API's words."""
    return VerdictAction.ALLOW if action is Action.ALLOW else VerdictAction.DENY
