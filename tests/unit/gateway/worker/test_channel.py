"""Messages over a real socket pair: in order, with descriptors, and never blocking."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from zgate_gateway.worker import messages
from zgate_gateway.worker.channel import Channel, receive_first, socket_pair
from zgate_gateway.worker.messages import Message, MessageError

from ....loopback import eventually  # noqa: TID252


class End:
    """One end, with what it heard."""

    def __init__(self, sock: socket.socket) -> None:
        self.heard: list[Message] = []
        self.lost: list[str] = []
        self.channel = Channel(
            sock,
            asyncio.get_running_loop(),
            on_message=self.heard.append,
            on_lost=self.lost.append,
        )


def said(number: int) -> Message:
    return messages.CloseSession(f"s{number}", "x" * 1000)


async def test_everything_arrives_in_order_however_much_it_is() -> None:
    ours, theirs = socket_pair()
    sender = End(ours)
    for number in range(5000):
        sender.channel.send(said(number))
    receiver = End(theirs)
    await eventually(lambda: len(receiver.heard) == 5000)
    assert receiver.heard == [said(number) for number in range(5000)]
    sender.channel.close()
    await eventually(lambda: receiver.lost == ["it has ended"])
    receiver.channel.send(said(1))


async def test_who_never_reads_counts_as_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zgate_gateway.worker.channel._MAX_WAITING", 100)
    ours, theirs = socket_pair()
    sender = End(ours)
    for number in range(10_000):
        sender.channel.send(said(number))
    assert sender.lost == ["it does not read what it is told"]
    theirs.close()


async def test_nonsense_ends_the_channel_once() -> None:
    ours, theirs = socket_pair()
    end = End(ours)
    theirs.send(b"[]")
    theirs.send(b"[]")
    await eventually(lambda: end.lost)
    assert len(end.lost) == 1
    assert end.heard == []
    theirs.close()


async def test_whoever_sends_to_the_dead_hears_of_it_from_the_loop() -> None:
    ours, theirs = socket_pair()
    end = End(ours)
    theirs.close()
    end.channel.send(said(1))
    assert end.lost == []
    await eventually(lambda: end.lost)
    end.channel.close()
    assert len(end.lost) == 1


def test_the_first_message_brings_descriptors() -> None:
    ours, theirs = socket_pair()
    read_fd, write_fd = os.pipe()
    socket.send_fds(ours, [messages.encode(said(1))], [write_fd])
    message, descriptors = receive_first(theirs)
    assert message == said(1)
    os.close(write_fd)
    assert not os.get_inheritable(descriptors[0])
    os.write(descriptors[0], b"here")
    assert os.read(read_fd, 4) == b"here"
    for each in (read_fd, *descriptors):
        os.close(each)
    ours.close()
    with pytest.raises(EOFError):
        receive_first(theirs)
    theirs.close()


def test_a_first_message_that_is_none_leaves_no_descriptor_open() -> None:
    ours, theirs = socket_pair()
    read_fd, write_fd = os.pipe()
    socket.send_fds(ours, [b"nonsense"], [write_fd])
    os.close(write_fd)
    with pytest.raises(MessageError):
        receive_first(theirs)
    assert os.read(read_fd, 1) == b""
    for end in (ours, theirs):
        end.close()
    os.close(read_fd)
