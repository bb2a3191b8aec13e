"""The clock that goes on when the wall clock jumps: by readings that the test makes up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from zgate_gateway.steady_clock import ACCEPTED_AFTER_S, JUMP_S, SteadyClock

S = 1_000_000_000
START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


class Clocks:
    """A wall clock that can be set, and one that cannot."""

    def __init__(self) -> None:
        self.boot_ns = 1000 * S
        self.wall_ns = int(START.timestamp()) * S

    def steady(self) -> SteadyClock:
        return SteadyClock(wall_ns=lambda: self.wall_ns, boot_ns=lambda: self.boot_ns)

    def go_on(self, seconds: float) -> None:
        self.boot_ns += int(seconds * S)
        self.wall_ns += int(seconds * S)

    def set_by(self, seconds: float) -> None:
        self.wall_ns += int(seconds * S)


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def test_without_a_jump_it_is_the_wall_clock(clocks: Clocks) -> None:
    clock = clocks.steady()
    for _ in range(5):
        clocks.go_on(7)
        assert clock.look() == 0.0
    assert clock.now() == START + timedelta(seconds=35) and clock.jumped_by_s == 0.0


def test_small_corrections_are_followed_however_many(clocks: Clocks) -> None:
    clock = clocks.steady()
    for _ in range(100):
        clocks.set_by(1.0)
        assert clock.look() == 0.0
    assert clock.now() == START + timedelta(seconds=100)


@pytest.mark.parametrize("by_s", [3600, -3600, JUMP_S + 1])
def test_a_jump_is_told_once_and_not_followed(clocks: Clocks, by_s: float) -> None:
    clock = clocks.steady()
    clocks.set_by(by_s)
    assert clock.now() == START  # before anybody looked
    assert clock.look() == by_s
    clocks.go_on(60)
    clocks.set_by(0.5)
    assert clock.look() == 0.0
    assert clock.jumped_by_s == by_s
    assert clock.now() == START + timedelta(seconds=60.5)


def test_a_clock_that_is_set_right_again_is_followed_at_once(clocks: Clocks) -> None:
    clock = clocks.steady()
    clocks.set_by(3600)
    clock.look()
    clocks.go_on(10)
    clocks.set_by(-3598)
    assert clock.look() == -3598
    assert clock.jumped_by_s == 0.0
    assert clock.now() == START + timedelta(seconds=12)


def test_a_jump_that_stays_is_believed_in_the_end(clocks: Clocks) -> None:
    clock = clocks.steady()
    clocks.set_by(-3600)
    clock.look()
    clocks.go_on(ACCEPTED_AFTER_S - 1)
    clock.look()
    assert clock.jumped_by_s == -3600
    clocks.go_on(1)
    assert clock.look() == 0.0
    assert clock.jumped_by_s == 0.0
    assert clock.now() == START + timedelta(seconds=ACCEPTED_AFTER_S - 3600)


def test_the_time_begins_anew_with_every_jump(clocks: Clocks) -> None:
    clock = clocks.steady()
    clocks.set_by(3600)
    clock.look()
    clocks.go_on(ACCEPTED_AFTER_S - 1)
    clocks.set_by(600)
    assert clock.look() == 600
    clocks.go_on(10)
    clock.look()
    assert clock.jumped_by_s == 4200


def test_the_real_clocks_agree() -> None:
    clock = SteadyClock()
    assert clock.look() == 0.0
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=1)
