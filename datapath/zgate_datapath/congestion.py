"""Congestion control of the tunnel: aioquic's controllers, limited by the application.

aioquic's windows grow with every acknowledgement, used or not: a tunnel that never fills its
window would reach hundreds of megabytes and then meet its first loss with no control at all
(RFC 9002 section 7.8 forbids it).
"""

from __future__ import annotations

from typing import Any

from aioquic.quic.congestion.base import register_congestion_control
from aioquic.quic.congestion.cubic import CubicCongestionControl
from aioquic.quic.congestion.reno import RenoCongestionControl

CHOICES = ("auto", "model", "cubic", "reno", "none")
_PREFIX = "zgate-"
# A bound of memory, not of the path.
_UNLIMITED_BYTES = 1 << 26


class ApplicationLimitedReno(RenoCongestionControl):
    """NewReno whose window grows only while at least half of it is in use."""

    def on_packet_acked(self, *, now: float, packet: Any) -> None:
        """See RFC 9002 section 7.8."""
        if self.bytes_in_flight * 2 < self.congestion_window:
            self.bytes_in_flight -= packet.sent_bytes
            return
        super().on_packet_acked(now=now, packet=packet)


class ApplicationLimitedCubic(CubicCongestionControl):
    """CUBIC whose window grows only while at least half of it is in use."""

    def on_packet_acked(self, *, now: float, packet: Any) -> None:
        """See RFC 9002 section 7.8."""
        if self.bytes_in_flight * 2 < self.congestion_window:
            self.bytes_in_flight -= packet.sent_bytes
            self.last_ack = packet.sent_time
            return
        super().on_packet_acked(now=now, packet=packet)


class NoCongestionControl(RenoCongestionControl):
    """A window that nothing moves, for a path whose owner says that there is no need."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self.congestion_window = _UNLIMITED_BYTES

    def on_packet_acked(self, *, now: float, packet: Any) -> None:  # noqa: ARG002
        """Only what is in flight changes."""
        self.bytes_in_flight -= packet.sent_bytes

    def on_packets_lost(self, *, now: float, packets: Any) -> None:  # noqa: ARG002
        """Only what is in flight changes."""
        self.on_packets_expired(packets=packets)

    def on_persistent_congestion(self) -> None:
        """Not even this."""


# `model` and `auto` are the native engine's; the Python engine, which has no such controller,
# takes CUBIC for them.
register_congestion_control("zgate-auto", ApplicationLimitedCubic)
register_congestion_control("zgate-model", ApplicationLimitedCubic)
register_congestion_control("zgate-cubic", ApplicationLimitedCubic)
register_congestion_control("zgate-reno", ApplicationLimitedReno)
register_congestion_control("zgate-none", NoCongestionControl)


def algorithm_name(choice: str) -> str:
    """The registered name for a configured choice.

    Raises:
        ValueError: no such controller.
    """
    if choice not in CHOICES:
        raise ValueError(f"congestion {choice!r}: expected one of {', '.join(CHOICES)}")
    return f"{_PREFIX}{choice}"


def choice_of(algorithm: str) -> str:
    """The configured choice behind a registered name; `auto` for aioquic's own names."""
    choice = algorithm.removeprefix(_PREFIX)
    return choice if algorithm.startswith(_PREFIX) and choice in CHOICES else "auto"
