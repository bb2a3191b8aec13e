from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_lab.errors import LabError
from zgate_lab.traffic import parse_ping, ping, send_udp

ANSWERED = """PING 10.0.0.1 (10.0.0.1) 56(84) bytes of data.

--- 10.0.0.1 ping statistics ---
3 packets transmitted, 3 received, 0% packet loss, time 109ms
rtt min/avg/max/mdev = 0.090/0.240/0.416/0.134 ms
"""
SILENT = """PING 10.0.0.1 (10.0.0.1) 56(84) bytes of data.

--- 10.0.0.1 ping statistics ---
3 packets transmitted, 0 received, +3 errors, 100% packet loss, time 105ms
"""
DUPLICATED = "3 packets transmitted, 3 received, +2 duplicates, 0% packet loss, time 1ms"


def test_an_answered_ping() -> None:
    result = parse_ping(ANSWERED)
    assert (result.sent, result.received, result.lost, result.duplicates) == (3, 3, 0, 0)
    assert (result.rtt_min_ms, result.rtt_average_ms, result.rtt_max_ms) == (0.09, 0.24, 0.416)


LATE = """64 bytes from 10.0.0.1: icmp_seq=1 ttl=64 time=0.09 ms
64 bytes from 10.0.0.1: icmp_seq=3 ttl=64 time=0.09 ms

--- 10.0.0.1 ping statistics ---
9 packets transmitted, 2 received, 77% packet loss, time 800ms
"""


@pytest.mark.parametrize(
    ("interval_s", "under_way"), [(None, 0), (0.01, 6), (0.1, 5), (0.3, 2)], ids=str
)
def test_what_ping_did_not_wait_for_is_not_lost(interval_s: float | None, under_way: int) -> None:
    """Of the last half second, and behind the last answer: not the second request."""
    result = parse_ping(LATE, interval_s=interval_s)
    assert (result.under_way, result.lost) == (under_way, 7 - under_way)


def test_a_silent_ping() -> None:
    result = parse_ping(SILENT)
    assert (result.sent, result.received, result.lost) == (3, 0, 3)
    assert result.rtt_average_ms is None


def test_duplicates() -> None:
    assert parse_ping(DUPLICATED).duplicates == 2


def test_an_error_message_is_not_a_summary() -> None:
    with pytest.raises(LabError, match="Network is unreachable"):
        parse_ping("ping: connect: Network is unreachable")


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_ping(text)
    except LabError:
        return


def test_a_summary_cut_anywhere_is_read_or_refused() -> None:
    for end in range(len(ANSWERED)):
        try:
            result = parse_ping(ANSWERED[:end])
        except LabError:
            continue
        assert result.sent == 3
        assert result.received in {0, 3}


@pytest.mark.parametrize("count", [0, -1, 1_000_001])
def test_generators_are_bounded_in_count(count: int) -> None:
    with pytest.raises(LabError, match="packets"):
        ping("no-such-namespace", ip_address("192.0.2.1"), count=count)
    with pytest.raises(LabError, match="packets"):
        send_udp("no-such-namespace", ip_address("192.0.2.1"), 9, [b""], count=count)


def test_generators_are_bounded_in_time() -> None:
    with pytest.raises(LabError, match="at most 120 s"):
        ping("no-such-namespace", ip_address("192.0.2.1"), count=1000, interval_s=1.0)
    with pytest.raises(LabError, match="at most 120 s"):
        send_udp("no-such-namespace", ip_address("192.0.2.1"), 9, [b""], count=1, duration_s=121.0)
