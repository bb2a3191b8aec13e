"""Manual pages of all programs: ``python -m zgate_cli.manual_pages FOLDER`` writes them.

The folder gets ``man1`` and ``man8``, as below /usr/share/man. The pages' date is that of
SOURCE_DATE_EPOCH, or of the last change: the same sources give the same pages.
"""

import os
import subprocess
import sys
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

import click

from .findings import zgate_version
from .manual import Program, pages_of

_ASKING = (
    ("0", "done"),
    ("1", "it could not be done, or a check has failed"),
    ("2", "bad input"),
    ("3", "zgatectl why: the kernel and the policy disagree"),
    ("4", "the gateway cannot be reached"),
)
_RUNNING = (("0", "ended as asked"), ("1", "failed"), ("2", "the configuration is no good"))


def command_of(module: str, name: str) -> click.Command:
    """A program's click command."""
    found = getattr(import_module(module), name)
    assert isinstance(found, click.Command)
    return found


def programs() -> list[Program]:
    """All of them."""
    return [
        Program(
            "zgatectl",
            1,
            command_of("zgate_cli.main", "cli"),
            exit_codes=_ASKING,
            files=(("/run/zgate/gateway.sock", "the gateway's socket"),),
            environment=(
                ("ZGATE_SOCKET", "the gateway's socket, where --socket does not name it"),
                ("NO_COLOR", "no colours, whatever the terminal can"),
                ("COLUMNS", "how wide tables are"),
            ),
            see_also=("zgate-gateway(8)", "zgate-agent(8)", "zgate-connector(8)"),
        ),
        _daemon("zgate-gateway", "zgate_gateway.main", "/etc/zgate/gateway.yaml"),
        _daemon("zgate-agent", "zgate_agent.main", "/etc/zgate/agent.yaml"),
        _daemon("zgate-connector", "zgate_connector.main", "/etc/zgate/connector.yaml"),
    ]


def _daemon(name: str, module: str, configuration: str) -> Program:
    loaded = import_module(module)
    found = getattr(loaded, "cli", None) or loaded.main
    assert isinstance(found, click.Command)
    return Program(
        name,
        8,
        found,
        exit_codes=_RUNNING,
        files=((configuration, "its configuration"),),
        see_also=("zgatectl(1)",),
    )


def date() -> str:
    """When the sources were changed last."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        asked = subprocess.run(
            ["git", "-C", Path(__file__).parent, "log", "-1", "--format=%ct"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        epoch = asked.stdout.strip() or "0"
    return f"{datetime.fromtimestamp(int(epoch), UTC):%F}"


def write(folder: Path) -> list[Path]:
    """Write all pages; their files."""
    written = []
    for program in programs():
        for page in pages_of(program, zgate_version(), date()):
            file = folder / f"man{page.section}" / page.file_name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(page.text)
            written.append(file)
    return written


def main() -> None:
    """Write them where the command line says."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER")
    sys.stdout.write(f"{sys.argv[1]}: {len(write(Path(sys.argv[1])))} pages\n")


if __name__ == "__main__":
    main()
