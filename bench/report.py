"""The table: on the terminal, as Markdown, and everything behind it as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.metrics import METRICS, UDP, Better, Metric
from bench.results import PeerResults, Results, SectionResults
from bench.stats import median, ratio
from bench.targets import SUBJECT, Outcome, judge

REFERENCES = ("openvpn", "wireguard-go")
MISSING = "-"
LIMITED = "≥ "  # the load generator was the limit: the peer may well do more
MARKS = {True: "✔ met", False: "✘ missed", None: "? not measured"}
AIM_REACHED = "✔ aim"
_STYLES = {True: "green", False: "red", None: "yellow"}
TARGET_HEADER = ["what", "zgate", "against", "ratio", "at least", "aim", ""]


def header(results: Results) -> list[str]:
    """The titles of the columns."""
    return [
        "",
        *(peer.title for peer in results.peers),
        *(f"{SUBJECT} / {one}" for one in references(results)),
    ]


def references(results: Results) -> list[str]:
    """The peers that zgate is compared with in this run."""
    present = [peer.name for peer in results.peers]
    return [one for one in REFERENCES if one in present and SUBJECT in present]


def rows(results: Results, *, spread: bool = False) -> list[list[str]]:
    """One row for each metric: its name, a cell for each peer, the ratios."""
    cell = _with_spread if spread else _cell
    medians = {peer.name: peer.medians() for peer in results.peers}
    subject = medians.get(SUBJECT, {})
    table = []
    for metric in METRICS:
        cells = [cell(metric, peer) for peer in results.peers]
        ratios = [
            format_ratio(
                ratio(subject.get(metric.key), medians.get(one, {}).get(metric.key)), metric
            )
            for one in references(results)
        ]
        table.append([f"{metric.title} ({metric.unit})", *cells, *ratios])
    return table


def format_ratio(value: float | None, metric: Metric) -> str:
    """A ratio, with the word that saves the reader from thinking which way is good."""
    if value is None:
        return MISSING
    better = value >= 1 if metric.better is Better.HIGHER else value <= 1
    return f"{value:.2f}{'' if better else ' (worse)'}"


def _cell(metric: Metric, peer: PeerResults) -> str:
    value = peer.medians().get(metric.key)
    if value is None:
        return MISSING
    limited = any(metric is UDP[size] and peer.is_generator_limited(size) for size in UDP)
    return f"{LIMITED if limited else ''}{_number(metric, value)}"


def _number(metric: Metric, value: float) -> str:
    return f"{value * metric.factor:,.{metric.digits}f}"


def _with_spread(metric: Metric, peer: PeerResults) -> str:
    """The cell with the lowest and the highest round, for whoever wants to know how sure it is."""
    spread = peer.spread(metric)
    cell = _cell(metric, peer)
    if spread is None:
        return cell
    return f"{cell} ({_number(metric, spread[0])}..{_number(metric, spread[1])})"


def target_rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """The table of what has to be reached."""
    return [
        [
            one.target.title,
            _target_number(one, one.value),
            _target_number(one, one.reference),
            MISSING if one.ratio is None else f"{one.ratio:.2f}",
            one.target.bound_text(one.target.at_least),
            one.target.bound_text(one.target.aim),
            verdict(one),
        ]
        for one in outcomes
    ]


def verdict(outcome: Outcome) -> str:
    """Met, missed, or beyond."""
    mark = AIM_REACHED if outcome.is_met and outcome.reaches_aim else MARKS[outcome.is_met]
    return f"{mark} ({outcome.because})" if outcome.because else mark


def _target_number(outcome: Outcome, value: float | None) -> str:
    if value is None:
        return MISSING
    target = outcome.target
    metric = next((one for one in METRICS if target.value.endswith(f".{one.key}")), None)
    if metric is not None:
        return f"{_number(metric, value)} {metric.unit}"
    return f"{value * target.scale:,.{target.digits}f}{f' {target.unit}' if target.unit else ''}"


def notes(results: Results) -> list[str]:
    """What the reader has to know beside the numbers."""
    lines = [results.settings.summary]
    if results.is_busy:
        lines.append("The machine had other work when the run began: do not trust the numbers.")
    if any(peer.is_generator_limited(size) for peer in results.peers for size in UDP):
        lines.append(f"{LIMITED.strip()} the load generator was the limit, not the peer.")
    lines += [
        f"{peer.title} failed in {len(peer.failures)} of {results.settings.rounds} rounds:"
        f" {peer.failures[0].splitlines()[0]}"
        for peer in results.peers
        if peer.failures
    ]
    return lines


def section_lines(section: SectionResults) -> list[str]:
    """A section's findings in words: medians with their spread, then what it has to say."""
    lines = [f"{section.title}: failed: {section.failure}"] if section.failure else []
    for key, values in section.samples.items():
        spread = f" ({min(values):,.4g}..{max(values):,.4g})" if len(values) > 1 else ""
        lines.append(f"{section.title}: {key} {median(values):,.4g}{spread}")
    return lines + [f"{section.title}: {note}" for note in section.notes]


