"""A TUN's errors, without root; the real device is in tests/netns."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest
from zgate_datapath.tun import Tun, TunError


@pytest.mark.parametrize("name", ["", "x" * 16, "ü" * 8])
def test_a_name_that_no_link_can_have(name: str) -> None:
    with pytest.raises(TunError, match="expected 1 to 15 bytes"):
        Tun.open(name)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENODEV])
def test_no_device_file_names_cause_and_cure(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(TunError, match=r"cannot open /dev/net/tun: .*; load the tun module"):
        Tun.open("zgate0")


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.EBUSY, "another process holds it"),
        (errno.EPERM, "CAP_NET_ADMIN is missing"),
        (errno.EINVAL, "a link of another kind has that name"),
        (errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
)
def test_a_refused_device_names_the_cause_and_leaks_nothing(
    monkeypatch: pytest.MonkeyPatch, number: int, cause: str
) -> None:
    opened: list[int] = []
    real_open = os.open

    def open_null(*arguments: object) -> int:
        opened.append(real_open("/dev/null", os.O_RDWR))
        return opened[-1]

    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", open_null)
    monkeypatch.setattr(fcntl, "ioctl", refuse)
    with pytest.raises(TunError, match=f"zgate0: {cause}"):
        Tun.open("zgate0")
    with pytest.raises(OSError):
        os.fstat(opened[0])


@pytest.fixture
def pair() -> tuple[Tun, int]:
    """A TUN object on a pipe's reading end."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_DIRECT)
    return Tun(reading, "fake0"), writing


def test_reading_stops_at_the_limit_and_when_nothing_waits(pair: tuple[Tun, int]) -> None:
    tun, writing = pair
    for packet in (b"one", b"two", b"three"):
        os.write(writing, packet)
    assert tun.read_batch(2) == [b"one", b"two"]
    assert tun.read_batch(2) == [b"three"]
    assert tun.read_batch(2) == []
    assert not tun.is_gone
    tun.close()
    os.close(writing)


def test_a_device_that_has_gone_is_noted_and_raises_nothing(
    pair: tuple[Tun, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tun, writing = pair

    def bad_state(*arguments: object) -> bytes:
        raise OSError(errno.EBADFD, "File descriptor in bad state")

    with monkeypatch.context() as patch:
        patch.setattr(os, "read", bad_state)
        assert tun.read_batch(2) == []
    assert tun.is_gone
    tun.close()
    os.close(writing)


def test_a_packet_that_is_not_taken_is_a_drop(pair: tuple[Tun, int]) -> None:
    tun, writing = pair
    assert not tun.write(b"a reading end takes nothing")
    tun.close()
    assert not tun.write(b"nor does a closed one")
    tun.close()
    os.close(writing)
