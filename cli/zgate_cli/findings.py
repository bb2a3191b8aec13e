"""What ``doctor`` and ``netcheck`` find: made, put together, shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of

import click
from rich.console import Console
from rich.text import Text

from .answers import CheckReport, Finding, Verdict
from .errors import FAILED
from .options import Invocation
from .output import cell, console, print_json

_STYLE = {
    Verdict.OK: "green",
    Verdict.WARN: "yellow",
    Verdict.FAIL: "bold red",
    Verdict.SKIP: "dim",
}
_RANK = (Verdict.SKIP, Verdict.OK, Verdict.WARN, Verdict.FAIL)

Value = str | int | float | bool | None


def ok(name: str, title: str, text: str, **values: Value) -> Finding:
    """Nothing is to be done."""
    return Finding(name=name, title=title, verdict=Verdict.OK, text=text, values=values)


def warn(name: str, title: str, text: str, fix: str, **values: Value) -> Finding:
    """It works, and somebody should look at it."""
    return Finding(name=name, title=title, verdict=Verdict.WARN, text=text, fix=fix, values=values)


def fail(name: str, title: str, text: str, fix: str, **values: Value) -> Finding:
    """It does not work."""
    return Finding(name=name, title=title, verdict=Verdict.FAIL, text=text, fix=fix, values=values)


def skip(name: str, title: str, text: str, fix: str = "") -> Finding:
    """It cannot be told from here."""
    return Finding(name=name, title=title, verdict=Verdict.SKIP, text=text, fix=fix)


def zgate_version() -> str:
    """The installed version."""
    try:
        return version_of("zgate")
    except PackageNotFoundError:
        return "unknown"


def report_of(findings: Sequence[Finding]) -> CheckReport:
    """All findings, and the worst of them."""
    worst = max((one.verdict for one in findings), key=_RANK.index, default=Verdict.OK)
    return CheckReport(
        at=datetime.now(UTC),
        version=zgate_version(),
        verdict=Verdict.OK if worst is Verdict.SKIP else worst,
        findings=list(findings),
    )


def show(invocation: Invocation, report: CheckReport, *, is_strict: bool) -> None:
    """Print a report, and end with the exit code that it deserves.

    0 if nothing has failed; 1 if something has, or with `is_strict` if there is a warning.
    """
    if invocation.as_json:
        print_json(report)
    else:
        print_findings(console(), report.findings)
        click.echo(_summary(report))
    bad = {Verdict.FAIL, Verdict.WARN} if is_strict else {Verdict.FAIL}
    if report.verdict in bad:
        raise SystemExit(FAILED)


def print_findings(out: Console, findings: Iterable[Finding]) -> None:
    """A line for each, and below it what to do."""
    shown = list(findings)
    width = max((len(one.title) for one in shown), default=0)
    for one in shown:
        verdict = one.verdict.value.upper() if one.verdict is Verdict.FAIL else one.verdict.value
        line = Text.assemble((f"{verdict:<5}", _STYLE[one.verdict]), f"{one.title:<{width}}  ")
        _print_hanging(out, line.append_text(cell(one.text)), width + 7)
        if one.fix:
            _print_hanging(out, Text(" " * 5 + "-> ").append_text(cell(one.fix)), 8)


def _print_hanging(out: Console, line: Text, indent: int) -> None:
    """Fold a line at words, what follows under the beginning of its text."""
    indent = min(indent, out.width // 2)
    first, rest = line[:indent], line[indent:]
    rest.overflow = "fold"
    folded = rest.wrap(out, max(10, out.width - indent))
    for number, part in enumerate(folded):
        part.rstrip()
        out.print(first + part if not number else Text(" " * indent) + part, soft_wrap=True)


def _summary(report: CheckReport) -> str:
    """How many of each, and by name what is to be done something about: the last line is read."""
    titles: dict[Verdict, list[str]] = {one: [] for one in Verdict}
    for finding in report.findings:
        titles[finding.verdict].append(finding.title)
    parts = [f"{len(titles[Verdict.OK])} ok"]
    for verdict, what in ((Verdict.WARN, "to look at"), (Verdict.FAIL, "failed")):
        if found := titles[verdict]:
            parts.append(f"{len(found)} {what} ({', '.join(dict.fromkeys(found))})")
    if titles[Verdict.SKIP]:
        parts.append(f"{len(titles[Verdict.SKIP])} not checked")
    return ", ".join(parts)
