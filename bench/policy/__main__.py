"""``python -m bench.policy``: the price of a decision, by the kernel's own clock.

Every figure is a median over packets and rounds. One round times everything once, one after
the other, so that whatever slows the machine down slows all of it; the ratios are what counts.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from zgate_bpf import ClientLimits, syscalls
from zgate_bpf.errors import BpfError
from zgate_bpf.kernel_policy import Direction, KernelPolicy
from zgate_bpf.limits import MAX_BANDWIDTH_MBIT, MAX_NEW_FLOWS_PER_S

from bench.policy.world import (
    CLIENTS,
    FAMILIES,
    LIMITED_CLIENTS,
    compiled,
    frame,
    make_packets,
    make_rules,
)

SIZES = (10, 100, 1_000, 10_000)
MISS_LIMIT = 1.5
HIT_LIMIT = 3.0
_CONTEXT_BYTES = 192
_PARTS = ("zg_parse_only", "zg_classify4", "zg_classify6", "zg_new_port", "zg_new_flow")
# Limits that are looked at and never bite.
_LIMITS = ClientLimits(MAX_BANDWIDTH_MBIT, MAX_NEW_FLOWS_PER_S)


@dataclass(frozen=True, slots=True)
class Bench:
    """One policy size and family, loaded.

    :ivar programs: the parts by name.
    :ivar packets: pairs of the same packet, of a client without limits and of one with.
    :ivar times: ns by what was timed.
    """

    family: int
    rules: int
    kernel: KernelPolicy
    programs: dict[str, int]
    packets: list[tuple[bytes, bytes]]
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def median(self, what: str) -> float:
        """The figure of everything that was timed under a name."""
        return median(self.times[what])


def load(family: int, rules: int, packets: int, stack: ExitStack) -> Bench:
    """A kernel of its own for each size, so that sizes can be timed in turns."""
    kernel = stack.enter_context(KernelPolicy(max_clients=1024, max_flows=65_536))
    programs = kernel.load_beside("policy_bench", _PARTS)
    for fd in programs.values():
        stack.callback(os.close, fd)
    made = make_rules(rules, family)
    generation = kernel.begin(1)
    policy = generation.add_policy(compiled(made))
    generation.assign(0, policy)
    generation.assign(1, policy, _LIMITS)
    generation.verify()
    generation.activate()
    clients = (CLIENTS[family], LIMITED_CLIENTS[family])
    for index, client in enumerate(clients):
        kernel.set_client(client, index)
    free, limited = (make_packets(made, packets, client) for client in clients)
    return Bench(family, rules, kernel, programs, list(zip(free, limited, strict=True)))


def time_round(bench: Bench, repeat: int) -> None:
    """Time everything once for each packet."""

    def part(name: str, packet: bytes) -> int:
        data, fd = frame(packet), bench.programs[f"zg_{name}"]
        run = syscalls.program_test_run(fd, data, bytes(_CONTEXT_BYTES), repeat=repeat)
        if run.result:
            raise BpfError(f"{name}: the packet was dropped")
        return run.duration_ns

    def hit(packet: bytes) -> int:
        bench.kernel.run(packet, Direction.UP)
        return bench.kernel.run(packet, Direction.UP, repeat=repeat).duration_ns

    times = bench.times
    for packet, limited in bench.packets:
        new_port = part("new_port", packet)
        times["parse"].append(part("parse_only", packet))
        times["classify"].append(part(f"classify{bench.family}", packet))
        times["miss"].append(part("new_flow", packet) - new_port)
        times["limited miss"].append(part("new_flow", limited) - new_port)
        times["hit"].append(hit(packet))
        times["limited hit"].append(hit(limited))


def memory_bytes(fd: int) -> int:
    """What the kernel says that a map takes."""
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("memlock:"):
            return int(line.split()[1])
    raise BpfError("the kernel does not tell a map's memory")


def bytes_per_rule(bench: Bench) -> float:
    """Of the largest policy: entries that it has in arrays, all of what is in hash tables."""
    generation = bench.kernel.active
    assert generation is not None, "load() activated one"
    total = 0.0
    for table in generation.tables():
        memory, used = memory_bytes(table.fd), generation.used[table.name]
        if table.name == "destinations":
            buckets = 16 * table.max_entries
            total += memory - buckets
        elif table.name != "assignments":
            total += memory / table.max_entries * used
    return total / bench.rules


def bytes_per_client(bench: Bench) -> dict[str, float]:
    """Of every table that has a place for each client."""
    clients = bench.kernel.capacity.max_clients
    return {table.name: memory_bytes(table.fd) / clients for table in bench.kernel.client_tables()}


def decisions(benches: list[Bench]) -> Table:
    """One row for each policy; ratios to the smallest of the same family."""
    table = Table(title="A decision, by BPF_PROG_TEST_RUN (ns; ratio to 10 rules)")
    for heading in ("", "rules", "new flow", "", "classification alone", "", "known flow"):
        table.add_column(heading, justify="right")
    for bench in benches:
        base = benches[0]
        table.add_row(
            f"IPv{bench.family}",
            f"{bench.rules:,}",
            f"{bench.median('miss'):.0f}",
            f"{bench.median('miss') / base.median('miss'):.2f}",
            f"{bench.median('classify'):.0f}",
            f"{bench.median('classify') / base.median('classify'):.2f}",
            f"{bench.median('hit'):.0f}",
        )
    return table


def overall(benches: list[Bench], what: str) -> float:
    """Of something that does not depend on the rules."""
    return median(bench.median(what) for bench in benches)


def report_family(console: Console, benches: list[Bench]) -> bool:
    """Print a family's table and ratios; gives whether the limits are kept."""
    console.print(decisions(benches))
    miss_ratio = benches[-1].median("miss") / benches[0].median("miss")
    parse, hit = overall(benches, "parse"), overall(benches, "hit")
    console.print(f"parsing the same headers: {parse:.0f} ns")
    console.print(
        f"new flow, {SIZES[-1]:,} rules : 10 rules = {miss_ratio:.2f} (at most {MISS_LIMIT})"
    )
    console.print(f"known flow : parsing = {hit / parse:.2f} (at most {HIT_LIMIT})")
    more = {
        what: overall(benches, f"limited {what}") - overall(benches, what)
        for what in ("hit", "miss")
    }
    console.print(
        f"a client with limits: {more['hit']:+.0f} ns for a packet of a known flow, "
        f"{more['miss']:+.0f} ns for a new flow"
    )
    return miss_ratio <= MISS_LIMIT and hit / parse <= HIT_LIMIT


