"""Each program is compiled once in a run of the tests: that takes seconds, loading it does not.

What the compiler makes for one set of map descriptors is what it makes for another, but for the
numbers in the instructions that name a map. So it is given numbers that stand for maps, and
those of the maps at hand are put in their place.
"""

import struct

from zgate_bpf import loader

MAP = "ZG_MAP_"
STAND_IN = 1 << 24
"""Above what any descriptor is."""
INSTRUCTION = struct.Struct("<BBhi")
LOAD_IMM64, PSEUDO_MAP_FD = 0x18, 1


class CompiledOnce:
    """In the place of `loader.compile_program`."""

    def __init__(self):
        self.compile = loader.compile_program
        self.programs = {}

    def __call__(self, name, functions, defines, **keywords):
        maps = {word: value for word, value in defines.items() if word.startswith(MAP)}
        stand_ins = {word: STAND_IN + number for number, word in enumerate(sorted(maps))}
        general = {**defines, **stand_ins}
        key = (name, functions, tuple(sorted(general.items())), tuple(sorted(keywords.items())))
        if key not in self.programs:
            self.programs[key] = self.compile(name, functions, general, **keywords)
        real = {stand_ins[word]: value for word, value in maps.items()}
        return {one: linked(code, real) for one, code in self.programs[key].items()}


def linked(code, descriptors):
    """The instructions with descriptors of maps where the numbers are that stand for them."""
    made = bytearray(code)
    for at in range(0, len(code), INSTRUCTION.size):
        opcode, registers, offset, value = INSTRUCTION.unpack_from(code, at)
        if opcode == LOAD_IMM64 and registers >> 4 == PSEUDO_MAP_FD:
            INSTRUCTION.pack_into(made, at, opcode, registers, offset, descriptors[value])
    return bytes(made)
