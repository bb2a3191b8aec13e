"""An event loop that carries packets while it waits, and is asyncio's event loop all the same.

Real: epoll, sockets, signals, threads, the native carrier. Nothing of asyncio is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from errno import ECONNREFUSED

import pytest
from zgate_datapath import _native
from zgate_datapath.connection_ids import CONNECTION_ID_BYTES
from zgate_datapath.engine import EngineOwner
from zgate_datapath.event_loop import CarryingSelector, new_event_loop, selector_of
from zgate_datapath.native_carrier import NativeCarrier
from zgate_datapath.tun import Tun
from zgate_datapath.udp import Address, PathError, UdpSocket

CONNECTION_ID = bytes(range(CONNECTION_ID_BYTES))
LOOPBACK = "127.0.0.1"
# For whatever must happen; nothing waits as long.
PATIENCE_S = 20.0
_UDP_SEGMENT = 103


@dataclass
class Owner:
    """What a carrier tells, as an endpoint would hear it."""

    udp: UdpSocket
    received: list[bytes] = field(default_factory=list)
    errors: list[PathError] = field(default_factory=list)
    turns: int = 0

    def carrier_received(self, packets: list[bytes], address: Address) -> None:
        assert address[0] == LOOPBACK
        self.received += packets

    def carrier_touched(self, owner: EngineOwner) -> None:
        raise AssertionError(f"no connection here has anything to hear: {owner}")

    def carrier_done(self, *, error_pending: bool) -> None:
        self.turns += 1
        if error_pending:
            self.errors += self.udp.path_errors()


@dataclass
class Carried:
    """A carrier on a loop."""

    loop: asyncio.AbstractEventLoop
    udp: UdpSocket
    owner: Owner
    carrier: NativeCarrier

    @classmethod
    def start(cls, loop: asyncio.AbstractEventLoop) -> Carried:
        udp = UdpSocket.bind(LOOPBACK, 0)
        owner = Owner(udp)
        carrier = NativeCarrier(udp, loop, owner)
        carrier.start()
        return cls(loop, udp, owner, carrier)

    @property
    def selector(self) -> CarryingSelector:
        selector = selector_of(self.loop)
        assert selector is not None
        return selector

    def stop(self) -> None:
        self.carrier.stop()
        self.udp.close()

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Turn the loop until the condition holds."""

        async def wait() -> None:
            while not condition():
                await asyncio.sleep(0.001)

        self.loop.run_until_complete(asyncio.wait_for(wait(), PATIENCE_S))

    def session_of(self, sender: socket.socket) -> _native.Session:
        """A session that takes the sender's packets for its own, and for forged ones."""
        session = _native.Session(
            self.carrier.native,
            is_client=False,
            congestion=_native.CONGESTION_NONE,
            max_packet_bytes=1452,
            initial_rtt_ns=1_000_000,
            peer_max_ack_delay_ns=25_000_000,
            peer_ack_delay_exponent=3,
        )
        # Both phases: which one a forged packet is of is chance, and the next one's without a key
        # would be aioquic's.
        for set_key in (session.set_receive_key, session.set_next_receive_key):
            set_key(_native.AES_128_GCM, os.urandom(16), os.urandom(12), os.urandom(16), 0)
        session.add_cid(CONNECTION_ID)
        session.set_path(sender.getsockname())
        return session


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = new_event_loop()
    yield made
    made.close()


@pytest.fixture
def carried(loop: asyncio.AbstractEventLoop) -> Iterator[Carried]:
    made = Carried.start(loop)
    yield made
    made.stop()


@contextlib.contextmanager
def flood(target: Carried) -> Iterator[_native.Session]:
    """Packets for a session, as fast as a thread can send them; Python hears of none."""
    packet = bytes((0x40,)) + CONNECTION_ID + bytes(1000)
    over = threading.Event()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((LOOPBACK, target.udp.local_address[1]))
        session = target.session_of(sender)

        def send() -> None:
            size = len(packet).to_bytes(2, "little")
            ends_at = time.monotonic() + 2 * PATIENCE_S
            while not over.is_set() and time.monotonic() < ends_at:
                # A full receive buffer on the other side loses packets silently: never an error.
                sender.sendmsg([packet * 32], [(socket.SOL_UDP, _UDP_SEGMENT, size)])

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield session
        finally:
            over.set()
            thread.join(PATIENCE_S)
            session.close()


