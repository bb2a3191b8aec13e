"""Counters of many clients are what they are one by one, however the kernel is asked."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from zgate_bpf import syscalls
from zgate_bpf.many_counters import sum_many
from zgate_bpf.maps import PerCpuArray, index_key, possible_cpus

ENTRIES, FIELDS = 5000, 3
COMMANDS = 50


@pytest.fixture(scope="module")
def table() -> Iterator[PerCpuArray]:
    made = PerCpuArray("test", FIELDS * 8, ENTRIES)
    for index in range(ENTRIES):
        syscalls.map_update(made.fd, index_key(index), b"".join(_values(index)))
    yield made
    made.close()


def _values(index: int) -> list[bytes]:
    return [struct.pack("=3Q", index, cpu << 40, index * 7 + cpu) for cpu in range(possible_cpus())]


def _expected(index: int) -> tuple[int, ...]:
    return tuple(map(sum, zip(*(struct.unpack("=3Q", one) for one in _values(index)), strict=True)))


@pytest.mark.parametrize(
    "indices",
    [
        pytest.param(list(range(ENTRIES)), id="all"),
        pytest.param([], id="none"),
        pytest.param([0, ENTRIES - 1], id="few"),
        pytest.param(random.Random(1).sample(range(ENTRIES), 700), id="scattered"),
        pytest.param(list(range(900, 1100)), id="across a batch"),
    ],
)
def test_the_same_as_one_by_one(table: PerCpuArray, indices: list[int]) -> None:
    assert sum_many(table, indices) == {index: _expected(index) for index in indices}


def test_few_system_calls(table: PerCpuArray, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    lookup = syscalls.map_lookup_batch

    def counted(*arguments: Any) -> Any:
        asked.append(arguments)
        return lookup(*arguments)

    monkeypatch.setattr("zgate_bpf.syscalls.map_lookup_batch", counted)
    sum_many(table, range(ENTRIES))
    assert 0 < len(asked) <= COMMANDS


def test_a_kernel_without_batches(table: PerCpuArray, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(524, "Unknown error 524")

    monkeypatch.setattr("zgate_bpf.syscalls.map_lookup_batch", refuse)
    assert sum_many(table, range(200)) == {index: _expected(index) for index in range(200)}


def test_another_error_is_told(table: PerCpuArray, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "no")

    monkeypatch.setattr("zgate_bpf.syscalls.map_lookup_batch", refuse)
    with pytest.raises(PermissionError):
        sum_many(table, range(200))


def test_no_such_entry(table: PerCpuArray) -> None:
    with pytest.raises(IndexError, match="no entry 5000"):
        sum_many(table, range(ENTRIES - 100, ENTRIES + 1))
