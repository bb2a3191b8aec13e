"""What is printed with --json is what docs/schemas say, for every command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel
from zgate_cli import answers
from zgate_cli.json_schemas import ANSWERS, file_name_of, schema_of
from zgate_cli.main import cli

FOLDER = Path(__file__).parents[3] / "docs" / "schemas"


def commands(command: click.Command, *words: str) -> list[str]:
    if not isinstance(command, click.Group):
        has_json = any("--json" in one.opts for one in command.params)
        return [" ".join(words)] if has_json else []
    context = click.Context(command)
    found = []
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        found += commands(inner, *words, name)
    return found


def test_every_command_has_a_model() -> None:
    assert set(commands(cli)) == set(ANSWERS)


@pytest.mark.parametrize("command", sorted(ANSWERS))
def test_the_files_are_as_the_code_is(command: str) -> None:
    """Else: run tools/cli_schemas.py, and look at what has changed for whoever reads it."""
    written = json.loads((FOLDER / file_name_of(command)).read_text())
    assert written == schema_of(command)


def test_no_file_is_left_over() -> None:
    assert {one.name for one in FOLDER.glob("*.json")} == {file_name_of(one) for one in ANSWERS}


def run(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(cli, [*arguments, "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def assert_fits(value: Any, model: type[BaseModel]) -> None:
    """Exactly the model's keys, with values that it takes."""
    assert set(value) == set(model.model_fields)
    model.model_validate(value)


def test_pki_prints_what_its_models_say(tmp_path: Path) -> None:
    folder = ["--dir", str(tmp_path / "pki")]
    assert_fits(run("pki", "init", *folder), answers.AuthorityMade)
    issued = run("pki", "issue", "alice", "--group", "staff", *folder)
    assert_fits(issued, answers.CertificateIssued)
    assert_fits(issued["files"], answers.CertificateFiles)
    (listed,) = run("pki", "list", *folder)
    assert_fits(listed, answers.CertificateAnswer)
    revoked = run("pki", "revoke", "alice", *folder)
    assert_fits(revoked, answers.CertificatesRevoked)
    assert_fits(revoked["revoked"][0], answers.CertificateAnswer)
    assert_fits(run("pki", "crl", *folder), answers.AuthorityAnswer)


def test_audit_prints_what_its_model_says(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    log.write_text('{"seq": 1}\n')
    report = run("audit", "verify", str(log), code=1)
    assert_fits(report, answers.AuditReport)
    assert_fits(report["findings"][0], answers.AuditFinding)


def test_the_document_lists_all() -> None:
    text = (FOLDER.parent / "cli-json.md").read_text()
    for command in ANSWERS:
        name = file_name_of(command)
        assert f"| `zgatectl {command}` | [{name}](schemas/{name}) |" in text
