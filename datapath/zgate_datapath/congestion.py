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

CHOICES = ("cubic", "reno")


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


register_congestion_control("zgate-reno", ApplicationLimitedReno)
register_congestion_control("zgate-cubic", ApplicationLimitedCubic)


def algorithm_name(choice: str) -> str:
    """The registered name for a configured choice.

    Raises:
        ValueError: no such controller.
    """
    if choice not in CHOICES:
        raise ValueError(f"congestion {choice!r}: expected one of {', '.join(CHOICES)}")
    return f"zgate-{choice}"
