"""What the linked instructions are: those of a compilation with the real numbers."""

import struct

import pytest
from zgate_bpf import compiler, linking
from zgate_bpf.errors import BpfLoadError

FUNCTIONS = ("zg_steer_udp", "zg_steer_tun")
MAPS = {"sockets": 31, "owners": 7, "networks": 1_000_000}
SECRETS = {"mask_factor": 0xFEDC_BA98_7654_3211, "mask_offset": 0x0123_4567_89AB_CDEF}


def compiled(numbers):
    source = compiler.Source("steering", FUNCTIONS, {"ZG_WORKERS": 2, **numbers}, "")
    return compiler.compile_source(source)


@pytest.fixture(scope="module")
def general():
    return compiled(linking.stand_ins(MAPS, SECRETS))


def test_linked_is_as_if_compiled_with_the_numbers(general):
    narrow = {"mask_factor": 0x7654_3211, "mask_offset": 5}  # the compiler writes no wider ones
    direct = compiled(
        {
            **{f"ZG_MAP_{name}": fd for name, fd in MAPS.items()},
            **{f"ZG_CONSTANT_{name}": value for name, value in narrow.items()},
        }
    )
    assert {name: linking.link(code, MAPS, narrow) for name, code in general.items()} == direct
    assert general != direct


def test_secrets_have_64_bits_and_are_not_in_what_is_kept(general):
    linked = linking.link(general["zg_steer_udp"], MAPS, SECRETS)
    for value in SECRETS.values():
        low, high = (struct.pack("=I", half) for half in (value & 0xFFFFFFFF, value >> 32))
        assert low + bytes(4) + high in linked
        assert low not in general["zg_steer_udp"]
        assert high not in general["zg_steer_udp"]


@pytest.mark.parametrize("missing", [*MAPS, *SECRETS])
def test_a_number_that_nobody_gave_is_refused(general, missing):
    maps = {name: fd for name, fd in MAPS.items() if name != missing}
    secrets = {name: value for name, value in SECRETS.items() if name != missing}
    with pytest.raises(BpfLoadError, match="names an unknown"):
        for code in general.values():
            linking.link(code, maps, secrets)


def test_other_numbers_stay():
    """An immediate that looks like a stand-in in another kind of instruction is none."""
    stand_in = linking.stand_ins(MAPS, {})["ZG_MAP_owners"]
    move = struct.pack("=BBhi", 0xB7, 0, 0, stand_in)
    stand_in = linking.stand_ins({}, SECRETS)["ZG_CONSTANT_mask_factor"]
    wide = struct.pack("=BBhIBBhI", 0x18, 0, 0, stand_in, 0, 0, 0, 1)
    code = move + wide + struct.pack("=BBhi", 0x95, 0, 0, 0)
    assert linking.link(code, MAPS, SECRETS) == code


def test_instructions_that_end_in_the_middle_are_left_to_the_verifier():
    half = struct.pack("=BBhI", 0x18, 0x10, 0, 99)
    assert linking.link(half, MAPS, SECRETS) == half
    assert linking.link(b"", MAPS, SECRETS) == b""
