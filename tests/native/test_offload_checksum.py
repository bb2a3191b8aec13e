"""The sum under every checksum, against scapy's."""

import ctypes
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.utils import checksum

from .build import SANITIZED
from .offload_support import LIBRARY, exact

ROUNDS = settings(max_examples=100 if SANITIZED else 1000, deadline=None)


def folded(sum_: int) -> int:
    return int.from_bytes(LIBRARY.test_fold(sum_).to_bytes(2, "little"), "big")


def scapys(data: bytes) -> int:
    return ~checksum(data) & 0xFFFF


@ROUNDS
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    out = exact(bytes(len(data)))
    assert folded(LIBRARY.zdp_sum(exact(data), len(data))) == scapys(data)
    assert folded(LIBRARY.zdp_copy_sum(out, exact(data), len(data))) == scapys(data)
    assert bytes(out) == data


@pytest.mark.parametrize("data", [b"\xff" * 65535, b"\0" * 65535, b"\xff\xff\xff\0" * 16000])
def test_carries_are_not_lost(data: bytes) -> None:
    assert folded(LIBRARY.zdp_sum(exact(data), len(data))) == scapys(data)


def test_every_length_at_every_alignment() -> None:
    data = os.urandom(400)
    buffer = exact(data)
    for length in range(200):
        for offset in range(32):
            at = ctypes.addressof(buffer) + offset
            assert folded(LIBRARY.zdp_sum(at, length)) == scapys(data[offset : offset + length])


@ROUNDS
@given(st.integers(0, 2**64 - 1))
def test_a_fold_is_the_remainder(sum_: int) -> None:
    got = LIBRARY.test_fold(sum_)
    assert got % 0xFFFF == sum_ % 0xFFFF
    assert (got == 0) == (sum_ == 0)
