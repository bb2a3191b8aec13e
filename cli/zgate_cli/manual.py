"""Manual pages from the commands themselves: what ``--help`` says, as man(7) wants it.

Pure: a click command in, the text of a page out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import click

_DASHED = re.compile(r"(?<![\w\\])(-{1,2})(?=[a-z])")


@dataclass(frozen=True, slots=True)
class Program:
    """What is said on every page of a program.

    :ivar section: 1 for everybody's commands, 8 for daemons.
    :ivar exit_codes, files, environment: rows of what and why.
    """

    name: str
    section: int
    command: click.Command
    exit_codes: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    see_also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """One page: ``zgatectl-top.1`` and its text."""

    name: str
    section: int
    text: str

    @property
    def file_name(self) -> str:
        """What man looks for."""
        return f"{self.name}.{self.section}"


def pages_of(program: Program, version: str, date: str) -> Iterator[Page]:
    """A page for the program, and one for each of its commands; those of groups are on theirs."""
    context = _context(program.command, program.name, None)
    yield _page(program, (program.name,), context, version=version, date=date)
    if isinstance(program.command, click.Group):
        for name in program.command.list_commands(context):
            inner = program.command.get_command(context, name)
            assert inner is not None
            words = (program.name, name)
            inner_context = _context(inner, name, context)
            yield _page(program, words, inner_context, version=version, date=date)


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    return click.Context(command, info_name=name, parent=parent)


def _page(
    program: Program, words: tuple[str, ...], context: click.Context, *, version: str, date: str
) -> Page:
    command = context.command
    name = "-".join(words)
    title, _, rest = (command.help or "").partition("\n\n")
    lines = [
        f'.TH "{name.upper()}" "{program.section}" "{date}" "zgate {version}" "zgate"',
        ".SH NAME",
        rf"{_text(name)} \- {_text(_one_line(title).rstrip('.'))}",
        ".SH SYNOPSIS",
        *_synopsis(command, context, words),
        ".SH DESCRIPTION",
        *_paragraphs(title, rest),
        *_options(command, context, ".SH OPTIONS"),
        *_commands(command, context, words, section=program.section),
        *_table(".SH EXIT STATUS", program.exit_codes),
        *_table(".SH FILES", program.files),
        *_table(".SH ENVIRONMENT", program.environment),
        *_see_also(program, words),
    ]
    return Page(name, program.section, "\n".join(lines) + "\n")


def _synopsis(
    command: click.Command, context: click.Context, words: tuple[str, ...]
) -> Iterator[str]:
    pieces = " ".join(command.collect_usage_pieces(context))
    yield rf".B {_text(' '.join(words))}"
    yield _text(pieces)


def _paragraphs(*texts: str) -> Iterator[str]:
    is_first = True
    for text in texts:
        for paragraph in filter(None, text.replace("\b", "").split("\n\n")):
            if not is_first:
                yield ".PP"
            is_first = False
            yield _text(_one_line(paragraph))


def _options(command: click.Command, context: click.Context, heading: str) -> Iterator[str]:
    records = [one.get_help_record(context) for one in command.get_params(context)]
    found = [one for one in records if one is not None]
    if not found:
        return
    yield heading
    for names, text in found:
        yield ".TP"
        yield rf"\fB{_text(names)}\fR"
        yield _text(_one_line(text)) or r"\&"


def _commands(
    command: click.Command, context: click.Context, words: tuple[str, ...], *, section: int
) -> Iterator[str]:
    """Of a program, names only, for each has a page; of a group, all about each."""
    if not isinstance(command, click.Group):
        return
    yield ".SH COMMANDS"
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        if len(words) == 1:
            yield ".TP"
            yield rf"\fB{_text('-'.join((*words, name)))}\fR({section})"
            yield _text(inner.get_short_help_str(200))
            continue
        inner_context = _context(inner, name, context)
        yield rf".SS {_text(' '.join((*words, name)))} {_pieces(inner, inner_context)}"
        yield from _paragraphs(inner.help or "")
        yield from _options(inner, inner_context, ".PP")


def _pieces(command: click.Command, context: click.Context) -> str:
    return _text(" ".join(command.collect_usage_pieces(context)))


def _table(heading: str, rows: tuple[tuple[str, str], ...]) -> Iterator[str]:
    if rows:
        yield heading
    for what, text in rows:
        yield ".TP"
        yield rf"\fB{_text(what)}\fR"
        yield _text(text)


def _see_also(program: Program, words: tuple[str, ...]) -> Iterator[str]:
    names = [f"{program.name}({program.section})"] if len(words) > 1 else []
    names += program.see_also
    if names:
        yield ".SH SEE ALSO"
        yield ", ".join(rf"\fB{_text(one.partition('(')[0])}\fR({one[-2]})" for one in names)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _text(text: str) -> str:
    """Text in which nothing is a request: backslashes, dashes, a dot or quote that comes first."""
    text = text.replace("\\", r"\e")
    text = _DASHED.sub(lambda found: found[1].replace("-", r"\-"), text)
    return rf"\&{text}" if text.startswith((".", "'")) else text
