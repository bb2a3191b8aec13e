"""How answers look: tables that fit 80 columns, colour on terminals only, or JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

import click
from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text
from zgate_gateway.api import schemas

#: A pipe has no width; addresses should not be folded for grep.
_WIDTH_WITHOUT_TERMINAL = 160
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def print_json(answer: BaseModel) -> None:
    """Print an answer as JSON; the same words as the API's."""
    click.echo(answer.model_dump_json(indent=2))


def console() -> Console:
    """Return a console for stdout: no colour and no folding where there is no terminal."""
    terminal = sys.stdout.isatty()
    width = None if terminal or os.environ.get("COLUMNS") else _WIDTH_WITHOUT_TERMINAL
    return Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False)


@contextmanager
def progress(steps: int, what: str) -> Iterator[Callable[[str], None]]:
    """Show how far long work has come, on standard error and only if that is a terminal.

    The body calls what it is given at the beginning of each of so many steps, with its name.
    """
    err = Console(stderr=True, markup=False, highlight=False, emoji=False)
    if not err.is_terminal:
        yield lambda _name: None
        return
    bar = Progress(TextColumn("{task.description}"), BarColumn(), console=err, transient=True)
    with bar:
        task = bar.add_task(what, total=steps)
        begun = 0

        def step(name: str) -> None:
            nonlocal begun
            bar.update(task, completed=begun, description=f"{what} {name}")
            begun += 1

        yield step


def cell(value: object, style: str = "") -> Text:
    """Return a value as text in which nothing can steer the terminal."""
    text = "-" if value is None or value == "" else str(value)
    shown = "".join(
        one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text
    )
    return Text(shown, style=style, overflow="fold")


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table. Columns named in ``right`` hold numbers and are never folded."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        number = name in right
        made.add_column(
            name, justify="right" if number else "left", no_wrap=number, overflow="fold"
        )
    return made


def facts(rows: Iterable[tuple[str, Text | str]]) -> Table:
    """Return a two-column table of names and values without a header."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, value if isinstance(value, Text) else cell(value))
    return made


def byte_text(count: int) -> str:
    """Return ``12.3 MB``: powers of 1000, as network people count."""
    value = float(count)
    for unit in _BYTE_UNITS[:-1]:
        if value < 999.95:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} {_BYTE_UNITS[-1]}"


def duration_text(seconds: float) -> str:
    """Return the two largest units of a duration: ``1d 02h``, ``3m 07s``, ``12s``."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d {hours:02}h"
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {whole % 60:02}s" if minutes else f"{whole}s"


def time_text(moment: datetime | None) -> str:
    """Return a time in UTC, to the second."""
    return "-" if moment is None else f"{moment:%F %T}Z"


def limits_text(limits: schemas.Limits) -> str:
    """Return ``50 Mbit/s, 200 new flows/s``; empty: unlimited."""
    parts = []
    if limits.bandwidth_mbit is not None:
        parts.append(f"{limits.bandwidth_mbit} Mbit/s")
    if limits.new_flows_per_s is not None:
        parts.append(f"{limits.new_flows_per_s} new flows/s")
    return ", ".join(parts)
