"""What a limit may be, and what the kernel is told of it."""

import pytest
from zgate_bpf import UNLIMITED, ClientLimits
from zgate_bpf.limits import COST_SHIFT, MAX_BANDWIDTH_MBIT, MAX_NEW_FLOWS_PER_S


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "50", 1 << 40])
@pytest.mark.parametrize("name", ["bandwidth_mbit", "new_flows_per_s"])
def test_what_is_no_limit(name, value):
    with pytest.raises(ValueError, match=f"{name} is .* a whole number from 1 to .* or None"):
        ClientLimits(**{name: value})


def test_no_limit_costs_nothing():
    assert ClientLimits() == UNLIMITED
    assert (UNLIMITED.byte_cost, UNLIMITED.burst_ns, UNLIMITED.flow_cost_ns) == (0, 0, 0)


@pytest.mark.parametrize("mbit", [1, 3, 7, 50, 999, 10_000, MAX_BANDWIDTH_MBIT])
def test_cost_of_bytes_is_the_rate(mbit):
    limits = ClientLimits(bandwidth_mbit=mbit)
    seconds = 125_000 * mbit * limits.byte_cost / (1 << COST_SHIFT) / 1e9
    assert seconds == pytest.approx(1, rel=1e-4)
    assert 0 < limits.byte_cost < 1 << 32
    assert 0 < limits.burst_ns < 1 << 32


@pytest.mark.parametrize(("mbit", "burst_bytes"), [(1, 131_072), (10, 131_072), (100, 1_250_000)])
def test_burst_is_a_tenth_of_a_second_or_two_super_packets(mbit, burst_bytes):
    limits = ClientLimits(bandwidth_mbit=mbit)
    assert limits.burst_ns * mbit / 8_000 == pytest.approx(burst_bytes, rel=1e-4)


@pytest.mark.parametrize("per_s", [1, 3, 200, MAX_NEW_FLOWS_PER_S])
def test_as_many_flows_at_once_as_in_a_second(per_s):
    cost_ns = ClientLimits(new_flows_per_s=per_s).flow_cost_ns
    assert 1_000_000_000 // cost_ns == per_s
    assert cost_ns < 1 << 32
