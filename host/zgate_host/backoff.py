"""How long to wait before the next attempt, so that a thousand agents do not come back at once.

After a fault the delays grow. After a goodbye they do not at first: a gateway that is started anew
is there within moments, and the sessions it had are wanted back (`zgate_protocol.goodbye`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zgate_protocol import goodbye

MINIMUM_S = 1.0
MAXIMUM_S = 30.0
#: After somebody else's session with the same identity: the delay, which doubles up to the second.
REPLACED_S = 60.0
REPLACED_MAXIMUM_S = 3600.0
#: Two that displace each other meet again after both have waited, some 2.5 times a delay. Who has
#: been left alone for longer than so many begins anew.
_REPLACED_MEMORY = 6.0


@dataclass(frozen=True, slots=True)
class _Spell:
    """For `length_s` after a goodbye, delays between two bounds."""

    least_s: float
    most_s: float
    length_s: float


# A start takes a second or two, a refused dial less than one.
_RESTART = _Spell(0.1, 0.7, 15.0)
# Drained, it refuses; what comes next is mostly a restart.
_DRAINED = _Spell(0.5, 2.5, 120.0)


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
        self._spell: _Spell | None = None
        self._spell_until = 0.0
        self._replaced_s = 0.0
        self._replaced_at = 0.0
        self._is_replaced = False

    def heed(self, reason: str, now: float) -> None:
        """A session has ended, with this goodbye: it may say when to come back."""
        self._spell = None
        self._is_replaced = reason == goodbye.REPLACED
        if self._is_replaced:
            if now - self._replaced_at > _REPLACED_MEMORY * self._replaced_s:
                self._replaced_s = 0.0
            self._replaced_at = now
            self._replaced_s = min(REPLACED_MAXIMUM_S, max(REPLACED_S, 2 * self._replaced_s))
            return
        self._replaced_s = 0.0
        if goodbye.is_there_soon(reason):
            self._begin(_RESTART, now)
        elif reason == goodbye.DRAINED:
            self._begin(_DRAINED, now)

    def _begin(self, spell: _Spell, now: float) -> None:
        self._spell, self._spell_until = spell, now + spell.length_s
        self._ceiling_s = self._minimum_s

    def next_delay_s(self, now: float = 0.0) -> float:
        """The delay before the next attempt, in seconds."""
        if self._is_replaced:
            self._is_replaced = False
            return self._replaced_s * (1.0 + 0.25 * self._random())
        spell = self._spell
        if spell is not None and now < self._spell_until:
            return spell.least_s + self._random() * (spell.most_s - spell.least_s)
        self._spell = None
        self._ceiling_s = min(self._maximum_s, 2 * self._ceiling_s)
        return self._minimum_s + self._random() * (self._ceiling_s - self._minimum_s)

    def reset(self) -> None:
        """All is well again: the next trouble starts from the minimum."""
        self._ceiling_s = self._minimum_s
        self._spell = None
        self._is_replaced = False
