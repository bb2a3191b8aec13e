import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.stats import median, percentile, ratio

values = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50)


def test_median_of_even_and_odd() -> None:
    assert median([3, 1, 2]) == 2
    assert median([1, 2, 3, 10]) == 2.5


def test_p99_of_a_hundred_is_the_second_worst() -> None:
    assert percentile(list(range(1, 101)), 99) == 99
    assert percentile(list(range(1, 101)), 100) == 100
    assert percentile([5.0], 1) == 5.0


@given(values, st.floats(0.1, 100))
def test_percentile_is_a_measured_value_that_enough_do_not_exceed(
    measured: list[float], percent: float
) -> None:
    result = percentile(measured, percent)
    assert result in measured
    within = sum(one <= result for one in measured)
    assert within >= len(measured) * percent / 100 - 1e-9
    assert sum(one < result for one in measured) < len(measured) * percent / 100


@pytest.mark.parametrize("percent", [0, -1, 100.1])
def test_percent_out_of_range(percent: float) -> None:
    with pytest.raises(ValueError, match="percent"):
        percentile([1.0], percent)


def test_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_ratio_needs_both() -> None:
    assert ratio(3, 2) == 1.5
    assert ratio(None, 2) is None
    assert ratio(3, None) is None
    assert ratio(3, 0) is None
