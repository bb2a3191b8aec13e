"""CPU time and memory of a process and its children, from /proc.

The kernel's work for a packet in softirq is charged to whichever process it interrupted, or to
nobody: these are the process's own user and system time, system calls included.
"""

import os
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def parse_stat(text: str) -> tuple[int, int]:
    """(parent process ID, user + system ticks of all threads) from /proc/PID/stat."""
    # The command's name may hold spaces and parentheses; the last one ends it.
    fields = text.rpartition(")")[2].split()
    return int(fields[1]), int(fields[11]) + int(fields[12])


def cpu_seconds(pid: int) -> float:
    """CPU seconds that the process and its living descendants have used so far."""
    return sum(ticks for _, ticks in _tree(pid).values()) / _TICKS_PER_S


def peak_memory_mb(pid: int) -> float:
    """The sum of the peak resident sets of the process and its living descendants, in MB."""
    return sum(_peak_kib(one) for one in _tree(pid)) * 1024 / 1e6


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


def _peak_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0
