"""Windows that are not used do not grow (RFC 9002 section 7.8)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from aioquic.quic.congestion.base import QuicCongestionControl, create_congestion_control
from zgate_datapath.congestion import CHOICES, algorithm_name

PACKET_BYTES = 1200


@dataclass
class Packet:
    sent_bytes: int = PACKET_BYTES
    sent_time: float = 0.0
    packet_number: int = 0


@pytest.fixture(params=CHOICES)
def control(request: pytest.FixtureRequest) -> QuicCongestionControl:
    return create_congestion_control(algorithm_name(request.param), max_datagram_size=PACKET_BYTES)


def exchange(control: QuicCongestionControl, packets: int, now: float) -> None:
    """Send that many packets, then get all of them acknowledged, the oldest first."""
    sent = [Packet(sent_time=now) for _ in range(packets)]
    for packet in sent:
        control.on_packet_sent(packet=packet)
    for packet in sent:
        control.on_packet_acked(now=now + 0.05, packet=packet)


def test_a_trickle_never_opens_the_window(control: QuicCongestionControl) -> None:
    before = control.congestion_window
    for turn in range(1000):
        exchange(control, 1, turn * 0.1)
    assert control.congestion_window == before
    assert control.bytes_in_flight == 0


def test_a_full_window_opens_it(control: QuicCongestionControl) -> None:
    before = control.congestion_window
    exchange(control, before // PACKET_BYTES, 1.0)
    assert control.congestion_window > before
    assert control.bytes_in_flight == 0


def test_growth_stops_at_twice_what_is_in_use(control: QuicCongestionControl) -> None:
    for turn in range(200):
        exchange(control, 20, turn * 0.1)
    assert control.congestion_window <= 2 * 20 * PACKET_BYTES + PACKET_BYTES
    assert control.bytes_in_flight == 0


def test_a_loss_still_closes_it(control: QuicCongestionControl) -> None:
    before = control.congestion_window
    packets = [Packet(sent_time=1.0) for _ in range(10)]
    for packet in packets:
        control.on_packet_sent(packet=packet)
    control.on_packets_lost(now=1.1, packets=packets)
    assert control.congestion_window < before
    assert control.bytes_in_flight == 0


def test_an_unknown_choice_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected one of cubic, reno"):
        algorithm_name("bbr")
