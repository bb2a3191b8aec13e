"""Congestion control in the simulator: what the decision record's table says, held.

The path, unless a test says otherwise: 100 Mbit/s, 40 ms RTT, a buffer of one BDP.
"""

from dataclasses import replace

import pytest

from .build import SANITIZED
from .congestion_simulator import (
    CUBIC,
    ENGINE_WITH_RENO_INSIDE,
    MODEL,
    NONE,
    RENO,
    Flow,
    Network,
    mean_rate,
    rates,
)

RATE = 12.5e6
LAN = Network(
    seconds=2,
    measure_from_s=0.5,
    rate=750e6,  # 6 Gbit/s: what one receiving core takes
    buffer_bytes=2e6,  # its socket's buffer
    delay_s=50e-6,
    ack_packets=90,
    ack_delay_s=0.001,
)
SEEDS = (1,) if SANITIZED else (1, 2, 3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("loss", "least"), [(0, 0.98), (0.001, 0.98), (0.01, 0.97), (0.02, 0.9)], ids=str
)
def test_random_loss_does_not_slow_the_model(loss: float, least: float, seed: int) -> None:
    network = Network(loss=loss, ack_loss=loss, seed=seed)
    result = network.run(Flow())
    assert result.utilisation > least
    assert result.wait_p95_s < 0.015
    flow = result.flows[0]
    assert flow.lost_packets == pytest.approx(flow.really_lost_packets, abs=40)
    assert flow.spurious_packets == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_much_loss_does(seed: int) -> None:
    """A fifth is lost: something is wrong there, and it is not for us to make it worse."""
    assert Network(loss=0.05, seed=seed).run(Flow()).utilisation < 0.3
    assert Network(loss=0.2, seed=seed).run(Flow()).utilisation < 0.02


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("loss", [0.001, 0.01, 0.02])
@pytest.mark.parametrize("congestion", [MODEL, CUBIC], ids=["model", "cubic"])
def test_a_tcp_inside_is_as_fast_as_beside(congestion: int, loss: float, seed: int) -> None:
    network = Network(rate=20e6, buffer_bytes=2e6, loss=loss, seconds=60, seed=seed)
    (beside,) = rates(network.run(Flow(kind=RENO)), network, 1)
    inside = network.run(Flow(kind=ENGINE_WITH_RENO_INSIDE, congestion=congestion))
    assert rates(inside, network, 1)[0] > beside * (0.8 if congestion == MODEL else 0.6)
    if congestion == MODEL:
        assert inside.flows[0].queue_wait_p95_s < 0.004


@pytest.mark.parametrize("seed", SEEDS)
def test_a_tcp_inside_does_not_fill_the_buffer(seed: int) -> None:
    """Beside the tunnel it does: 40 ms. Inside, its queue is the engine's, and CoDel is there."""
    network = Network(rate=20e6, buffer_bytes=8e5, seconds=60, measure_from_s=20, seed=seed)
    assert network.run(Flow(kind=RENO)).wait_p95_s > 0.035
    result = network.run(Flow(kind=ENGINE_WITH_RENO_INSIDE))
    assert result.wait_p95_s < 0.015
    assert result.flows[0].queue_wait_p95_s < 0.01
    assert result.utilisation > 0.85


@pytest.mark.parametrize("buffer_bytes", [500e3, 5e6])
def test_the_model_does_not_fill_the_buffer(buffer_bytes: float) -> None:
    result = Network(buffer_bytes=buffer_bytes).run(Flow())
    assert result.utilisation > 0.98
    assert result.wait_p95_s < 0.015


@pytest.mark.parametrize(
    ("buffer_bytes", "least", "drops"), [(100e3, 0.88, 0.015), (30e3, 0.65, 0.035)]
)
def test_shallow_buffers(buffer_bytes: float, least: float, drops: float) -> None:
    result = Network(buffer_bytes=buffer_bytes).run(Flow())
    assert result.utilisation > least
    assert result.dropped_packets < drops * result.flows[0].sent_packets


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("congestion", [MODEL, CUBIC], ids=["model", "cubic"])
def test_two_of_ours_share(congestion: int, seed: int) -> None:
    network = Network(seconds=40, measure_from_s=10, seed=seed)
    result = network.run(Flow(congestion=congestion), Flow(congestion=congestion, start_s=3))
    shares = rates(result, network, 2)
    assert sum(shares) > 0.95
    assert min(shares) > 0.25


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("buffer_bytes", "least"), [(250e3, 0.12), (500e3, 0.25), (2e6, 0.35)])
def test_a_tcp_beside_ours_is_not_starved(buffer_bytes: float, least: float, seed: int) -> None:
    network = Network(seconds=40, measure_from_s=10, buffer_bytes=buffer_bytes, seed=seed)
    ours, reno = rates(network.run(Flow(), Flow(kind=RENO, start_s=1)), network, 2)
    assert reno > least
    assert ours > 0.2


