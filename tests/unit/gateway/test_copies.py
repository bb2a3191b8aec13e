"""Files without names, handed over by descriptor."""

from __future__ import annotations

import os

from zgate_gateway.copies import MemoryFile, path_of


def test_what_is_written_is_read_by_whoever_has_the_descriptor() -> None:
    file = MemoryFile("test")
    file.write(b"a longer content")
    path = path_of(os.dup(file.fd))
    assert path.read_bytes() == b"a longer content"
    file.write(b"another")
    assert path.read_bytes() == b"another"
    assert path.stat().st_mode & 0o777 == 0o600
    file.close()
    assert path.read_bytes() == b"another"
    os.close(int(path.name))
