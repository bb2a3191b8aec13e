import pytest

from bench import metrics
from bench.targets import PYTHON_ENGINE, Target, judge


def _judge(metric: metrics.Metric, factor: float, own: float, other: float) -> bool | None:
    medians = {"zgate": {metric.key: own}, "openvpn": {metric.key: other}}
    (outcome,) = judge(medians, (Target(metric, "openvpn", factor),))
    return outcome.is_met


@pytest.mark.parametrize(("own", "met"), [(35.0, True), (34.9, False), (400.0, True)])
def test_higher_is_better(own: float, met: bool) -> None:
    assert _judge(metrics.TCP_UP, 0.35, own, 100.0) is met


@pytest.mark.parametrize(("own", "met"), [(0.9, True), (0.91, False), (0.1, True)])
def test_lower_is_better(own: float, met: bool) -> None:
    assert _judge(metrics.RTT_IDLE, 3.0, own, 0.3) is met


def test_what_was_not_measured_is_not_met() -> None:
    incomplete: list[dict[str, metrics.Sample]] = [
        {},
        {"zgate": {metrics.TCP_UP.key: 1.0}},
        {"openvpn": {}},
    ]
    for medians in incomplete:
        assert [one.is_met for one in judge(medians)] == [None] * len(PYTHON_ENGINE)


def test_in_words() -> None:
    assert PYTHON_ENGINE[0].text == "TCP up: at least 0.35 x openvpn"
    assert PYTHON_ENGINE[2].text == "RTT idle, median: at most 3 x openvpn"
