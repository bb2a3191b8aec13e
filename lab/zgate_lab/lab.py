"""A lab: namespaces, the links between them, the processes in them, all removed at the end."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from subprocess import CompletedProcess
from types import TracebackType
from typing import Self

from zgate_lab.errors import LabError
from zgate_lab.namespace import RUN_TIMEOUT_S, in_namespace, ip_batch, run_in
from zgate_lab.ownership import Run, sweep
from zgate_lab.process import Process
from zgate_lab.waiting import wait_until

DEFAULT_MTU_BYTES = 1500
Interface = IPv4Interface | IPv6Interface
_RTF_LOCAL = 0x80000000  # linux/ipv6_route.h

# What every namespace of the lab starts with, whatever the host has. Duplicate address detection
# would keep IPv6 addresses unusable for a second; nothing is a router unless the lab makes it one.
INITIAL_SYSCTLS = {
    "net.ipv4.ip_forward": "0",
    "net.ipv6.conf.all.forwarding": "0",
    "net.ipv6.conf.all.accept_dad": "0",
    "net.ipv6.conf.default.accept_dad": "0",
    "net.ipv6.conf.all.disable_ipv6": "0",
    "net.ipv6.conf.default.disable_ipv6": "0",
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.default.rp_filter": "0",
    # ICMP errors carry path MTU; tests must not lose them to a rate limit.
    "net.ipv4.icmp_ratelimit": "0",
    "net.ipv6.icmp.ratelimit": "0",
    # Removing an interface's first address must not take the others of its subnet along.
    "net.ipv4.conf.all.promote_secondaries": "1",
}


def without_dad(address: Interface) -> str:
    """Write an address for `ip addr add`, usable at once."""
    return f"{address} nodad" if address.version == 6 else str(address)


@dataclass(frozen=True, slots=True)
class Port:
    """One end of a link: the interface's name and the addresses it gets."""

    namespace: "Namespace"
    interface: str
    addresses: tuple[Interface, ...] = ()


def wait_for_local_routes(proc_net: Path, addresses: Iterable[IPv4Address | IPv6Address]) -> None:
    """Wait until a network namespace has the routes of its own IPv6 addresses.

    The kernel makes them a little later than the addresses, and drops what comes before. `proc_net`
    is the `net` folder in /proc of a process or thread in the namespace.
    """
    expected = {f"{int(one):032x}" for one in addresses if one.version == 6}

    def are_there() -> bool:
        rows = [line.split() for line in (proc_net / "ipv6_route").read_text().splitlines()]
        return expected <= {row[0] for row in rows if int(row[8], 16) & _RTF_LOCAL}

    wait_until(are_there, 5.0, f"the routes of {addresses}", interval_s=0.002)


class Namespace:
    """One network namespace of a lab. `name` is its full name, as `ip netns` shows it."""

    def __init__(self, lab: "Lab", role: str):
        self.role = role
        self.name = lab.run.prefix + role
        self._lab = lab

    def __repr__(self) -> str:
        return f"Namespace({self.name})"

    def ip(self, *commands: str) -> None:
        """Run `ip` commands (without the word `ip`) in the namespace, all in one call."""
        ip_batch(self.name, commands)

    def run(
        self,
        *argv: str | Path,
        timeout_s: float = RUN_TIMEOUT_S,
        check: bool = True,
        stdin: str | None = None,
    ) -> CompletedProcess[str]:
        """Run a command in the namespace and wait for it; see `run_in`."""
        return run_in(self.name, argv, timeout_s=timeout_s, check=check, stdin=stdin)

    def spawn(
        self, name: str, *argv: str | Path, environment: Mapping[str, str] | None = None
    ) -> Process:
        """Start a process in the namespace; its output goes to `NAME.log` in the lab's folder."""
        return self._lab.spawn(self, name, argv, environment=environment)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Move this thread into the namespace for the length of the block: see `in_namespace`."""
        with in_namespace(self.name):
            yield

    def sysctl(self, key: str, value: str | int | None = None) -> str:
        """Set a sysctl of the namespace (when a value is given) and return what it is now."""
        path = Path("/proc/sys") / key.replace(".", "/")
        with self.entered():
            if value is not None:
                path.write_text(str(value))
            return path.read_text().strip()

    def wait_for_addresses(self, *addresses: IPv4Address | IPv6Address) -> None:
        """Wait until packets to addresses of the namespace's own are taken in."""
        with self.entered():
            wait_for_local_routes(Path("/proc/thread-self/net"), addresses)

    def set_mtu(self, interface: str, mtu_bytes: int) -> None:
        """Change the MTU of one interface."""
        self.ip(f"link set dev {interface} mtu {mtu_bytes}")

    def make_router(self) -> None:
        """Let the namespace forward, both families."""
        self.sysctl("net.ipv4.ip_forward", 1)
        self.sysctl("net.ipv6.conf.all.forwarding", 1)


class Lab:
    """Owner of namespaces and processes; use it as a context manager.

    Entering removes what dead labs left behind. Leaving kills the processes that this lab started
    and removes its namespaces; its folder too, unless `directory` named one.
    """

    def __init__(self, *, directory: Path | None = None):
        if os.geteuid() != 0:
            raise LabError("the lab makes network namespaces: run it as root")
        sweep()
        self.run = Run.create()
        self.directory = directory or Path(
            tempfile.mkdtemp(prefix="files-", dir=self.run.directory)
        )
        self.directory.mkdir(parents=True, exist_ok=True)
        self.namespaces: dict[str, Namespace] = {}
        self.processes: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill what runs, remove what was made. Idempotent."""
        try:
            for process in self.processes:
                process.kill()
        finally:
            self.processes.clear()
            self.run.destroy()
            self.namespaces.clear()

    def add_namespace(self, role: str, *, router: bool = False) -> Namespace:
        """Make a namespace, with loopback up; `role` is the readable part of its name."""
        if role in self.namespaces:
            raise LabError(f"the lab already has a namespace {role!r}")
        namespace = Namespace(self, role)
        ip_batch(None, [f"netns add {namespace.name}"])
        self.namespaces[role] = namespace
        for key, value in INITIAL_SYSCTLS.items():
            namespace.sysctl(key, value)
        namespace.ip("link set dev lo up")
        if router:
            namespace.make_router()
        return namespace

    def connect(self, one: Port, other: Port, *, mtu_bytes: int = DEFAULT_MTU_BYTES) -> None:
        """Join two namespaces by a veth pair, with addresses, up. Nothing touches the host."""
        ip_batch(
            None,
            [
                f"link add name {one.interface} mtu {mtu_bytes} netns {one.namespace.name}"
                f" type veth peer name {other.interface} mtu {mtu_bytes}"
                f" netns {other.namespace.name}"
            ],
        )
        for port in (one, other):
            port.namespace.ip(f"link set dev {port.interface} up")
        for port in (one, other):
            port.namespace.ip(
                *(f"addr add {without_dad(one)} dev {port.interface}" for one in port.addresses)
            )
        for port in (one, other):
            port.namespace.wait_for_addresses(*(address.ip for address in port.addresses))

    def spawn(
        self,
        namespace: Namespace,
        name: str,
        argv: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a process in a namespace; the lab kills it at the end at the latest."""
        process = Process(
            self.run,
            namespace.name,
            name,
            argv,
            log_path=self.directory / f"{name}.log",
            environment=environment,
        )
        self.processes.append(process)
        return process

    def keep_logs(self, destination: Path) -> None:
        """Copy the lab's folder, to look at it after the lab is gone."""
        shutil.copytree(self.directory, destination, dirs_exist_ok=True)
