from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from zgate_connector.chamber_messages import encode, receive


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        end.setblocking(False)
    yield pair
    for end in pair:
        end.close()


def test_messages_stay_apart_and_bring_their_descriptors(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    read_end, write_end = os.pipe()
    ends[0].send(encode({"op": "one"}))
    socket.send_fds(ends[0], [encode({"op": "two", "n": 2})], [read_end])
    assert receive(ends[1]) == ({"op": "one"}, [])
    received = receive(ends[1])
    assert received is not None
    message, (descriptor,) = received
    assert message == {"op": "two", "n": 2}
    os.write(write_end, b"through")
    assert os.read(descriptor, 100) == b"through"
    for one in (read_end, write_end, descriptor):
        os.close(one)


def test_nothing_yet_and_the_end(ends: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(BlockingIOError):
        receive(ends[1])
    ends[0].close()
    assert receive(ends[1]) is None


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b"1"])
def test_what_is_no_message(ends: tuple[socket.socket, socket.socket], data: bytes) -> None:
    ends[0].send(data)
    with pytest.raises(ValueError):
        receive(ends[1])
