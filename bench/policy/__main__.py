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
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from zgate_bpf import syscalls
from zgate_bpf.errors import BpfError
from zgate_bpf.kernel_policy import Direction, KernelPolicy

from bench.policy.world import CLIENT, compiled, frame, make_packets, make_rules

SIZES = (10, 100, 1_000, 10_000)
MISS_LIMIT = 1.5
HIT_LIMIT = 3.0
_CONTEXT_BYTES = 192
_PARTS = ("zg_parse_only", "zg_classify_only", "zg_new_port", "zg_new_flow")


@dataclass(frozen=True, slots=True)
class Bench:
    """One policy size, loaded. ``programs``: the parts by name."""

    rules: int
    kernel: KernelPolicy
    programs: dict[str, int]
    packets: list[bytes]


def load(rules: int, packets: int, stack: ExitStack) -> Bench:
    """A kernel of its own for each size, so that sizes can be timed in turns."""
    kernel = stack.enter_context(KernelPolicy(max_clients=1024, max_flows=65_536))
    programs = kernel.load_beside("policy_bench", _PARTS)
    for fd in programs.values():
        stack.callback(os.close, fd)
    made = make_rules(rules)
    generation = kernel.begin(1)
    generation.assign(0, generation.add_policy(compiled(made)))
    generation.verify()
    generation.activate()
    kernel.set_client(CLIENT, 0)
    return Bench(rules, kernel, programs, make_packets(made, packets))


def time_round(bench: Bench, repeat: int, times: dict[str, list[float]]) -> None:
    """Time everything once for each packet."""
    for packet in bench.packets:
        data = frame(packet)

        def part(name: str, data: bytes = data) -> int:
            fd = bench.programs[f"zg_{name}"]
            run = syscalls.program_test_run(fd, data, bytes(_CONTEXT_BYTES), repeat=repeat)
            if run.result:
                raise BpfError(f"{name}: the packet was dropped")
            return run.duration_ns

        times["parse"].append(part("parse_only"))
        times["classify"].append(part("classify_only"))
        times["miss"].append(part("new_flow") - part("new_port"))
        bench.kernel.run(packet, Direction.UP)
        times["hit"].append(bench.kernel.run(packet, Direction.UP, repeat=repeat).duration_ns)


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


def report(
    console: Console, benches: list[Bench], times: dict[int, dict[str, list[float]]]
) -> bool:
    """Print the table; gives whether the limits are kept."""
    by_size = {size: {name: median(v) for name, v in times[size].items()} for size in times}
    base = by_size[SIZES[0]]
    parse = median([m["parse"] for m in by_size.values()])
    hit = median([m["hit"] for m in by_size.values()])
    table = Table(title="A decision, by BPF_PROG_TEST_RUN (ns; ratio to 10 rules)")
    for heading in ("rules", "new flow", "", "classification alone", "", "known flow"):
        table.add_column(heading, justify="right")
    for size, m in by_size.items():
        table.add_row(
            f"{size:,}",
            f"{m['miss']:.0f}",
            f"{m['miss'] / base['miss']:.2f}",
            f"{m['classify']:.0f}",
            f"{m['classify'] / base['classify']:.2f}",
            f"{m['hit']:.0f}",
        )
    console.print(table)
    miss_ratio = by_size[SIZES[-1]]["miss"] / base["miss"]
    hit_ratio = hit / parse
    console.print(f"parsing the same headers: {parse:.0f} ns")
    kept = miss_ratio <= MISS_LIMIT and hit_ratio <= HIT_LIMIT
    console.print(
        f"new flow, {SIZES[-1]:,} rules : 10 rules = {miss_ratio:.2f} (at most {MISS_LIMIT})"
    )
    console.print(f"known flow : parsing = {hit_ratio:.2f} (at most {HIT_LIMIT})")
    console.print(f"memory per rule: {bytes_per_rule(benches[-1]):.0f} bytes in each generation")
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
    times: dict[int, dict[str, list[float]]] = {size: defaultdict(list) for size in SIZES}
    try:
        with ExitStack() as stack:
            benches = [load(size, arguments.packets, stack) for size in SIZES]
            for _ in range(arguments.rounds):
                for bench in benches:
                    time_round(bench, arguments.repeat, times[bench.rules])
            kept = report(console, benches, times)
    except (BpfError, OSError) as error:
        console.print(f"[red]{error}[/red]")
        return 2
    if not kept:
        console.print("[red]a limit is not kept[/red]")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