@pytest.mark.parametrize(
    ("stall_every_s", "stall_s", "possible"),
    [(0, 0, 1), (0.001, 0.0003, 0.7), (0.012, 0.004, 0.667)],
    ids=["steady", "short pauses", "scheduler"],
)
def test_a_receiver_of_microseconds(stall_every_s: float, stall_s: float, possible: float) -> None:
    """Neither collapses nor fills the socket's buffer: 2 MB would be 2.7 ms."""
    network = Network(**{**vars(LAN), "stall_every_s": stall_every_s, "stall_s": stall_s})
    result = network.run(Flow())
    assert result.utilisation > 0.97 * possible
    assert result.dropped_packets == 0
    assert result.wait_p95_s < 0.0015 + stall_s


def test_a_receiver_that_acknowledges_seldom() -> None:
    network = Network(**{**vars(LAN), "ack_packets": 100_000, "ack_delay_s": 0.002})
    result = network.run(Flow())
    assert result.utilisation > 0.97
    assert result.dropped_packets < 0.002 * result.flows[0].sent_packets


def test_coarse_timers_cost_no_throughput() -> None:
    result = Network(timer_slack_s=0.001).run(Flow())
    assert result.utilisation > 0.97


@pytest.mark.parametrize("congestion", [MODEL, CUBIC], ids=["model", "cubic"])
def test_an_application_that_limits_itself(congestion: int) -> None:
    network = Network(seconds=20)
    result = network.run(Flow(congestion=congestion, source_rate=1e6))
    assert rates(result, network, 1)[0] == pytest.approx(0.08, abs=0.002)
    flow = result.flows[0]
    assert flow.window_bytes > 3 * 1e6 * 0.04 / 2, "the window shrank"
    assert flow.window_bytes < 300e3, "the window grew though nothing used it"


@pytest.mark.parametrize("seed", (3,) if SANITIZED else range(1, 9))
@pytest.mark.parametrize("trickle", [14e3, 50e3])
def test_losses_of_a_trickle_do_not_hold_down_what_follows(trickle: float, seed: int) -> None:
    """What ACKs of another direction had in flight when one was lost is no measure of the path."""
    network = Network(seconds=10, loss=0.01, ack_loss=0.01, seed=seed)
    flow = network.run(Flow(source_rate=trickle, source_rate_at_s=8)).flows[0]
    assert mean_rate(flow, 4, 8) == pytest.approx(trickle, rel=0.05)
    assert mean_rate(flow, 8, 8.5) > 0.5 * RATE
    assert mean_rate(flow, 8.5, 10) > 0.97 * RATE


