import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load.udp import MAX_PACKETS_PER_S, UdpProbe
from bench.search import FIRST_RATE_PER_S, LOSS_LIMIT, MAX_PROBES, PRECISION, find_goodput


class SimulatedPath:
    """Carries `capacity` packets per second and drops the rest; the sender has a limit too."""

    def __init__(self, capacity: float, *, sender_limit: float = MAX_PACKETS_PER_S):
        self.capacity = capacity
        self.sender_limit = sender_limit
        self.asked: list[float] = []

    def __call__(self, rate_per_s: float) -> UdpProbe:
        self.asked.append(rate_per_s)
        sent = min(rate_per_s, self.sender_limit)
        return UdpProbe(rate_per_s, round(sent), round(min(sent, self.capacity)), 1.0)


@given(st.floats(FIRST_RATE_PER_S / 4, FIRST_RATE_PER_S * 4))
def test_finds_the_capacity_within_its_precision(capacity: float) -> None:
    path = SimulatedPath(capacity)
    found = find_goodput(path)
    assert found.loss <= LOSS_LIMIT
    assert found.packets_per_s <= capacity * (1 + LOSS_LIMIT)
    # The probes narrow an interval of a factor of 8 to less than this.
    assert found.packets_per_s >= capacity / 1.3


@given(st.floats(1_000, 1_000_000), st.floats(0.8, 1.25))
def test_a_hint_makes_it_exact(capacity: float, error: float) -> None:
    found = find_goodput(SimulatedPath(capacity), hint_per_s=capacity * error)
    assert capacity / (PRECISION * 1.05) <= found.packets_per_s <= capacity * (1 + LOSS_LIMIT)


@given(st.floats(1, 5_000_000), st.none() | st.floats(100, 3_000_000), st.floats(1, 5_000_000))
def test_never_more_probes_than_the_bound(
    capacity: float, hint: float | None, sender_limit: float
) -> None:
    path = SimulatedPath(capacity, sender_limit=sender_limit)
    found = find_goodput(path, hint_per_s=hint)
    assert found.probes == len(path.asked) <= MAX_PROBES
    assert max(path.asked) <= MAX_PACKETS_PER_S
    assert min(path.asked) > 0


def test_a_slow_generator_is_said_so() -> None:
    path = SimulatedPath(1_000_000, sender_limit=50_000)
    found = find_goodput(path)
    assert found.limited_by_generator
    assert found.packets_per_s == pytest.approx(50_000)


def test_one_shortfall_is_no_limit() -> None:
    path = SimulatedPath(60_000)

    def stumbling(rate_per_s: float) -> UdpProbe:
        probe = path(rate_per_s)
        if len(path.asked) == 2:
            return UdpProbe(rate_per_s, probe.sent // 2, probe.sent // 2, 1.0)
        return probe

    found = find_goodput(stumbling)
    assert not found.limited_by_generator
    assert found.packets_per_s > 50_000


def test_a_near_miss_gets_a_second_chance() -> None:
    path = SimulatedPath(90_000)

    def disturbed(rate_per_s: float) -> UdpProbe:
        probe = path(rate_per_s)
        if len(path.asked) == 2:  # 40,000 would have passed
            return UdpProbe(rate_per_s, probe.sent, round(probe.sent * 0.97), 1.0)
        return probe

    found = find_goodput(disturbed)
    assert path.asked[1] == path.asked[2]
    assert found.packets_per_s > 70_000


def test_a_dead_path_gives_zero_soon() -> None:
    path = SimulatedPath(0)
    found = find_goodput(path)
    assert (found.packets_per_s, found.loss) == (0.0, 1.0)
    assert not found.limited_by_generator
    assert len(path.asked) <= MAX_PROBES


def test_probe_arithmetic() -> None:
    probe = UdpProbe(1000.0, sent=500, received=495, duration_s=0.5)
    assert probe.loss == pytest.approx(0.01)
    assert probe.sent_per_s == 1000
    assert probe.received_per_s == 990
    assert UdpProbe(1000.0, sent=0, received=0, duration_s=0.5).loss == 1.0
    # Duplicates on the way are not a negative loss.
    assert UdpProbe(1000.0, sent=10, received=11, duration_s=0.5).loss == 0.0
