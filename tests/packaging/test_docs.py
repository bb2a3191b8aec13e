"""The documents say what is true: links, files, functions, commands, names and tables are checked.

Nothing here reads prose. What can be wrong by itself, when somebody renames or adds something,
is compared with the code.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKET_FLOW = DOCS / "packet-flow.md"
OPERATIONS = DOCS / "operations.md"
ARCHITECTURE = DOCS / "architecture.md"

PROGRAMS = ("zgatectl", "zgate-gateway", "zgate-agent", "zgate-connector")
SOURCE = r"[\w.-]+(?:/[\w.-]+)*/[\w-]+\.(?:py|c|h|md|toml|txt|sh)"
# What a document may name: places of an installed zgate and paths of its HTTP API, never a
# directory of the machine on which somebody wrote it.
KNOWN_ROOTS = {
    *("etc", "var", "run", "dev", "proc", "sys", "usr"),
    *("health", "ready", "metrics", "openapi.json", "v1", ".well-known"),
}


def documents() -> list[Path]:
    found = [
        path
        for path in ROOT.rglob("*.md")
        if not any(part.startswith(".") or part == "build" for part in path.relative_to(ROOT).parts)
    ]
    assert len(found) > 10
    return sorted(found)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


every_document = pytest.mark.parametrize("document", documents(), ids=name_of)


@dataclass(frozen=True)
class Block:
    """A fenced code block."""

    document: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{name_of(self.document)}:{self.line}"


def blocks(document: Path) -> Iterator[Block]:
    language, start, lines = None, 0, list[str]()
    for number, line in enumerate(document.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            if language is None:
                language, start, lines = line.strip("` \t"), number, []
            else:
                yield Block(document, start, language, "\n".join(lines) + "\n")
                language = None
        elif language is not None:
            lines.append(line)
    assert language is None, f"{name_of(document)}:{start}: the code block has no end"


def prose(document: Path) -> str:
    return re.sub(r"^\s*```.*?^\s*```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)


# Links.


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@every_document
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"[a-z]+:", target):
            assert target.startswith(("https://", "mailto:")), target
            continue
        file, _, anchor = target.partition("#")
        path = (document.parent / file).resolve() if file else document
        assert path.exists(), f"{name_of(document)}: there is no {target}"
        assert path.is_relative_to(ROOT), f"{name_of(document)}: {target} is outside"
        if anchor:
            assert anchor in anchors(path), f"{name_of(document)}: no heading for {target}"


def test_every_decision_is_in_the_index() -> None:
    index = (DOCS / "adr" / "README.md").read_text()
    decisions = sorted(path.name for path in (DOCS / "adr").glob("[0-9]*.md"))
    assert re.findall(r"\]\(([0-9][^)]+)\)", index) == decisions
    for number, name in enumerate(decisions, 1):
        assert name.startswith(f"{number:04}-")
        assert (DOCS / "adr" / name).read_text().startswith(f"# {number}. ")


# Files, tests and functions that are named.


@every_document
def test_files_that_are_named_exist(document: Path) -> None:
    if document.name == "rfc9484-conformance.md":
        return  # it has a test of its own, beside the protocol's
    for path in re.findall(rf"`({SOURCE})(?:::[\w\[\]-]+)?`", prose(document)):
        if re.search(r"[A-Z]{2,}[-_][A-Z]{2,}", path):
            continue  # stands for a name, as DATE-COMMIT does
        assert (ROOT / path).is_file() or (document.parent / path).is_file(), (
            f"{name_of(document)} names {path}, which is not there"
        )


def test_tests_that_the_threat_model_names_exist() -> None:
    named = re.findall(r"`(tests/[\w/.]+\.py)::(\w+)`", (DOCS / "threat-model.md").read_text())
    assert named
    for path, test in named:
        there = {name.rpartition(".")[2] for name in definitions(ROOT / path)}
        assert test in there, f"{path} has no {test}"


def definitions(path: Path) -> set[str]:
    """Functions, and methods as Class.method, that a Python or C file defines."""
    text = path.read_text()
    if path.suffix != ".py":
        return set(re.findall(r"^[\w *]*?\b(\w+)\([^;{}]*\)\s*\{", text, flags=re.MULTILINE))
    found = set[str]()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found.update(
                f"{node.name}.{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
            )
    return found


def passages(document: Path) -> Iterator[str]:
    """Paragraphs, list items and table rows."""
    for paragraph in re.split(r"\n\s*\n", prose(document)):
        yield from re.split(r"\n(?=\s*(?:[-|]|\d+\.) )", paragraph)


def test_functions_of_the_packets_way_are_where_it_says() -> None:
    checked = 0
    for passage in passages(PACKET_FLOW):
        functions = re.findall(r"`([A-Za-z_][\w.]*)\(\)`", passage)
        files = [ROOT / path for path in re.findall(rf"`({SOURCE})`", passage)]
        if not functions:
            continue
        assert files, f"no file is named beside {functions}"
        there = set[str]().union(*(definitions(file) for file in files))
        for function in functions:
            assert function in there, f"{function}() is in none of {[str(f) for f in files]}"
            checked += 1
    assert checked > 30


# Commands.


def command_lines() -> Iterator[Any]:
    for document in documents():
        for block in blocks(document):
            if block.language in ("console", "sh", "bash", "shell"):
                for line in block.text.replace("\\\n", " ").splitlines():
                    found = re.match(
                        rf"[$#]?\s*(?:sudo )?(?:\.venv/bin/)?({'|'.join(PROGRAMS)})\b(.*)", line
                    )
                    if found:
                        words = shlex.split(found[2], comments=True)
                        yield pytest.param(found[1], words, id=f"{block}: {line.strip()}")


def leaves(command: click.Command) -> Iterator[click.Command]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from leaves(inner)
    if not isinstance(command, click.Group) or command.invoke_without_command:
        yield command


def click_command(program: str) -> click.Command:
    """The click command behind a console script: its entry point, or what that calls."""
    (script,) = entry_points(group="console_scripts", name=program)
    module = import_module(script.module)
    candidates = [script.load(), getattr(module, "cli", None)]
    return next(one for one in candidates if isinstance(one, click.Command))


@pytest.mark.parametrize(("program", "words"), list(command_lines()))
def test_commands_are_ones_that_the_programs_take(
    program: str, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = click_command(program)
    for leaf in leaves(command):
        monkeypatch.setattr(leaf, "callback", lambda **_: None)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0, result.output


def test_readme_shows_commands_of_every_program() -> None:
    shown = "".join(block.text for block in blocks(ROOT / "README.md"))
    for program in PROGRAMS:
        assert re.search(rf"bin/{program}\b", shown)


@every_document
def test_make_targets_that_are_named_exist(document: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for target in re.findall(r"(?:^|`|\s&& )make ([\w-]+)", document.read_text(), re.MULTILINE):
        assert target in targets, f"{name_of(document)}: make {target}"


# Configuration files.


def yaml_blocks(first_line: str) -> list[Any]:
    return [
        pytest.param(block, id=str(block))
        for document in documents()
        for block in blocks(document)
        if block.language == "yaml" and block.text.startswith(first_line)
    ]


@pytest.mark.parametrize("block", yaml_blocks("# /etc/zgate/policy.yaml"))
def test_policies_can_be_loaded(block: Block) -> None:
    from zgate_gateway.policy.check import check_policy
    from zgate_gateway.policy.policy_set import PolicySet

    # A note is about what there is: a pattern of services of which none is there yet.
    findings = check_policy(PolicySet.parse(block.text))
    assert [finding for finding in findings if not finding.is_note] == []


def rooted(value: Any, root: Path) -> Any:
    """The same configuration with its files below `root`, where they then exist."""
    if isinstance(value, dict):
        return {key: rooted(inner, root) for key, inner in value.items()}
    if isinstance(value, str) and value.startswith("/"):
        path = root / value[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return str(path)
    return value


@pytest.mark.parametrize(
    "block",
    [
        block
        for name in ("gateway", "agent", "connector")
        for block in yaml_blocks(f"# /etc/zgate/{name}.yaml")
    ],
)
def test_configurations_can_be_loaded(block: Block, tmp_path: Path) -> None:
    from zgate_agent.config import load_config as load_agent_config
    from zgate_connector.config import load_config as load_connector_config
    from zgate_gateway.config import load_config as load_gateway_config

    file = tmp_path / "etc/zgate/config.yaml"
    file.parent.mkdir(parents=True)
    for name in ("policy.yaml", "ca.crt", "crl.pem"):
        (file.parent / name).touch()
    file.write_text(yaml.safe_dump(rooted(yaml.safe_load(block.text), tmp_path)))
    if "gateway.yaml" in block.text.splitlines()[0]:
        load_gateway_config(file)
    elif "connector.yaml" in block.text.splitlines()[0]:
        load_connector_config(file, {})
    else:
        load_agent_config(file, {})


# Tables that must be complete.


def first_cells(document: Path, heading: str) -> set[str]:
    """The code words in the first column of the tables below a heading."""
    text = prose(document)
    start = text.index(f"\n{heading}\n") + len(heading) + 2
    section = re.split(r"^#{1,2} ", text[start:], flags=re.MULTILINE)[0]
    rows = re.findall(r"^\| (`[^|]*)\|", section, flags=re.MULTILINE)
    return {word for row in rows for word in re.findall(r"`([^`]+)`", row)}


def test_drop_reasons_are_told() -> None:
    from zgate_protocol.drop_reason import DropReason

    named = {reason.name for reason in DropReason if reason}
    assert first_cells(OPERATIONS, "## Why packets are dropped") == named


def test_refusal_reasons_are_told() -> None:
    from zgate_identity.refusal import RefusalReason

    told = first_cells(OPERATIONS, "## Why clients are refused")
    assert told >= {str(reason) for reason in RefusalReason}


def test_audit_events_are_told() -> None:
    from zgate_gateway.audit import AuditEvent

    assert first_cells(OPERATIONS, "## The audit log") == {str(event) for event in AuditEvent}


def test_metrics_are_told() -> None:
    from zgate_gateway.metrics.collector import make_registry
    from zgate_gateway.metrics.snapshot import MetricsSnapshot

    snapshot = MetricsSnapshot("0", "python", ready=True, started_at_s=1)
    suffix = {"counter": "_total", "info": "_info"}
    collected = {
        family.name + suffix.get(family.type, "") for family in make_registry(snapshot).collect()
    }
    assert first_cells(DOCS / "metrics.md", "## All metrics") == collected


def test_the_configuration_is_told() -> None:
    from zgate_gateway.config import GatewayConfig

    assert first_cells(OPERATIONS, "## The gateway's configuration") == set(
        GatewayConfig.model_fields
    )


def imports_of(package: Path) -> set[str]:
    """Which of our packages the modules of one import."""
    found = set[str]()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return {name for name in found if name.startswith("zgate_")} - {package.name}


def test_who_imports_whom_is_as_the_architecture_says() -> None:
    rows = re.findall(r"^\| `(zgate_\w+)` \|.*\|([^|]*)\|$", ARCHITECTURE.read_text(), re.MULTILINE)
    told = {name: set(re.findall(r"zgate_\w+", imports)) for name, imports in rows}
    packages = {path.parent.name: path.parent for path in ROOT.glob("*/zgate_*/__init__.py")}
    assert told == {name: imports_of(path) for name, path in packages.items()}


# Where it was written.


@every_document
def test_no_path_of_the_writers_machine(document: Path) -> None:
    for path in re.findall(r"(?<![\w./:~*)\]<{}\"-])/([A-Za-z][\w.-]*)", document.read_text()):
        assert path in KNOWN_ROOTS or path.startswith("."), f"{name_of(document)}: /{path}"
