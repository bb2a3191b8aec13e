"""zgatectl in this process, against the fake gateway on a real Unix socket."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result
from zgate_cli.main import cli

Run = Callable[..., Result]


@pytest.fixture
def zgatectl(live_gateway: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run zgatectl with the socket of the live gateway, 80 columns wide."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str, code: int = 0) -> Result:
        socket = ["--socket", str(live_gateway.socket_path)]
        result = CliRunner().invoke(cli, [*socket, *arguments], prog_name="zgatectl")
        assert result.exit_code == code, (result.output, result.exception)
        if code:
            assert "Traceback" not in result.output
        return result

    return run


@pytest.fixture
def zgatectl_json(zgatectl: Run) -> Callable[..., Any]:
    """Run zgatectl with --json and return what it printed."""

    def run(*arguments: str, code: int = 0) -> Any:
        return json.loads(zgatectl(*arguments, "--json", code=code).stdout)

    return run


@pytest.fixture
def fits() -> Callable[[Result], str]:
    """Return stdout, having checked that no line is wider than 80 columns, nor coloured."""

    def check(result: Result) -> str:
        assert "\x1b" not in result.stdout
        assert max(map(len, result.stdout.splitlines())) <= 80
        return result.stdout

    return check
