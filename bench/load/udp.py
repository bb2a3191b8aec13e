"""A paced UDP generator and a sink that counts: what is sent, what arrives in time.

Both are threads of the bench with sockets that were opened in the hosts' namespaces; the system
calls take batches and release the interpreter lock, so they do not stand in each other's way.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address

from zgate_lab.namespace import in_namespace

from bench.load.mmsg import Batch

SEND_BATCH = 64
RECEIVE_BATCH = 256
RECEIVE_BUFFER_BYTES = 32 << 20
MAX_PACKETS_PER_S = 3_000_000
# A sender that the scheduler held back does not make up for more than this in one burst: the
# loss of such a burst would be the bench's, not the tunnel's.
MAX_CATCH_UP_S = 0.003
MIN_SLEEP_S = 0.0002
# Both ends stand for machines of their own: they must not wait for the tunnel's processes.
NICENESS = -10
SINK_INTERVAL_S = 0.001
_SO_RCVBUFFORCE = 33  # not in the socket module
# What comes later than this after the last packet sent is as good as lost.
GRACE_S = 0.2


@dataclass(frozen=True, slots=True)
class UdpProbe:
    """One stretch of UDP at one rate."""

    offered_per_s: float
    sent: int
    received: int
    duration_s: float

    @property
    def loss(self) -> float:
        """Share of the sent packets that did not arrive, 0 to 1."""
        return max(0.0, 1 - self.received / self.sent) if self.sent else 1.0

    @property
    def sent_per_s(self) -> float:
        """What the generator managed to send."""
        return self.sent / self.duration_s

    @property
    def received_per_s(self) -> float:
        """What arrived, per second of sending or, when that took longer, of arriving."""
        return self.received / self.duration_s


@contextmanager
def preferred() -> Iterator[None]:
    """Let the scheduler prefer this thread, and only this one, for the length of the block."""
    thread = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, thread)
    os.setpriority(os.PRIO_PROCESS, thread, NICENESS)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, thread, before)


class Sink:
    """Counts datagrams in a thread of its own until told to stop."""

    def __init__(self, sock: socket.socket):
        self._socket = sock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="udp sink")
        self.received = 0
        self.first_s = 0.0
        self.last_s = 0.0
        self.error: OSError | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        # Sleeping between looks costs the hosts fewer wake-ups than one per packet would.
        batch = Batch(RECEIVE_BATCH, 2048)
        try:
            with preferred():
                while not self._stopping.is_set():
                    self._drain(batch)
                    time.sleep(SINK_INTERVAL_S)
                self._drain(batch)
        except OSError as error:
            self.error = error

    def _drain(self, batch: Batch) -> None:
        while count := batch.receive(self._socket):
            self.last_s = time.monotonic()
            self.first_s = self.first_s or self.last_s
            self.received += count
            if self._stopping.is_set():
                return


def send_paced(
    sock: socket.socket, payload_bytes: int, rate_per_s: float, duration_s: float
) -> tuple[int, float]:
    """Send at a rate for a time; return how many packets, and how many seconds it took."""
    batch = Batch(SEND_BATCH, payload_bytes)
    start_s = now_s = time.monotonic()
    # Packets that fell due so far and are not sent, because their moment is past.
    skipped = 0
    sent = 0
    while (elapsed_s := now_s - start_s) < duration_s:
        due = int(elapsed_s * rate_per_s) - sent - skipped
        if due <= 0:
            time.sleep(max(MIN_SLEEP_S, 1 / rate_per_s))
        else:
            allowed = max(1, int(rate_per_s * MAX_CATCH_UP_S))
            skipped += max(0, due - allowed)
            sent += batch.send(sock, min(due, allowed))
        now_s = time.monotonic()
    return sent, now_s - start_s


def probe_udp(
    *,
    sender: str,
    receiver: str,
    target: IPv4Address,
    payload_bytes: int,
    rate_per_s: float,
    duration_s: float,
) -> UdpProbe:
    """Send UDP from one namespace to an address in another, and count both ends."""
    rate_per_s = min(rate_per_s, MAX_PACKETS_PER_S)
    with _open(receiver) as incoming, _open(sender) as outgoing:
        incoming.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        incoming.bind((str(target), 0))
        outgoing.connect(incoming.getsockname())
        sink = Sink(incoming)
        sink.start()
        try:
            with preferred():
                sent, duration_s = send_paced(outgoing, payload_bytes, rate_per_s, duration_s)
            time.sleep(GRACE_S)
        finally:
            sink.stop()
    arriving_s = sink.last_s - sink.first_s
    return UdpProbe(rate_per_s, sent, sink.received, max(duration_s, arriving_s))


def _open(namespace: str) -> socket.socket:
    with in_namespace(namespace):
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
