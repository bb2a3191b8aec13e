import errno

import pytest
from zgate_bpf import syscalls


def test_machine_without_a_known_number(monkeypatch):
    monkeypatch.setattr(syscalls.platform, "machine", lambda: "vax")
    with pytest.raises(OSError, match="vax") as caught:
        syscalls.map_create(syscalls.MapType.HASH, 4, 4, 1, name="x")
    assert caught.value.errno == errno.ENOSYS


def test_error_names_the_command():
    with pytest.raises(OSError, match=r"Bad file descriptor \(bpf MAP_UPDATE_ELEM\)"):
        syscalls.map_update(-1, b"1234", b"1234")
