"""``zgatectl policy``: look at the policy, try a new one, put it in force, go back."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text
from zgate_gateway.api import schemas

from .client import GatewayClient
from .errors import BAD_INPUT, FAILED, BadInput
from .options import Invocation, gateway_command
from .output import cell, console, limits_text, print_json, table, time_text

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
    if limits_text(answer.default_limits):
        out.print(cell(f"default limits: {limits_text(answer.default_limits)}"))
    for kind, entries, limits in (
        ("client", answer.clients, answer.client_limits),
        ("group", answer.groups, answer.group_limits),
    ):
        for name, rules in entries.items():
            out.print()
            out.print(cell(f"{kind} {name}", "bold"))
            if name in limits:
                out.print(cell(f"limits: {limits_text(limits[name])}"))
            _print_rules(out, rules)
    _print_rights(out, "connector", answer.connectors)
    _print_rights(out, "connector group", answer.connector_groups)
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
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Compare with this file, and ask no gateway.  [default: the policy in force]",
)
@gateway_command
def diff(invocation: Invocation, *, file: Path, against: Path | None) -> None:
    """Show which flows FILE would allow or deny that are not so now.

    Exit code 0 if every packet would be judged as before, 1 if not, 2 if FILE cannot be used.
    """
    from zgate_gateway.api.policy_report import diff_files

    if against is not None:
        answer = diff_files(against, file)
    else:
        request = schemas.PolicyDiffRequest(text=_read(file), name=str(file))
        with GatewayClient(invocation.socket_path) as gateway:
            answer = gateway.diff_policy(request)
    if invocation.as_json:
        print_json(answer)
    else:
        _print_diff(answer)
    if not answer.valid:
        raise SystemExit(BAD_INPUT)
    if answer.changed:
        raise SystemExit(FAILED)


_yes = click.option("--yes", is_flag=True, help="Do it. Without this, only show what would change.")


@policy.command("apply")
@click.argument("file", type=click.Path(path_type=Path))
@_yes
@gateway_command
def apply_(invocation: Invocation, *, file: Path, yes: bool) -> None:
    """Check and test FILE, show what it changes, and with --yes put it in force.

    The gateway writes it into its policy file. If anything is wrong, nothing changes.
    """
    from zgate_gateway.api.policy_report import check_text

    text = _read(file)
    check = check_text(text, str(file))
    if not invocation.as_json:
        _print_check(file, check)
    if not check.valid:
        if invocation.as_json:
            print_json(schemas.PolicyChange(check=check))
        raise SystemExit(BAD_INPUT)
    with GatewayClient(invocation.socket_path) as gateway:
        request = schemas.PolicyDiffRequest(text=text, name=str(file))
        found = gateway.diff_policy(request)
        if not invocation.as_json:
            _print_diff(found)
        result = None
        if yes:
            change = schemas.PolicyApplyRequest(text=text, expected_revision=found.revision)
            result = gateway.apply_policy(change)
    _print_change(invocation, schemas.PolicyChange(check=check, diff=found, result=result))


@policy.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@gateway_command
def history(invocation: Invocation, *, limit: int) -> None:
    """List the revisions that were in force, the newest first."""
    with GatewayClient(invocation.socket_path) as gateway:
        answer = gateway.policy_history(limit)
    if invocation.as_json:
        print_json(answer)
        return
    shown = table(
        "rev", "since", "by", "sha256", "clients", "groups", "rules", "",
        right=["rev", "since", "clients", "groups", "rules"],
    )  # fmt: skip
    for one in answer.revisions:
        note = "now" if one.in_force else "" if one.has_text else "no text"
        shown.add_row(
            cell(one.revision),
            cell(time_text(one.loaded_at)),
            cell(one.origin),
            cell((one.sha256 or "built-in")[:8]),
            cell(one.clients),
            cell(one.groups),
            cell(one.rules),
            cell(note, "green" if one.in_force else "yellow"),
        )
    console().print(shown)


@policy.command()
@click.argument("revision", type=click.IntRange(min=1), metavar="REV")
@_yes
@gateway_command
def rollback(invocation: Invocation, *, revision: int, yes: bool) -> None:
    """Show what going back to revision REV changes, and with --yes go back.

    What REV said gets a new number, and becomes the content of the gateway's policy file.
    """
    with GatewayClient(invocation.socket_path) as gateway:
        found = gateway.diff_policy(schemas.PolicyDiffRequest(revision=revision))
        if not invocation.as_json:
            _print_diff(found)
        result = None
        if yes and found.valid:
            request = schemas.PolicyRollbackRequest(
                revision=revision, expected_revision=found.revision
            )
            result = gateway.rollback_policy(request)
    _print_change(invocation, schemas.PolicyChange(diff=found, result=result))
    if not found.valid:
        raise SystemExit(BAD_INPUT)


@policy.command()
@gateway_command
def reload(invocation: Invocation) -> None:
    """Load the gateway's policy file again. If it is refused, the one in force stays."""
    with GatewayClient(invocation.socket_path) as gateway:
        answer = gateway.reload_policy()
    if invocation.as_json:
        print_json(answer)
        return
    _print_result("Loaded", answer)
    _print_findings(console(), answer.warnings)


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}", "name a policy file") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}: it is no UTF-8 text", "save it as UTF-8") from error


