import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from bench.load.mmsg import Batch
from bench.load.udp import Sink, preferred, send_paced


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    incoming = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    incoming.bind(("127.0.0.1", 0))
    incoming.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    outgoing = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    outgoing.connect(incoming.getsockname())
    with incoming, outgoing:
        yield incoming, outgoing


def test_a_batch_arrives_with_its_size(pair: tuple[socket.socket, socket.socket]) -> None:
    incoming, outgoing = pair
    assert Batch(8, 64).send(outgoing, 5) == 5
    assert [len(incoming.recv(100)) for _ in range(5)] == [64] * 5
    assert Batch(8, 64).receive(incoming) == 0


def test_a_batch_is_the_most_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    incoming, outgoing = pair
    assert Batch(8, 10).send(outgoing, 100) == 8
    small = Batch(3, 2048)
    assert [small.receive(incoming) for _ in range(4)] == [3, 3, 2, 0]


def test_an_error_is_an_oserror(pair: tuple[socket.socket, socket.socket]) -> None:
    _, outgoing = pair
    with pytest.raises(OSError, match="sendmmsg"):
        Batch(1, 65_530).send(outgoing, 1)


def test_pacing_keeps_the_rate(pair: tuple[socket.socket, socket.socket]) -> None:
    incoming, outgoing = pair
    sent, duration_s = send_paced(outgoing, 64, 2_000, 0.3)
    assert 0.3 <= duration_s < 3
    # A machine that is busy may make it send less, never more.
    assert 0 < sent <= 2_000 * duration_s + 1
    received = 0
    batch = Batch(256, 2048)
    while count := batch.receive(incoming):
        received += count
    assert received == sent


@pytest.mark.privileged  # raises the priority of a thread
def test_the_sink_counts_until_stopped(pair: tuple[socket.socket, socket.socket]) -> None:
    incoming, outgoing = pair
    sink = Sink(incoming)
    sink.start()
    for _ in range(50):
        outgoing.send(b"x")
    deadline_s = time.monotonic() + 10
    while sink.received < 50 and time.monotonic() < deadline_s:
        time.sleep(0.001)
    sink.stop()
    assert sink.received == 50
    assert sink.first_s <= sink.last_s <= time.monotonic()


@pytest.mark.privileged  # raises the priority of a thread
def test_only_the_thread_is_preferred() -> None:
    own = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, own)
    seen: list[int] = []

    def body() -> None:
        with preferred():
            thread = threading.get_native_id()
            seen.append(os.getpriority(os.PRIO_PROCESS, thread))
            seen.append(os.getpriority(os.PRIO_PROCESS, own))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [-10, before]
