"""A machine of Debian 12 with systemd, in a namespace of the lab, as systemd-nspawn runs it.

Its network is the lab's namespace: interfaces, addresses and routes are there before it boots, and
it may change them as a machine of its own would. Its files are an overlay: whatever it writes is
gone with it, and the cached file system is as it was.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Self

from zgate_lab.lab import Lab, Namespace
from zgate_lab.ownership import RUN_DIRECTORY
from zgate_lab.process import Process
from zgate_lab.waiting import SLOWNESS, wait_until

from bed.errors import BedError, CommandFailed
from bed.files import CACHE, REPOSITORY_INSIDE, Files

BOOT_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 60.0
CGROUP_TIMEOUT_S = 10.0
REBOOT_STATUS = 133
"""What systemd-nspawn ends with when its machine wants to boot again."""
MACHINES = CACHE / "machines"
CGROUP_PREFIX = "zgate-bed-"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
up: dict[str, Machine] = {}
"""Machines that are up now, by their full name: for who shows what they wrote."""
# Beside what a container may do anyway: what a gateway's own host lets root do.
CAPABILITIES = "CAP_NET_ADMIN,CAP_BPF,CAP_PERFMON,CAP_SYS_ADMIN,CAP_IPC_LOCK,CAP_SYSLOG"

# The machine is the only one that sees its mounts, and has a cgroup of its own: systemd in there
# makes its units' cgroups below. The host may have its cgroups in either layout: inside there is
# only the second version. The device node is a new one, as udev would make it: another host's
# root may have taken everybody's right to use its own.
_BOOT = r"""
set -eu
mkdir -p "$CGROUP"
echo $$ >"$CGROUP/cgroup.procs"
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=$UPPER,workdir=$WORK" "$MERGED"
[ -e "$TUN" ] || mknod -m 666 "$TUN" c 10 200
unset LOWER UPPER WORK CGROUP
exec systemd-nspawn "$@"
"""


@dataclass
class Machine:
    """One machine. Use it as a context manager: it is up inside the block, and gone after it.

    Attributes:
        namespace: where it is in the lab.
        address: where ssh reaches it from its neighbours.
        files: what it boots from.
        key: an ssh private key that root's account takes (`ssh-keygen` makes it and its `.pub`).
        binds: more folders of this host that it sees, by the path inside.
    """

    lab: Lab
    namespace: Namespace
    address: IPv4Address
    files: Files
    key: Path | None = None
    binds: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = self.namespace.role
        self._full_name = self.lab.run.prefix + self.name
        self._folder = MACHINES / self._full_name
        self._cgroup = cgroup_root() / (CGROUP_PREFIX + self._full_name)
        self._process: Process | None = None
        self._first_pid: int | None = None

    def __enter__(self) -> Self:
        up[self._full_name] = self
        try:
            self.boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Its life.

    def boot(self) -> None:
        """Start it, and wait until systemd has started what is enabled.

        Raises:
            BedError: a unit failed, or it did not come up.
        """
        remove_leftovers()
        for name in ("upper", "work", "merged"):
            (self._folder / name).mkdir(parents=True)
        self._prepare(self._folder / "upper")
        self._start()

    def _start(self) -> None:
        """Start what is in the folder, and wait until it is up."""
        layers = [str(layer) for layer in reversed(self.files.layers)]
        self._process = self.lab.spawn(
            self.namespace,
            f"{self.name}-machine",
            [
                *("unshare", "--mount", "--propagation", "private"),
                *("sh", "-euc", _BOOT, "sh", *self._nspawn_arguments()),
            ],
            environment={
                "CGROUP": str(self._cgroup),
                "LOWER": ":".join(layers),
                "UPPER": str(self._folder / "upper"),
                "WORK": str(self._folder / "work"),
                "MERGED": str(self._folder / "merged"),
                "TUN": str(self._folder / "tun"),
            },
        )
        self._process.wait_for(self._find_first, BOOT_TIMEOUT_S, "its first process")
        state = self._process.wait_for(self._state_at_end, BOOT_TIMEOUT_S, "the end of its boot")
        if state != "running":
            failed = self.output("systemctl", "--failed", "--no-legend", "--plain")
            raise BedError(f"{self.name} is {state} after its boot: {failed}")

    def reboot(self) -> None:
        """As by the command: what the machine has written stays."""
        self.run("systemctl", "reboot", check=False)
        assert self._process is not None
        status = self._process.wait(BOOT_TIMEOUT_S)
        if status != REBOOT_STATUS:
            raise BedError(f"{self.name} ended with {status} when it was to boot again")
        self._start()

    def close(self) -> None:
        """End it at once, with everything in it; nothing of it stays. Idempotent."""
        up.pop(self._full_name, None)
        if self._process is not None:
            self._process.kill()
            self._process = None
        remove_cgroup(self._cgroup)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        """The process ID, here, of the machine's first process: what nsenter(1) takes."""
        if self._first_pid is None:
            raise BedError(f"{self.name} is not up")
        return self._first_pid

    # What is done on it.

    def run(
        self,
        *argv: str | Path,
        check: bool = True,
        stdin: str | None = None,
        timeout_s: float = COMMAND_TIMEOUT_S,
        user: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root, or as `user`, and wait for it; its outputs are in the result.

        Raises:
            CommandFailed: it failed, and `check`; or it has not ended in time.
        """
        command = self.command(*argv, user=user)
        shown = shlex.join(map(str, argv))
        try:
            done = subprocess.run(
                command,
                input=stdin or "",
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout_s * SLOWNESS,
            )
        except subprocess.TimeoutExpired:
            raise BedError(f"on {self.name}: {shown}: not finished after {timeout_s:g} s") from None
        if check and done.returncode:
            raise CommandFailed(self.name, shown, done.returncode, done.stderr + done.stdout)
        return done

    def command(self, *argv: str | Path, user: str | None = None) -> list[str]:
        """The command line that runs `argv` inside, for those who start processes themselves."""
        as_user = ["runuser", "-u", user, "--"] if user else []
        environment = [f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb"]
        return [
            *("nsenter", "--target", str(self.pid), "--all", "--", "env", "-i", *environment),
            *("DEBIAN_FRONTEND=noninteractive", *as_user, *map(str, argv)),
        ]

    def output(self, *argv: str | Path) -> str:
        """What a command prints, whatever its exit status."""
        return self.run(*argv, check=False).stdout.strip()

    def shell(
        self, script: str, *, check: bool = True, timeout_s: float = COMMAND_TIMEOUT_S
    ) -> str:
        """Run a shell script that stops at the first error; what it printed."""
        return self.run("sh", "-euc", script, check=check, timeout_s=timeout_s).stdout.strip()

    def copy_in(self, source: Path, destination: str, *, mode: str = "", owner: str = "") -> None:
        """Copy a file, or a folder with what is in it, to a path inside."""
        content = subprocess.run(
            ["tar", "--create", "--owner=root", "--group=root", "-C", source.parent, source.name],
            capture_output=True,
            check=True,
        ).stdout
        target = Path(destination)
        rename = f"--transform=s|^{source.name}|{target.name}|"
        self.run("mkdir", "-p", target.parent)
        subprocess.run(
            self.command("tar", "--extract", "--no-same-owner", rename, "-C", target.parent),
            input=content,
            check=True,
        )
        self._own(target, mode, owner)

    def write(self, path: str, content: str, *, mode: str = "", owner: str = "") -> None:
        """Write a file inside, in place, with its folders."""
        self.run("mkdir", "-p", Path(path).parent)
        self.run("sh", "-c", 'cat >"$1"', "sh", path, stdin=content)
        self._own(Path(path), mode, owner)

    def read(self, path: str) -> str:
        """The content of a text file inside."""
        return self.run("cat", path).stdout

    def exists(self, path: str) -> bool:
        """Whether there is something at a path inside."""
        return self.run("test", "-e", path, check=False).returncode == 0

    def journal(self, unit: str | None = None, *, since: str | None = None) -> str:
        """The journal's messages, of one unit or of all."""
        chosen = [f"--unit={unit}"] if unit else []
        chosen += [f"--since={since}"] if since else []
        return self.output("journalctl", "--no-pager", "--output=short-precise", *chosen)

    def unit(self, name: str, *properties: str) -> dict[str, str]:
        """Properties of a unit, as systemd has them now."""
        chosen = [f"--property={','.join(properties)}"] if properties else []
        lines = self.run("systemctl", "show", name, *chosen).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def install(self, *packages: str | Path, timeout_s: float = 600) -> str:
        """`apt-get install`, from the repository or from .deb files that are inside."""
        self.run("apt-get", "-qq", "update")
        return self.run("apt-get", "-y", "install", *packages, timeout_s=timeout_s).stdout

    # Parts of the above.

    def _prepare(self, upper: Path) -> None:
        """What is this machine's own, before it boots."""
        (upper / "etc").mkdir()
        (upper / "etc/hostname").write_text(f"{self.name}\n")
        # Absent or empty, it would be the machine's very first boot, which asks questions.
        (upper / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
        # sshd and sudo look their own host up.
        (upper / "etc/hosts").write_text(
            f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {self.name}\n"
        )
        if self.key is not None:
            ssh = upper / "root/.ssh"
            ssh.mkdir(parents=True)
            (upper / "root").chmod(0o700)
            ssh.chmod(0o700)
            shutil.copy(self.key.with_suffix(".pub"), ssh / "authorized_keys")

    def _nspawn_arguments(self) -> list[str]:
        binds = {REPOSITORY_INSIDE: self.files.repository, **self.binds}
        return [
            *("--quiet", "--boot", "--register=no", "--keep-unit", "--console=pipe"),
            *(
                f"--directory={self._folder / 'merged'}",
                f"--machine={self._full_name}",
                f"--hostname={self.name}",
            ),
            f"--network-namespace-path=/run/netns/{self.namespace.name}",
            *("--resolv-conf=off", "--timezone=off", "--link-journal=no"),
            *(f"--capability={CAPABILITIES}", "--system-call-filter=bpf perf_event_open"),
            f"--bind={self._folder / 'tun'}:/dev/net/tun",
            *(f"--bind-ro={source}:{inside}" for inside, source in binds.items()),
        ]

    def _own(self, path: Path, mode: str, owner: str) -> None:
        if owner:
            self.run("chown", "-R", owner, path)
        if mode:
            self.run("chmod", mode, path)

    def _find_first(self) -> int | None:
        """Our child that is the first process of a process namespace."""
        assert self._process is not None
        self._first_pid = next(first_processes(self._process.pid), None)
        return self._first_pid

    def _state_at_end(self) -> str | None:
        """How the boot ended; None while it is under way, or before systemd answers."""
        if self._find_first() is None:
            return None
        state = self.output("systemctl", "is-system-running", "--wait")
        return state if state in ("running", "degraded") else None


def first_processes(nspawn_pid: int) -> Iterable[int]:
    """Children of systemd-nspawn that are number 1 in their own process namespace."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{nspawn_pid}/task/{nspawn_pid}/children").read_text().split():
            for line in Path(f"/proc/{child}/status").read_text().splitlines():
                if line.startswith("NSpid:") and line.split()[2:] == ["1"]:
                    yield int(child)


def cgroup_root() -> Path:
    """Where this host has the second version's cgroups."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] == "cgroup2":
            return Path(before.split()[4])
    raise BedError("this host has no cgroup2 mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")


def remove_cgroup(cgroup: Path) -> None:
    """End what is in a cgroup and those below it, and remove them."""
    if not cgroup.exists():
        return
    (cgroup / "cgroup.kill").write_text("1")
    events = cgroup / "cgroup.events"
    wait_until(
        lambda: "populated 0" in events.read_text(), CGROUP_TIMEOUT_S, f"{cgroup} to be empty"
    )
    for folder in sorted(cgroup.rglob("*/"), reverse=True):
        folder.rmdir()
    cgroup.rmdir()


def remove_leftovers() -> None:
    """Folders and cgroups of machines whose lab is gone (it has killed their processes)."""
    MACHINES.mkdir(parents=True, exist_ok=True)
    for folder in MACHINES.iterdir():
        if not _has_lab(folder.name):
            shutil.rmtree(folder, ignore_errors=True)
    for cgroup in cgroup_root().glob(f"{CGROUP_PREFIX}*"):
        if not _has_lab(cgroup.name.removeprefix(CGROUP_PREFIX)):
            remove_cgroup(cgroup)


def _has_lab(name: str) -> bool:
    """Whether the run in a machine's full name, zg-RUN-ROLE, still is there."""
    return (RUN_DIRECTORY / name.split("-")[1]).exists()


def make_key(folder: Path) -> Path:
    """An ssh key pair, for the machines of one test run; the private one."""
    key = folder / "id_ed25519"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "zgate-bed", "-f", key], check=True
    )
    return key


def ssh_arguments(key: Path) -> Sequence[str]:
    """What ssh takes to reach a machine of the bed: they are new, and nobody knows their keys."""
    return [
        *("-i", str(key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
        *("-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes"),
    ]
