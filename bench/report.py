"""The table: on the terminal, as Markdown, and everything behind it as JSON."""

import json
from dataclasses import asdict

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.metrics import METRICS, UDP, Better, Metric
from bench.results import PeerResults, Results
from bench.stats import ratio
from bench.targets import SUBJECT, Outcome, judge

REFERENCES = ("openvpn", "wireguard-go")
MISSING = "-"
LIMITED = "≥ "  # the load generator was the limit: the peer may well do more
MARKS = {True: "✔ met", False: "✘ missed", None: "? not measured"}
_STYLES = {True: "green", False: "red", None: "yellow"}


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


def target_line(outcome: Outcome) -> str:
    """One target and what became of it."""
    reached = MISSING if outcome.ratio is None else f"{outcome.ratio:.2f}"
    return f"{outcome.target.text}: {reached}, {MARKS[outcome.is_met]}"


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


def for_terminal(results: Results) -> RenderableType:
    """The report in colours."""
    table = Table(title="zgate bench")
    for number, title in enumerate(header(results)):
        table.add_column(title, justify="right" if number else "left")
    for row in rows(results):
        table.add_row(*row)
    lines = [Text(line) for line in notes(results)]
    lines += [
        Text(target_line(outcome), style=_STYLES[outcome.is_met])
        for outcome in judge({peer.name: peer.medians() for peer in results.peers})
    ]
    return Group(table, *lines)


def to_markdown(results: Results) -> str:
    """The report as a file for the repository."""
    title = header(results)
    lines = [f"# Bench, {results.facts['date']}", ""]
    lines += [f"- {key}: {value}" for key, value in results.facts.items()]
    lines += [f"- {peer.title}: {peer.version}" for peer in results.peers]
    lines += ["", *notes(results), ""]
    lines += [_markdown_row(title), _markdown_row([":--", *["--:"] * (len(title) - 1)])]
    lines += [_markdown_row(row) for row in rows(results, spread=True)]
    lines += ["", "## Targets", ""]
    outcomes = judge({peer.name: peer.medians() for peer in results.peers})
    lines += [f"- {target_line(outcome)}" for outcome in outcomes]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def to_json(results: Results) -> str:
    """Every sample of every round, the medians, and the targets."""
    outcomes = judge({peer.name: peer.medians() for peer in results.peers})
    document = {
        "schema": 1,
        "facts": results.facts,
        "settings": asdict(results.settings),
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
        "targets": [
            {"target": one.target.text, "ratio": one.ratio, "met": one.is_met} for one in outcomes
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
