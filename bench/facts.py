"""The machine and the versions: a number without them means nothing."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench.peers.peer import first_line

BUSY_LOAD_PER_CORE = 0.3
ROOT = Path(__file__).resolve().parents[1]


def collect(command: str) -> dict[str, str]:
    """Facts by title, in the order in which they are shown."""
    return {
        "date": f"{datetime.now(UTC):%F %T} UTC",
        "commit": commit() + (" (with changes that are not committed)" if is_dirty() else ""),
        "command": command,
        "kernel": platform.release(),
        "processor": f"{os.cpu_count()} x {processor()}",
        "load before": " ".join(f"{one:.2f}" for one in os.getloadavg()),
        "python": platform.python_version(),
        "aioquic": version("aioquic"),
        "iperf3": first_line("iperf3", "--version"),
    }


def is_busy() -> bool:
    """Tell whether the machine has had enough other work lately to spoil the numbers."""
    return os.getloadavg()[0] > BUSY_LOAD_PER_CORE * (os.cpu_count() or 1)


def commit() -> str:
    """The short name of the commit, or "unknown" outside a repository."""
    return _git("rev-parse", "--short", "HEAD") or "unknown"


def is_dirty() -> bool:
    """Tell whether tracked files differ from the commit."""
    return bool(_git("status", "--porcelain", "--untracked-files=no"))


def processor() -> str:
    """The processor's model name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _git(*arguments: str) -> str:
    # Under sudo the tree belongs to somebody else, which git refuses unless told.
    argv = ["git", "-c", "safe.directory=*", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
