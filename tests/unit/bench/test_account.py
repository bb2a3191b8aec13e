from collections import Counter

import pytest

from bench.sections.account import Account, tabulate


def test_steps_add_up_and_small_ones_are_summed() -> None:
    up = Account(Counter({"seal": 600, "send": 395, "x": 3, "y": 2}), packets=1e6, cpu_s=1.0)
    down = Account(Counter({"open": 10}), packets=1e6, cpu_s=0.5)
    assert up.ns_per_packet == 1000
    assert up.ns_of("seal") == pytest.approx(600)
    head, rows = tabulate({"up": up, "down": down})
    assert head == ["", "up", "down"]
    assert rows == [
        ["open", "0 (0%)", "500 (100%)"],
        ["seal", "600 (60%)", "0 (0%)"],
        ["send", "395 (40%)", "0 (0%)"],
        ["everything below 1%", "5 (0%)", "0 (0%)"],
        ["together", "1,000", "500"],
    ]


def test_nothing_carried_is_no_division() -> None:
    assert Account(Counter(), packets=0, cpu_s=0.1).ns_of("seal") == 0
