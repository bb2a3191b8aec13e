"""The queue in front of the window: RFC 8290 (FQ) and RFC 8289 (CoDel)."""

import ctypes
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from .build import load

MS = 1_000_000
CODEL, FULL = 0, 1
FIRST_FLOWS = 32


class Queued(ctypes.Structure):
    pass


Queued._fields_ = [
    ("next", ctypes.POINTER(Queued)),
    ("enqueued_ns", ctypes.c_uint64),
    ("flow_hash", ctypes.c_uint32),
    ("bytes", ctypes.c_uint32),
    ("sent_bytes", ctypes.c_uint32),
    ("kind", ctypes.c_uint8),
]


class Limits(ctypes.Structure):
    _fields_ = [
        ("target_ns", ctypes.c_uint64),
        ("interval_ns", ctypes.c_uint64),
        ("max_bytes", ctypes.c_uint32),
        ("quantum_bytes", ctypes.c_uint32),
    ]


DROP = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.POINTER(Queued), ctypes.c_int)
MARK = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(Queued))

library = load("queue.c")
library.zdp_queue_new.restype = ctypes.c_void_p
library.zdp_queue_new.argtypes = [ctypes.POINTER(Limits), DROP, MARK, ctypes.c_void_p]
library.zdp_queued_new.restype = ctypes.POINTER(Queued)
library.zdp_queue_head.restype = ctypes.POINTER(Queued)
library.zdp_queue_head.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
library.zdp_queue_put.argtypes = [
    ctypes.c_void_p,
    ctypes.POINTER(Queued),
    ctypes.c_uint64,
]
library.zdp_queue_done.argtypes = [
    *(ctypes.c_void_p, ctypes.POINTER(Queued), ctypes.c_uint32, ctypes.c_bool)
]
for name in ("is_empty", "packets", "bytes", "free"):
    getattr(library, f"zdp_queue_{name}").argtypes = [ctypes.c_void_p]
library.zdp_queue_is_empty.restype = ctypes.c_bool
library.zdp_flow_hash.restype = ctypes.c_uint32


@dataclass
class Queue:
    """One ``struct zdp_queue``. A packet is known by (flow, bytes)."""

    max_bytes: int = 1 << 20
    marks: bool = False
    dropped: list[tuple[int, int, int]] = field(default_factory=list)
    marked: int = 0

    def __post_init__(self) -> None:
        self._drop = DROP(self._dropped)
        self._mark = MARK(self._marked) if self.marks else ctypes.cast(None, MARK)
        limits = Limits(5 * MS, 100 * MS, self.max_bytes, 1514)
        self.at = library.zdp_queue_new(ctypes.byref(limits), self._drop, self._mark, None)

    def _dropped(self, owner: int, packet: "ctypes._Pointer[Queued]", why: int) -> None:
        self.dropped.append((packet.contents.flow_hash, packet.contents.bytes, why))

    def _marked(self, packet: "ctypes._Pointer[Queued]") -> bool:
        self.marked += 1
        return True

    def put(self, flow: int, size: int, now: int) -> None:
        packet = library.zdp_queued_new(size)
        packet.contents.flow_hash = flow
        library.zdp_queue_put(self.at, packet, now)

    def head(self, now: int) -> "ctypes._Pointer[Queued] | None":
        return library.zdp_queue_head(self.at, now) or None

    def done(self, head: "ctypes._Pointer[Queued]", size: int, *, all: bool) -> None:
        head.contents.sent_bytes += size
        library.zdp_queue_done(self.at, head, size, all)

    def take(self, now: int) -> tuple[int, int] | None:
        head = self.head(now)
        if head is None:
            return None
        answer = (head.contents.flow_hash, head.contents.bytes)
        self.done(head, answer[1], all=True)
        return answer

    @property
    def packets(self) -> int:
        return int(library.zdp_queue_packets(self.at))

    @property
    def bytes(self) -> int:
        return int(library.zdp_queue_bytes(self.at))


@pytest.fixture
def queue() -> Iterator[Queue]:
    made = Queue()
    yield made
    library.zdp_queue_free(made.at)


def drain(queue: Queue, now: int) -> list[tuple[int, int]]:
    taken = []
    while (packet := queue.take(now)) is not None:
        taken.append(packet)
    return taken


def test_one_flow_keeps_its_order(queue: Queue) -> None:
    sizes = list(range(100, 150))
    for size in sizes:
        queue.put(1, size, 0)
    assert (queue.packets, queue.bytes) == (50, sum(sizes))
    assert [size for _, size in drain(queue, MS)] == sizes
    assert library.zdp_queue_is_empty(queue.at)
    assert (queue.packets, queue.bytes) == (0, 0)
    assert queue.head(MS) is None


def test_flows_share_by_bytes(queue: Queue) -> None:
    """One sends packets of 1500, the other of 500: both get as many bytes."""
    for _ in range(60):
        queue.put(1, 1500, 0)
        for _ in range(3):
            queue.put(2, 500, 0)
    sent = {1: 0, 2: 0}
    while sent[1] + sent[2] < 90_000:
        flow, size = queue.take(MS) or (0, 0)
        sent[flow] += size
    assert abs(sent[1] - sent[2]) <= 3 * 1514


