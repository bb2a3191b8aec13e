"""From C text to instructions: bcc, told to do without kernel headers (``programs/kernel_stub``).

bcc and the LLVM below it take more than a hundred megabytes, which a process does not get back, and
write what they object to where our own messages go. So they run in a process of their own, this
module's, which ends when the instructions are there.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from zgate_bpf.errors import BpfLoadError

logger = logging.getLogger(__name__)

PROGRAMS = Path(__file__).parent / "programs"
"""The C sources, as they are installed."""

_LINES_SHOWN = 12
_BCC_IS_MISSING, _DOES_NOT_COMPILE = 3, 4


@dataclass(frozen=True, slots=True)
class Source:
    """What is compiled: ``programs/NAME/NAME.c`` with more text behind it.

    :ivar functions: those whose instructions are wanted.
    """

    name: str
    functions: tuple[str, ...]
    defines: Mapping[str, int]
    more_text: str

    @property
    def text(self) -> str:
        """The C text. Raises OSError."""
        return (PROGRAMS / self.name / f"{self.name}.c").read_text() + self.more_text

    @property
    def flags(self) -> list[str]:
        """The compiler's."""
        include = [f"-I{PROGRAMS / 'include'}", f"-I{PROGRAMS / self.name}"]
        # Behind bcc's own headers, which must win.
        host = [flag for folder in header_folders() for flag in ("-idirafter", str(folder))]
        return [*include, *host, *(f"-D{key}={value}" for key, value in self.defines.items())]


def header_folders() -> list[Path]:
    """Where the C library's kernel interface headers are."""
    multiarch = Path(f"/usr/include/{platform.machine()}-linux-gnu")
    return [Path("/usr/include"), *([multiarch] if multiarch.is_dir() else [])]


def compile_source(source: Source) -> dict[str, bytes]:
    """The instructions of each function.

    Raises:
        BpfLoadError: bcc is missing, or the text does not compile.
        OSError: the compiler's process cannot be started.
    """
    # Whoever starts a gateway for the first time, by hand, waits and wonders.
    logger.info(
        "compiling the BPF program %(program)s, which takes some seconds",
        {"event": "bpf_compiling", "program": source.name},
    )
    done = subprocess.run(
        [sys.executable, "-P", "-m", "zgate_bpf.compiler"],
        input=json.dumps(asdict(source)).encode(),
        capture_output=True,
        # The documented way to have bcc use another tree as the kernel's sources.
        env={**os.environ, "BCC_KERNEL_SOURCE": str(PROGRAMS / "kernel_stub")},
        check=False,
    )
    said = done.stderr.decode(errors="replace")
    if done.returncode == _BCC_IS_MISSING:
        raise BpfLoadError(
            "bcc is not installed: install Debian's python3-bpfcc, and make the virtual "
            f"environment with --system-site-packages (PyPI's 'bcc' is something else)\n{said}"
        )
    if done.returncode != 0:
        raise BpfLoadError(_explain(source.name, said))
    return {name: base64.b64decode(code) for name, code in json.loads(done.stdout).items()}


def _explain(name: str, said: str) -> str:
    errors = [line for line in said.splitlines() if "error:" in line] or said.splitlines()[-3:]
    shown = "\n".join(errors[:_LINES_SHOWN])
    cure = ""
    if "file not found" in said:
        cure = "\nThe C library's kernel interface headers are needed: install linux-libc-dev"
    return f"program {name} does not compile:\n{shown}{cure}"


# The process of its own.


def main() -> int:
    """Compile what standard input says; instructions on standard output, complaints beside it."""
    source = Source(**json.load(sys.stdin))
    try:
        from bcc import BPF
    except ImportError as error:
        print(error, file=sys.stderr)
        return _BCC_IS_MISSING
    try:
        module = BPF(text=source.text.encode(), cflags=source.flags)
        made = {name: module.dump_func(name.encode()) for name in source.functions}
    except Exception as error:  # bcc raises the class Exception itself
        print(error, file=sys.stderr)
        return _DOES_NOT_COMPILE
    json.dump({name: base64.b64encode(code).decode() for name, code in made.items()}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
