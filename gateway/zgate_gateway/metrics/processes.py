"""What a process takes, out of /proc. May run in a thread."""

from __future__ import annotations

import os
from pathlib import Path

from zgate_gateway.metrics.snapshot import ProcessLoad

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
#: proc_pid_stat(5): user and system time, counted from the field behind the name in brackets.
_UTIME, _STIME, _RSS = 11, 12, 21


def read_process(pid: int, loop_lag_s: float) -> ProcessLoad | None:
    """A process of ours; None: it has just ended, or a hardened host keeps it from us."""
    folder = Path(f"/proc/{pid}")
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    try:
        open_fds = len(os.listdir(folder / "fd"))  # noqa: PTH208 - counted, not walked
    except OSError:
        open_fds = None
    return ProcessLoad(
        cpu_s=(int(fields[_UTIME]) + int(fields[_STIME])) / _TICKS_PER_S,
        resident_bytes=int(fields[_RSS]) * _PAGE_BYTES,
        open_fds=open_fds,
        loop_lag_s=loop_lag_s,
    )