def for_terminal(results: Results) -> RenderableType:
    """The report in colours."""
    parts: list[RenderableType] = []
    if results.peers:
        parts.append(_rich_table("zgate bench", header(results), rows(results)))
    for section in results.sections:
        parts += [_rich_table(title, head, body) for title, head, body in section.tables]
    parts += [Text(line) for line in notes(results)]
    parts += [Text(line) for section in results.sections for line in section_lines(section)]
    outcomes = judge(results.findings())
    table = _rich_table("numbers to reach", TARGET_HEADER, [])
    for outcome, row in zip(outcomes, target_rows(outcomes), strict=True):
        table.add_row(*row, style=_STYLES[outcome.is_met])
    return Group(*parts, table)


def _rich_table(title: str, head: list[str], body: list[list[str]]) -> Table:
    table = Table(title=title)
    for number, column in enumerate(head):
        table.add_column(column, justify="right" if number else "left")
    for row in body:
        table.add_row(*row)
    return table


def to_markdown(results: Results) -> str:
    """The report as a file for the repository."""
    lines = [f"# Bench, {results.facts['date']}", ""]
    lines += [f"- {key}: {value}" for key, value in results.facts.items()]
    lines += [f"- {peer.title}: {peer.version}" for peer in results.peers]
    lines += ["", *(f"{note}  " for note in notes(results)), "", "## Numbers to reach", ""]
    lines += _markdown_table(TARGET_HEADER, target_rows(judge(results.findings())))
    if results.peers:
        lines += ["", "## Peers", ""]
        lines += _markdown_table(header(results), rows(results, spread=True))
    for section in results.sections:
        lines += ["", f"## {section.title[0].upper()}{section.title[1:]}", ""]
        lines += [f"- {line}" for line in section_lines(section)]
        for title, head, body in section.tables:
            lines += ["", f"### {title}", "", *_markdown_table(head, body)]
    return "\n".join(lines) + "\n"


def _markdown_table(head: list[str], body: list[list[str]]) -> list[str]:
    ruler = _markdown_row([":--", *["--:"] * (len(head) - 1)])
    return [_markdown_row(head), ruler, *(_markdown_row(row) for row in body)]


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def to_json(results: Results) -> str:
    """Every sample of every round, the medians, and the targets."""
    outcomes = judge(results.findings())
    document = {
        "schema": 2,
        "facts": results.facts,
        "settings": {
            **asdict(results.settings),
            "steps": sorted(step.value for step in results.settings.steps),
        },
        "peers": {
            peer.name: {
                "title": peer.title,
                "version": peer.version,
                "medians": peer.medians(),
                "rounds": peer.samples,
                "failures": peer.failures,
                "generator_limited_rounds": peer.generator_limited_rounds,
            }
            for peer in results.peers
        },
        "sections": {section.name: asdict(section) for section in results.sections},
        "targets": [
            {
                "target": one.target.title,
                "value": one.value,
                "reference": one.reference,
                "at_least": one.target.bound_text(one.target.at_least),
                "aim": one.target.bound_text(one.target.aim),
                "met": one.is_met,
                "aim_reached": one.reaches_aim,
            }
            for one in outcomes
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def one_line(sample: dict[str, float]) -> str:
    """A turn in one line, for the progress."""
    parts = [
        f"{metric.title} {sample[metric.key] * metric.factor:,.{metric.digits}f} {metric.unit}"
        for metric in METRICS
        if metric.key in sample and metric.is_headline
    ]
    return ", ".join(parts)


def show(console: Console, results: Results) -> None:
    """Print the facts and the table."""
    for key, value in results.facts.items():
        console.print(f"[dim]{key:12}[/dim] {value}", highlight=False)
    for peer in results.peers:
        console.print(f"[dim]{peer.title:12}[/dim] {peer.version}", highlight=False)
    console.print(for_terminal(results))
