"""Which clients get series of their own: a server that keeps them for weeks has only so much room.

docs/adr/0025-bounded-series.md says why the others are not summed into one more series.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")

PerClient = Literal["auto", "all", "none"] | int
#: With ``auto``: up to so many clients all have series; above, so many of the busiest.
AUTO_ALL, AUTO_TOP = 1000, 100


def busiest(
    values: Mapping[Key, Value], setting: PerClient, size: Callable[[Value], int]
) -> Mapping[Key, Value]:
    """Those that get series of their own, by what ``size`` says of them."""
    limit = _limit(setting, len(values))
    if limit >= len(values):
        return values
    return dict(heapq.nlargest(limit, values.items(), key=lambda item: size(item[1])))


def _limit(setting: PerClient, count: int) -> int:
    match setting:
        case "all":
            return count
        case "none":
            return 0
        case "auto":
            return count if count <= AUTO_ALL else AUTO_TOP
        case _:
            return setting
