"""Completion scripts, and completion of client names."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from zgate_cli.main import cli


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts(shell: str) -> None:
    result = CliRunner().invoke(cli, ["completion", shell])
    assert result.exit_code == 0
    assert "_ZGATECTL_COMPLETE" in result.stdout and "zgatectl" in result.stdout


def test_an_unknown_shell() -> None:
    assert CliRunner().invoke(cli, ["completion", "tcsh"]).exit_code == 2


def complete(arguments: list[str], incomplete: str) -> list[str]:
    shell = ShellComplete(cli, {}, "zgatectl", "_ZGATECTL_COMPLETE")
    return [item.value for item in shell.get_completions(arguments, incomplete)]


def test_client_names_come_from_the_gateway(
    live_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket = str(live_gateway.socket_path)
    assert complete(["kick", "--socket", socket], "") == ["client-1", "never-seen"]
    assert complete(["--socket", socket, "kick"], "cl") == ["client-1"]
    monkeypatch.setenv("ZGATE_SOCKET", socket)
    assert complete(["why"], "n") == ["never-seen"]


def test_connectors_come_from_the_gateway(live_gateway: Any, tmp_path: Path) -> None:
    socket = str(live_gateway.socket_path)
    assert complete(["drain", "--socket", socket], "site-") == ["site-a", "site-b"]
    assert complete(["drain", "--socket", str(tmp_path / "none")], "") == []


def test_without_a_gateway_nothing_is_offered(tmp_path: Path) -> None:
    assert complete(["kick", "--socket", str(tmp_path / "none")], "") == []


def test_commands_are_completed() -> None:
    assert complete([], "s") == ["status", "sessions", "services"]
    assert complete(["policy"], "") == [
        "apply",
        "check",
        "diff",
        "history",
        "reload",
        "rollback",
        "show",
        "test",
    ]


COMPLETE_IN_BASH = """
eval "$(zgatectl completion bash)"
COMP_WORDS=(zgatectl {words}) COMP_CWORD={count}
_zgatectl_completion zgatectl
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def in_bash(words: str) -> list[str]:
    """What bash offers for the last of these words."""
    programs = Path(sys.executable).parent
    script = COMPLETE_IN_BASH.format(words=words, count=len(words.split()))
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True, text=True, check=True, timeout=60,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
    )  # fmt: skip
    return done.stdout.split()


def test_bash_itself(live_gateway: Any) -> None:
    assert in_bash("sess") == ["sessions"]
    assert in_bash("net") == ["netcheck"]
    assert in_bash(f"--socket {live_gateway.socket_path} ping cl") == ["client-1"]
    assert in_bash("top --sort ra") == ["rate"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_what_other_shells_ask_for(shell: str, live_gateway: Any) -> None:
    """By the protocol between their scripts and the program."""
    words = f"zgatectl --socket {live_gateway.socket_path} kick cl"
    asked = {"COMP_WORDS": words, "COMP_CWORD": "cl" if shell == "fish" else "4"}
    done = subprocess.run(
        [sys.executable, "-m", "zgate_cli.main"],
        capture_output=True, text=True, check=True, timeout=60,
        env={**os.environ, **asked, "_ZGATECTL_COMPLETE": f"{shell}_complete"},
    )  # fmt: skip
    assert "client-1" in done.stdout and "never-seen" not in done.stdout
