"""From C text to instructions: bcc, told to do without kernel headers (``programs/kernel_stub``).

bcc and the LLVM below it cost seconds and more than a hundred megabytes of memory. They are
imported when something is compiled, and not before.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zgate_bpf.errors import BpfLoadError

PROGRAMS = Path(__file__).parent / "programs"
"""The C sources, as they are installed."""

_SAID_BYTES = 1 << 20
_LINES_SHOWN = 12


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
    """
    try:
        from bcc import BPF
    except ImportError as error:
        raise BpfLoadError(
            "bcc is not installed: install Debian's python3-bpfcc, and make the virtual "
            "environment with --system-site-packages (PyPI's 'bcc' is something else)"
        ) from error
    with _stub_tree(), _captured_stderr() as said:
        try:
            module = BPF(text=source.text.encode(), cflags=source.flags)
            try:
                return {name: module.dump_func(name.encode()) for name in source.functions}
            finally:
                module.cleanup()  # it would keep its memory and a descriptor until exit
        except Exception as error:  # bcc raises the class Exception itself
            raise BpfLoadError(_explain(source.name, said())) from error


@contextmanager
def _stub_tree() -> Iterator[None]:
    """Tell bcc, by the way it documents, to use our tree as the kernel's sources."""
    before = os.environ.get("BCC_KERNEL_SOURCE")
    os.environ["BCC_KERNEL_SOURCE"] = str(PROGRAMS / "kernel_stub")
    try:
        yield
    finally:
        if before is None:
            del os.environ["BCC_KERNEL_SOURCE"]
        else:
            os.environ["BCC_KERNEL_SOURCE"] = before


@contextmanager
def _captured_stderr() -> Iterator[_Said]:
    """The compiler writes to descriptor 2 and nowhere else: catch it, for the error's text."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield _Said(file.fileno())
        finally:
            os.dup2(kept, 2)
            os.close(kept)


class _Said:
    """What was written to a descriptor so far."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __call__(self) -> str:
        return os.pread(self._fd, _SAID_BYTES, 0).decode(errors="replace")


def _explain(name: str, said: str) -> str:
    errors = [line for line in said.splitlines() if "error:" in line] or said.splitlines()[-3:]
    shown = "\n".join(errors[:_LINES_SHOWN])
    cure = ""
    if "file not found" in said:
        cure = "\nThe C library's kernel interface headers are needed: install linux-libc-dev"
    return f"program {name} does not compile:\n{shown}{cure}"
