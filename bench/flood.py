"""A flood of junk at the gateway's port beside a TCP flow: `python -m bench.flood`.

Four conditions, interleaved in each round, with the edge in both modes and without it:

    calm     the flow alone
    control  the same generator at the same rate into a veth that leads nowhere: what the
             generator itself takes of this machine's cores
    flood    the generator at the gateway's port
    after    while it goes on, a new client connects: how long it takes

Kept is flood / calm; the edge's own price is flood / control.
"""

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import click
from rich.console import Console
from rich.table import Table
from zgate_lab.errors import LabError
from zgate_lab.flood import KINDS, READY
from zgate_lab.lab import Namespace, Port
from zgate_lab.process import Process

from bench import facts
from bench.errors import BenchError
from bench.hosts import SERVER, UPLINK, Hosts
from bench.load.tcp import Direction, run_tcp
from bench.peers.zgate import BIN, GATEWAY_FILE, Zgate

RESULTS_DIRECTORY = Path(__file__).resolve().parent / "results"
TARGET_KEPT = 0.8
SETTINGS = {"native": ("on", "native"), "generic": ("on", "generic"), "no edge": ("off", "auto")}
EXTRA_S = 3.0
WAIT_S = 20.0
NOWHERE = "flood0"


class FloodedZgate(Zgate):
    """zgate with the edge on the uplink, or without it."""

    edge_enabled = "on"
    edge_mode = "native"

    def start(self) -> None:
        if self._has_files:
            self._write(GATEWAY_FILE, self._gateway_config())
        super().start()

    def _gateway_config(self) -> dict[str, object]:
        edge = {"enabled": self.edge_enabled, "mode": self.edge_mode, "interface": "uplink"}
        return {**super()._gateway_config(), "edge": edge}

    def edge_line(self) -> str:
        """What zgatectl says of it."""
        done = self.hosts.gateway.run(
            BIN / "zgatectl", "--socket", self._file("gateway.sock"), "status"
        )
        found = re.search(r"^edge +(.*)$", done.stdout, re.MULTILINE)
        return found[1].strip() if found else "-"

    def reconnect_s(self) -> float:
        """How long a client takes that connects now: the agent is ended and started."""
        agent = self._processes[-1]
        agent.stop()
        start_s = time.monotonic()
        self._starts += 1
        self._spawn(self.hosts.client, "zgate-agent", *agent.argv[-4:])
        self._wait_for_answer()
        return time.monotonic() - start_s


@dataclass(slots=True)
class Found:
    """What was measured under one setting of the edge; Mbit/s, packets per second, seconds."""

    flows: dict[str, list[float]] = field(default_factory=dict)
    offered: list[float] = field(default_factory=list)
    generator_cores: list[float] = field(default_factory=list)
    connect_s: list[float] = field(default_factory=list)
    edge: str = "-"

    def ratio(self, above: str, below: str) -> float:
        """Of the medians."""
        base = median(self.flows[below])
        return median(self.flows[above]) / base if base else 0.0


def mac_of(namespace: Namespace, interface: str) -> str:
    """The hardware address of an interface."""
    found = re.search(r"link/ether (\S+)", namespace.run("ip", "link", "show", interface).stdout)
    if found is None:
        raise BenchError(f"{interface} has no hardware address")
    return found[1]


@contextmanager
def flooding(
    client: Namespace, interface: str, mac: str, rate: int, seconds: float
) -> Iterator[Process]:
    """The generator runs during the block, and ends with it."""
    process = client.spawn(
        "flood",
        *(sys.executable, "-m", "zgate_lab.flood", interface, mac, str(UPLINK.ip)),
        *("--rate", str(rate), "--seconds", f"{seconds:g}", "--kinds", ",".join(KINDS)),
    )
    try:
        process.wait_for_output(READY, WAIT_S)
        yield process
    finally:
        process.kill()


def prepare(hosts: Hosts) -> None:
    """What the generator needs: links that take its frames, and one that leads nowhere."""
    # A veth takes the generator's frames where GRO is on, edge or not.
    hosts.gateway.run("ethtool", "-K", "uplink", "gro", "on")
    sink = hosts.lab.add_namespace("nowhere")
    hosts.lab.connect(Port(hosts.client, NOWHERE), Port(sink, "eth0"))
    sink.run("ethtool", "-K", "eth0", "gro", "on")


