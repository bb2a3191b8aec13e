import pytest

from bench.metrics import Better
from bench.report import MARKS, target_rows, verdict
from bench.run import PEERS, SECTIONS
from bench.targets import TARGETS, Bound, Target, judge

RATIO = Target("TCP up", "zgate.tcp", Better.HIGHER, Bound(6), Bound(10), "openvpn.tcp", "openvpn")
QUEUE = Target(
    "RTT", "zgate.rtt", Better.LOWER, Bound(2, 2), Bound(1, 1), "zgate.idle", "idle", "ms"
)


def _judge(target: Target, **findings: float) -> tuple[bool | None, bool | None]:
    found = {key.replace("_", ".", 1): value for key, value in findings.items()}
    (outcome,) = judge(found, [target])
    return outcome.is_met, outcome.reaches_aim


@pytest.mark.parametrize(
    ("own", "expected"), [(600, (True, False)), (599, (False, False)), (1000, (True, True))]
)
def test_higher_is_better(own: float, expected: tuple[bool, bool]) -> None:
    assert _judge(RATIO, zgate_tcp=own, openvpn_tcp=100) == expected


@pytest.mark.parametrize(
    ("rtt", "expected"), [(2.6, (True, False)), (2.61, (False, False)), (1.3, (True, True))]
)
def test_a_bound_may_be_a_line_over_the_reference(rtt: float, expected: tuple[bool, bool]) -> None:
    assert _judge(QUEUE, zgate_rtt=rtt, zgate_idle=0.3) == expected


def test_what_was_not_measured_is_not_met() -> None:
    assert _judge(RATIO) == (None, None)
    assert _judge(RATIO, zgate_tcp=1) == (None, None)
    assert {verdict(one) for one in judge({})} == {MARKS[None]}


def test_a_value_alone_has_no_reference() -> None:
    target = Target("memory", "zgate.kb", Better.LOWER, Bound(constant=200), unit="kB")
    assert _judge(target, zgate_kb=199) == (True, None)
    assert target.bound_text(target.at_least) == "≤ 200 kB"


def test_something_else_may_be_enough() -> None:
    target = Target(
        "two", "w.2", Better.HIGHER, Bound(1.6), None, "w.1", "one", enough=("w.busy", 0.9, "busy")
    )
    (missed,) = judge({"w.2": 1.0, "w.1": 1.0, "w.busy": 0.8}, [target])
    (met,) = judge({"w.2": 1.0, "w.1": 1.0, "w.busy": 0.97}, [target])
    assert (missed.is_met, met.is_met) == (False, True)
    assert verdict(met) == "✔ met (97% busy)"


def test_in_words() -> None:
    (row,) = target_rows(judge({"zgate.rtt": 1.0, "zgate.idle": 0.5}, [QUEUE]))
    assert row == [
        "RTT", "1.00 ms", "0.50 ms", "2.00", "≤ 2 x idle + 2 ms", "≤ 1 x idle + 1 ms", "✔ aim",
    ]  # fmt: skip


def test_every_target_is_of_something_that_is_measured() -> None:
    names = {kind.name for kind in PEERS} | {section.name for section in SECTIONS}
    for target in TARGETS:
        assert target.value.partition(".")[0] in names
        assert target.reference.partition(".")[0] in names | {""}
