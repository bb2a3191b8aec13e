"""The command line itself: help, options, exit codes, and how quickly it starts."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from zgate_cli import main as main_module
from zgate_cli.main import cli
from zgate_cli.options import DEFAULT_SOCKET, SOCKET_VARIABLE, Invocation, gateway_command


def leaves(command: click.Command, *path: str) -> list[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        return [(path, command)]
    context = click.Context(command)
    found = []
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        assert child is not None
        found += leaves(child, *path, name)
    return found


def test_every_command_of_the_table_exists_and_has_json() -> None:
    commands = dict(leaves(cli))
    names = {" ".join(path) for path in commands}
    assert names >= {
        "status",
        "sessions",
        "clients",
        "policy show",
        "policy check",
        "policy reload",
        "kick",
        "why",
        "pki init",
        "pki issue",
        "pki revoke",
        "pki list",
    }
    for path, command in commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert "--json" in options or path == ("completion",), path


@pytest.mark.parametrize("path", [path for path, _ in leaves(cli)])
def test_every_command_has_help(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli, [*path, "--help"])
    assert result.exit_code == 0 and "Usage:" in result.output


def test_help_and_version_import_nothing_heavy() -> None:
    heavy = ["httpx", "pydantic", "rich", "cryptography", "fastapi", "sqlalchemy", "yaml"]
    script = (
        "import sys; from zgate_cli.main import cli\n"
        "cli(['--help'], standalone_mode=False)\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [["nonsense"], ["status", "extra"], ["--nonsense"]])
def test_usage_errors(arguments: list[str]) -> None:
    assert CliRunner().invoke(cli, arguments).exit_code == 2


def socket_seen(arguments: list[str], **environment: str) -> Invocation:
    seen: list[Invocation] = []

    @click.command()
    @gateway_command
    def probe(invocation: Invocation) -> None:
        seen.append(invocation)

    root = click.Group("zgatectl", {"probe": probe}, callback=cli.callback, params=cli.params)
    result = CliRunner().invoke(root, arguments, env={SOCKET_VARIABLE: None, **environment})
    assert result.exit_code == 0, result.output
    return seen[0]


def test_socket_and_json_before_or_after_the_command() -> None:
    assert socket_seen(["probe"]) == Invocation(DEFAULT_SOCKET, as_json=False)
    assert socket_seen(["probe"], **{SOCKET_VARIABLE: "/e"}).socket_path == Path("/e")
    both = ["--socket", "/a", "probe"]
    assert socket_seen(both, **{SOCKET_VARIABLE: "/e"}).socket_path == Path("/a")
    assert socket_seen([*both, "--socket", "/b"]).socket_path == Path("/b")
    assert socket_seen(["--json", "probe"]).as_json
    assert socket_seen(["probe", "--json"]).as_json


def test_main_runs_as_zgatectl(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--version"])
    with pytest.raises(SystemExit) as ended:
        main_module.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("zgatectl, version ")


def test_a_reader_that_leaves_is_no_traceback(live_gateway: Any) -> None:
    program = [sys.executable, "-c", "from zgate_cli.main import main; main()"]
    socket = ["--socket", str(live_gateway.socket_path)]
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [*program, *socket, "status"],
        check=False,
        stdout=write_end,
        stderr=subprocess.PIPE,
        timeout=30,
    )
    os.close(write_end)
    assert done.returncode == 1 and done.stderr == b""


@pytest.mark.parametrize(
    "arguments",
    [
        ("drain", "--deadline", "nan"), ("ping", "alice", "-i", "nan"),
        ("top", "--json", "-i", "nan"), ("netcheck", "--timeout", "nan"),
        ("ping", ""), ("kick", ""), ("kick", "a\x1b[31m"), ("ping", "x" * 65),
    ],
)  # fmt: skip
def test_bad_input_is_told_without_a_gateway(arguments: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli, ["--socket", "/nobody/is/here", *arguments])
    assert done.exit_code == 2, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert "\x1b" not in done.output
