"""Path MTU discovery as a script of probes and answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_datapath.path_mtu import BASE_BYTES, PathMtu, PathMtuState


def settle(mtu: PathMtu, path_bytes: int, now: float = 0.0) -> int:
    """Answer probes as a path of this size would, until no probe is due; probes sent."""
    for sent in range(200):
        probe = mtu.next_probe(now)
        if probe is None:
            return sent
        if probe.udp_payload_bytes <= path_bytes:
            mtu.acknowledged(probe.udp_payload_bytes, now)
        else:
            mtu.lost(probe.udp_payload_bytes, now)
    raise AssertionError("the search does not end")


def test_a_good_path_needs_one_probe() -> None:
    mtu = PathMtu(1452, now=0.0)
    assert settle(mtu, 1452) == 1
    assert mtu.state is PathMtuState.COMPLETE
    assert mtu.udp_payload_bytes == 1452


@given(st.integers(min_value=BASE_BYTES, max_value=1452))
def test_the_search_ends_close_below_the_paths_size(path_bytes: int) -> None:
    mtu = PathMtu(1452, now=0.0)
    settle(mtu, path_bytes)
    assert mtu.state is PathMtuState.COMPLETE
    assert path_bytes - 8 <= mtu.udp_payload_bytes <= path_bytes


def test_a_path_below_the_base_is_unusable() -> None:
    mtu = PathMtu(1452, now=0.0)
    settle(mtu, BASE_BYTES - 1)
    assert mtu.state is PathMtuState.UNUSABLE
    assert mtu.next_probe(1e9) is None


def test_a_router_lowers_at_once_and_the_size_is_then_confirmed() -> None:
    mtu = PathMtu(1452, now=0.0)
    settle(mtu, 1452)
    mtu.too_big(1372, now=1.0)
    assert mtu.udp_payload_bytes == 1372
    settle(mtu, 1372, now=1.0)
    assert mtu.state is PathMtuState.COMPLETE
    assert mtu.udp_payload_bytes == 1372


def test_a_forged_icmp_cannot_go_below_the_base() -> None:
    mtu = PathMtu(1452, now=0.0)
    settle(mtu, 1452)
    mtu.too_big(68, now=1.0)
    assert mtu.udp_payload_bytes == BASE_BYTES


def test_a_router_never_raises() -> None:
    mtu = PathMtu(1452, now=0.0)
    settle(mtu, 1400)
    size = mtu.udp_payload_bytes
    mtu.too_big(9000, now=1.0)
    assert mtu.udp_payload_bytes == size


def test_a_black_hole_is_found_without_icmp() -> None:
    mtu = PathMtu(1452, now=0.0)
    settle(mtu, 1452)
    settle(mtu, 1372, now=16.0)
    assert mtu.state is PathMtuState.COMPLETE
    assert 1364 <= mtu.udp_payload_bytes <= 1372


def test_a_path_that_grows_again_is_found_after_ten_minutes() -> None:
    mtu = PathMtu(1452, now=0.0)
    settle(mtu, 1372)
    settle(mtu, 1452, now=601.0)
    settle(mtu, 1452, now=620.0)
    assert mtu.udp_payload_bytes == 1452


def test_another_path_begins_anew() -> None:
    mtu = PathMtu(1452, now=0.0)
    settle(mtu, 1372)
    mtu.path_changed(now=2.0)
    assert mtu.confirmed_bytes == 0
    settle(mtu, 1452, now=2.0)
    assert mtu.udp_payload_bytes == 1452


def test_one_probe_at_a_time() -> None:
    mtu = PathMtu(1452, now=0.0)
    assert mtu.next_probe(0.0) is not None
    assert mtu.next_probe(0.0) is None
    assert mtu.next_at() is None


def test_a_ceiling_below_the_base_is_an_error() -> None:
    with pytest.raises(ValueError, match="1331"):
        PathMtu(1200, now=0.0)


def test_a_path_moved_to_may_take_seconds_to_be_validated() -> None:
    """Nothing is acknowledged on it before that, whatever its size."""
    mtu = PathMtu(1452, now=0.0)
    settle(mtu, 1452, now=1.0)
    mtu.path_changed(now=2.0)
    now = 2.0
    while now < 6.9:
        probe = mtu.next_probe(now)
        assert probe is not None
        mtu.lost(probe.udp_payload_bytes, now)
        assert mtu.state is not PathMtuState.UNUSABLE
        now += 0.3
    settle(mtu, 1452, now=now)
    assert mtu.udp_payload_bytes >= 1331
    assert mtu.state is not PathMtuState.UNUSABLE


def test_a_path_moved_to_that_carries_nothing_is_unusable_all_the_same() -> None:
    mtu = PathMtu(1452, now=0.0)
    settle(mtu, 1452, now=1.0)
    mtu.path_changed(now=2.0)
    now = 2.0
    while (probe := mtu.next_probe(now)) is not None:
        mtu.lost(probe.udp_payload_bytes, now)
        now += 0.3
    assert mtu.state is PathMtuState.UNUSABLE
    assert 7.0 <= now < 9.0
