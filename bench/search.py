"""The highest rate that a path carries at no more than a given loss, in a few probes.

A probe costs time, so the search is bounded by their number: it doubles while packets arrive,
then halves the interval between the highest good and the lowest bad rate (geometrically).
"""

from collections.abc import Callable
from dataclasses import dataclass

from bench.load.udp import MAX_PACKETS_PER_S, UdpProbe

LOSS_LIMIT = 0.01
# A little more than the limit may be somebody else's moment on the processor: such a probe is
# repeated once, and the better one counts.
NEAR_MISS = 0.05
MAX_PROBES = 8
PRECISION = 1.08
FIRST_RATE_PER_S = 20_000.0
GROWTH = 2.0
GROWTH_FROM_HINT = 1.25
MIN_RATE_PER_S = 100.0
# A generator that sends less than this share of what it was asked for, and that again at the next
# rate, has found its own limit. (Once may be the scheduler's mood.)
GENERATOR_SHARE = 0.9
MAX_SHORTFALLS = 2


@dataclass(frozen=True, slots=True)
class Goodput:
    """The best probe within the loss limit; all zero when there was none."""

    packets_per_s: float
    loss: float
    probes: int
    limited_by_generator: bool


def find_goodput(probe: Callable[[float], UdpProbe], *, hint_per_s: float | None = None) -> Goodput:
    """Search with at most MAX_PROBES probes.

    `hint_per_s`: a rate near which the answer is expected (an earlier round's); the search then
    starts there and takes smaller steps.
    """
    rate = hint_per_s or FIRST_RATE_PER_S
    growth = GROWTH_FROM_HINT if hint_per_s else GROWTH
    best: UdpProbe | None = None
    good = bad = 0.0
    shortfalls = probes = 0
    while probes < MAX_PROBES:
        result = probe(rate)
        probes += 1
        if LOSS_LIMIT < result.loss <= NEAR_MISS and probes < MAX_PROBES:
            result = min(result, probe(rate), key=lambda one: one.loss)
            probes += 1
        if result.loss > LOSS_LIMIT:
            bad = result.sent_per_s
        else:
            good, best = result.sent_per_s, _better(best, result)
            shortfalls += result.sent_per_s < GENERATOR_SHARE * rate
        following = _next_rate(good, bad, rate * growth, result)
        if following is None or shortfalls >= MAX_SHORTFALLS:
            break
        rate = following
    if best is None:
        return Goodput(0.0, 1.0, probes, limited_by_generator=False)
    return Goodput(best.received_per_s, best.loss, probes, shortfalls >= MAX_SHORTFALLS)


def _better(best: UdpProbe | None, result: UdpProbe) -> UdpProbe:
    """A generator that was held back may have sent less at the higher rate."""
    if best is None or result.received_per_s > best.received_per_s:
        return result
    return best


def _next_rate(good: float, bad: float, higher: float, last: UdpProbe) -> float | None:
    """The rate to try next; None when the interval is narrow enough.

    `good`, `bad`: the highest rate within and the lowest beyond the loss limit, 0 if none yet.
    """
    if not bad:
        return higher if higher <= MAX_PACKETS_PER_S else None
    if good:
        return None if bad / good < PRECISION else float((good * bad) ** 0.5)
    # Nothing has passed yet. What arrives under overload is often near the capacity.
    guess = min(max(0.95 * last.received_per_s, bad / 8), bad / 1.1)
    return guess if guess >= MIN_RATE_PER_S else None
