"""Wall-clock times in the kernel's time.

Policies say when a rule ends by the wall clock; the BPF program compares with CLOCK_MONOTONIC,
which nobody can set. A :class:`WallClock` is one reading of how far the two are apart. It is right
until the wall clock is set (by hand, by NTP at boot) or the machine sleeps, which CLOCK_MONOTONIC
leaves out; small corrections of the rate go into both clocks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LAST_NS = (1 << 64) - 1
_TRIES = 5

#: What two readings may differ by: less than anybody sees, more than reading takes.
STEP_NS = 20_000_000


def read_offset_ns() -> int:
    """CLOCK_REALTIME less CLOCK_MONOTONIC. The quickest of some readings is the most exact."""
    readings = []
    for _ in range(_TRIES):
        before_ns = time.monotonic_ns()
        wall_ns = time.time_ns()
        took_ns = time.monotonic_ns() - before_ns
        readings.append((took_ns, wall_ns - before_ns - took_ns // 2))
    return min(readings)[1]


@dataclass(frozen=True, slots=True)
class WallClock:
    """How far the wall clock was ahead of CLOCK_MONOTONIC when it was read."""

    offset_ns: int

    @classmethod
    def read(cls) -> WallClock:
        """Read both clocks."""
        return cls(read_offset_ns())

    def now(self) -> datetime:
        """The time, by this reading."""
        return _EPOCH + timedelta(microseconds=(time.monotonic_ns() + self.offset_ns) // 1000)

    def monotonic_ns(self, at: datetime) -> int:
        """When it will be that time, on CLOCK_MONOTONIC; what has no number there is its end."""
        wall_ns = (at - _EPOCH) // _MICROSECOND * 1000
        return min(max(wall_ns - self.offset_ns, 0), _LAST_NS)

    def has_stepped(self) -> bool:
        """Whether the wall clock goes otherwise now."""
        return abs(read_offset_ns() - self.offset_ns) > STEP_NS
