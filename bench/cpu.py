"""CPU time and memory of a process and its children, from /proc.

The kernel's work for a packet in softirq is charged to whichever process it interrupted, or to
nobody: these are the process's own user and system time, system calls included.
"""

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def parse_stat(text: str) -> tuple[int, int]:
    """(parent process ID, user + system ticks of all threads) from /proc/PID/stat."""
    # The command's name may hold spaces and parentheses; the last one ends it.
    fields = text.rpartition(")")[2].split()
    return int(fields[1]), int(fields[11]) + int(fields[12])


@dataclass(frozen=True, slots=True)
class MachineTime:
    """Of all processors together, since the machine began."""

    busy_s: float
    all_s: float


def parse_machine(text: str) -> MachineTime:
    """Read the first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal."""
    ticks = [int(word) for word in text.splitlines()[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return MachineTime((sum(ticks) - idle) / _TICKS_PER_S, sum(ticks) / _TICKS_PER_S)


def machine_busy_seconds() -> MachineTime:
    """What the processors have done so far."""
    return parse_machine(Path("/proc/stat").read_text())


def resident_bytes(pid: int) -> int:
    """The sum of the resident sets of the process and its living descendants."""
    return sum(_status_kib(one, "VmRSS") for one in _tree(pid)) * 1024


def process_ids(pid: int) -> list[int]:
    """The process and its living descendants."""
    return sorted(_tree(pid))


def cpu_seconds(pid: int) -> float:
    """CPU seconds that the process and its living descendants have used so far."""
    return sum(ticks for _, ticks in _tree(pid).values()) / _TICKS_PER_S


def peak_memory_mb(pid: int) -> float:
    """The sum of the peak resident sets of the process and its living descendants, in MB."""
    return sum(_status_kib(one, "VmHWM") for one in _tree(pid)) * 1024 / 1e6


def reset_peak_memory(pid: int) -> None:
    """Let the peaks begin anew: what start-up took (a compiler, say) is not the traffic's."""
    for one in _tree(pid):
        Path(f"/proc/{one}/clear_refs").write_text("5")


def _tree(root: int) -> dict[int, tuple[int, int]]:
    """The stat of a process and of everything below it."""
    stats = {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                stats[int(path.name)] = parse_stat((path / "stat").read_text())
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
    tree = {pid: stat for pid, stat in stats.items() if pid == root}
    grown = bool(tree)
    while grown:
        below = {pid: stat for pid, stat in stats.items() if stat[0] in tree and pid not in tree}
        tree |= below
        grown = bool(below)
    return tree


def _status_kib(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return 0
