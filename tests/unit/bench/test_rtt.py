import pytest

from bench.errors import MeasurementFailed
from bench.load.rtt import parse_ping

OUTPUT = """\
PING 10.30.0.2 (10.30.0.2) 56(84) bytes of data.
64 bytes from 10.30.0.2: icmp_seq=1 ttl=63 time=9.00 ms
64 bytes from 10.30.0.2: icmp_seq=2 ttl=63 time=0.50 ms
64 bytes from 10.30.0.2: icmp_seq=2 ttl=63 time=0.90 ms (DUP!)
64 bytes from 10.30.0.2: icmp_seq=4 ttl=63 time=0.70 ms

--- 10.30.0.2 ping statistics ---
4 packets transmitted, 3 received, +1 duplicates, 25% packet loss, time 30ms
rtt min/avg/max/mdev = 0.500/3.400/9.000/3.960 ms
"""


def test_every_answer_counts_once() -> None:
    result = parse_ping(OUTPUT)
    assert result.sent == 4
    assert result.times_ms == (9.0, 0.5, 0.7)
    assert result.loss == pytest.approx(0.25)
    assert result.median_ms == 0.7
    assert result.p99_ms == 9.0


def test_the_first_requests_can_be_left_out() -> None:
    result = parse_ping(OUTPUT, skip=1)
    assert result.sent == 3
    assert result.times_ms == (0.5, 0.7)
    assert result.loss == pytest.approx(1 / 3)


def test_no_answer_is_a_failure_with_words() -> None:
    with pytest.raises(MeasurementFailed, match="no ping was answered"):
        parse_ping("3 packets transmitted, 0 received, 100% packet loss, time 30ms\n")


def test_no_summary() -> None:
    with pytest.raises(MeasurementFailed, match="Network is unreachable"):
        parse_ping("ping: connect: Network is unreachable\n")
