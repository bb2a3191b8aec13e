import multiprocessing
import os
import time

from bench import cpu
from bench.cpu import cpu_seconds, parse_stat, peak_memory_mb, reset_peak_memory


def test_a_command_with_spaces_and_parentheses() -> None:
    rest = "S 42 1 1 0 -1 4194560 0 0 0 0 150 25 3 4 20 0"
    assert parse_stat(f"7 (a (b) c) {rest}\n") == (42, 175)


def _burn() -> None:
    end_s = time.process_time() + 0.2
    while time.process_time() < end_s:
        pass
    time.sleep(30)


def test_children_are_counted() -> None:
    child = multiprocessing.get_context("fork").Process(target=_burn)
    before_s = cpu_seconds(os.getpid())
    child.start()
    try:
        deadline_s = time.monotonic() + 20
        while cpu_seconds(child.pid or 0) < 0.15:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        # Ticks of 10 ms, as floats: 50.65 - 50.5 is a little less than 0.15.
        assert cpu_seconds(os.getpid()) - before_s > 0.145
    finally:
        child.kill()
        child.join()


def test_memory_is_the_processs_own() -> None:
    assert 5 < peak_memory_mb(os.getpid()) < 5000


def test_the_peak_can_begin_anew() -> None:
    block = bytearray(64 << 20)
    with_block_mb = peak_memory_mb(os.getpid())
    del block
    assert peak_memory_mb(os.getpid()) > with_block_mb - 10  # the kernel counts roughly
    reset_peak_memory(os.getpid())
    assert peak_memory_mb(os.getpid()) < with_block_mb - 50


def test_a_process_that_is_gone_has_nothing() -> None:
    assert cpu_seconds(2**22 + 1) == 0
    assert peak_memory_mb(2**22 + 1) == 0


def test_the_machines_time_is_read_without_idle_and_waiting() -> None:
    ticks = cpu.parse_machine("cpu  100 0 50 800 40 5 5 0 0 0\ncpu0 1 2 3\n")
    per_s = os.sysconf("SC_CLK_TCK")
    assert (ticks.busy_s, ticks.all_s) == (160 / per_s, 1000 / per_s)


def test_memory_and_processes_of_this_test() -> None:
    assert cpu.resident_bytes(os.getpid()) > 1e6
    assert os.getpid() in cpu.process_ids(os.getpid())
