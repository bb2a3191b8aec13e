"""From the C text of a program to a descriptor of it in the kernel.

The instructions come from the cache, or else from the compiler. The kernel is asked directly to
take them, because its answer then says what the verifier objected to.
"""

from __future__ import annotations

import errno
import platform
from collections.abc import Mapping

from zgate_bpf import layouts, syscalls
from zgate_bpf.compiler import PROGRAMS, Source, compile_source
from zgate_bpf.errors import BpfLoadError
from zgate_bpf.linking import link, stand_ins
from zgate_bpf.program_cache import cache_directory, open_cache
from zgate_bpf.program_key import program_key
from zgate_bpf.syscalls import ProgramRefused, ProgramType

__all__ = ["PROGRAMS", "compile_program", "explain_os_error", "load_program"]

_LICENSE = "Apache-2.0"
_LOG_BYTES = 1 << 20
_LOG_LINES_SHOWN = 12
_NO_CONSTANTS: Mapping[str, int] = {}


def compile_program(
    name: str,
    functions: tuple[str, ...],
    defines: Mapping[str, int],
    *,
    maps: Mapping[str, int],
    constants: Mapping[str, int] = _NO_CONSTANTS,
    extra_text: str = "",
    assertions: str | None = None,
) -> dict[str, bytes]:
    """The instructions of each function of ``programs/NAME/NAME.c``, ready for the kernel.

    ``maps`` are the descriptors of those that the program names; ``constants`` are numbers of 64
    bits that are not kept on the disk. ``assertions`` are those of the structs that the program
    shares with Python; absent: those of the policy program.

    Raises:
        BpfLoadError: bcc is missing, or the text does not compile.
    """
    shared = layouts.assertions() if assertions is None else assertions
    general = {**defines, **stand_ins(maps, constants)}
    source = Source(name, functions, general, shared + extra_text)
    return {
        function: link(code, maps, constants) for function, code in _instructions(source).items()
    }


def _instructions(source: Source) -> dict[str, bytes]:
    with open_cache(cache_directory()) as cache:
        if cache is None:
            return compile_source(source)
        key = program_key(source)
        found = cache.get(source.name, key, source.functions)
        if found is not None:
            return found
        made = compile_source(source)
        # An upgrade in these seconds would leave what is new under the name of what was old.
        if program_key(source) == key:
            cache.put(source.name, key, made)
        return made


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
