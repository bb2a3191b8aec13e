"""`make bench`: zgate beside OpenVPN and wireguard-go, on this machine, in one run."""

import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType

import click
from rich.console import Console
from zgate_lab.errors import LabError

from bench import facts, report
from bench.errors import BenchError
from bench.peers.peer import Step
from bench.peers.zgate import Zgate
from bench.results import Results, Settings
from bench.run import PEERS, SECTIONS, run_bench

RESULTS_DIRECTORY = Path(__file__).resolve().parent / "results"
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
# Piped into a file, the table keeps its columns.
WIDTH_WITHOUT_TERMINAL = 150
NAMES = [kind.name for kind in PEERS]
SECTION_NAMES = [section.name for section in SECTIONS]
QUICK = Settings(1, 2.0, offloads=True, steps=frozenset({Step.IDLE, Step.TCP}))


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--rounds", type=click.IntRange(1, 50), default=3, help="How often each peer runs.")
@click.option(
    "--seconds", type=click.FloatRange(2, 60), default=3.0, help="The length of each TCP flow."
)
@click.option("--only", type=click.Choice(NAMES), multiple=True, help="Just this peer; repeatable.")
@click.option(
    "--section",
    "chosen",
    type=click.Choice(["peers", *SECTION_NAMES]),
    multiple=True,
    help="Just this part; repeatable.",
)
@click.option("--quick", is_flag=True, help="zgate alone, one short round: for developers.")
@click.option(
    "--offloads/--no-offloads", default=True, help="Segmentation offloads of the veth links."
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS_DIRECTORY,
    help="Where the results go.",
)
def main(
    rounds: int,
    seconds: float,
    only: tuple[str, ...],
    chosen: tuple[str, ...],
    quick: bool,
    offloads: bool,
    output: Path,
) -> None:
    """Measure zgate beside its peers, and everything else that it has to reach.

    With --only the peers alone are measured, unless --section names more.
    """
    console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
    signal.signal(signal.SIGTERM, _interrupt)
    kinds = [kind for kind in PEERS if not only or kind.name in only]
    wanted = chosen or (("peers",) if only else ("peers", *SECTION_NAMES))
    settings = Settings(rounds, seconds, offloads)
    if quick:
        kinds, wanted, settings = [Zgate], ("peers",), QUICK
    sections = [section for section in SECTIONS if section.name in wanted]
    if "peers" not in wanted:
        kinds = []
    command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
    try:
        results = run_bench(console, settings, kinds, command, sections)
    except KeyboardInterrupt:
        click.echo("bench: interrupted; everything was removed, nothing was written", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except (BenchError, LabError) as error:
        click.echo(f"bench: {error}", err=True)
        sys.exit(EXIT_FAILED)
    report.show(console, results)
    if not quick:
        for file in write(results, output):
            console.print(f"written: {file}", highlight=False, soft_wrap=True)
    sys.exit(EXIT_FAILED if results.has_failures else 0)


def write(results: Results, directory: Path) -> list[Path]:
    """Write both files, named by date and commit; an earlier run's files stay."""
    directory.mkdir(parents=True, exist_ok=True)
    owner = directory.parent.stat()
    stem = f"{results.facts['date'].split()[0]}-{facts.commit()}"
    number, name = 1, stem
    while (directory / f"{name}.json").exists():
        number += 1
        name = f"{stem}-{number}"
    files = [directory / f"{name}.md", directory / f"{name}.json"]
    files[0].write_text(report.to_markdown(results))
    files[1].write_text(report.to_json(results))
    for path in (directory, *files):
        # Made by root, but in somebody's work tree.
        os.chown(path, owner.st_uid, owner.st_gid)
    return files


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main(prog_name="python -m bench")
