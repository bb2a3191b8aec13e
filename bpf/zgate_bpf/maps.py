"""Maps of the kernel, each with its key's and value's layout."""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from zgate_bpf import syscalls
from zgate_bpf.errors import CapacityError
from zgate_bpf.syscalls import MapType

_BATCH_ENTRIES = 4096
# What kernels answer that have no batches for a kind of map: ENOTSUPP, which errno does not
# know, or EINVAL.
_NO_BATCHES = (524, errno.EINVAL)


def possible_cpus() -> int:
    """How many CPUs the kernel keeps per-CPU values for."""
    ranges = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")
    return 1 + max(int(part.split("-")[-1]) for part in ranges)


def index_key(index: int) -> bytes:
    """The key of an array's entry."""
    return struct.pack("=I", index)


class Map:
    """One map and its descriptor.

    :ivar fd: its descriptor; closed by :meth:`close`.
    """

    def __init__(
        self,
        kind: MapType,
        name: str,
        key_bytes: int,
        value_bytes: int,
        max_entries: int,
        *,
        flags: int = 0,
        inner_fd: int = 0,
    ) -> None:
        self.name = name
        self.kind = kind
        self.key_bytes = key_bytes
        self.value_bytes = value_bytes
        self.max_entries = max_entries
        self.fd = syscalls.map_create(
            kind, key_bytes, value_bytes, max_entries, name=name, flags=flags, inner_fd=inner_fd
        )

    def close(self) -> None:
        """Give the descriptor back; the kernel keeps the map while a program uses it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def lookup(self, key: bytes) -> bytes | None:
        """The value at a key, or ``None``."""
        return syscalls.map_lookup(self.fd, key, self.value_bytes)

    def update(self, key: bytes, value: bytes) -> None:
        """Write one entry.

        Raises:
            CapacityError: the map is full.
            OSError: the kernel refused for another reason.
        """
        try:
            syscalls.map_update(self.fd, key, value)
        except OSError as error:
            if error.errno in (errno.E2BIG, errno.ENOSPC):
                raise CapacityError(self.name, self.max_entries + 1, self.max_entries) from error
            raise

    def delete(self, key: bytes) -> bool:
        """Remove one entry; False if there was none."""
        return syscalls.map_delete(self.fd, key)

    def update_many(self, entries: list[tuple[bytes, bytes]]) -> None:
        """Write many entries, in as few calls as the kernel allows."""
        for start in range(0, len(entries), _BATCH_ENTRIES):
            part = entries[start : start + _BATCH_ENTRIES]
            keys = b"".join(key for key, _ in part)
            values = b"".join(value for _, value in part)
            try:
                syscalls.map_update_batch(self.fd, keys, values, len(part))
            except OSError as error:
                if error.errno not in _NO_BATCHES:
                    raise
                for key, value in part:
                    self.update(key, value)

    def batches(self) -> Iterator[tuple[bytes, bytes, int]]:
        """All entries, in batches: keys, values, how many (hash tables and arrays)."""
        position: bytes | None = None
        size = _BATCH_ENTRIES
        while True:
            try:
                position, keys, values, count = syscalls.map_lookup_batch(
                    self.fd, position, self.key_bytes, self.value_bytes, size
                )
            except OSError as error:
                # One bucket of a hash table holds more than the batch has room for.
                if error.errno != errno.ENOSPC or size > self.max_entries:
                    raise
                size *= 2
                continue
            yield keys, values, count
            if position is None:
                return

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries, one by one."""
        for keys, values, count in self.batches():
            for index in range(count):
                yield (
                    keys[index * self.key_bytes : (index + 1) * self.key_bytes],
                    values[index * self.value_bytes : (index + 1) * self.value_bytes],
                )

    def count(self) -> int:
        """How many entries there are (hash tables only; reads them all)."""
        return sum(count for _, _, count in self.batches())


class PerCpuArray(Map):
    """An array in which every CPU counts for itself.

    :ivar entry_bytes: one entry as the kernel gives it: each CPU's value, padded to 8 bytes.
    """

    def __init__(self, name: str, value_bytes: int, max_entries: int) -> None:
        super().__init__(MapType.PERCPU_ARRAY, name, 4, value_bytes, max_entries)
        self._cpus = possible_cpus()
        self._per_cpu_bytes = (value_bytes + 7) // 8 * 8
        self.entry_bytes = self._per_cpu_bytes * self._cpus

    def per_cpu(self, index: int) -> list[bytes]:
        """The value of each CPU."""
        data = syscalls.map_lookup(self.fd, index_key(index), self.entry_bytes)
        if data is None:
            raise IndexError(f"{self.name} has no entry {index}")
        step = self._per_cpu_bytes
        return [data[cpu * step : cpu * step + self.value_bytes] for cpu in range(self._cpus)]

    def update_cpus(self, index: int, value: bytes) -> None:
        """Set the value on every CPU."""
        padded = value.ljust(self._per_cpu_bytes, b"\0") * self._cpus
        syscalls.map_update(self.fd, index_key(index), padded)

    def clear(self, index: int) -> None:
        """Set an entry to zero on every CPU."""
        self.update_cpus(index, b"")


class RingBuffer(Map):
    """What the program writes and one reader takes out; its size is in bytes."""

    def __init__(self, name: str, size_bytes: int) -> None:
        super().__init__(MapType.RINGBUF, name, 0, 0, size_bytes)

    def used_bytes(self) -> int:
        """How much waits for the reader."""
        # The reader's position is the first word of the first page, the program's that of the
        # second. The reader's first: what it then takes cannot make the difference negative.
        taken, written = (self._position(page * mmap.PAGESIZE) for page in range(2))
        return written - taken

    def _position(self, offset: int) -> int:
        page = mmap.mmap(
            self.fd, mmap.PAGESIZE, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=offset
        )
        with page:
            (position,) = struct.unpack_from("=Q", page)
        return int(position)
