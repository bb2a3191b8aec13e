"""``zgatectl policy``: look at the policy, try a new one, put it in force, go back."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from zgate_gateway.api import schemas

from .client import GatewayClient
from .errors import BAD_INPUT, FAILED
from .options import Invocation, gateway_command
from .output import cell, console, print_json, table, time_text

_ACTION_STYLE = {schemas.VerdictAction.ALLOW: "green", schemas.VerdictAction.DENY: "red"}


@click.group()
def policy() -> None:
    """Show, check, test, compare and change the policy."""


@policy.command()
@gateway_command
def show(invocation: Invocation) -> None:
    """Show the policy in force, rule by rule, with the lines where the rules are written."""
    with GatewayClient(invocation.socket_path) as gateway:
        answer = gateway.policy()
    if invocation.as_json:
        print_json(answer)
        return
    out = console()
    out.print(cell(_summary(answer.summary)))
    for kind, entries in (("client", answer.clients), ("group", answer.groups)):
        for name, rules in entries.items():
            out.print()
            out.print(cell(f"{kind} {name}", "bold"))
            _print_rules(out, rules)
    _print_findings(out, answer.warnings)


@policy.command()
@click.argument("file", type=click.Path(path_type=Path))
@gateway_command
def check(invocation: Invocation, *, file: Path) -> None:
    """Check FILE without a gateway; exit code 2 if it cannot be loaded."""
    from zgate_gateway.api.policy_report import check_file

    answer = check_file(file)
    if invocation.as_json:
        print_json(answer)
    else:
        _print_check(file, answer)
    if not answer.valid:
        raise SystemExit(BAD_INPUT)


@policy.command()
@click.argument("file", type=click.Path(path_type=Path))
@gateway_command
def test(invocation: Invocation, *, file: Path) -> None:
    """Run the tests in FILE without a gateway.

    Exit code 1 if one fails, 2 if the file cannot be read.
    """
    from zgate_gateway.api.policy_report import run_tests_of_file

    answer = run_tests_of_file(file)
    if invocation.as_json:
        print_json(answer)
    else:
        _print_tests(answer)
    if not answer.valid:
        raise SystemExit(BAD_INPUT)
    if answer.failed:
        raise SystemExit(FAILED)


@policy.command()
@gateway_command
def reload(invocation: Invocation) -> None:
    """Load the gateway's policy file again. If it is refused, the one in force stays."""
    with GatewayClient(invocation.socket_path) as gateway:
        answer = gateway.reload_policy()
    if invocation.as_json:
        print_json(answer)
        return
    if answer.changed:
        was = f"was {answer.previous_revision}, {answer.duration_ms:.0f} ms"
        click.echo(f"Loaded: {_summary(answer.summary)} ({was})")
    else:
        click.echo(f"Nothing has changed: {_summary(answer.summary)}")
    _print_findings(console(), answer.warnings)


def _summary(summary: schemas.PolicySummary) -> str:
    source = summary.source if summary.source is not None else "no policy file"
    return (
        f"revision {summary.revision} of {time_text(summary.loaded_at)}, {source}: "
        f"{summary.clients} clients, {summary.groups} groups, {summary.rules} rules, "
        f"default {summary.default_action.value}"
    )


def _print_rules(out: Console, rules: list[schemas.RuleView]) -> None:
    shown = table("line", "rule", "action", "destinations", "protocols", "ports", right=["line"])
    for rule in rules:
        shown.add_row(
            cell(rule.line),
            cell(rule.rule_id),
            cell(rule.action.value, _ACTION_STYLE[rule.action]),
            cell("\n".join(rule.destinations) or "any"),
            cell(", ".join(rule.protocols) or "any"),
            cell(", ".join(rule.ports) or "any"),
        )
    out.print(shown)


def _print_check(file: Path, answer: schemas.PolicyCheck) -> None:
    """Findings go where errors go; what is left on stdout is the verdict."""
    for finding in answer.findings:
        click.echo(f"{finding.severity.value}: {cell(finding.text).plain}", err=True)
    if answer.valid:
        counts = f"{answer.clients} clients, {answer.groups} groups, {answer.rules} rules"
        if answer.tests:
            counts += f", {answer.tests} tests passed"
        click.echo(f"{file}: can be loaded ({counts})")


def _print_tests(answer: schemas.PolicyTests) -> None:
    for finding in answer.findings:
        click.echo(f"{finding.severity.value}: {cell(finding.text).plain}", err=True)
    if not answer.valid:
        return
    if answer.outcomes:
        out = console()
        shown = table("line", "test", "expected", "got", "", right=["line"])
        for one in answer.outcomes:
            shown.add_row(
                cell(one.line),
                cell(one.question),
                cell(_answer(one.expected, one.expected_rule)),
                cell(_answer(one.action, one.rule_id, one.rule_line)),
                cell("ok", "green") if one.passed else cell("FAILED", "bold red"),
            )
        out.print(shown)
    click.echo(f"{answer.passed} passed, {answer.failed} failed")


def _answer(action: schemas.VerdictAction, rule: str | None, line: int | None = None) -> str:
    text = action.value if rule is None else f"{action.value}, {rule}"
    return text if line is None else f"{text}:{line}"


def _print_findings(out: Console, findings: list[schemas.PolicyFinding]) -> None:
    for finding in findings:
        out.print(cell(f"{finding.severity.value}: {finding.text}", "yellow"))
