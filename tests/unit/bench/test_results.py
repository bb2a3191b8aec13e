from bench import metrics
from bench.results import PeerResults, combine


def test_medians_over_rounds_and_gaps() -> None:
    samples = [{metrics.TCP_UP.key: 1.0}, {metrics.TCP_UP.key: 9.0}, {metrics.TCP_UP.key: 3.0}]
    assert combine(samples) == {metrics.TCP_UP.key: 3.0}
    assert combine([{}, {metrics.TCP_UP.key: 4.0}]) == {metrics.TCP_UP.key: 4.0}
    assert combine([]) == {}


def test_one_lossy_round_shows() -> None:
    key = metrics.LOSS_TCP.key
    assert combine([{key: 0.0}, {key: 0.3}, {key: 0.0}])[key] > 0.09


def test_memory_is_the_worst_round() -> None:
    key = metrics.MEMORY.key
    assert combine([{key: 30.0}, {key: 90.0}, {key: 31.0}])[key] == 90.0


def test_keys_are_unique() -> None:
    assert len({metric.key for metric in metrics.METRICS}) == len(metrics.METRICS)


def test_limited_in_half_of_the_rounds() -> None:
    peer = PeerResults("p", "P", samples=[{}, {}, {}])
    assert not peer.is_generator_limited(64)
    peer.generator_limited_rounds.update({64})
    assert not peer.is_generator_limited(64)
    peer.generator_limited_rounds.update({64})
    assert peer.is_generator_limited(64)
    assert not peer.is_generator_limited(1200)


def test_spread_needs_two_rounds() -> None:
    peer = PeerResults("p", "P", samples=[{metrics.TCP_UP.key: 5.0}, {}])
    assert peer.spread(metrics.TCP_UP) is None
    peer.samples.append({metrics.TCP_UP.key: 3.0})
    assert peer.spread(metrics.TCP_UP) == (3.0, 5.0)


def test_a_peer_combines_its_samples() -> None:
    peer = PeerResults("p", "P", samples=[{metrics.RTT_IDLE.key: 2.0}])
    assert peer.medians() == {metrics.RTT_IDLE.key: 2.0}
