"""Medians and percentiles, without interpolation: a number in the table was really measured."""

import math
import statistics
from collections.abc import Sequence


def median(values: Sequence[float]) -> float:
    """The middle value; of an even number, the mean of the two in the middle."""
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` percent of the values do not exceed."""
    if not values:
        raise ValueError("no values")
    if not 0 < percent <= 100:
        raise ValueError(f"percent must be in (0, 100], not {percent:g}")
    rank = math.ceil(len(values) * percent / 100)
    return sorted(values)[rank - 1]


def ratio(value: float | None, reference: float | None) -> float | None:
    """`value / reference`; None where either is missing or the reference is zero."""
    if value is None or reference is None or reference == 0:
        return None
    return value / reference