@contextlib.contextmanager
def a_moment_later(action: Callable[[], object]) -> Iterator[None]:
    """Do something from another thread, while this one waits in the selector."""
    timer = threading.Timer(0.05, action)
    timer.start()
    try:
        yield
    finally:
        timer.join(PATIENCE_S)


def send_to(target: Carried, packet: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(packet, (LOOPBACK, target.udp.local_address[1]))


# While packets are carried.


def test_packets_are_carried_without_a_turn_of_python(carried: Carried) -> None:
    with flood(carried) as session:
        carried.run_until(lambda: session.counters()["forged_packets"] > 2000)
        assert carried.owner.received == []
    # The socket's reader would have turned once for each time that it was found readable.
    assert carried.owner.turns == 0


def test_timers_are_served_while_packets_are_carried(carried: Carried) -> None:
    ticks: list[float] = []

    async def tick() -> None:
        while len(ticks) < 20:
            await asyncio.sleep(0.005)
            ticks.append(carried.loop.time())

    with flood(carried) as session:
        carried.run_until(lambda: session.counters()["forged_packets"] > 0)
        before = session.counters()["forged_packets"]
        carried.loop.run_until_complete(asyncio.wait_for(tick(), PATIENCE_S))
        assert session.counters()["forged_packets"] > before


def test_other_descriptors_are_served_while_packets_are_carried(carried: Carried) -> None:
    here, there = socket.socketpair()
    heard: list[bytes] = []
    with here, there, flood(carried) as session:
        carried.run_until(lambda: session.counters()["forged_packets"] > 0)
        carried.loop.add_reader(here, lambda: heard.append(here.recv(100)))
        for number in range(20):
            there.send(bytes((number,)))
            carried.run_until(lambda number=number: len(heard) > number)
        carried.loop.remove_reader(here)
    assert b"".join(heard) == bytes(range(20))


def test_what_is_pythons_is_told(carried: Carried) -> None:
    packets = [bytes((0xC0, number)) + bytes(40) for number in range(5)]
    for packet in packets:
        send_to(carried, packet)
    carried.run_until(lambda: len(carried.owner.received) == 5)
    assert carried.owner.received == packets


# Waking up.


def test_call_soon_threadsafe_wakes(carried: Carried) -> None:
    answer: asyncio.Future[str] = carried.loop.create_future()

    def call() -> None:
        carried.loop.call_soon_threadsafe(answer.set_result, "awake")

    with a_moment_later(call):
        # No timer is set: without the call this waits for good.
        assert carried.loop.run_until_complete(answer) == "awake"


def test_call_soon_threadsafe_wakes_while_packets_are_carried(carried: Carried) -> None:
    answer: asyncio.Future[str] = carried.loop.create_future()

    def call() -> None:
        carried.loop.call_soon_threadsafe(answer.set_result, "awake")

    with flood(carried), a_moment_later(call):
        assert carried.loop.run_until_complete(answer) == "awake"


def test_a_packet_wakes(carried: Carried) -> None:
    """Also one of somebody unknown, with no timer set."""

    async def wait() -> None:
        while not carried.owner.received:
            turned = carried.loop.create_future()
            carried.loop.call_soon(turned.set_result, None)
            await turned

    with a_moment_later(lambda: send_to(carried, bytes((0xC0,)) + bytes(40))):
        carried.loop.run_until_complete(wait())


def test_an_error_of_the_socket_is_told(carried: Carried) -> None:
    """ICMP's answer to a packet of ours makes the socket ready with EPOLLERR alone."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind((LOOPBACK, 0))
        closed = nobody.getsockname()
    carried.udp.send_batch([b"anybody?"], closed)
    carried.run_until(lambda: bool(carried.owner.errors))
    assert [error.error_number for error in carried.owner.errors] == [ECONNREFUSED]
    # Told, it is over: the loop sleeps again.
    turns = carried.owner.turns
    carried.loop.run_until_complete(asyncio.sleep(0.05))
    assert carried.owner.turns == turns


# Signals.


def signal_main_thread(number: signal.Signals) -> None:
    identity = threading.main_thread().ident
    assert identity is not None
    signal.pthread_kill(identity, number)


@pytest.mark.parametrize("is_busy", [False, True], ids=["idle", "busy"])
def test_a_signal_handler_runs(carried: Carried, is_busy: bool) -> None:
    handled = carried.loop.create_future()
    carried.loop.add_signal_handler(signal.SIGUSR1, handled.set_result, None)
    try:
        with contextlib.ExitStack() as stack:
            if is_busy:
                stack.enter_context(flood(carried))
            stack.enter_context(a_moment_later(lambda: signal_main_thread(signal.SIGUSR1)))
            carried.loop.run_until_complete(handled)
    finally:
        carried.loop.remove_signal_handler(signal.SIGUSR1)


@pytest.mark.parametrize("is_busy", [False, True], ids=["idle", "busy"])
def test_ctrl_c_ends_a_runner(is_busy: bool) -> None:
    """As `asyncio.run` without a signal handler of its own: no descriptor wakes the selector."""
    ended: list[bool] = []

    async def work() -> None:
        carried = Carried.start(asyncio.get_running_loop())
        try:
            with contextlib.ExitStack() as stack:
                if is_busy:
                    stack.enter_context(flood(carried))
                stack.enter_context(a_moment_later(lambda: signal_main_thread(signal.SIGINT)))
                await asyncio.Event().wait()
        finally:
            ended.append(True)
            carried.stop()

    with asyncio.Runner(loop_factory=new_event_loop) as runner, pytest.raises(KeyboardInterrupt):
        runner.run(work())
    assert ended == [True]


class Interrupted(Exception):
    """What a signal handler of these tests raises."""


@pytest.mark.parametrize("is_busy", [False, True], ids=["idle", "busy"])
def test_what_a_signal_handler_raises_comes_out(carried: Carried, is_busy: bool) -> None:
    """As Python's own for SIGINT does."""

    def handle(number: int, frame: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with contextlib.ExitStack() as stack:
            if is_busy:
                stack.enter_context(flood(carried))
            with pytest.raises(Interrupted):
                stack.enter_context(a_moment_later(lambda: signal_main_thread(signal.SIGUSR1)))
                carried.selector.select(PATIENCE_S)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert carried.loop.run_until_complete(asyncio.sleep(0.001, "goes on")) == "goes on"


# Time.


@pytest.mark.parametrize("timeout_s", [0.0002, 0.0015, 0.01])
def test_a_timeout_is_kept_to_the_millisecond_and_better(
    carried: Carried, timeout_s: float
) -> None:
    """`EpollSelector` rounds up to milliseconds; the engine's deadlines are shorter than that."""
    took = []
    for _ in range(50):
        began = time.monotonic()
        assert carried.selector.select(timeout_s) == []
        took.append(time.monotonic() - began)
    assert min(took) >= timeout_s
    # The best of many: what the scheduler does to the others is not the selector's.
    assert min(took) < timeout_s + 0.0007


@pytest.mark.parametrize("timeout_s", [0, 0.0, -1])
def test_no_timeout_is_no_wait(carried: Carried, timeout_s: float) -> None:
    took = []
    for _ in range(20):
        began = time.monotonic()
        assert carried.selector.select(timeout_s) == []
        took.append(time.monotonic() - began)
    assert min(took) < 0.0005


def test_timers_run_in_their_order_and_never_early(carried: Carried) -> None:
    delays_s = [0.0301, 0.0004, 0.0102, 0.0, 0.0023, 0.0201]
    ran: list[float] = []
    early: list[float] = []
    began = carried.loop.time()

    def due(delay_s: float) -> None:
        if carried.loop.time() < began + delay_s:
            early.append(delay_s)
        ran.append(delay_s)

    for delay_s in delays_s:
        carried.loop.call_at(began + delay_s, due, delay_s)
    carried.loop.run_until_complete(asyncio.sleep(max(delays_s) + 0.02))
    assert ran == sorted(delays_s)
    assert early == []


# As EpollSelector.


def nothing_yet(_: socket.socket, __: socket.socket) -> None:
    """Writable, and nothing to read."""


def data(_: socket.socket, there: socket.socket) -> None:
    there.send(b"data")


def full(here: socket.socket, _: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            here.send(bytes(65536))


def half_closed(_: socket.socket, there: socket.socket) -> None:
    there.shutdown(socket.SHUT_WR)


def gone(_: socket.socket, there: socket.socket) -> None:
    there.close()


@pytest.mark.parametrize("happens", [nothing_yet, data, full, half_closed, gone])
@pytest.mark.parametrize("interest", [1, 2, 3], ids=["read", "write", "both"])
def test_readiness_is_what_epoll_selector_says(
    carried: Carried, happens: Callable[[socket.socket, socket.socket], None], interest: int
) -> None:
    here, there = socket.socketpair()
    here.setblocking(False)
    with here, there, selectors.EpollSelector() as plain:
        for selector in (carried.selector, plain):
            selector.register(here, interest, "data of ours")
        happens(here, there)
        assert carried.selector.select(0) == plain.select(0)
        carried.selector.unregister(here)
        assert carried.selector.select(0) == []


def test_a_pipe_that_nobody_reads_is_ready_for_its_writer(carried: Carried) -> None:
    """EPOLLERR of another's descriptor."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        carried.selector.register(writer, selectors.EVENT_WRITE)
        assert [(key.fd, mask) for key, mask in carried.selector.select(0)] == [
            (writer, selectors.EVENT_WRITE)
        ]
        carried.selector.unregister(writer)
    finally:
        os.close(writer)


# With no carrier, and with two.


def test_without_a_carrier_it_is_an_event_loop(loop: asyncio.AbstractEventLoop) -> None:
    here, there = socket.socketpair()

    async def work() -> bytes:
        here.setblocking(False)
        loop.call_later(0.005, there.send, b"data")
        return await loop.sock_recv(here, 100)

    with here, there:
        assert loop.run_until_complete(work()) == b"data"


def test_after_its_carrier_has_stopped_it_is_an_event_loop(
    loop: asyncio.AbstractEventLoop,
) -> None:
    carried = Carried.start(loop)
    loop.run_until_complete(asyncio.sleep(0.001))
    carried.stop()
    loop.run_until_complete(asyncio.sleep(0.001))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind((LOOPBACK, 0))
        assert loop.run_until_complete(asyncio.sleep(0.001, "still here")) == "still here"


def test_of_two_carriers_the_last_one_counts(carried: Carried) -> None:
    """The first is served by the reader of its socket, as any other descriptor is."""
    second = Carried.start(carried.loop)
    try:
        for target in (carried, second):
            send_to(target, bytes((0xC0,)) + bytes(40))
        carried.run_until(lambda: bool(carried.owner.received and second.owner.received))
        with flood(second) as session:
            turns = second.owner.turns
            second.run_until(lambda: session.counters()["forged_packets"] > 100)
            assert second.owner.turns == turns
        with flood(carried) as session:
            turns = carried.owner.turns
            carried.run_until(lambda: session.counters()["forged_packets"] > 100)
            assert carried.owner.turns > turns
    finally:
        second.stop()


def test_the_first_of_two_carriers_may_stop(carried: Carried) -> None:
    """As when an agent dials again before the old connection is forgotten."""
    second = Carried.start(carried.loop)
    carried.stop()
    try:
        with flood(second) as session:
            second.run_until(lambda: session.counters()["forged_packets"] > 100)
            assert second.owner.turns == 0
    finally:
        second.stop()


def test_who_has_a_tun_is_carried_for_until_another_takes_it_over(carried: Carried) -> None:
    """As when an agent makes a new session beside the one that it has."""
    read_end, write_end = os.pipe()
    with open(read_end, "rb"), open(write_end, "wb"):  # noqa: PTH123 - for their closing only
        tun = Tun(read_end, "fake0")
        carried.carrier.attach_tun(tun, on_read=lambda _: None, on_gone=lambda: None)
        second = Carried.start(carried.loop)
        selector = carried.selector
        try:
            assert selector.carries_for(carried.carrier)
            carried.carrier.detach_tun()
            second.carrier.attach_tun(tun, on_read=lambda _: None, on_gone=lambda: None)
            assert selector.carries_for(second.carrier)
            with flood(carried) as session:
                carried.run_until(lambda: session.counters()["forged_packets"] > 100)
        finally:
            second.stop()


def test_a_loop_of_somebody_elses_has_no_such_selector() -> None:
    other = asyncio.SelectorEventLoop()
    try:
        assert selector_of(other) is None
        carried = Carried.start(other)
        try:
            with flood(carried) as session:
                carried.run_until(lambda: session.counters()["forged_packets"] > 100)
                assert carried.owner.turns > 0
        finally:
            carried.stop()
    finally:
        other.close()