def measure(hosts: Hosts, peer: FloodedZgate, found: Found, rate: int, seconds: float) -> None:
    """One round under one setting."""

    def flow(name: str) -> None:
        result = run_tcp(hosts.client, hosts.server, SERVER.ip, Direction.UP, seconds)
        found.flows.setdefault(name, []).append(result.bits_per_s / 1e6)

    with peer.running():
        flow("calm")
        nowhere = mac_of(hosts.client, NOWHERE)
        with flooding(hosts.client, NOWHERE, nowhere, rate, seconds + EXTRA_S):
            flow("control")
        target = mac_of(hosts.gateway, "uplink")
        with flooding(hosts.client, "eth0", target, rate, seconds + EXTRA_S) as generator:
            flow("flood")
            generator.wait(WAIT_S)
            said = json.loads(generator.output().splitlines()[-1])
        found.offered.append(said["rate_per_s"])
        found.generator_cores.append(said["cpu_seconds"] / said["seconds"])
        with flooding(hosts.client, "eth0", target, rate, WAIT_S):
            found.connect_s.append(peer.reconnect_s())
        found.edge = peer.edge_line()


def show(console: Console, settings: dict[str, Found]) -> bool:
    """The table; whether the edge keeps what it has to."""
    table = Table("", *settings)
    for name in ("calm", "control", "flood"):
        table.add_row(
            f"TCP up, {name} (Mbit/s)", *(f"{median(f.flows[name]):.0f}" for f in settings.values())
        )
    table.add_row(
        "kept: flood / calm", *(f"{f.ratio('flood', 'calm'):.2f}" for f in settings.values())
    )
    table.add_row(
        "flood / control", *(f"{f.ratio('flood', 'control'):.2f}" for f in settings.values())
    )
    table.add_row("offered (packets/s)", *(f"{median(f.offered):.0f}" for f in settings.values()))
    table.add_row(
        "generator (cores)", *(f"{median(f.generator_cores):.2f}" for f in settings.values())
    )
    table.add_row(
        "new client connects (s)", *(f"{median(f.connect_s):.1f}" for f in settings.values())
    )
    console.print(table)
    for title, found in settings.items():
        console.print(f"{title}: {found.edge}", highlight=False)
    kept = settings["native"].ratio("flood", "calm")
    console.print(f"{'✔ met' if kept >= TARGET_KEPT else '✘ missed'}: at least {TARGET_KEPT:g}")
    return kept >= TARGET_KEPT


@click.command()
@click.option("--rate", type=click.IntRange(1000, 2_000_000), default=500_000, show_default=True)
@click.option("--rounds", type=click.IntRange(1, 20), default=3, show_default=True)
@click.option("--seconds", type=click.FloatRange(1, 30), default=3.0, show_default=True)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS_DIRECTORY,
    help="Where the results go.",
)
def main(rate: int, rounds: int, seconds: float, output: Path) -> None:
    """Measure what a flood leaves of a session, with the edge and without it."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    settings = {title: Found() for title in SETTINGS}
    try:
        with Hosts.open() as hosts:
            prepare(hosts)
            peer = FloodedZgate(hosts)
            for number in range(1, rounds + 1):
                for title, found in settings.items():
                    peer.edge_enabled, peer.edge_mode = SETTINGS[title]
                    measure(hosts, peer, found, rate, seconds)
                    flows = {name: round(values[-1]) for name, values in found.flows.items()}
                    console.print(f"round {number}/{rounds} {title}: {flows}", highlight=False)
    except (BenchError, LabError) as error:
        click.echo(f"bench.flood: {error}", err=True)
        sys.exit(1)
    show(console, settings)
    console.print(f"written: {write(settings, rate, output)}", highlight=False, soft_wrap=True)


def write(settings: dict[str, Found], rate: int, directory: Path) -> Path:
    """Every measurement as JSON, named by date and commit, beside those of `make bench`."""
    directory.mkdir(parents=True, exist_ok=True)
    collected = facts.collect(shlex.join(["python", "-m", "bench.flood", *sys.argv[1:]]))
    path = directory / f"{collected['date'].split()[0]}-{facts.commit()}-flood.json"
    found = {title: asdict(one) for title, one in settings.items()}
    document = {"facts": collected, "rate_per_s": rate, "found": found}
    path.write_text(json.dumps(document, indent=2) + "\n")
    owner = directory.stat()
    os.chown(path, owner.st_uid, owner.st_gid)  # made by root, but in somebody's work tree
    return path


if __name__ == "__main__":
    main(prog_name="python -m bench.flood")