def _print_change(invocation: Invocation, change: schemas.PolicyChange) -> None:
    if invocation.as_json:
        print_json(change)
    elif change.result is None:
        click.echo("This was a dry run: nothing has changed. To do it, add --yes.")
    else:
        _print_result("In force", change.result)


def _print_result(done: str, result: schemas.PolicyReload) -> None:
    if result.changed:
        was = f"was {result.previous_revision}, {result.duration_ms:.0f} ms"
        click.echo(f"{done}: {_summary(result.summary)} ({was})")
    else:
        click.echo(f"Nothing has changed: {_summary(result.summary)}")


def _print_diff(answer: schemas.PolicyDiff) -> None:
    for finding in answer.findings:
        click.echo(f"{finding.severity.value}: {cell(finding.text).plain}", err=True)
    if not answer.valid:
        return
    out = console()
    for difference in answer.differences:
        out.print(cell(", ".join(map(_subject, difference.subjects)), "bold"))
        if difference.limits is not None:
            out.print(cell(_limits_change(difference.limits), "yellow"))
        is_timed = any(change.since or change.until for change in difference.changes)
        shown = table("", "destinations", "services", *(["when"] if is_timed else []))
        for change in difference.changes:
            allowed = change.action is schemas.VerdictAction.ALLOW
            shown.add_row(
                cell("+ allowed" if allowed else "- denied", _ACTION_STYLE[change.action]),
                cell("\n".join(change.destinations)),
                cell(", ".join(change.services)),
                *([cell(_when(change.since, change.until))] if is_timed else []),
            )
        if difference.changes:
            out.print(shown)
        if difference.compared_until is not None:
            until = time_text(difference.compared_until)
            out.print(
                cell(f"What changes after {until} was not looked at: too many times.", "yellow")
            )
    for rights in answer.rights:
        _print_rights_change(out, rights)
    if not answer.changed:
        click.echo("No flow changes: every packet would be judged as before.")


def _print_rights_change(out: Console, change: schemas.RightsChange) -> None:
    out.print(cell(f"{change.kind} {change.name}", "bold"))
    old, new = change.before, change.after
    for what, was, now in (
        ("offer", old.services, new.services),
        ("advertise", old.routes, new.routes),
    ):
        for one in sorted(set(now) - set(was)):
            out.print(cell(f"+ may {what} {one}", "green"))
        for one in sorted(set(was) - set(now)):
            out.print(cell(f"- may not {what} {one} any more", "red"))


def _limits_change(change: schemas.LimitsChange) -> str:
    before, after = (limits_text(one) or "none" for one in (change.before, change.after))
    return f"limits: {after} (were: {before})"


def _when(since: datetime | None, until: datetime | None) -> str:
    parts = []
    if since is not None:
        parts.append(f"from {time_text(since)}")
    if until is not None:
        parts.append(f"until {time_text(until)}")
    return "\n".join(parts) or "from now on"


def _subject(subject: schemas.PolicySubject) -> str:
    if subject.kind == "others":
        return "clients without any rule"
    groups = f" ({', '.join(subject.groups)})" if subject.groups else ""
    return f"{subject.kind} {subject.name}{groups}"


def _summary(summary: schemas.PolicySummary) -> str:
    source = summary.source if summary.source is not None else "no policy file"
    return (
        f"revision {summary.revision} of {time_text(summary.loaded_at)}, {source}: "
        f"{summary.clients} clients, {summary.groups} groups, {summary.rules} rules, "
        f"default {summary.default_action.value}"
    )


def _print_rules(out: Console, rules: list[schemas.RuleView]) -> None:
    is_timed = any(rule.not_before or rule.expires_at for rule in rules)
    shown = table(
        "line", "rule", "action", "destinations", "protocols", "ports",
        *(["when"] if is_timed else []), right=["line"],
    )  # fmt: skip
    for rule in rules:
        shown.add_row(
            cell(rule.line),
            cell(rule.rule_id),
            cell(rule.action.value, _ACTION_STYLE[rule.action] if rule.holds else "dim"),
            cell(_destinations(rule)),
            cell(", ".join(rule.protocols) or "any"),
            cell(", ".join(rule.ports) or "any"),
            *([_rule_times(rule)] if is_timed else []),
        )
    out.print(shown)


def _destinations(rule: schemas.RuleView) -> str:
    if rule.services:
        return "\n".join(f"service {name}" for name in rule.services)
    return "\n".join(rule.destinations) or "any"


def _print_rights(out: Console, kind: str, entries: dict[str, schemas.Rights]) -> None:
    for name, given in entries.items():
        out.print()
        out.print(cell(f"{kind} {name}", "bold"))
        out.print(cell(f"may offer: {', '.join(given.services) or 'no service'}"))
        out.print(cell(f"may advertise: {', '.join(given.routes) or 'no network'}"))


def _rule_times(rule: schemas.RuleView) -> Text:
    if rule.not_before is None and rule.expires_at is None:
        return cell("always")
    text = cell(_when(rule.not_before, rule.expires_at))
    return text if rule.holds else text.append_text(cell("\nnot now", "yellow"))


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
