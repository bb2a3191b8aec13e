"""What machines boot from: root file systems of Debian 12 and an apt repository, made once.

`base` is an empty machine: systemd, ssh, Python, no zgate and nothing that only zgate needs. All of
that is in the repository, as the .deb files that Debian has, so that a machine without a network
installs from there what it lacks. A `layer` is what a command left on top of another file system.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bed.errors import BedError

ROOT = Path(__file__).parents[3]
CACHE = Path(os.environ.get("ZGATE_APPLIANCE_CACHE", "/var/cache/zgate-appliance"))
SUITE = "bookworm"
REPOSITORY_INSIDE = "/srv/debian"
"""Where a machine finds the repository; its only source of packages."""
SOURCES = f"deb [trusted=yes] file:{REPOSITORY_INSIDE} ./\n"

BASE_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "udev", "openssh-server", "sudo", "ca-certificates"),
    *("python3", "python3-apt", "iproute2", "nftables", "iputils-ping", "curl", "procps"),
    *("iperf3", "less", "man-db", "bash-completion", "faketime"),
)
"""What an administrator has on a server before zgate comes."""
BUILD_ONLY = {"gcc", "libc6-dev", "python3-dev", "libssl-dev"}
"""For those who compile the native engine; an appliance gets it compiled."""
OTHERS_IN_REPOSITORY = ("prometheus", "ncal")
"""More than zgate needs: what tests install beside it, and a package that nobody misses."""
BUILDING = "building-"
UNUSED_S = 7 * 86_400
IN_USE = {"machines", "containers"}
"""Folders that others look after: they may hold mounts."""

_SETTLE = r"""
set -eu
echo '127.0.0.1 localhost' >"$1/etc/hosts"
echo '::1 localhost' >>"$1/etc/hosts"
: >"$1/etc/resolv.conf"
printf '%s' "$SOURCES" >"$1/etc/apt/sources.list"
rm -f "$1"/etc/apt/sources.list.d/* "$1"/etc/machine-id
mkdir -p "$1$REPOSITORY_INSIDE" "$1/root/.ssh"
chmod 700 "$1/root/.ssh"
# What has nothing to do in a test, or waits for a network that is there before the machine.
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer \
    dpkg-db-backup.timer man-db.timer systemd-timesyncd.service systemd-networkd.service \
    systemd-networkd-wait-online.service systemd-networkd.socket iperf3.service
do ln -sf /dev/null "$1/etc/systemd/system/$unit"; done
"""
_FETCH = r"""
set -eu
mkdir -p "$REPOSITORY"
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
apt-get -qq -y --no-install-recommends --download-only \
    -o Dir::Cache::archives="$REPOSITORY" install $WANTED
"""


_LAYER = r"""
script=$1
shift
mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=$UPPER,workdir=$WORK" "$MERGED"
mount --bind -o ro "$REPOSITORY" "$MERGED$REPOSITORY_INSIDE"
mount -t proc proc "$MERGED/proc"
mount -t tmpfs tmpfs "$MERGED/tmp"
for file in "$@"; do cp "$file" "$MERGED/tmp"; done
unset LOWER UPPER WORK REPOSITORY REPOSITORY_INSIDE
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec chroot "$MERGED" sh -euc "cd /tmp; apt-get -qq update; $script; apt-get clean"
"""


def dependencies() -> list[str]:
    """What zgate needs from Debian to run; what is on the machines anyway included."""
    here = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
    ).stdout.strip()
    text = (ROOT / "tools" / "packages-run.txt").read_text()
    lines = (line.split() for line in text.splitlines())
    wanted = (words for words in lines if words and not words[0].startswith("#"))
    return sorted(
        words[0] for words in wanted if words[1:] in ([], [here]) and words[0] not in BUILD_ONLY
    )


@dataclass(frozen=True)
class Files:
    """File systems and packages that are there.

    Attributes:
        layers: folders of an overlay, the lowest first.
        repository: Debian packages with their index.
    """

    layers: tuple[Path, ...]
    repository: Path


def base() -> Files:
    """An empty machine's files: from the cache, or built now.

    Raises:
        BedError: it could not be built.
    """
    inputs = (SUITE, *BASE_PACKAGES, *dependencies(), *OTHERS_IN_REPOSITORY, _SETTLE, _FETCH)
    folder = made_once("base", inputs, _build_base)
    return Files((folder / "root",), folder / "repository")


def with_dependencies() -> Files:
    """A machine on which everything is installed that zgate needs, and zgate is not."""
    return layer("dependencies", base(), f"apt-get -y install {' '.join(dependencies())}")


def layer(name: str, below: Files, script: str, *more: Path) -> Files:
    """What a shell script leaves behind in a root file system, kept for the next time.

    It runs as root where no systemd runs, with the repository as the source of packages; the files
    `more` are beside it, and another content of theirs makes another layer.

    Raises:
        BedError: the script failed.
    """

    def build(folder: Path) -> None:
        upper = folder / "root"
        for path in (upper, folder / "work", folder / "merged"):
            path.mkdir()
        step(
            *("unshare", "--mount", "--propagation", "private", "--pid", "--mount-proc"),
            *("--fork", "--kill-child", "sh", "-euc", _LAYER, "sh", script, *map(str, more)),
            environment={
                "LOWER": ":".join(map(str, reversed(below.layers))),
                "UPPER": str(upper),
                "WORK": str(folder / "work"),
                "MERGED": str(folder / "merged"),
                "REPOSITORY": str(below.repository),
                "REPOSITORY_INSIDE": REPOSITORY_INSIDE,
            },
        )

    contents = (hashlib.sha256(path.read_bytes()).hexdigest() for path in more)
    folder = made_once(name, (*map(str, below.layers), _LAYER, script, *contents), build)
    return Files((*below.layers, folder / "root"), below.repository)


def _build_base(folder: Path) -> None:
    print(f"building the machines' file system in {CACHE}: two minutes, this once", flush=True)
    repository = folder / "repository"
    (repository / "partial").mkdir(parents=True)
    step(
        # Its mounts are nobody else's, and all of it ends with it: whatever interrupts a build,
        # the folder can be removed.
        *("unshare", "--mount", "--propagation", "private", "--pid", "--mount-proc", "--fork"),
        *("--kill-child", "mmdebstrap", "--mode=root", "--variant=minbase"),
        *(f"--include={','.join(BASE_PACKAGES)}", "--customize-hook", _FETCH),
        *("--customize-hook", _SETTLE, SUITE, str(folder / "root")),
        environment={
            "REPOSITORY": str(repository),
            "WANTED": " ".join([*dependencies(), *OTHERS_IN_REPOSITORY]),
            "SOURCES": SOURCES,
            "REPOSITORY_INSIDE": REPOSITORY_INSIDE,
        },
    )
    shutil.rmtree(repository / "partial")
    (repository / "lock").unlink(missing_ok=True)
    index(repository)


def index(repository: Path) -> None:
    """Write the index of a folder of packages, by which apt finds them."""
    packages = step("dpkg-scanpackages", "--multiversion", ".", cwd=repository)
    (repository / "Packages").write_text(packages)


def made_once(kind: str, inputs: Sequence[str], build: Callable[[Path], None]) -> Path:
    """The folder of these inputs, built if it is not there; nobody else builds meanwhile."""
    CACHE.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:16]
    folder = CACHE / f"{kind}-{key}"
    with locked():
        if not folder.exists():
            remove_old()
            with tempfile.TemporaryDirectory(prefix=BUILDING, dir=CACHE) as name:
                made = Path(name) / "made"
                made.mkdir()
                build(made)
                made.rename(folder)
        os.utime(folder)
    return folder


def remove_old() -> None:
    """What an interrupted build left, and what nobody has used for days."""
    for folder in CACHE.iterdir():
        if not folder.is_dir() or folder.name in IN_USE:
            continue
        is_old = folder.stat().st_mtime < time.time() - UNUSED_S
        if is_old or folder.name.startswith(BUILDING):
            shutil.rmtree(folder)


@contextmanager
def locked() -> Iterator[None]:
    """One build at a time on this host; the second finds it done."""
    with (CACHE / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def step(*command: str, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    """Run a command of a build; what it printed.

    Raises:
        BedError: it failed.
    """
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise BedError(f"{command[0]} failed with status {done.returncode}:\n{tail}")
    return done.stdout
