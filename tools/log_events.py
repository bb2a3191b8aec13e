"""All events that the daemons log, from the source: writes the table of docs/logs.md.

A call is `logger.LEVEL("text with %(field)s", {"event": "name", "field": value})`; what is written
otherwise is a mistake that this names.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "gateway",
    "agent",
    "connector",
    "datapath",
    "host",
    "identity",
    "control",
    "config",
    "bpf",
)
LEVELS = ("debug", "info", "warning", "error", "exception", "critical", "log")
BEGIN, END = "<!-- events -->\n", "<!-- end of events -->\n"
_IS_LOGGER = re.compile(r"_?log(ger)?|logging(\.getLogger\(.*\))?", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"%\((\w+)\)")


@dataclass
class Event:
    """One event, of one package."""

    levels: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)
    texts: list[str] = field(default_factory=list)


class BadCall(Exception):
    """A call that is not of the form."""


def calls(path: Path) -> Iterator[ast.Call]:
    """Every call of a module's logger."""
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in LEVELS
            and _IS_LOGGER.fullmatch(ast.unparse(node.func.value))
        ):
            yield node


def parse(call: ast.Call) -> tuple[str, str, set[str], str]:
    """A call's event, level, fields and text.

    Raises:
        BadCall: it has another form.
    """
    assert isinstance(call.func, ast.Attribute)
    level, arguments = call.func.attr, call.args
    if level == "log":
        level, arguments = "varies", arguments[1:]
    match arguments:
        case [ast.Constant(value=str(text)), ast.Dict(keys=keys, values=values)]:
            pass
        case _:
            raise BadCall('wants a text and one dict with "event" and the fields')
    names = [key.value if isinstance(key, ast.Constant) else None for key in keys]
    if not names or names[0] != "event" or not isinstance(values[0], ast.Constant):
        raise BadCall('the dict begins with "event" and its name')
    fields = {str(name) for name in names[1:]}
    if unknown := set(_PLACEHOLDER.findall(text)) - fields:
        raise BadCall(f"the text names {', '.join(sorted(unknown))}, which is no field")
    return str(values[0].value), {"exception": "error"}.get(level, level), fields, text


def collect() -> dict[tuple[str, str], Event]:
    """All events, by package and name.

    Raises:
        BadCall: a call has another form; says where.
    """
    events: dict[tuple[str, str], Event] = defaultdict(Event)
    for package in PACKAGES:
        for path in sorted((ROOT / package).glob("zgate_*/**/*.py")):
            for call in calls(path):
                try:
                    name, level, fields, text = parse(call)
                except BadCall as error:
                    where = f"{path.relative_to(ROOT)}:{call.lineno}"
                    raise BadCall(f"{where}: {error}") from None
                event = events[package, name]
                event.levels.add(level)
                event.fields |= fields
                event.texts.append(
                    _PLACEHOLDER.sub(r"<\1>", re.sub(r"(\))[.\d]*[a-z]", r"\1", text))
                )
    return events


def table() -> str:
    """The events as a table for each package."""
    lines: list[str] = []
    package_before = ""
    for (package, name), event in sorted(collect().items()):
        if package != package_before:
            lines += ["", f"### {package}", "", "| Event | Level | Fields | |", "|---|---|---|---|"]
            package_before = package
        fields = ", ".join(f"`{one}`" for one in sorted(event.fields))
        texts = "; ".join(dict.fromkeys(one.replace("|", "\\|") for one in event.texts))
        lines.append(f"| `{name}` | {', '.join(sorted(event.levels))} | {fields} | {texts} |")
    return "\n".join(lines) + "\n\n"


def main() -> None:
    """Write the table into docs/logs.md."""
    page = ROOT / "docs/logs.md"
    head, rest = page.read_text().split(BEGIN)
    tail = rest.split(END)[1]
    try:
        page.write_text(head + BEGIN + table() + END + tail)
    except BadCall as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
