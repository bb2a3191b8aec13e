"""How late the event loop was, for whoever asks."""

import asyncio
import time

from zgate_gateway.loop_lag import WINDOW_S, LoopLag


def test_the_worst_of_this_window_and_the_one_before() -> None:
    lag, now = LoopLag(), 7 * WINDOW_S
    assert lag.worst_s(now) == 0
    lag.note(0.3, now)
    lag.note(0.1, now + 1)
    assert lag.worst_s(now + 2) == 0.3
    assert lag.worst_s(now + 2) == 0.3  # asking changes nothing
    lag.note(0.2, now + WINDOW_S)
    assert lag.worst_s(now + WINDOW_S) == 0.3
    assert lag.worst_s(now + 2 * WINDOW_S) == 0.2
    assert lag.worst_s(now + 3 * WINDOW_S) == 0


def test_a_long_silence_is_no_lag_of_now() -> None:
    lag = LoopLag()
    lag.note(0.3, 0.0)
    assert lag.worst_s(5 * WINDOW_S) == 0


async def test_a_loop_that_is_kept_waiting() -> None:
    lag, loop = LoopLag(), asyncio.get_running_loop()
    watching = loop.create_task(lag.watch(0.01))
    await asyncio.sleep(0.05)
    time.sleep(0.2)
    await asyncio.sleep(0.05)
    watching.cancel()
    assert 0.15 < lag.worst_s(loop.time()) < 5
