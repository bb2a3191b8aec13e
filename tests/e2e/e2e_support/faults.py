"""A gateway whose disk, clock and files a test can break, and traffic that is watched meanwhile.

The daemon runs in a mount namespace of its own, with its state directory on a small tmpfs, and with
libfaketime's clock: nothing of the host's is touched. Its files are reached through /proc/PID/root.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zgate_lab.deployment import BIN, START_TIMEOUT_S, Deployment
from zgate_lab.internet import Internet
from zgate_lab.stream import TcpStream
from zgate_lab.waiting import wait_until
from zgate_lab.wall_clock import WallClock

from e2e_support.world import STREAM_PORT, World, prepare

STATE_BYTES = 4 << 20
_PREPARE = 'mount -t tmpfs -o size="$1",mode=700 tmpfs "$2" && shift 2 && exec "$@"'
_RATE_BYTES_PER_S = 500_000
_SAMPLE_S = 0.02


@dataclass
class FaultyWorld(World):
    """A world whose gateway's surroundings break."""

    state: Path = field(default_factory=Path)
    clock: WallClock = field(init=False)

    # Files and mounts, as the daemon sees them.

    def inside(self, path: Path) -> Path:
        """A path of the daemon's, for this process."""
        return Path(f"/proc/{self.gateway.pid}/root{path}")

    def run_inside(self, *argv: str | Path) -> None:
        """Run a program in the daemon's mount namespace."""
        pid = str(self.gateway.pid)
        subprocess.run(["nsenter", "-t", pid, "-m", "--", *map(str, argv)], check=True)

    def sql(self, statement: str) -> list[Any]:
        """Ask the store's file in a process of its own; the first column of the answer.

        SQLite resolves symbolic links by itself, and would not find it through /proc.
        """
        argv = self._sqlite_argv("print(json.dumps([row[0] for row in db.execute(sys.argv[2])]))")
        done = subprocess.run([*argv, statement], capture_output=True, text=True, check=True)
        found: list[Any] = json.loads(done.stdout)
        return found

    @contextmanager
    def locked_store(self) -> Iterator[None]:
        """Another process holds the store's write lock."""
        argv = self._sqlite_argv("db.execute('BEGIN IMMEDIATE'); print('held'); sys.stdin.read()")
        pipe = subprocess.PIPE
        with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as holder:
            assert holder.stdout is not None and holder.stdin is not None
            assert holder.stdout.readline() == "held\n"
            try:
                yield
            finally:
                holder.stdin.close()

    def _sqlite_argv(self, body: str) -> list[str]:
        start = "import json, sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None)"
        argv = ["nsenter", "-t", str(self.gateway.pid), "-m", "--", sys.executable, "-u", "-c"]
        return [*argv, f"{start}; {body}", str(self.state / "zgate.db")]

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """Not one byte more fits into the state directory."""
        fill = self.fill_disk()
        try:
            yield
        finally:
            fill.unlink()

    def fill_disk(self) -> Path:
        """Fill it with a file, which is returned."""
        fill = self.inside(self.state) / "fill"
        with contextlib.suppress(OSError), fill.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        return fill

    @contextmanager
    def read_only_state(self) -> Iterator[None]:
        """The state directory is on a file system that takes no writes."""
        self.run_inside("mount", "--bind", self.state, self.state)
        try:
            self.run_inside("mount", "-o", "remount,bind,ro", self.state)
            yield
        finally:
            # Whoever has a file of it open keeps that: the gateway has to open it anew.
            self.run_inside("umount", "--lazy", self.state)

    # What the gateway says.

    def alerts(self) -> dict[str, str]:
        """What lasts, with its text."""
        found: list[dict[str, Any]] = self.zgate.gateway_status().get("alerts", [])
        return {one["name"]: one["text"] for one in found}

    def wait_alert(self, name: str, timeout_s: float = 10.0) -> str:
        """Wait until it is there; its text."""
        return wait_until(lambda: self.alerts().get(name, ""), timeout_s, f"the alert {name}")

    def wait_all_is_well(self, timeout_s: float = 20.0) -> None:
        """Wait until nothing is wrong any more."""

        def is_well() -> bool:
            status = self.zgate.gateway_status()
            return status.get("alerts") == [] and status["not_ready_because"] == []

        wait_until(is_well, timeout_s, f"the end of {self.alerts()}")

    def audited(self, event: str) -> list[dict[str, Any]]:
        """The audit records of an event. A full disk has left torn lines between them."""
        lines = self.zgate.audit_file.read_bytes().splitlines()
        return [json.loads(line) for line in lines if f'"event":"{event}"'.encode() in line]

    def log(self) -> str:
        """The daemon's own log."""
        return self.gateway.output()