def report(console: Console, benches: list[Bench]) -> bool:
    """Print everything; gives whether the limits are kept."""
    kept = True
    for family in FAMILIES:
        own = [bench for bench in benches if bench.family == family]
        kept &= report_family(console, own)
        rule = bytes_per_rule(own[-1])
        console.print(f"memory per rule: {rule:.0f} bytes in each generation\n")
    clients = bytes_per_client(benches[-1])
    parts = ", ".join(f"{name} {size:.0f}" for name, size in clients.items())
    console.print(f"memory per client: {sum(clients.values()):.0f} bytes ({parts})")
    return kept


def main() -> int:
    """Measure; 0 if the limits are kept, 1 if not, 2 if nothing can be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.policy", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="default: 15")
    parser.add_argument("--repeat", type=int, default=2_000, help="runs per figure")
    parser.add_argument("--packets", type=int, default=16, help="different ones, per policy")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    try:
        with ExitStack() as stack:
            benches = [
                load(family, size, arguments.packets, stack)
                for family in FAMILIES
                for size in SIZES
            ]
            for _ in range(arguments.rounds):
                for bench in benches:
                    time_round(bench, arguments.repeat)
            kept = report(console, benches)
    except (BpfError, OSError) as error:
        console.print(f"[red]{error}[/red]")
        return 2
    if not kept:
        console.print("[red]a limit is not kept[/red]")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