def test_a_sparse_flow_does_not_wait(queue: Queue) -> None:
    for _ in range(40):
        queue.put(1, 1500, 0)
    for _ in range(5):
        queue.take(0)
    queue.put(2, 84, MS)
    assert queue.take(MS) == (2, 84)


def test_a_sparse_flow_goes_before_the_rest_of_a_super_packet(queue: Queue) -> None:
    queue.put(1, 64_000, 0)
    queue.put(1, 64_000, 0)
    head = queue.head(0)
    assert head is not None
    queue.done(head, 20_000, all=False)
    queue.put(2, 84, MS)
    assert queue.take(MS) == (2, 84)
    again = queue.head(MS)
    assert again is not None
    assert ctypes.addressof(again.contents) == ctypes.addressof(head.contents)
    assert again.contents.sent_bytes == 20_000


def test_what_was_begun_is_finished_before_another_bulk_flow(queue: Queue) -> None:
    for flow in (1, 2):
        queue.put(flow, 64_000, 0)
        queue.put(flow, 64_000, 0)
    flows = []
    for _ in range(16):  # in parts of 16,000
        head = queue.head(MS)
        assert head is not None
        flows.append(head.contents.flow_hash)
        queue.done(head, 16_000, all=head.contents.sent_bytes == 48_000)
    # New, both have a first turn; then one super-packet at a time.
    assert flows[:8] == [1, 2, 1, 1, 1, 2, 2, 2]
    assert flows[8:12] in ([1] * 4, [2] * 4)
    assert library.zdp_queue_is_empty(queue.at)


def test_a_flow_that_became_empty_is_not_new_at_once(queue: Queue) -> None:
    """RFC 8290 section 4.2: or one that sends one packet at a time would starve the others."""
    for _ in range(200):
        queue.put(1, 1500, 0)
    queue.take(0)
    taken = []
    queue.put(2, 1500, 0)
    for _ in range(60):
        packet = queue.take(0)
        assert packet is not None
        taken.append(packet[0])
        if packet[0] == 2:
            queue.put(2, 1500, 0)
    assert 20 <= taken.count(1) <= 40


def run_codel(
    queue: Queue, *, packet_bytes: int, load: float, seconds: float = 2.0, rate: float = 1.25e6
) -> list[int]:
    """A link of `rate` bytes per second, offered `load` times as much; sojourns in ns."""
    step = int(packet_bytes / rate * 1e9)
    sojourns, now, arrival = [], 0, 0.0
    while now < seconds * 1e9:
        while arrival <= now:
            queue.put(1, packet_bytes, int(arrival))
            arrival += step / load
        head = queue.head(now)
        if head is not None:
            sojourns.append(now - head.contents.enqueued_ns)
            queue.done(head, packet_bytes, all=True)
        now += step
    return sojourns


def test_codel_leaves_a_burst_alone(queue: Queue) -> None:
    for _ in range(60):  # 60 ms at 1.25 MB/s, gone before the interval ends
        queue.put(1, 1250, 0)
    for step in range(60):
        assert queue.take(step * MS) == (1, 1250)
    assert queue.dropped == []


def test_codel_drops_from_a_standing_queue(queue: Queue) -> None:
    sojourns = run_codel(queue, packet_bytes=1250, load=1.02, seconds=10)
    reasons = {why for _, _, why in queue.dropped}
    assert reasons == {CODEL}
    # 2% too much comes in: CoDel's rate of drops grows until as much goes out.
    assert max(sojourns) < 130 * MS
    assert sum(sojourns[-1000:]) / 1000 < 40 * MS


def test_codel_drops_come_faster_and_faster(queue: Queue) -> None:
    """interval / sqrt(count): RFC 8289 section 5.4."""
    for _ in range(6000):
        queue.put(1, 100, 0)
    times, now = list[int](), 50 * MS
    for _ in range(5000):
        before = len(queue.dropped)
        queue.take(now)
        times += [now] * (len(queue.dropped) - before)
        now += MS // 10
    gaps = [(b - a) / MS for a, b in itertools.pairwise(times[:6])]
    assert gaps == pytest.approx([100, 70.7, 57.7, 50, 44.7], abs=0.5)
    assert times[0] == 150 * MS


def test_codel_marks_instead(queue: Queue) -> None:
    marking = Queue(marks=True)
    run_codel(marking, packet_bytes=1250, load=1.02)
    assert marking.dropped == []
    assert marking.marked > 3
    library.zdp_queue_free(marking.at)


def test_super_packets_on_a_slow_link_are_no_standing_queue(queue: Queue) -> None:
    """64 kB take 10 ms at 50 Mbit/s: each waits for the one before, and nothing is dropped."""
    sojourns = run_codel(queue, packet_bytes=64_000, load=1.0, rate=6.25e6, seconds=3)
    assert queue.dropped == []
    assert len(sojourns) > 250


