"""Datagram packetization layer path MTU discovery for one path (RFC 8899, RFC 9000 section 14.3).

Sans-IO: the owner sends the probes that `next_probe` asks for and reports what became of them.
Sizes are UDP payloads in bytes. RFC 9484 section 7.2 wants IPv6's 1280 bytes inside the tunnel,
so a path that does not carry `BASE_BYTES` carries no session at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

BASE_BYTES = 1331
"""The least UDP payload that holds an inner packet of 1280 bytes, with room to spare."""
_MAX_PROBES = 3
_SEARCH_STEP_BYTES = 8
_RAISE_INTERVAL_S = 600.0
_CONFIRM_INTERVAL_S = 15.0
# Nothing is acknowledged on a path that a session has moved to before the peer has validated it,
# which takes longer where the challenge or its answer is lost (RFC 9000 section 8.2.1).
_MOVED_PATIENCE_S = 5.0


class PathMtuState(Enum):
    """RFC 8899 section 5.2, as far as one needs it."""

    BASE = "base"
    SEARCHING = "searching"
    COMPLETE = "complete"
    UNUSABLE = "unusable"


@dataclass(frozen=True, slots=True)
class Probe:
    """Send one packet of exactly `udp_payload_bytes`."""

    udp_payload_bytes: int


class PathMtu:
    """The state machine of one path."""

    def __init__(self, ceiling_bytes: int, now: float) -> None:
        if ceiling_bytes < BASE_BYTES:
            raise ValueError(f"ceiling {ceiling_bytes} bytes: expected at least {BASE_BYTES}")
        self._configured_bytes = ceiling_bytes
        self._patient_until = now
        self._restart(ceiling_bytes, now)

    def _restart(self, ceiling_bytes: int, now: float) -> None:
        self.state = PathMtuState.SEARCHING
        self.confirmed_bytes = 0
        self._ceiling_bytes = ceiling_bytes
        self._probing_bytes = ceiling_bytes
        self._losses = 0
        self._in_flight = False
        self._next_at = now

    @property
    def udp_payload_bytes(self) -> int:
        """The size to use now: confirmed, or hoped for while the first probes are out."""
        return self.confirmed_bytes or self._ceiling_bytes

    def next_probe(self, now: float) -> Probe | None:
        """The probe to send now, if one is due."""
        if self._in_flight or self.state is PathMtuState.UNUSABLE or now < self._next_at:
            return None
        if self.state is PathMtuState.COMPLETE:
            self._begin_upkeep(now)
        self._in_flight = True
        return Probe(self._probing_bytes)

    def next_at(self) -> float | None:
        """When `next_probe` should be asked again."""
        if self._in_flight or self.state is PathMtuState.UNUSABLE:
            return None
        return self._next_at

    def acknowledged(self, udp_payload_bytes: int, now: float) -> None:
        """A probe of this size arrived."""
        self._in_flight = False
        self._losses = 0
        self.confirmed_bytes = max(self.confirmed_bytes, udp_payload_bytes)
        if self._ceiling_bytes - self.confirmed_bytes < _SEARCH_STEP_BYTES:
            self._complete(now)
            return
        self.state = PathMtuState.SEARCHING
        self._probing_bytes = (self.confirmed_bytes + self._ceiling_bytes + 1) // 2
        self._next_at = now

    def lost(self, udp_payload_bytes: int, now: float) -> None:
        """A probe of this size did not arrive (in time)."""
        self._in_flight = False
        if udp_payload_bytes != self._probing_bytes:
            return
        self._losses += 1
        self._next_at = now
        if self._losses < _MAX_PROBES:
            return
        self._losses = 0
        if udp_payload_bytes <= BASE_BYTES:
            if now >= self._patient_until:
                self.state = PathMtuState.UNUSABLE
        elif udp_payload_bytes <= self.confirmed_bytes or not self.confirmed_bytes:
            # A black hole: what once passed (or was hoped for) passes no more.
            self.state = PathMtuState.BASE
            self.confirmed_bytes = 0
            self._ceiling_bytes = udp_payload_bytes - 1
            self._probing_bytes = BASE_BYTES
        else:
            self._ceiling_bytes = udp_payload_bytes - 1
            if self._ceiling_bytes - self.confirmed_bytes < _SEARCH_STEP_BYTES:
                self._complete(now)
            else:
                self._probing_bytes = (self.confirmed_bytes + self._ceiling_bytes + 1) // 2

    def too_big(self, path_udp_payload_bytes: int, now: float) -> None:
        """A router (or the kernel) said how much the path carries (RFC 8899 section 4.6).

        Only ever lowers, and never below the base: a forged ICMP message can slow a session
        but not end it.
        """
        limit = max(path_udp_payload_bytes, BASE_BYTES)
        if limit >= self.udp_payload_bytes:
            return
        self._restart(limit, now)
        self.confirmed_bytes = limit
        self._probing_bytes = limit

    def path_changed(self, now: float) -> None:
        """The path is another one: begin anew."""
        self._patient_until = now + _MOVED_PATIENCE_S
        self._restart(self._configured_bytes, now)

    def _complete(self, now: float) -> None:
        self.state = PathMtuState.COMPLETE
        self._raise_at = now + _RAISE_INTERVAL_S
        self._next_at = now + _CONFIRM_INTERVAL_S
        self._probing_bytes = self.confirmed_bytes

    def _begin_upkeep(self, now: float) -> None:
        """Confirm what is in use; now and then, try for more (PMTU_RAISE_TIMER)."""
        self._probing_bytes = self.confirmed_bytes
        if now >= self._raise_at and self.confirmed_bytes < self._configured_bytes:
            self._ceiling_bytes = self._configured_bytes
            self._probing_bytes = self._configured_bytes
            self._raise_at = now + _RAISE_INTERVAL_S
