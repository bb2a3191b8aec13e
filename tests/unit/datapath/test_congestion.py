"""Windows that are not used do not grow (RFC 9002 section 7.8)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from aioquic.quic.congestion.base import QuicCongestionControl, create_congestion_control
from zgate_datapath.congestion import CHOICES, algorithm_name, choice_of

PACKET_BYTES = 1200


@dataclass
class Packet:
    sent_bytes: int = PACKET_BYTES
    sent_time: float = 0.0
    packet_number: int = 0


@pytest.fixture(params=[choice for choice in CHOICES if choice != "none"])
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


def test_none_is_a_window_that_nothing_moves() -> None:
    control = create_congestion_control(algorithm_name("none"), max_datagram_size=PACKET_BYTES)
    before = control.congestion_window
    exchange(control, 100, 1.0)
    packets = [Packet(sent_time=2.0) for _ in range(10)]
    for packet in packets:
        control.on_packet_sent(packet=packet)
    control.on_packets_lost(now=2.1, packets=packets)
    control.on_persistent_congestion()
    assert control.congestion_window == before
    assert control.bytes_in_flight == 0


@pytest.mark.parametrize("choice", CHOICES)
def test_the_choice_can_be_told_from_the_registered_name(choice: str) -> None:
    assert choice_of(algorithm_name(choice)) == choice
    assert choice_of(choice) == "auto"


def test_an_unknown_choice_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected one of auto, model, cubic, reno, none"):
        algorithm_name("bbr")
