"""What an installed zgate has in /usr/bin."""

from importlib.metadata import entry_points, version

import click
import pytest
from click.testing import CliRunner

PROGRAMS = [
    script
    for script in entry_points(group="console_scripts")
    if script.dist and script.dist.name == "zgate"
]


def test_there_are_four() -> None:
    assert {script.name for script in PROGRAMS} == {
        "zgatectl",
        "zgate-gateway",
        "zgate-agent",
        "zgate-connector",
    }


@pytest.mark.parametrize("script", PROGRAMS, ids=lambda script: script.name)
def test_each_says_its_version(script) -> None:
    loaded = script.load()
    # zgatectl's entry point is a function around its command.
    command = loaded if isinstance(loaded, click.Command) else None
    if command is None:
        from zgate_cli.main import cli as command
    result = CliRunner().invoke(command, ["--version"])
    assert result.output == f"{script.name}, version {version('zgate')}\n"
    assert result.exit_code == 0
