import time

import pytest
from zgate_lab.errors import LabTimeout
from zgate_lab.waiting import wait_until


def test_the_true_value_is_returned() -> None:
    values = iter([None, 0, "", "ready"])
    assert wait_until(lambda: next(values), 5.0, "it", interval_s=0.001) == "ready"


def test_a_condition_is_tried_at_least_once() -> None:
    assert wait_until(lambda: True, 0.0, "it")


def test_the_text_says_what_was_waited_for() -> None:
    start_s = time.monotonic()
    with pytest.raises(LabTimeout, match=r"timed out after 0\.05 s waiting for the moon"):
        wait_until(lambda: False, 0.05, "the moon")
    assert time.monotonic() - start_s < 20.0
