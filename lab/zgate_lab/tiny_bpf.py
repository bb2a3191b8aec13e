"""BPF programs of a few instructions for tc hooks, loaded without compiler or library.

They stand in for a real program where a test is about what surrounds it: where it is attached,
and what becomes of packets that it passes, passes without its mark, or drops.
"""

import ctypes
import os
import struct
from enum import Enum

from zgate_lab.errors import LabError

BPF_PROG_LOAD = 5
BPF_PROG_TYPE_SCHED_CLS = 3
BPF_SYSCALLS = {"x86_64": 321, "aarch64": 280}
ATTRIBUTES_BYTES = 128
INSTRUCTION_BYTES = 8
MARK_OFFSET = 8  # of `mark` in struct __sk_buff

_LOAD_WORD, _STORE_WORD, _MOVE, _AND_WORD, _OR_WORD, _EXIT = 0x61, 0x63, 0xB7, 0x54, 0x44, 0x95
_TC_ACT_OK, _TC_ACT_SHOT = 0, 2


def _instruction(code: int, registers: int, offset: int, immediate: int) -> bytes:
    return struct.pack("<BBhi", code, registers, offset, immediate)


def _return(value: int) -> bytes:
    return _instruction(_MOVE, 0, 0, value) + _instruction(_EXIT, 0, 0, 0)


def _set_mark(mark: int, mask: int) -> bytes:
    """Return instructions for `mark = (mark & ~mask) | MARK`."""
    return (
        _instruction(_LOAD_WORD, 0x12, MARK_OFFSET, 0)
        + _instruction(_AND_WORD, 0x02, 0, ~mask)
        + _instruction(_OR_WORD, 0x02, 0, mark)
        + _instruction(_STORE_WORD, 0x21, MARK_OFFSET, 0)
    )


class TinyProgram(Enum):
    """What a program does with every packet; the value is its code."""

    PASS = _set_mark(0x005A0000, 0x00FF0000) + _return(_TC_ACT_OK)  # and marks it as passed
    PASS_UNMARKED = _return(_TC_ACT_OK)
    DROP = _return(_TC_ACT_SHOT)

    def load(self) -> int:
        """Load it as SCHED_CLS and return its file descriptor."""
        code = ctypes.create_string_buffer(self.value, len(self.value))
        licence = ctypes.create_string_buffer(b"GPL")
        attributes = struct.pack(
            "<IIQQ",
            BPF_PROG_TYPE_SCHED_CLS,
            len(self.value) // INSTRUCTION_BYTES,
            ctypes.addressof(code),
            ctypes.addressof(licence),
        ).ljust(ATTRIBUTES_BYTES, b"\0")
        buffer = ctypes.create_string_buffer(attributes, ATTRIBUTES_BYTES)
        libc = ctypes.CDLL(None, use_errno=True)
        number = BPF_SYSCALLS.get(os.uname().machine)
        if number is None:
            raise LabError(f"the lab does not know bpf(2)'s number on {os.uname().machine}")
        descriptor = int(libc.syscall(number, BPF_PROG_LOAD, buffer, ATTRIBUTES_BYTES))
        if descriptor < 0:
            raise LabError(f"cannot load a BPF program: {os.strerror(ctypes.get_errno())}")
        return descriptor
