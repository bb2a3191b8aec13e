"""Packet number ranges: RFC 9000 section 13.2.3 says what an ACK may leave out."""

import ctypes
import random
from collections.abc import Iterator

import pytest

from .build import load

MAX = 64


class Range(ctypes.Structure):
    _fields_ = [("first", ctypes.c_uint64), ("last", ctypes.c_uint64)]


class Ranges(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_uint32),
        ("capacity", ctypes.c_uint32),
        ("items", ctypes.POINTER(Range)),
    ]


library = load("ranges.c")
library.zdp_ranges_add.restype = ctypes.c_bool
library.zdp_ranges_has.restype = ctypes.c_bool
for name in ("zdp_ranges_add", "zdp_ranges_forget", "zdp_ranges_has"):
    getattr(library, name).argtypes = [ctypes.POINTER(Ranges)] + [ctypes.c_uint64] * (
        2 if name == "zdp_ranges_add" else 1
    )


@pytest.fixture
def ranges() -> Iterator[Ranges]:
    made = Ranges()
    yield made
    library.zdp_ranges_free(ctypes.byref(made))
    assert made.count == 0
    assert not made.items


def held(ranges: Ranges) -> list[tuple[int, int]]:
    return [(ranges.items[i].first, ranges.items[i].last) for i in range(ranges.count)]


def add(ranges: Ranges, first: int, last: int | None = None) -> None:
    assert library.zdp_ranges_add(ranges, first, first if last is None else last)


def test_nothing_is_allocated_before_the_first(ranges: Ranges) -> None:
    assert not ranges.items
    assert not library.zdp_ranges_has(ranges, 0)
    library.zdp_ranges_forget(ranges, 7)
    assert held(ranges) == []


def test_in_order_is_one_range(ranges: Ranges) -> None:
    for number in range(1000):
        add(ranges, number)
    assert held(ranges) == [(0, 999)]
    assert ranges.capacity == 4


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ([(5, 5), (3, 3), (4, 4)], [(3, 5)]),
        ([(0, 0), (2, 2), (4, 4), (1, 3)], [(0, 4)]),
        ([(10, 20), (12, 15)], [(10, 20)]),
        ([(10, 20), (5, 30)], [(5, 30)]),
        ([(10, 20), (30, 40), (15, 35)], [(10, 40)]),
        ([(10, 20), (8, 8)], [(10, 20), (8, 8)]),
        ([(10, 20), (9, 9)], [(9, 20)]),
        ([(10, 20), (21, 21), (22, 25)], [(10, 25)]),
        ([(0, 0), (2**62 - 1, 2**62 - 1)], [(2**62 - 1, 2**62 - 1), (0, 0)]),
    ],
)
def test_what_touches_is_merged(
    ranges: Ranges, added: list[tuple[int, int]], expected: list[tuple[int, int]]
) -> None:
    for first, last in added:
        add(ranges, first, last)
    assert held(ranges) == expected


def test_full_forgets_the_smallest(ranges: Ranges) -> None:
    for number in range(0, 2 * MAX, 2):
        add(ranges, number)
    assert ranges.count == MAX
    add(ranges, 2 * MAX + 4)
    assert ranges.count == MAX
    assert not library.zdp_ranges_has(ranges, 0)
    assert library.zdp_ranges_has(ranges, 2 * MAX + 4)
    add(ranges, 0)  # it would be the smallest itself
    assert not library.zdp_ranges_has(ranges, 0)


@pytest.mark.parametrize("seed", range(20))
def test_against_a_set(ranges: Ranges, seed: int) -> None:
    chance = random.Random(seed)
    numbers: set[int] = set()
    forgotten = -1
    for _ in range(400):
        first = chance.randrange(300)
        last = first + (chance.randrange(8) if chance.random() < 0.5 else 0)
        if chance.random() < 0.02:
            forgotten = max(forgotten, first)
            library.zdp_ranges_forget(ranges, first)
            numbers -= set(range(first + 1))
            continue
        add(ranges, first, last)
        numbers |= set(range(first, last + 1))
        shown = held(ranges)
        assert {n for a, b in shown for n in range(a, b + 1)} == numbers
        assert all(b >= a for a, b in shown)
        assert all(shown[i][0] > shown[i + 1][1] + 1 for i in range(len(shown) - 1))
        for number in (first, last, chance.randrange(310)):
            assert library.zdp_ranges_has(ranges, number) == (number in numbers)


@pytest.mark.parametrize("seed", range(10))
def test_full_keeps_the_largest_ones(ranges: Ranges, seed: int) -> None:
    """Whatever comes, what is held was added, and nothing above the smallest held is missing."""
    chance = random.Random(seed)
    numbers: set[int] = set()
    for step in range(3000):
        number = step + chance.randrange(-40, 40)
        if number < 0 or chance.random() < 0.4:
            continue
        add(ranges, number)
        numbers.add(number)
        shown = held(ranges)
        assert ranges.count <= MAX
        least = shown[-1][0]
        assert {n for a, b in shown for n in range(a, b + 1)} == {n for n in numbers if n >= least}
