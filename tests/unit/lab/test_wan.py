from hypothesis import given
from hypothesis import strategies as st
from zgate_lab.wan import WanPath, WanSettings


def test_a_packet_arrives_at_its_end_after_the_delay() -> None:
    path = WanPath(WanSettings(delay_ms=20))
    path.send(100.0, 1, b"packet")
    assert path.receive(100.019) == []
    assert path.next_due_s() == 100.02
    assert path.receive(100.02) == [(1, b"packet")]
    assert path.next_due_s() is None


def test_without_jitter_order_is_kept() -> None:
    path = WanPath(WanSettings(delay_ms=5))
    packets = [bytes([number]) for number in range(100)]
    for packet in packets:
        path.send(1.0, 0, packet)
    assert [packet for _, packet in path.receive(2.0)] == packets


def test_all_is_lost_with_a_loss_of_one() -> None:
    path = WanPath(WanSettings(loss=1.0))
    path.send(0.0, 0, b"x")
    assert path.receive(9.0) == []
    assert path.lost_packets == 1


def test_the_share_that_is_lost_is_the_share_that_was_asked_for() -> None:
    path = WanPath(WanSettings(loss=0.1, seed=7))
    for _ in range(10_000):
        path.send(0.0, 0, b"x")
    assert 900 < path.lost_packets < 1100
    assert len(path.receive(1.0)) == 10_000 - path.lost_packets


def test_a_duplicate_arrives_twice() -> None:
    path = WanPath(WanSettings(duplicate=1.0))
    path.send(0.0, 1, b"x")
    assert path.receive(0.0) == [(1, b"x"), (1, b"x")]


def test_a_reordered_packet_overtakes_those_that_wait() -> None:
    path = WanPath(WanSettings(delay_ms=10, reorder=0.5, seed=3))
    for number in range(50):
        path.send(0.0, 0, bytes([number]))
    early = path.receive(0.0)
    late = path.receive(1.0)
    assert early and late
    assert len(early) + len(late) == 50


def test_the_rate_spaces_packets_and_the_queue_is_bounded() -> None:
    path = WanPath(WanSettings(rate_mbit=8, queue_ms=10.5))  # 1000 bytes take 1 ms
    for _ in range(15):
        path.send(0.0, 0, bytes(1000))
    assert path.lost_packets == 5
    assert len(path.receive(0.0031)) == 3
    assert len(path.receive(1.0)) == 7


def test_each_direction_has_a_line_of_its_own() -> None:
    path = WanPath(WanSettings(rate_mbit=8))
    path.send(0.0, 0, bytes(1000))
    path.send(0.0, 1, bytes(1000))
    assert len(path.receive(0.001)) == 2


def test_a_seed_makes_runs_alike() -> None:
    def run() -> list[tuple[int, bytes]]:
        path = WanPath(WanSettings(loss=0.3, jitter_ms=5, delay_ms=5, seed=11))
        for number in range(200):
            path.send(0.0, 0, bytes([number]))
        return path.receive(1.0)

    assert run() == run()


@given(
    st.floats(0, 50),
    st.floats(0, 50),
    st.lists(st.tuples(st.floats(0, 10), st.integers(0, 1), st.binary(max_size=4)), max_size=50),
)
def test_without_loss_every_packet_arrives_once_and_never_early(
    delay_ms: float, jitter_ms: float, sends: list[tuple[float, int, bytes]]
) -> None:
    path = WanPath(WanSettings(delay_ms=delay_ms, jitter_ms=jitter_ms))
    for now_s, towards, packet in sends:
        path.send(now_s, towards, packet)
        due_s = path.next_due_s()
        assert due_s is not None and due_s >= min(now_s for now_s, _, _ in sends)
    arrived = path.receive(100.0)
    assert sorted(arrived) == sorted((towards, packet) for _, towards, packet in sends)


def test_settings_become_options() -> None:
    options = WanSettings(delay_ms=2.5, rate_mbit=10).to_arguments()
    assert "--delay-ms=2.5" in options
    assert "--rate-mbit=10" in options
