"""A root file system of Debian 12 with its kernel, made once for each set of its inputs.

The kernel is installed in there, never on the host.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = Path(os.environ.get("ZGATE_VM_CACHE", "/var/cache/zgate-vm"))
PACKAGES = ROOT / "tools" / "packages-run.txt"
INIT = HERE / "init.sh"
SUITE = "bookworm"
KERNEL = "linux-image-cloud-amd64"
# Sparse: what the tests write is room in the image, and never reaches the cache.
DISK_BYTES = 4 << 30
BUILDING = "building-"
UNUSED_S = 7 * 86_400


class ImageError(Exception):
    """A step of the build failed; the text says which, and its last lines."""


@dataclass(frozen=True)
class Image:
    """What the emulator boots."""

    disk: Path
    kernel: Path
    initrd: Path

    @classmethod
    def at(cls, folder: Path) -> Self:
        return cls(folder / "root.ext4", folder / "vmlinuz", folder / "initrd.img")


def packages() -> list[str]:
    """What zgate needs; a line's second word is the only architecture that has the package."""
    here = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
    ).stdout.strip()
    lines = (line.split() for line in PACKAGES.read_text().splitlines())
    wanted = (words for words in lines if words and not words[0].startswith("#"))
    return sorted(words[0] for words in wanted if words[1:] in ([], [here]))


def recipe(root: Path) -> list[str]:
    """What makes the root file system in an empty folder."""
    return [
        # Its mounts (/proc, /sys, /dev) are nobody else's, and all of it ends with it: whatever
        # interrupts a build, the folder can be removed.
        *("unshare", "--mount", "--propagation", "private", "--pid", "--mount-proc", "--fork"),
        "--kill-child",
        *("mmdebstrap", "--mode=root", "--variant=minbase"),
        f"--include={','.join([*packages(), KERNEL, 'kmod', 'udev'])}",
        f"--customize-hook=install -m 755 {INIT} $1/sbin/zgate-vm-init",
        *(SUITE, str(root)),
    ]


def key() -> str:
    """Another one for every change of what the image is made of."""
    inputs = [*packages(), SUITE, KERNEL, str(DISK_BYTES), INIT.read_text()]
    return hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:16]


def get() -> Image:
    """The image of today's inputs: from the cache, or built now.

    Raises:
        ImageError: it could not be built.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = CACHE / key()
    with locked():
        if not folder.exists():
            remove_old()
            with tempfile.TemporaryDirectory(prefix=BUILDING, dir=CACHE) as name:
                build(Path(name))
                Path(name, "image").rename(folder)
    os.utime(folder)
    return Image.at(folder)


def remove_old() -> None:
    """What an interrupted build left, and images that nobody has used for days."""
    for folder in CACHE.iterdir():
        is_old = folder.stat().st_mtime < time.time() - UNUSED_S
        if folder.is_dir() and (is_old or folder.name.startswith(BUILDING)):
            shutil.rmtree(folder)


@contextmanager
def locked() -> Iterator[None]:
    """One build at a time on this host; the second finds it done."""
    with (CACHE / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(folder: Path) -> None:
    root, made = folder / "root", Image.at(folder / "image")
    made.disk.parent.mkdir()
    print(f"building the machine's file system in {CACHE}: a minute, this once", flush=True)
    step(*recipe(root))
    for name, to in (("vmlinuz", made.kernel), ("initrd.img", made.initrd)):
        (found,) = (root / "boot").glob(f"{name}-*")
        shutil.copy(found, to)
    make_disk(root, made.disk, DISK_BYTES)


def make_disk(content: Path, disk: Path, size_bytes: int) -> None:
    """An ext4 file system that holds a folder."""
    step("mke2fs", "-q", "-t", "ext4", "-d", str(content), str(disk), f"{size_bytes >> 20}M")


def step(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise ImageError(f"{command[0]} failed with status {done.returncode}:\n{tail}")


if __name__ == "__main__":
    try:
        print(get().disk.parent)
    except ImageError as error:
        sys.exit(str(error))
