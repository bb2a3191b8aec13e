"""Manual pages: one for each command, readable by man without a complaint."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from zgate_cli.main import cli
from zgate_cli.manual import Program, pages_of
from zgate_cli.manual_pages import write


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write(tmp_path_factory.mktemp("man"))


def test_every_command_has_a_page(pages: list[Path]) -> None:
    names = {one.name for one in pages}
    commands = cli.list_commands(click.Context(cli))
    assert names >= {"zgatectl.1", *(f"zgatectl-{one}.1" for one in commands)}
    assert names >= {"zgate-gateway.8", "zgate-agent.8", "zgate-agent-run.8", "zgate-connector.8"}
    assert {one.parent.name for one in pages} == {"man1", "man8"}


def test_pages_that_are_named_are_there(pages: list[Path]) -> None:
    there = {one.name for one in pages}
    for page in pages:
        for name, section in re.findall(r"\\fB(zgate[\w\\-]*)\\fR\((\d)\)", page.read_text()):
            plain = name.replace("\\", "")
            assert f"{plain}.{section}" in there, page.name


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff formats manual pages")
def test_man_has_nothing_to_complain_of(pages: list[Path]) -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", *pages],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""


def test_a_page_says_what_help_says(pages: list[Path]) -> None:
    (page,) = [one for one in pages if one.name == "zgatectl-netcheck.1"]
    text = page.read_text().replace(r"\-", "-")
    help_text = CliRunner().invoke(cli, ["netcheck", "--help"]).output
    for option in ("--gateway", "--probes", "--timeout", "--strict", "--json", "--socket"):
        assert option in help_text and option in text
    assert ".SH EXIT STATUS" in text and "zgatectl" in text


def test_commands_of_a_group_are_on_its_page(pages: list[Path]) -> None:
    (page,) = [one for one in pages if one.name == "zgatectl-pki.1"]
    text = page.read_text().replace(r"\-", "-")
    for words in ("zgatectl pki issue", "zgatectl pki revoke", "--days", "--replace"):
        assert words in text


def test_text_is_never_a_request() -> None:
    @click.command(help="'quoted\n\n.so /etc/passwd \\n and --long-option a-b")
    def command() -> None:
        """Nothing."""

    (page,) = pages_of(Program("x", 1, command), "1", "2026-01-01")
    assert r"\&.so /etc/passwd \en and \-\-long-option a-b" in page.text.splitlines()
    requests = {one.split()[0] for one in page.text.splitlines() if one.startswith((".", "'"))}
    assert requests <= {".TH", ".SH", ".B", ".PP", ".TP"}
