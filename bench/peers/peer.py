"""What every peer offers to the bench: start, stop, and the process that its gateway is."""

import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from enum import Enum
from pathlib import Path
from typing import ClassVar

from zgate_lab.lab import Namespace
from zgate_lab.process import Process
from zgate_lab.waiting import wait_until

from bench.errors import BenchError
from bench.hosts import SERVER, Hosts

CONNECT_TIMEOUT_S = 20.0


class Step(Enum):
    """What is measured in a turn."""

    IDLE = "idle"
    TCP = "tcp"
    UDP = "udp"


class Peer(ABC):
    """One way from the client to the server's network, started and stopped many times.

    `programs`: what it needs, each with the Debian package that brings it.
    `steps`: what is worth measuring of it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    programs: ClassVar[dict[str, str]] = {}
    steps: ClassVar[frozenset[Step]] = frozenset(Step)

    def __init__(self, hosts: Hosts):
        self.hosts = hosts
        self.gateway_process: Process | None = None
        self._undo = ExitStack()
        self._processes: list[Process] = []
        self._starts = 0

    @abstractmethod
    def start(self) -> None:
        """Start both ends. What it sets up is put on `_undo` at once."""

    @abstractmethod
    def version(self) -> str:
        """What exactly is measured, for the report; asked while it runs."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start it, wait until the server answers through it, and stop it at the end."""
        self._starts += 1
        try:
            self.start()
            self._wait_for_answer()
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        """Take back everything that start set up, in reverse order. Idempotent."""
        self.gateway_process = None
        self._undo.close()
        self._processes.clear()

    def _wait_for_answer(self) -> None:
        what = f"a ping through {self.title}"
        if self._processes:
            # With the client's log in the error if it does not come.
            self._processes[-1].wait_for(self._server_answers, CONNECT_TIMEOUT_S, what)
        else:
            wait_until(self._server_answers, CONNECT_TIMEOUT_S, what)

    def _server_answers(self) -> bool:
        # Not zgate_lab.traffic.ping: that there is no route yet is no error here.
        ping = ("ping", "-n", "-q", "-c", "1", "-W", "0.3", str(SERVER.ip))
        return self.hosts.client.run(*ping, check=False).returncode == 0

    def _spawn(
        self,
        namespace: Namespace,
        name: str,
        *argv: str | Path,
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a process that is stopped at the end; each start has a log file of its own."""
        process = namespace.spawn(f"{name}-{self._starts}", *argv, environment=environment)
        self._undo.callback(process.stop)
        self._processes.append(process)
        return process


def check_programs(wanted: dict[str, str]) -> None:
    """BenchError naming the Debian packages when programs are missing."""
    missing = {program: package for program, package in wanted.items() if not find(program)}
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        raise BenchError(
            f"missing: {', '.join(sorted(missing))};"
            f" install with: apt-get install --no-install-recommends {packages}"
        )


def find(program: str) -> str | None:
    """Where a program is; /usr/sbin is looked at even when the caller's PATH leaves it out."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def first_line(*argv: str) -> str:
    """The first line that a program prints about itself; empty when it says nothing."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0].strip() if lines else ""
