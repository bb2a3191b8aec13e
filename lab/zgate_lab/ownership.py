"""Who owns which namespaces and processes, written down so that a later run can clean up.

A run is one folder, `/run/zgate-lab/RUN/`, with a `state.json` that names the owner and each
process that it started, by process ID *and* start time: a process ID alone may by now belong to
somebody else. The namespaces of a run need no list: their names begin with `zg-RUN-`.

The folder appears with its state file inside (made under a hidden name, then renamed), and the
state is replaced by rename, so that a reader never sees half of it.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from zgate_lab.errors import LabError
from zgate_lab.waiting import wait_until

RUN_DIRECTORY = Path("/run/zgate-lab")
NETNS_DIRECTORY = Path("/run/netns")
STATE_FILE = "state.json"
KILL_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process, told from any later one that gets the same process ID."""

    pid: int
    start_ticks: int  # since boot, field 22 of /proc/PID/stat

    @classmethod
    def of(cls, pid: int) -> Self:
        """Read the identity of a running process; ProcessLookupError if there is none."""
        return cls(pid, _read_start_ticks(pid))

    @classmethod
    def of_this_process(cls) -> Self:
        """Return the caller's own identity."""
        return cls.of(os.getpid())

    def is_alive(self) -> bool:
        """Tell whether this very process still runs; a zombie does not."""
        try:
            return _read_start_ticks(self.pid) == self.start_ticks
        except ProcessLookupError:
            return False

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """Send a signal if it is still this process; the pidfd closes the race of a reused ID."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, signal_number)
        finally:
            os.close(descriptor)


def _read_start_ticks(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"no process {pid}") from None
    # The second field is the command in parentheses and may itself hold spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    if fields[0] in {"Z", "X"}:
        raise ProcessLookupError(f"process {pid} is dead, waiting for its parent")
    return int(fields[19])


@dataclass(frozen=True, slots=True)
class RunState:
    """The content of one state file."""

    owner: ProcessIdentity
    processes: tuple[ProcessIdentity, ...]

    def to_json(self) -> str:
        """Return the text of the state file."""
        return json.dumps(
            {
                "owner": [self.owner.pid, self.owner.start_ticks],
                "processes": [[one.pid, one.start_ticks] for one in self.processes],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse the text of a state file; LabError when it is not one."""
        try:
            document = json.loads(text)
            owner = _identity(document["owner"])
            processes = tuple(_identity(pair) for pair in document["processes"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise LabError(f"not a state file of the lab: {error}") from None
        return cls(owner, processes)


def _identity(pair: object) -> ProcessIdentity:
    match pair:
        case [int() as pid, int() as start_ticks] if pid > 1:
            return ProcessIdentity(pid, start_ticks)
    raise ValueError(f"expected [pid, start_ticks], got {pair!r}")


class Run:
    """One run of the lab: its folder, the prefix of its namespaces, its processes."""

    def __init__(self, directory: Path, state: RunState):
        self.directory = directory
        self._processes = set(state.processes)
        self._owner = state.owner
        # Hosts may be used from threads: two would write the same temporary file.
        self._lock = threading.Lock()

    @classmethod
    def create(cls, run_directory: Path = RUN_DIRECTORY) -> Self:
        """Make a new run that this process owns."""
        run_directory.mkdir(parents=True, exist_ok=True)
        run_id = secrets.token_hex(3)
        hidden = run_directory / f".{run_id}"
        hidden.mkdir(mode=0o755)
        run = cls(hidden, RunState(ProcessIdentity.of_this_process(), ()))
        run._save()
        run.directory = hidden.rename(run_directory / run_id)
        return run

    @property
    def run_id(self) -> str:
        """The random part of every name of this run."""
        return self.directory.name

    @property
    def prefix(self) -> str:
        """What the names of this run's namespaces begin with."""
        return f"zg-{self.run_id}-"

    def add_process(self, identity: ProcessIdentity) -> None:
        """Remember a process, so that it can be killed after a crash of its owner."""
        with self._lock:
            self._processes.add(identity)
            self._save()

    def forget_process(self, identity: ProcessIdentity) -> None:
        """Forget a process that has ended."""
        with self._lock:
            self._processes.discard(identity)
            self._save()

    def namespaces(self) -> list[str]:
        """Names of this run's namespaces that exist now."""
        if not NETNS_DIRECTORY.is_dir():
            return []
        return sorted(path.name for path in NETNS_DIRECTORY.glob(f"{self.prefix}*"))

    def destroy(self) -> None:
        """Kill the run's processes, then remove its namespaces and its folder. Idempotent."""
        kill_all(self._processes)
        for name in self.namespaces():
            # Whoever still lives in there is a child of a process of ours.
            kill_all(set(inhabitants(name)))
            remove_namespace(name)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _save(self) -> None:
        state = RunState(self._owner, tuple(sorted(self._processes, key=lambda one: one.pid)))
        temporary = self.directory / f".{STATE_FILE}"
        temporary.write_text(state.to_json())
        temporary.replace(self.directory / STATE_FILE)


def kill_all(identities: set[ProcessIdentity]) -> None:
    """SIGKILL each of them, and wait until they are gone."""
    for identity in identities:
        identity.kill()
    wait_until(
        lambda: not any(one.is_alive() for one in identities),
        KILL_TIMEOUT_S,
        f"killed processes to end: {sorted(one.pid for one in identities)}",
    )


def inhabitants(namespace: str) -> Iterator[ProcessIdentity]:
    """Processes other than this one whose network namespace is the one of that name."""
    try:
        inside = (NETNS_DIRECTORY / namespace).stat()
    except FileNotFoundError:
        return
    for path in Path("/proc").iterdir():
        if not path.name.isdecimal() or int(path.name) == os.getpid():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            theirs = (path / "ns/net").stat()
            if (theirs.st_dev, theirs.st_ino) == (inside.st_dev, inside.st_ino):
                yield ProcessIdentity.of(int(path.name))


def remove_namespace(name: str) -> None:
    """Unmount and remove a named namespace; it is no error when it is not there."""
    path = NETNS_DIRECTORY / name
    with contextlib.suppress(OSError):  # not a mount point: a crash between the two steps
        _unmount(path)
    path.unlink(missing_ok=True)


def _unmount(path: Path) -> None:
    import ctypes

    detach = 2  # MNT_DETACH: what is still open keeps living, the name does not
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), detach) != 0:
        raise OSError(ctypes.get_errno(), f"cannot unmount {path}")


def sweep(run_directory: Path = RUN_DIRECTORY) -> list[str]:
    """Remove every run whose owner is dead; return the IDs of the removed runs."""
    if not run_directory.is_dir():
        return []
    swept = []
    for directory in sorted(run_directory.iterdir()):
        run = _load(directory)
        if run is not None and not run._owner.is_alive():
            run.destroy()
            swept.append(run.run_id)
    return swept


def _load(directory: Path) -> Run | None:
    """Read a run's folder; None when it is not (or not yet, or no longer) a run."""
    try:
        state = RunState.from_json((directory / STATE_FILE).read_text())
    except (OSError, UnicodeDecodeError, LabError):
        return None
    return Run(directory, state)