@contextmanager
def open_faulty_world(identities: Path) -> Iterator[FaultyWorld]:
    """Gateway as above, alice and bob connected."""
    with Internet.open() as internet:
        zgate = prepare(internet, identities)
        office = internet.start_web_server(internet.office)
        state = zgate.directory / "state"
        state.mkdir()
        made = FaultyWorld(internet, zgate, office, state=state)
        made.clock = WallClock(zgate.directory)
        zgate.policy_file = _in_a_folder_of_its_own(zgate)
        zgate.socket = zgate.directory / "run" / "gateway.sock"
        zgate.audit_file = state / "audit.jsonl"
        _start(made)
        zgate.audit_file = made.inside(zgate.audit_file)
        made.connect_all()
        yield made


def _in_a_folder_of_its_own(zgate: Deployment) -> Path:
    folder = zgate.directory / "policy"
    folder.mkdir()
    return zgate.policy_file.rename(folder / "policy.yaml")


def _start(world: FaultyWorld) -> None:
    zgate = world.zgate
    config_file = zgate.directory / "gateway.yaml"
    config_file.write_text(json.dumps({**zgate.gateway_config(), "workers": 2}, indent=2))
    process = zgate.host.namespace.spawn(
        zgate.name,
        *("unshare", "--mount", "--propagation", "private", "sh", "-c", _PREPARE, "sh"),
        *(str(STATE_BYTES), world.state, BIN / "zgate-gateway", "--config", config_file),
        environment=world.clock.environment,
    )
    zgate.gateway = process
    process.wait_for(
        lambda: zgate.gateway_status().get("state") == "ready", START_TIMEOUT_S, "ready"
    )


class Watched:
    """One TCP stream of alice's through the tunnel; how long it ever stood still."""

    def __init__(self, world: World, *, port: int = STREAM_PORT) -> None:
        office = world.internet.office
        self._stream = TcpStream(
            world.alice, office, office.ipv4, port, upload=True, bytes_per_s=_RATE_BYTES_PER_S
        )
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watched")
        self.longest_pause_s = 0.0

    def __enter__(self) -> Watched:
        self._stream.__enter__()
        self._stream.wait_for_more(1, 10.0)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()
        self._stream.__exit__(None, None, None)

    def _watch(self) -> None:
        seen, since_s = self._stream.received_bytes, time.monotonic()
        looked_s = since_s
        while not self._ended.wait(_SAMPLE_S):
            now_s = time.monotonic()
            # What this thread was not given is the machine's pause, not the gateway's.
            since_s += max(0.0, now_s - looked_s - 2 * _SAMPLE_S)
            looked_s = now_s
            if self._stream.received_bytes != seen:
                seen, since_s = self._stream.received_bytes, now_s
            self.longest_pause_s = max(self.longest_pause_s, now_s - since_s)

    def finish(self) -> None:
        """Everything that was sent has arrived. Raises LabError."""
        self._stream.wait_for_more(1, 10.0)
        self._ended.set()
        self._thread.join()
        self._stream.finish()


def session_ids(zgate: Deployment) -> dict[str, str]:
    """The sessions that are up: who, and which."""
    return {client: session["session_id"] for client, session in zgate.sessions().items()}
