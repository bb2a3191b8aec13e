"""Can programs and tables be loaded here? Tried with the smallest there are, gone at once."""

from __future__ import annotations

import os
import struct

from zgate_bpf import syscalls
from zgate_bpf.loader import explain_os_error
from zgate_bpf.syscalls import MapType, ProgramType

_BPF_MOV64_IMM, _BPF_EXIT = 0xB7, 0x95
#: r0 = 0; exit
_NOTHING = struct.pack("=BBhi", _BPF_MOV64_IMM, 0, 0, 0) + struct.pack("=BBhi", _BPF_EXIT, 0, 0, 0)
_MAPS = (MapType.HASH, MapType.LRU_HASH, MapType.LPM_TRIE, MapType.PERCPU_ARRAY)


def probe_bpf() -> str | None:
    """Why the kernel takes no table or no program; None: it takes both."""
    try:
        for kind in _MAPS:
            is_trie = kind is MapType.LPM_TRIE
            flags = syscalls.NO_PREALLOC if is_trie else 0
            key_bytes = 8 if is_trie else 4
            os.close(syscalls.map_create(kind, key_bytes, 8, 1, name="zgate_probe", flags=flags))
    except OSError as error:
        return explain_os_error(f"no table of the kind {kind.name}", error)
    try:
        kind_of_program = ProgramType.SCHED_CLS
        os.close(
            syscalls.program_load(
                kind_of_program, _NOTHING, name="zgate_probe", license_name="Apache-2.0"
            )
        )
    except OSError as error:
        return explain_os_error("no program", error)
    return None
