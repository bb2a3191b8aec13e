"""The replay window, against a set of everything that was received."""

import ctypes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .bindings import ReplayWindow, native

WINDOW = 8192


class Model:
    """Every number, for ever, and how far back the window reaches."""

    def __init__(self) -> None:
        self.numbers: set[int] = set()

    def seen(self, number: int) -> bool:
        return number in self.numbers or number < max(self.numbers, default=0) + 1 - WINDOW

    def add(self, number: int) -> None:
        self.numbers.add(number)


@pytest.fixture
def window():
    made = ReplayWindow()
    yield made
    native().zdp_replay_free(made)


def steps(least: int) -> st.SearchStrategy[list[int]]:
    """How far a number is from the largest so far: mostly near it, at times at the edges."""
    near = st.integers(-70, 70)
    edges = st.integers(-3, 3).flatmap(
        lambda n: st.sampled_from([n, n - WINDOW, n + WINDOW, n + 64, n - 64, n + 4096])
    )
    far = st.integers(-3 * WINDOW, 3 * WINDOW)
    return st.lists(st.one_of(near, near, edges, far), min_size=least, max_size=60)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([0, 1, 63, 64, 8191, 8192, 10**6, 2**61]), steps(1))
def test_is_the_set(first: int, moves: list[int]) -> None:
    window, model = ReplayWindow(), Model()
    largest = first
    try:
        for move in moves:
            number = max(0, largest + move)
            for probe in (number, largest - WINDOW, largest - WINDOW + 1, largest, largest + 1):
                if probe >= 0:
                    assert native().zdp_replay_seen(window, probe) is model.seen(probe), probe
            assert native().zdp_replay_add(window, number)
            model.add(number)
            largest = max(largest, number)
            assert native().zdp_replay_seen(window, number)
            assert window.next == max(model.numbers) + 1
            assert window.size in {2**n for n in range(6, 14)}
        for probe in range(max(0, largest - 200), largest + 2):
            assert native().zdp_replay_seen(window, probe) is model.seen(probe), probe
    finally:
        native().zdp_replay_free(window)


def test_every_number_of_a_long_run(window: ReplayWindow) -> None:
    """Evens first, odds one window later: none is lost, none is taken twice."""
    add, seen = native().zdp_replay_add, native().zdp_replay_seen
    for number in range(0, 3 * WINDOW, 2):
        assert not seen(window, number)
        assert add(window, number)
        late = number + 3 - WINDOW
        if late > 0:
            assert not seen(window, late)
            assert add(window, late)
            assert seen(window, late)
        assert seen(window, number)


def test_grows_with_the_numbers_and_no_further(window: ReplayWindow) -> None:
    assert not native().zdp_replay_seen(window, 0)
    assert (window.size, window.bits) == (0, None)
    for number, size in ((0, 64), (63, 64), (64, 128), (8190, 8192), (10**9, 8192)):
        assert native().zdp_replay_add(window, number)
        assert window.size == size
    native().zdp_replay_free(window)
    assert (window.next, window.size, window.bits) == (0, 0, None)


def test_a_jump_forgets_all_before(window: ReplayWindow) -> None:
    for number in range(WINDOW):
        native().zdp_replay_add(window, number)
    native().zdp_replay_add(window, 10 * WINDOW)
    for number in range(9 * WINDOW + 1, 10 * WINDOW):
        assert not native().zdp_replay_seen(window, number)
    assert native().zdp_replay_seen(window, 9 * WINDOW)
    assert ctypes.sizeof(window) <= 24


@pytest.mark.parametrize("first", (5 * WINDOW, 5 * WINDOW + 2, 5 * WINDOW + 63))
def test_a_step_of_any_length_forgets_no_more_than_it_must(first: int) -> None:
    """Every number before was received; after the step those between are new, and no others."""
    for step in (1, 2, 3, 61, 62, 63, 64, 65, 66, 127, 128, 129, WINDOW - 1, WINDOW, WINDOW + 1):
        window = ReplayWindow()
        for number in range(first - WINDOW - 70, first):
            native().zdp_replay_add(window, number)
        last = first - 1 + step
        native().zdp_replay_add(window, last)
        edges = {*range(last - WINDOW, last - WINDOW + 200), *range(first - 70, last + 2)}
        for number in edges:
            new = (first <= number < last and last - number < WINDOW) or number > last
            assert native().zdp_replay_seen(window, number) is not new, (step, number)
        native().zdp_replay_free(window)
