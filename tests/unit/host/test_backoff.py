"""Delays between attempts."""

from hypothesis import given
from hypothesis import strategies as st
from zgate_host.backoff import MAXIMUM_S, MINIMUM_S, Backoff
from zgate_protocol import goodbye


def test_the_ceiling_doubles_from_two_seconds_to_thirty() -> None:
    backoff = Backoff(lambda: 1.0)
    assert [backoff.next_delay_s() for _ in range(7)] == [2, 4, 8, 16, 30, 30, 30]


def test_the_floor_is_one_second_always() -> None:
    backoff = Backoff(lambda: 0.0)
    assert [backoff.next_delay_s() for _ in range(7)] == [1] * 7


def test_reset_begins_again() -> None:
    backoff = Backoff(lambda: 1.0)
    for _ in range(5):
        backoff.next_delay_s()
    backoff.reset()
    assert backoff.next_delay_s() == 2


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=50))
def test_every_delay_is_within_the_bounds(numbers: list[float]) -> None:
    source = iter(numbers)
    backoff = Backoff(lambda: next(source))
    for _ in numbers:
        assert MINIMUM_S <= backoff.next_delay_s() <= MAXIMUM_S


def test_agents_that_failed_together_do_not_return_together() -> None:
    delays = {Backoff(lambda n=n: n / 100).next_delay_s() for n in range(100)}  # type: ignore[misc]
    assert len(delays) == 100


def test_a_restart_is_waited_for_without_growing_delays() -> None:
    backoff = Backoff(lambda: 0.5)
    backoff.heed(goodbye.STOPPING, 100.0)
    assert {round(backoff.next_delay_s(100.0 + n), 3) for n in range(15)} == {0.4}
    assert backoff.next_delay_s(115.0) == 1.5, "it takes longer: from now on as after a fault"


def test_a_thousand_agents_come_back_within_the_second_but_not_at_once() -> None:
    delays = []
    for number in range(1000):
        backoff = Backoff(lambda number=number: number / 1000)  # type: ignore[misc]
        backoff.heed(goodbye.CONNECTION_LOST, 0.0)
        delays.append(backoff.next_delay_s(0.0))
    assert max(delays) < 0.75
    busiest = max(sum(at <= one < at + 0.1 for one in delays) for at in (n / 10 for n in range(8)))
    assert busiest <= 200


def test_a_fault_ends_the_spell() -> None:
    backoff = Backoff(lambda: 1.0)
    backoff.heed(goodbye.DRAINED, 0.0)
    assert backoff.next_delay_s(1.0) == 2.5
    backoff.heed("idle timeout", 2.0)
    assert backoff.next_delay_s(2.0) == 2


def replaced_at(backoff: Backoff, now: float) -> float:
    """The delay after a goodbye that says so."""
    backoff.reset()  # the session before was a long one
    backoff.heed(goodbye.REPLACED, now)
    return backoff.next_delay_s(now)


def test_two_with_one_identity_displace_each_other_less_and_less() -> None:
    """Each comes back when its delay is over, and the other one then waits for its own."""
    first, second = Backoff(lambda: 1.0), Backoff(lambda: 1.0)
    now, delays = 0.0, []
    for _ in range(7):
        delays.append(replaced_at(first, now))
        now += delays[-1]
        now += replaced_at(second, now)
    assert delays == [75, 150, 300, 600, 1200, 2400, 4500]


def test_who_was_left_alone_for_long_waits_a_minute_again() -> None:
    backoff = Backoff(lambda: 0.0)
    day_s = 86_400.0
    assert [replaced_at(backoff, 1.0 + n * day_s) for n in range(3)] == [60, 60, 60]
    assert replaced_at(backoff, 1.0 + 2 * day_s + 120) == 120
