"""The time by which what is established is judged, when somebody sets the wall clock.

A wall clock that is set an hour ahead by mistake makes certificates and revocation lists look
expired, and one that is set back makes them look not yet valid. Who is connected has proved who it
is by the clock before. So for a while after a jump (``ACCEPTED_AFTER_S``) open sessions and leases
go by that clock, which CLOCK_BOOTTIME carries on: it cannot be set, and counts a machine's sleep.
Who comes anew is judged by the wall clock, always. A clock that is set right again within that time
has cost nobody anything; one that stays is believed when the time is over.

Revocation does not wait: it is a list of numbers, whatever the time is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

_TRIES = 5
_NS_PER_S = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

#: What NTP sets a clock by in one step while a machine runs is less.
JUMP_S = 10.0
#: How long the clock before a jump is held to.
ACCEPTED_AFTER_S = 3600.0


def _boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class SteadyClock:
    """See the module's text. ``look`` is to be called every second or so.

    :ivar jumped_by_s: how far the wall clock is ahead of this one (negative: behind); 0.0 while
        the two agree.
    """

    def __init__(
        self,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
        boot_ns: Callable[[], int] = _boot_ns,
    ) -> None:
        self._wall_ns = wall_ns
        self._boot_ns = boot_ns
        self._held_ns = self._last_ns = self._read_offset_ns()
        self._jumped_at_ns = 0
        self.jumped_by_s = 0.0

    def now(self) -> datetime:
        """The time, as if nobody had set the clock lately."""
        return _EPOCH + timedelta(microseconds=(self._boot_ns() + self._held_ns) // 1000)

    def look(self) -> float:
        """Compare the clocks; by how many seconds the wall clock has jumped since the last look.

        0.0 if it has not: what NTP does by and by is followed.
        """
        offset_ns = self._read_offset_ns()
        step_ns, self._last_ns = offset_ns - self._last_ns, offset_ns
        jump_ns = int(JUMP_S * _NS_PER_S)
        has_jumped = abs(step_ns) > jump_ns
        if has_jumped:
            self._jumped_at_ns = self._boot_ns()
        else:
            self._held_ns += step_ns
        apart_ns = offset_ns - self._held_ns
        waited_ns = self._boot_ns() - self._jumped_at_ns
        if abs(apart_ns) <= jump_ns or waited_ns >= ACCEPTED_AFTER_S * _NS_PER_S:
            self._held_ns, apart_ns = offset_ns, 0
        self.jumped_by_s = apart_ns / _NS_PER_S
        return step_ns / _NS_PER_S if has_jumped else 0.0

    def _read_offset_ns(self) -> int:
        """CLOCK_REALTIME less CLOCK_BOOTTIME. The quickest of some readings is the most exact."""
        readings = []
        for _ in range(_TRIES):
            before_ns = self._boot_ns()
            wall_ns = self._wall_ns()
            took_ns = self._boot_ns() - before_ns
            readings.append((took_ns, wall_ns - before_ns - took_ns // 2))
        return min(readings)[1]
