from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path

import pytest
from zgate_connector.pipes import PipePool


def open_pipes() -> int:
    links = []
    for one in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            links.append(str(one.readlink()))
    return sum(link.startswith("pipe:") for link in links)


def test_a_pipe_has_the_size_that_was_asked_for_and_does_not_block() -> None:
    pool = PipePool(131072)
    pipe = pool.take()
    assert pipe.size_bytes == 131072
    assert os.write(pipe.write_fd, bytes(1 << 20)) == 131072
    with pytest.raises(BlockingIOError):
        os.write(pipe.write_fd, b"x")
    pool.give_back(pipe, is_empty=False)
    pool.close()


def test_no_more_than_asked_for_although_the_kernel_rounds_up() -> None:
    pool = PipePool(5000)
    assert pool.take().size_bytes == 5000


def test_an_empty_pipe_is_lent_again_and_a_full_one_is_not() -> None:
    pool = PipePool(4096)
    first = pool.take()
    pool.give_back(first)
    assert pool.take() is first
    os.write(first.write_fd, b"secret of another flow")
    pool.give_back(first, is_empty=False)
    second = pool.take()
    with pytest.raises(BlockingIOError):
        os.read(second.read_fd, 100)
    pool.give_back(second)
    pool.close()


def test_idle_pipes_are_bounded_and_nothing_is_left_open() -> None:
    gc.collect()  # what other tests have left
    before = open_pipes()
    pool = PipePool(4096)
    pipes = [pool.take() for _ in range(200)]
    assert open_pipes() == before + 400
    for pipe in pipes[:-1]:
        pool.give_back(pipe)
    assert open_pipes() == before + 2 * (64 + 1)
    pool.close()
    pool.give_back(pipes[-1])
    assert open_pipes() == before
