"""Numbers that are others at every start, put into instructions that are always the same.

A program is compiled with a stand-in for each map and each secret constant. What the compiler
makes is then the same for every gateway (`zgate_bpf.program_cache`), and holds nothing that must
not be read. Before the kernel gets it, the real numbers take the places of the stand-ins. Both
stand in a ``BPF_LD | BPF_IMM | BPF_DW`` instruction that the compiler cannot see through
(``bpf_pseudo_fd`` in the C text).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping

from zgate_bpf.errors import BpfLoadError

INSTRUCTION_BYTES = 8
_INSTRUCTION = struct.Struct("=BBhi")
#: Opcode, registers and offset, low half; then the second slot: four fields unused, high half.
_WIDE = struct.Struct("=BBhI4xI")
_LOAD_IMM64 = 0x18
_PSEUDO_VALUE, _PSEUDO_MAP_FD = 0, 1
#: Above what any descriptor is.
_MAP_STAND_IN = 1 << 24
#: The compiler writes 32 bits of a stand-in, and no other number of its own this way: what fits
#: into 31 bits needs no instruction of double width.
_CONSTANT_STAND_IN = 0x7A4D_0000
_CONSTANT_BITS = 16


def stand_ins(maps: Mapping[str, int], constants: Mapping[str, int]) -> dict[str, int]:
    """What to define for the compiler: ``ZG_MAP_<name>`` and ``ZG_CONSTANT_<name>``."""
    return {
        **{f"ZG_MAP_{name}": number for number, name in _numbered(maps, _MAP_STAND_IN)},
        **{
            f"ZG_CONSTANT_{name}": number
            for number, name in _numbered(constants, _CONSTANT_STAND_IN)
        },
    }


def link(instructions: bytes, maps: Mapping[str, int], constants: Mapping[str, int]) -> bytes:
    """The instructions with descriptors and constants in the places of their stand-ins.

    ``constants`` are unsigned and of 64 bits.

    Raises:
        BpfLoadError: the instructions name a map or a constant that was not given.
    """
    descriptors = {number: maps[name] for number, name in _numbered(maps, _MAP_STAND_IN)}
    values = {number: constants[name] for number, name in _numbered(constants, _CONSTANT_STAND_IN)}
    made = bytearray(instructions)
    for at in range(0, len(made) - INSTRUCTION_BYTES, INSTRUCTION_BYTES):
        if made[at] == _LOAD_IMM64:
            _link_one(made, at, descriptors, values)
    return bytes(made)


def _link_one(
    made: bytearray, at: int, descriptors: Mapping[int, int], values: Mapping[int, int]
) -> None:
    opcode, registers, offset, low, high = _WIDE.unpack_from(made, at)
    number = high << 32 | low
    source = _source(registers)
    if source == _PSEUDO_MAP_FD:
        if number not in descriptors:
            raise BpfLoadError(f"instruction {at // INSTRUCTION_BYTES} names an unknown map")
        _INSTRUCTION.pack_into(made, at, opcode, registers, offset, descriptors[number])
    elif source == _PSEUDO_VALUE and number >> _CONSTANT_BITS == (
        _CONSTANT_STAND_IN >> _CONSTANT_BITS
    ):
        if number not in values:
            raise BpfLoadError(f"instruction {at // INSTRUCTION_BYTES} names an unknown constant")
        value = values[number]
        _WIDE.pack_into(made, at, opcode, registers, offset, value & 0xFFFFFFFF, value >> 32)


def _numbered(names: Mapping[str, int], first: int) -> list[tuple[int, str]]:
    return list(enumerate(sorted(names), first))


def _source(registers: int) -> int:
    """The source register of ``struct bpf_insn``: a bit field, laid out as the machine does it."""
    return registers >> 4 if sys.byteorder == "little" else registers & 0xF
