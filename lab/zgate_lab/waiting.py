"""Waiting for conditions, never for seconds."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

from zgate_lab.errors import LabTimeout

Value = TypeVar("Value")

POLL_INTERVAL_S = 0.02

SLOWNESS = max(1.0, float(os.environ.get("ZGATE_SLOWNESS", "1")))
"""How many times slower than a usual computer this one is (an emulated one, `make test-vm`).

Waiting has so much more patience; what goes well takes no longer for it.
"""


def wait_until(
    condition: Callable[[], Value],
    timeout_s: float,
    what: str,
    *,
    interval_s: float = POLL_INTERVAL_S,
) -> Value:
    """Call `condition` until it returns something true, and return that.

    `what` completes the sentence "timed out waiting for ..." of the LabTimeout that is raised
    after `timeout_s` seconds (times `SLOWNESS`). The condition is tried at least once, and once
    more at the end.
    """
    timeout_s *= SLOWNESS
    deadline_s = time.monotonic() + timeout_s
    while True:
        is_last_try = time.monotonic() >= deadline_s
        value = condition()
        if value:
            return value
        if is_last_try:
            raise LabTimeout(f"timed out after {timeout_s:g} s waiting for {what}")
        time.sleep(interval_s)
