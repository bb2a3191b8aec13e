"""From the C text of a program to a descriptor of it in the kernel.

bcc compiles; the kernel is asked directly to take the result, because its answer then says
what the verifier objected to. No kernel headers are needed: see ``programs/kernel_stub``.
"""

from __future__ import annotations

import errno
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from zgate_bpf import layouts, syscalls
from zgate_bpf.errors import BpfLoadError
from zgate_bpf.syscalls import ProgramRefused, ProgramType

PROGRAMS = Path(__file__).parent / "programs"
"""The C sources, as they are installed."""

_LICENSE = "Apache-2.0"
_LOG_BYTES = 1 << 20
_LOG_LINES_SHOWN = 12


def compile_program(
    name: str,
    functions: tuple[str, ...],
    defines: Mapping[str, int],
    *,
    extra_text: str = "",
    assertions: str | None = None,
) -> dict[str, bytes]:
    """Compile ``programs/NAME/NAME.c``; gives the instructions of each function.

    ``assertions`` are those of the structs that the program shares with Python; absent: those of
    the policy program.

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
    shared = layouts.assertions() if assertions is None else assertions
    text = (PROGRAMS / name / f"{name}.c").read_text() + shared + extra_text
    with _stub_tree(), _captured_stderr() as said:
        try:
            module = BPF(text=text.encode(), cflags=_flags(name, defines))
            try:
                return {function: module.dump_func(function.encode()) for function in functions}
            finally:
                module.cleanup()  # it would keep its memory and a descriptor until exit
        except Exception as error:  # bcc raises the class Exception itself
            raise BpfLoadError(_explain_compile(name, said())) from error


def load_program(
    instructions: bytes,
    *,
    name: str,
    kind: ProgramType = ProgramType.SCHED_CLS,
    flags: int = 0,
) -> int:
    """Give a compiled program to the kernel; its descriptor.

    Raises:
        BpfLoadError: the kernel refused it.
    """
    try:
        return syscalls.program_load(
            kind, instructions, name=name, license_name=_LICENSE, flags=flags
        )
    except PermissionError as error:
        if error.errno == errno.EPERM:
            raise BpfLoadError(explain_os_error(f"program {name}", error)) from error
    except OSError:
        pass  # asked again below, with the verifier's log
    try:
        return syscalls.program_load(
            kind,
            instructions,
            name=name,
            license_name=_LICENSE,
            log_bytes=_LOG_BYTES,
            flags=flags,
        )
    except ProgramRefused as error:
        tail = "\n".join(error.log.strip().splitlines()[-_LOG_LINES_SHOWN:])
        raise BpfLoadError(
            f"the kernel ({platform.release()}) refused program {name}: {error.strerror}\n{tail}"
        ) from error


def explain_os_error(what: str, error: OSError) -> str:
    """What an error of bpf(2) means to whoever runs the program."""
    cures = {
        errno.EPERM: "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; in a "
        "container allow the bpf system call",
        errno.ENOMEM: "not enough kernel memory for tables of these sizes: make them smaller",
        errno.ENOSYS: "this kernel has no bpf system call",
        errno.E2BIG: "the kernel allows no table of this size: make it smaller",
    }
    cure = cures.get(error.errno or 0)
    return f"{what}: {error.strerror}" + (f" ({cure})" if cure else "")


def _flags(name: str, defines: Mapping[str, int]) -> list[str]:
    include = [f"-I{PROGRAMS / 'include'}", f"-I{PROGRAMS / name}"]
    # Behind bcc's own headers, which must win.
    host = ["-idirafter", "/usr/include"]
    multiarch = f"/usr/include/{platform.machine()}-linux-gnu"
    if Path(multiarch).is_dir():
        host += ["-idirafter", multiarch]
    return [*include, *host, *(f"-D{key}={value}" for key, value in defines.items())]


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
        return os.pread(self._fd, _LOG_BYTES, 0).decode(errors="replace")


def _explain_compile(name: str, said: str) -> str:
    errors = [line for line in said.splitlines() if "error:" in line] or said.splitlines()[-3:]
    shown = "\n".join(errors[:_LOG_LINES_SHOWN])
    cure = ""
    if "file not found" in said:
        cure = "\nThe C library's kernel interface headers are needed: install linux-libc-dev"
    return f"program {name} does not compile:\n{shown}{cure}"
