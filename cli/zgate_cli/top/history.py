"""What the rates of sessions have been, for sparklines."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from zgate_gateway.api import schemas

#: As many as the widest sparkline shows.
POINTS = 120
#: Sessions that were scrolled past are remembered, but not for ever.
_MAX_SESSIONS = 2000

_HEADROOM = 1.3
#: Eight heights, then the same for terminals that know ASCII only.
BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.-=oO#@"


def _points() -> deque[float]:
    return deque(maxlen=POINTS)


@dataclass(slots=True)
class Track:
    """Bits per second, the newest last."""

    up: deque[float] = field(default_factory=_points)
    down: deque[float] = field(default_factory=_points)

    def add(self, up: float, down: float) -> None:
        """One more point of each."""
        self.up.append(up)
        self.down.append(down)


class History:
    """The tracks of the sessions that were seen lately, and of all together."""

    def __init__(self) -> None:
        self.all = Track()
        self._tracks: dict[str, Track] = {}

    def add(self, answer: schemas.SessionList) -> None:
        """One more answer; what it has no rate of gets no point."""
        if answer.up_bit_per_s is not None and answer.down_bit_per_s is not None:
            self.all.add(answer.up_bit_per_s, answer.down_bit_per_s)
        for one in answer.sessions:
            # Taken out and put in again: those seen last are at the end.
            track = self._tracks.pop(one.session_id, None) or Track()
            self._tracks[one.session_id] = track
            if one.up_bit_per_s is not None and one.down_bit_per_s is not None:
                track.add(one.up_bit_per_s, one.down_bit_per_s)
        while len(self._tracks) > _MAX_SESSIONS:
            del self._tracks[next(iter(self._tracks))]

    def of(self, session_id: str) -> Track:
        """A session's track; an empty one if it was never seen."""
        return self._tracks.get(session_id) or Track()


def sparkline(values: Sequence[float] | Iterable[float], width: int, blocks: str = BLOCKS) -> str:
    """The newest values as a line of blocks; a blank for nothing.

    The highest is not quite full: a steady rate is a line, and not a wall.
    """
    newest = list(values)[-width:] if width > 0 else []
    top = max(newest, default=0.0) * _HEADROOM
    if top <= 0:
        return " " * width
    steps = len(blocks) - 1
    drawn = "".join(" " if one <= 0 else blocks[round(one / top * steps)] for one in newest)
    return drawn.rjust(width)
