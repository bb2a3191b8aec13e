import struct

import pytest
from zgate_bpf.errors import CapacityError
from zgate_bpf.maps import Map, PerCpuArray, index_key, possible_cpus
from zgate_bpf.syscalls import NO_PREALLOC, MapReader, MapType

ENTRIES = 10_000


@pytest.fixture
def table():
    made = Map(MapType.HASH, "test", 4, 8, ENTRIES, flags=NO_PREALLOC)
    yield made
    made.close()


def test_one_entry(table):
    key, value = index_key(5), struct.pack("=Q", 9)
    assert table.lookup(key) is None
    assert not table.delete(key)
    table.update(key, value)
    assert table.lookup(key) == value
    assert MapReader(table.fd, 4, 8).lookup(key) == value
    assert MapReader(table.fd, 4, 8).lookup(index_key(6)) is None
    assert table.delete(key)
    assert table.lookup(key) is None


def test_more_entries_than_a_batch(table):
    entries = {index_key(n): struct.pack("=Q", n * n) for n in range(ENTRIES)}
    table.update_many(list(entries.items()))
    assert dict(table.items()) == entries
    assert table.count() == ENTRIES
    with pytest.raises(CapacityError, match="test: 10001 needed, 10000 fit"):
        table.update(index_key(ENTRIES), bytes(8))


def test_kernel_without_batches(table, monkeypatch):
    def refuse(*_):
        raise OSError(524, "Unknown error 524")

    monkeypatch.setattr("zgate_bpf.syscalls.map_update_batch", refuse)
    table.update_many([(index_key(1), bytes(8)), (index_key(2), bytes(8))])
    assert table.count() == 2


def test_empty_table_has_no_entries(table):
    table.update_many([])
    assert list(table.items()) == []
    assert table.count() == 0


def test_per_cpu_array():
    array = PerCpuArray("test", 12, 4)
    try:
        assert array.per_cpu(3) == [bytes(12)] * possible_cpus()
        value = b"twelve bytes"
        array.update_cpus(3, value)
        assert array.per_cpu(3) == [value] * possible_cpus()
        assert array.per_cpu(2) == [bytes(12)] * possible_cpus()
        array.clear(3)
        assert array.per_cpu(3) == [bytes(12)] * possible_cpus()
        with pytest.raises(IndexError, match="test has no entry 4"):
            array.per_cpu(4)
    finally:
        array.close()
