"""`make test-vm`: the programs and a gateway on Debian 12's own kernel, in a virtual machine.

    run.py [PYTEST ARGUMENT...]

An emulator (QEMU without KVM, so that it works anywhere; slow) boots Debian's kernel with a root
file system made by image.py, and runs tests of the clone as it is now, virtual environment and
all. Without arguments: all of tests/bpf, and what SMOKE lists. Ends with pytest's status.

ZGATE_VM_ACCEL=kvm makes it quick where KVM works. ZGATE_VM_CACHE: where the image is kept.
"""

import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import image

SLOWNESS = 20
"""The tests' own patience grows by this, and what they only repeat is repeated less often."""
SMOKE = (
    "tests/e2e/test_tunnel.py::test_ping",
    "tests/e2e/test_tunnel.py::test_the_kernel_counts_what_it_drops",
)
SHORTER = "The thousand flips and the 200,000 packets are a twentieth here."
TEST_TIMEOUT_S = 1200
TIMEOUT_S = 3600
SILENCE_S = 900
MEMORY_MB = 3072
NOT_IN_THE_MACHINE = (
    ".git",
    ".cache",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FAILED = 3
"""Our status when the machine ended without a word on the tests."""


def put_together(folder: Path, arguments: list[str]) -> Path:
    """The second disk: the clone, where it is on this host, and the commands."""
    content = folder / "content"
    shutil.copytree(
        image.ROOT,
        content / "clone",
        symlinks=True,
        ignore=lambda where, _: NOT_IN_THE_MACHINE if Path(where) == image.ROOT else (),
    )
    (content / "path").write_text(str(image.ROOT))
    pytest = [
        ".venv/bin/python",
        "-m",
        "pytest",
        "-v",
        "--color=yes",
        f"--timeout={TEST_TIMEOUT_S}",
        "-p",
        "no:cacheprovider",
    ]
    (content / "commands").write_text(
        "set -eu\n"
        'echo "kernel $(uname -r), ready after $(cut -d " " -f 1 /proc/uptime) s"\n'
        f"export ZGATE_SLOWNESS={SLOWNESS}\n"
        f"exec {shlex.join([*pytest, *arguments])}\n"
    )
    disk = folder / "clone.ext4"
    image.make_disk(content, disk, 2 << 30)
    shutil.rmtree(content)
    return disk


def command(made: image.Image, clone: Path, status: Path) -> list[str]:
    accelerator = os.environ.get("ZGATE_VM_ACCEL", "tcg,thread=multi")
    drives = (f"file={made.disk}", f"file={clone}")
    return [
        *("qemu-system-x86_64", "-M", "q35", "-accel", accelerator, "-cpu", "max"),
        *("-smp", str(min(4, os.cpu_count() or 1)), "-m", str(MEMORY_MB)),
        *("-nodefaults", "-display", "none", "-no-reboot"),
        *("-serial", "stdio", "-serial", f"file:{status}"),
        *("-kernel", str(made.kernel), "-initrd", str(made.initrd)),
        # A kernel that panics ends the emulator, too.
        *("-append", "console=ttyS0 root=/dev/vda rw init=/sbin/zgate-vm-init quiet panic=-1"),
        # snapshot: what the machine writes goes with it.
        *(word for one in drives for word in ("-drive", f"{one},format=raw,if=virtio,snapshot=on")),
    ]


def run(argv: list[str]) -> str | None:
    """Run the emulator and show what the machine says; what is wrong if it took too long."""
    # A session of its own: Ctrl-C comes to us, and we end it. If we are killed, it goes too.
    emulator = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        return show(emulator)
    finally:
        emulator.kill()
        emulator.wait()


def show(emulator: subprocess.Popen[bytes]) -> str | None:
    assert emulator.stdout is not None
    descriptor = emulator.stdout.fileno()
    end_s = time.monotonic() + TIMEOUT_S
    while (left_s := end_s - time.monotonic()) > 0:
        if not select.select([descriptor], [], [], min(left_s, SILENCE_S))[0]:
            if left_s > SILENCE_S:
                return f"the machine has said nothing for {SILENCE_S} s"
            continue
        text = os.read(descriptor, 1 << 16)
        if not text:
            return None
        sys.stdout.buffer.write(text.replace(b"\r\n", b"\n"))
        sys.stdout.buffer.flush()
    return f"the tests have not ended after {TIMEOUT_S} s"


def interrupt(*_: object) -> None:
    """Ctrl-C, a `kill`, a terminal that closes: once, because what follows is the cleaning up."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(arguments: list[str]) -> int:
    for number in SIGNALS:
        signal.signal(number, interrupt)
    if os.geteuid() != 0:
        print("run.py makes a root file system: it needs root", file=sys.stderr)
        return FAILED
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="zgate-vm-") as name:
        status_file = Path(name, "status")
        try:
            made = image.get()
            clone = put_together(Path(name), arguments or ["tests/bpf", *SMOKE])
            if not arguments:
                print(SHORTER)
            print("starting the machine; it is emulated, so everything takes long", flush=True)
            wrong = run(command(made, clone, status_file))
        except image.ImageError as error:
            wrong = str(error)
        except KeyboardInterrupt:
            print("\ninterrupted: the machine is gone", file=sys.stderr)
            return 128 + signal.SIGINT
        said = status_file.read_text() if status_file.exists() else ""
    found = re.search(r"\d+", said)
    if wrong is None and not found:
        wrong = "the machine ended before the tests did; its last lines are above"
    if wrong is not None:
        print(f"test-vm: {wrong}", file=sys.stderr)
        return FAILED
    assert found is not None
    print(f"{time.monotonic() - began_s:.0f} s, status {found[0]}")
    return int(found[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