@pytest.mark.parametrize(
    ("stall_s", "packet_bytes", "start_s"),
    [(0.004, 1000, 0), (0.006, 700, 0), (0.008, 300, 0), (0.008, 130, 0), (0.009, 300, 0.0035)],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_receiver_with_the_cpu_every_10_ms(
    stall_s: float, packet_bytes: int, start_s: float, seed: int
) -> None:
    """A window acknowledged once in a slice shows a rate that keeps the window as it is."""
    local = replace(LAN, seconds=3, rate=1.5e9, buffer_bytes=4e6, delay_s=6e-6)
    network = replace(local, stall_every_s=0.01, stall_s=stall_s, seed=seed)
    source = Flow(
        packet_bytes=packet_bytes,
        start_s=start_s,
        source_rate=5_000 * packet_bytes,
        source_rate_at_s=1,
        new_source_rate=100_000 * packet_bytes,
    )
    result = network.run(source)
    flow = result.flows[0]
    assert mean_rate(flow, 0.5, 1) == pytest.approx(5_000 * packet_bytes, rel=0.03)
    assert mean_rate(flow, 1.5, 3) > 97_000 * packet_bytes
    assert result.dropped_packets == 0


@pytest.mark.parametrize("congestion", [MODEL, CUBIC], ids=["model", "cubic"])
def test_rests_are_not_held_against_it(congestion: int) -> None:
    result = Network().run(Flow(congestion=congestion, on_s=1, off_s=1))
    for second in (4, 8, 12):  # full speed from 200 ms after the rest
        assert mean_rate(result.flows[0], second + 0.2, second + 1) > 0.85 * RATE


def test_after_a_long_rest_the_rtt_needs_no_probe() -> None:
    """The path's RTT was 40 ms, and is 60 when the source comes back 12 s later."""
    network = Network(seconds=20, delay_at_s=8, new_delay_s=0.03)
    flow = network.run(Flow(on_s=2, off_s=12)).flows[0]
    assert mean_rate(flow, 14.2, 16) > 0.9 * RATE


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("congestion", [MODEL, CUBIC], ids=["model", "cubic"])
@pytest.mark.parametrize("length_s", [1, 3, 7])
def test_an_outage(length_s: float, congestion: int, seed: int) -> None:
    """Half a second until a probe finds it over, and some 10 RTTs to be at full speed."""
    end = 5 + length_s
    network = Network(seconds=end + 4, outage_from_s=5, outage_to_s=end, seed=seed)
    flow = network.run(Flow(congestion=congestion)).flows[0]
    assert flow.probe_timeouts < 4 + 2 * length_s
    least = 0.9 if congestion == MODEL else 0.5
    assert mean_rate(flow, end + 1, end + 3) > least * RATE


def test_a_path_that_becomes_narrower() -> None:
    network = Network(rate_at_s=8, new_rate=3.125e6)
    result = network.run(Flow())
    assert mean_rate(result.flows[0], 9, 20) > 0.95 * 3.125e6
    late = Network(rate_at_s=8, new_rate=3.125e6, measure_from_s=11).run(Flow())
    assert late.wait_p95_s < 0.06


def test_a_path_that_becomes_wider() -> None:
    network = Network(rate=3.125e6, rate_at_s=8, new_rate=RATE)
    assert mean_rate(network.run(Flow()).flows[0], 9, 20) > 0.95 * RATE


@pytest.mark.parametrize(("new_delay_s", "within_s"), [(0.03, 2), (0.06, 5), (0.005, 0.5)])
def test_a_path_that_becomes_longer_or_shorter(new_delay_s: float, within_s: float) -> None:
    network = Network(seconds=16, delay_at_s=6, new_delay_s=new_delay_s)
    flow = network.run(Flow()).flows[0]
    assert mean_rate(flow, 6.2, 16) > 0.75 * RATE
    assert mean_rate(flow, 6 + within_s, 16) > 0.88 * RATE


def test_another_path_by_migration() -> None:
    network = Network(seconds=12, delay_at_s=6, new_delay_s=0.05, tell_path_changed=1)
    assert mean_rate(network.run(Flow()).flows[0], 7.5, 12) > 0.9 * RATE


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("congestion", [MODEL, CUBIC], ids=["model", "cubic"])
def test_reordering_is_not_taken_for_loss(congestion: int, seed: int) -> None:
    """One packet in fifty overtakes all that are under way."""
    result = Network(reorder=0.02, seed=seed).run(Flow(congestion=congestion))
    assert result.utilisation > 0.9
    flow = result.flows[0]
    assert flow.spurious_packets < 0.01 * flow.sent_packets
    assert flow.packet_threshold > 3


@pytest.mark.parametrize("seed", SEEDS)
def test_loss_and_reordering_together(seed: int) -> None:
    result = Network(reorder=0.02, loss=0.01, ack_loss=0.01, seed=seed).run(Flow())
    assert result.utilisation > 0.95


@pytest.mark.parametrize("congestion", [MODEL, CUBIC], ids=["model", "cubic"])
def test_marks_keep_the_queue_short(congestion: int) -> None:
    result = Network(mark_above_bytes=100e3).run(Flow(congestion=congestion))
    assert result.flows[0].ce_packets > 0
    assert result.wait_p95_s < 0.015
    assert result.utilisation > 0.8


def test_much_loss_for_a_while_is_forgotten() -> None:
    network = Network(loss_from_s=5, loss_to_s=8, loss_then=0.2)
    assert mean_rate(network.run(Flow()).flows[0], 10, 20) > 0.95 * RATE


def test_no_control_is_no_control() -> None:
    network = Network(loss=0.1, seconds=5, measure_from_s=1)
    assert network.run(Flow(congestion=NONE)).utilisation > 0.99


def test_the_same_seed_gives_the_same_run() -> None:
    network = Network(loss=0.01, seconds=5)
    first, second = network.run(Flow()), network.run(Flow())
    assert list(first.flows[0].buckets) == list(second.flows[0].buckets)
