"""A clock that can be set, in a real process: the wall clock alone is another one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

from zgate_lab.wall_clock import WallClock

_PROGRAM = """\
import datetime, sys, time
for _ in sys.stdin:
    time.sleep(0.001)
    print(time.time(), datetime.datetime.now().timestamp(), time.monotonic(), flush=True)
"""


def test_the_wall_clock_is_set_while_a_program_runs(tmp_path: Path) -> None:
    clock = WallClock(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **clock.environment},
    ) as program:
        assert program.stdin is not None and program.stdout is not None
        for hours in (0, 1, -1, 0):
            clock.set(timedelta(hours=hours))
            program.stdin.write("\n")
            program.stdin.flush()
            wall_s, date_s, monotonic_s = map(float, program.stdout.readline().split())
            assert abs(wall_s - time.time() - hours * 3600) < 5
            assert abs(date_s - wall_s) < 1
            assert abs(monotonic_s - time.monotonic()) < 5
        program.stdin.close()
    assert program.returncode == 0