def test_super_packets_that_pile_up_are(queue: Queue) -> None:
    run_codel(queue, packet_bytes=64_000, load=1.2, rate=6.25e6, seconds=3)
    assert {why for _, _, why in queue.dropped} == {CODEL}


def test_full_takes_from_the_longest() -> None:
    queue = Queue(max_bytes=100_000)
    for _ in range(20):
        queue.put(2, 1000, 0)
    for _ in range(200):
        queue.put(1, 1000, 0)
    assert {(flow, why) for flow, _, why in queue.dropped} == {(1, FULL)}
    assert queue.bytes <= 100_000
    assert [flow for flow, _ in drain(queue, MS)].count(2) == 20
    library.zdp_queue_free(queue.at)


def test_full_counts_what_small_packets_cost() -> None:
    queue = Queue(max_bytes=100_000)
    for _ in range(5000):
        queue.put(1, 1, 0)
    assert queue.packets < 2500
    assert queue.packets + len(queue.dropped) == 5000
    library.zdp_queue_free(queue.at)


def test_full_does_not_take_what_is_being_sent() -> None:
    queue = Queue(max_bytes=100_000)
    queue.put(1, 60_000, 0)
    head = queue.head(0)
    assert head is not None
    queue.done(head, 10_000, all=False)
    for size in (30_000, 31_000, 32_000):
        queue.put(1, size, 0)
    assert [size for _, size, _ in queue.dropped] == [30_000, 31_000]
    again = queue.head(0)
    assert again is not None
    assert ctypes.addressof(again.contents) == ctypes.addressof(head.contents)
    library.zdp_queue_free(queue.at)


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_lost_or_invented(seed: int) -> None:
    chance = random.Random(seed)
    queue = Queue(max_bytes=chance.choice([5_000, 200_000]))
    now, order, sent = 0, 0, list[tuple[int, int]]()
    put = list[tuple[int, int]]()
    for _ in range(3000):
        now += chance.randrange(2 * MS)
        if chance.random() < 0.5:
            order += 1
            flow = chance.randrange(40)
            queue.put(flow, order, now)
            put.append((flow, order))
        elif (head := queue.head(now)) is not None:
            packet = head.contents
            if chance.random() < 0.3 and packet.bytes - packet.sent_bytes > 1:
                queue.done(head, 1, all=False)
            else:
                sent.append((packet.flow_hash, packet.bytes))
                queue.done(head, packet.bytes - packet.sent_bytes, all=True)
    sent += drain(queue, now)
    gone = sent + [(flow, size) for flow, size, _ in queue.dropped]
    assert sorted(gone) == sorted(put)
    for bucket in range(FIRST_FLOWS):
        sizes = [size for flow, size in sent if flow % FIRST_FLOWS == bucket]
        assert sizes == sorted(sizes), "a flow's packets changed places"
    assert library.zdp_queue_is_empty(queue.at)
    library.zdp_queue_free(queue.at)


def flow_hash(packet: bytes) -> int:
    return int(library.zdp_flow_hash(packet, ctypes.c_size_t(len(packet))))


def ipv4(source: int, port: int, protocol: int = 6, fragment: bytes = b"\0\0") -> bytes:
    header = bytes([0x45, 0, 0, 40, 0, 1]) + fragment + bytes([64, protocol, 0, 0])
    addresses = bytes([10, 0, 0, source, 10, 0, 1, 1])
    return header + addresses + port.to_bytes(2, "big") + (443).to_bytes(2, "big") + bytes(16)


def ipv6(source: int, port: int) -> bytes:
    header = bytes([0x60, 0, 0, 0, 0, 20, 6, 64])
    return header + bytes(15) + bytes([source]) + bytes(16) + port.to_bytes(2, "big") + bytes(18)


def test_the_hash_tells_flows_apart() -> None:
    for make in (ipv4, ipv6):
        hashes = [flow_hash(make(1, 1024 + port)) % FIRST_FLOWS for port in range(1000)]
        assert set(hashes) == set(range(FIRST_FLOWS))
        assert max(hashes.count(h) for h in set(hashes)) < 3 * 1000 / FIRST_FLOWS
        assert flow_hash(make(1, 1024)) == flow_hash(make(1, 1024))
        assert flow_hash(make(1, 1024)) != flow_hash(make(2, 1024))


def test_fragments_of_a_packet_are_one_flow() -> None:
    first, later = ipv4(1, 1111, 17, b"\x20\0"), ipv4(1, 2222, 17, b"\0\x10")
    assert flow_hash(first) == flow_hash(later)
    assert flow_hash(ipv4(1, 1111, 17, b"\x40\0")) != flow_hash(ipv4(1, 2222, 17, b"\x40\0"))


def test_the_hash_stays_inside() -> None:
    for packet in (ipv4(1, 1), ipv6(1, 1), bytes([0x4F]) + ipv4(1, 1)[1:]):
        for length in range(len(packet) + 1):
            flow_hash(packet[:length])
