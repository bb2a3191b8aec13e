"""How often a client may ask, and all of them together. No clock: ``now_s`` comes in."""

from __future__ import annotations

from dataclasses import dataclass

#: Clients that are remembered; one that has asked for nothing in a while is forgotten first.
_MAX_CLIENTS = 65_536


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_s: float


class Bucket:
    """So many per second, and at most ``burst`` at once."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, burst
        self._bucket = _Bucket(burst, 0.0)

    def take(self, now_s: float) -> bool:
        """Whether there is one left, which is then taken."""
        return _take(self._bucket, now_s, self._per_s, self._burst)


class ClientQuotas:
    """A bucket for each client."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, burst
        self._buckets: dict[str, _Bucket] = {}

    def take(self, client: str, now_s: float) -> bool:
        """Whether this client may ask once more."""
        bucket = self._buckets.pop(client, None)
        if bucket is None:
            bucket = _Bucket(self._burst, now_s)
            if len(self._buckets) >= _MAX_CLIENTS:
                del self._buckets[next(iter(self._buckets))]
        self._buckets[client] = bucket  # the last one to be forgotten
        return _take(bucket, now_s, self._per_s, self._burst)


def _take(bucket: _Bucket, now_s: float, per_s: float, burst: int) -> bool:
    bucket.tokens = min(burst, bucket.tokens + max(0.0, now_s - bucket.filled_s) * per_s)
    bucket.filled_s = now_s
    if bucket.tokens < 1:
        return False
    bucket.tokens -= 1
    return True
