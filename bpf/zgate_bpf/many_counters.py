"""The counters of very many clients at once: a scrape must not cost a system call for each."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Sequence
from itertools import groupby

from zgate_bpf import syscalls
from zgate_bpf.maps import PerCpuArray, index_key

#: Entries of one batch; a batch of which few are wanted is read entry by entry.
_BATCH_ENTRIES = 1024
_FEW = 64
_WORD_BYTES = 8
#: Kernels before 5.13 have no batches for per-CPU arrays: ENOTSUPP, which errno does not know.
_NO_BATCHES = (524, errno.EINVAL)

Sums = tuple[int, ...]


def sum_many(table: PerCpuArray, indices: Sequence[int]) -> dict[int, Sums]:
    """The fields of these entries, 64-bit words, each summed over all CPUs.

    May run in a thread.

    Raises:
        IndexError: there is no such entry.
        OSError: the kernel refused.
    """
    found: dict[int, Sums] = {}
    for start, group in groupby(sorted(indices), lambda index: index // _BATCH_ENTRIES):
        wanted = list(group)
        first = start * _BATCH_ENTRIES
        batch = None if len(wanted) < _FEW else _read_batch(table, first, wanted[-1] - first + 1)
        for index in wanted:
            if batch is None:
                found[index] = _sums(array("Q", b"".join(table.per_cpu(index))), 0, table)
            else:
                words = table.entry_bytes // _WORD_BYTES
                found[index] = _sums(batch, (index - first) * words, table)
    return found


def _read_batch(table: PerCpuArray, first: int, count: int) -> array[int] | None:
    """The entries from `first` on, one after the other; None: this kernel has no batches."""
    before = index_key(first - 1) if first else None
    try:
        _, _, values, given = syscalls.map_lookup_batch(
            table.fd, before, table.key_bytes, table.entry_bytes, count
        )
    except OSError as error:
        if error.errno in _NO_BATCHES:
            return None
        raise
    if given < count:
        raise IndexError(f"{table.name} has no entry {first + given}")
    return array("Q", values)


def _sums(words: array[int], start: int, table: PerCpuArray) -> Sums:
    fields = table.value_bytes // _WORD_BYTES
    end = start + table.entry_bytes // _WORD_BYTES
    return tuple(sum(words[start + field : end : fields]) for field in range(fields))
