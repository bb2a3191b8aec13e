"""What the kernel says of a process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from zgate_gateway.metrics.processes import read_process


def test_our_own() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    found = read_process(os.getpid(), 0.5)
    assert found is not None
    used = os.times()
    assert abs(found.cpu_s - used.user - used.system) < 1.0
    assert 1 << 20 < found.resident_bytes < 1 << 40
    assert found.open_fds is not None and abs(found.open_fds - before) <= 2
    assert found.loop_lag_s == 0.5


def test_descriptors_that_nobody_may_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> list[str]:
        raise PermissionError(13, "no")

    monkeypatch.setattr("zgate_gateway.metrics.processes.os.listdir", refuse)
    found = read_process(os.getpid(), 0.0)
    assert found is not None and found.open_fds is None


def test_one_that_has_a_strange_name_and_one_that_has_ended() -> None:
    code = "import ctypes, sys; ctypes.CDLL(None).prctl(15, b') R 1 2'); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = read_process(child.pid, 0.0)
        assert found is not None and found.resident_bytes > 1 << 20
        child.communicate()
        assert read_process(child.pid, 0.0) is None
