"""How long to wait before the next attempt, so that a thousand agents do not come back at once."""

from __future__ import annotations

from collections.abc import Callable

MINIMUM_S = 1.0
MAXIMUM_S = 30.0


class Backoff:
    """Delays with full jitter: each is anywhere between the minimum and a ceiling that doubles.

    The first ceiling is twice the minimum, the last is the maximum. `random` gives numbers in
    [0, 1).
    """

    def __init__(
        self,
        random: Callable[[], float],
        *,
        minimum_s: float = MINIMUM_S,
        maximum_s: float = MAXIMUM_S,
    ) -> None:
        self._random = random
        self._minimum_s = minimum_s
        self._maximum_s = maximum_s
        self._ceiling_s = minimum_s

    def next_delay_s(self) -> float:
        """The delay before the next attempt, in seconds."""
        self._ceiling_s = min(self._maximum_s, 2 * self._ceiling_s)
        return self._minimum_s + self._random() * (self._ceiling_s - self._minimum_s)

    def reset(self) -> None:
        """All is well again: the next trouble starts from the minimum."""
        self._ceiling_s = self._minimum_s
