"""Loss detection, RTT, PTO, ECN and pacing, by the text of RFC 9002 and RFC 9000."""

import ctypes
import random
from collections.abc import Iterator

import pytest

from .build import SANITIZED, load
from .congestion_simulator import CUBIC, MODEL, NONE, SOURCES

MS = 1_000_000
SECOND = 1_000_000_000
BYTES = 1200
NEVER = 2**64 - 1


class Range(ctypes.Structure):
    _fields_ = [("first", ctypes.c_uint64), ("last", ctypes.c_uint64)]


class EcnCounts(ctypes.Structure):
    _fields_ = [("ect0", ctypes.c_uint64), ("ect1", ctypes.c_uint64), ("ce", ctypes.c_uint64)]


class Ack(ctypes.Structure):
    _fields_ = [
        ("delay", ctypes.c_uint64),
        ("has_ecn", ctypes.c_bool),
        ("ecn", EcnCounts),
        ("count", ctypes.c_size_t),
        ("ranges", Range * 64),
        ("cut", ctypes.c_bool),
    ]


class Config(ctypes.Structure):
    _fields_ = [
        ("congestion", ctypes.c_int),
        ("max_packet_bytes", ctypes.c_uint32),
        ("initial_rtt_ns", ctypes.c_uint64),
        ("peer_max_ack_delay_ns", ctypes.c_uint64),
        ("peer_ack_delay_exponent", ctypes.c_uint8),
    ]


class Outcome(ctypes.Structure):
    _fields_ = [
        ("acked_packets", ctypes.c_uint32),
        ("lost_packets", ctypes.c_uint32),
        ("acked_bytes", ctypes.c_uint64),
        ("lost_bytes", ctypes.c_uint64),
        ("bad", ctypes.c_bool),
    ]


class Stats(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_uint64)
            for name in (
                *("smoothed_rtt_ns", "rtt_variance_ns", "least_rtt_ns", "latest_rtt_ns"),
                *("window_bytes", "in_flight_bytes", "pacing_bytes_per_s"),
                *("delivery_bytes_per_s", "lost_packets", "acked_packets", "sent_packets"),
                *("spurious_packets", "probe_timeouts", "largest_acked"),
                *("persistent_congestion", "ce_packets"),
            )
        ),
        ("packet_threshold", ctypes.c_uint32),
        ("ecn_capable", ctypes.c_bool),
        ("phase", ctypes.c_char_p),
        ("memory_bytes", ctypes.c_size_t),
    ]


library = load(*SOURCES)
library.zdp_recovery_new.restype = ctypes.c_void_p
for name in ("sent", "timer", "marks_ect0"):
    getattr(library, f"zdp_recovery_{name}").restype = ctypes.c_bool
for name in ("allowance", "send_at", "deadline"):
    getattr(library, f"zdp_recovery_{name}").restype = ctypes.c_uint64
library.zdp_recovery_sent.argtypes = [
    *(ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32),
    *(ctypes.c_bool, ctypes.c_uint64),
]


class Recovery:
    """One ``struct zdp_recovery``, in Python's manner; ``now`` in nanoseconds."""

    def __init__(self, congestion: int = NONE, ack_delay_ms: int = 25, rtt_ms: int = 0) -> None:
        config = Config(congestion, BYTES, rtt_ms * MS, ack_delay_ms * MS, 3)
        self.at = ctypes.c_void_p(library.zdp_recovery_new(ctypes.byref(config)))
        self.next = 0

    def free(self) -> None:
        library.zdp_recovery_free(self.at)

    def send(
        self, count: int, now: int, app_limited: bool = False, first: int | None = None
    ) -> range:
        begin = self.next if first is None else first
        self.next = begin + count
        assert library.zdp_recovery_sent(self.at, begin, count, BYTES, app_limited, now)
        return range(begin, begin + count)

    def ack(
        self, now: int, *ranges: tuple[int, int], delay: int = 0, ecn: EcnCounts | None = None
    ) -> Outcome:
        """Ranges: the largest first, both ends included."""
        frame, outcome = Ack(delay=delay, count=len(ranges)), Outcome()
        if ecn is not None:
            frame.has_ecn, frame.ecn = True, ecn
        for index, (first, last) in enumerate(ranges):
            frame.ranges[index] = Range(first, last)
        library.zdp_recovery_ack(
            self.at,
            ctypes.byref(frame),
            ctypes.c_uint64(self.next),
            ctypes.c_uint64(now),
            ctypes.byref(outcome),
        )
        return outcome

    def timer(self, now: int) -> tuple[bool, Outcome]:
        outcome = Outcome()
        probe = library.zdp_recovery_timer(self.at, ctypes.c_uint64(now), ctypes.byref(outcome))
        return probe, outcome

    def deadline(self) -> int:
        return int(library.zdp_recovery_deadline(self.at))

    def allowance(self, now: int) -> int:
        return int(library.zdp_recovery_allowance(self.at, ctypes.c_uint64(now)))

    def send_at(self, now: int) -> int:
        return int(library.zdp_recovery_send_at(self.at, ctypes.c_uint64(now)))

    def heard(self, now: int) -> None:
        library.zdp_recovery_heard(self.at, ctypes.c_uint64(now))

    def path_changed(self) -> None:
        library.zdp_recovery_path_changed(self.at)

    def marks(self) -> bool:
        return bool(library.zdp_recovery_marks_ect0(self.at))

    @property
    def stats(self) -> Stats:
        stats = Stats()
        library.zdp_recovery_stats(self.at, ctypes.byref(stats))
        return stats


@pytest.fixture
def recovery() -> Iterator[Recovery]:
    made = Recovery()
    yield made
    made.free()


@pytest.fixture(params=[NONE, MODEL, CUBIC], ids=["none", "model", "cubic"])
def any_recovery(request: pytest.FixtureRequest) -> Iterator[Recovery]:
    made = Recovery(request.param)
    yield made
    made.free()


def sampled(recovery: Recovery, rtt_ms: int = 40, begin: int = SECOND) -> int:
    """One packet there and back; the time after it."""
    (number,) = recovery.send(1, begin)
    assert recovery.ack(begin + rtt_ms * MS, (number, number)).acked_packets == 1
    return begin + rtt_ms * MS


# RTT: RFC 9002 section 5


def test_the_first_sample_sets_all(recovery: Recovery) -> None:
    assert recovery.stats.smoothed_rtt_ns == 333 * MS
    sampled(recovery)
    stats = recovery.stats
    assert (stats.smoothed_rtt_ns, stats.rtt_variance_ns) == (40 * MS, 20 * MS)
    assert (stats.least_rtt_ns, stats.latest_rtt_ns) == (40 * MS, 40 * MS)


def test_ack_delay_is_taken_off_but_not_below_the_least(recovery: Recovery) -> None:
    now = sampled(recovery)
    (number,) = recovery.send(1, now)
    recovery.ack(now + 60 * MS, (number, number), delay=10_000 >> 3)  # 10 ms
    assert recovery.stats.smoothed_rtt_ns == (7 * 40 * MS + 50 * MS) // 8
    before = recovery.stats.smoothed_rtt_ns
    now += 60 * MS
    (number,) = recovery.send(1, now)
    recovery.ack(now + 45 * MS, (number, number), delay=10_000 >> 3)
    assert recovery.stats.smoothed_rtt_ns == (7 * before + 45 * MS) // 8


def test_ack_delay_is_limited_to_what_the_peer_promised(recovery: Recovery) -> None:
    now = sampled(recovery)
    (number,) = recovery.send(1, now)
    recovery.ack(now + 140 * MS, (number, number), delay=2**61)
    assert recovery.stats.smoothed_rtt_ns == (7 * 40 * MS + 115 * MS) // 8


def test_no_sample_unless_the_largest_is_newly_acknowledged(recovery: Recovery) -> None:
    recovery.send(3, SECOND)
    recovery.ack(SECOND + 40 * MS, (2, 2))
    recovery.ack(SECOND + 90 * MS, (0, 2))
    assert recovery.stats.latest_rtt_ns == 40 * MS


# Loss: RFC 9002 section 6.1


def test_three_packets_behind_is_lost(recovery: Recovery) -> None:
    now = sampled(recovery)
    recovery.send(4, now)  # 1 to 4
    outcome = recovery.ack(now + 40 * MS, (4, 4))
    assert (outcome.acked_packets, outcome.lost_packets) == (1, 1)
    assert (outcome.acked_bytes, outcome.lost_bytes) == (BYTES, BYTES)
    assert recovery.stats.in_flight_bytes == 2 * BYTES


def test_time_threshold(recovery: Recovery) -> None:
    now = sampled(recovery)
    recovery.send(2, now)
    assert recovery.ack(now + 40 * MS, (2, 2)).lost_packets == 0
    due = now + 45 * MS  # 9/8 of 40 ms
    assert recovery.deadline() == due
    assert not recovery.timer(due - 1)[0]
    assert recovery.stats.lost_packets == 0
    probe, outcome = recovery.timer(due)
    assert not probe
    assert outcome.lost_packets == 1
    assert recovery.stats.in_flight_bytes == 0


def test_what_was_not_overtaken_is_never_lost(recovery: Recovery) -> None:
    now = sampled(recovery)
    recovery.send(10, now)
    for _ in range(20):
        now = recovery.deadline()
        assert recovery.timer(now)[0]
    assert recovery.stats.lost_packets == 0


def test_packets_of_others_are_holes(recovery: Recovery) -> None:
    """aioquic sends 10 to 19: neither acknowledged nor lost here, but they overtake."""
    now = sampled(recovery)
    recovery.send(2, now, first=8)
    recovery.send(2, now, first=20)
    outcome = recovery.ack(now + 40 * MS, (10, 19))
    assert (outcome.acked_packets, outcome.lost_packets) == (0, 2)
    outcome = recovery.ack(now + 41 * MS, (10, 21))
    assert (outcome.acked_packets, outcome.lost_packets) == (2, 0)


def test_an_ack_of_what_was_never_sent_is_bad(recovery: Recovery) -> None:
    recovery.send(2, SECOND)
    outcome = recovery.ack(SECOND + MS, (0, 2))
    assert outcome.bad
    assert outcome.acked_packets == 0
    assert not recovery.ack(SECOND + MS, (0, 1)).bad


def test_an_empty_or_repeated_ack_changes_nothing(any_recovery: Recovery) -> None:
    any_recovery.send(5, SECOND)
    any_recovery.ack(SECOND + MS, (0, 4))
    window = any_recovery.stats.window_bytes
    for _ in range(3):
        outcome = any_recovery.ack(SECOND + 2 * MS, (0, 4))
        assert (outcome.acked_packets, outcome.lost_packets) == (0, 0)
    any_recovery.ack(SECOND + 2 * MS)
    assert any_recovery.stats.window_bytes == window


def test_late_arrivals_make_it_patient(recovery: Recovery) -> None:
    now = sampled(recovery)
    recovery.send(20, now)
    assert recovery.ack(now + 40 * MS, (12, 20)).lost_packets == 11
    assert recovery.ack(now + 42 * MS, (1, 20)).acked_packets == 0  # they count once, as lost
    stats = recovery.stats
    assert stats.spurious_packets == 11
    assert stats.packet_threshold == 20
    now += SECOND
    recovery.send(19, now)  # 21 to 39
    assert recovery.ack(now + 40 * MS, (39, 39)).lost_packets == 0
    assert recovery.ack(now + 41 * MS, (21, 39)).acked_packets == 18


def test_patience_ends_when_losses_are_real(recovery: Recovery) -> None:
    test_late_arrivals_make_it_patient(recovery)
    now = 10 * SECOND
    for _ in range(16):
        begin = recovery.next
        recovery.send(60, now)
        recovery.ack(now + 40 * MS, (begin + 1, begin + 59))
        now += SECOND
        recovery.timer(now)
    assert recovery.stats.packet_threshold == 3


# PTO: RFC 9002 section 6.2


def test_probe_timeout(recovery: Recovery) -> None:
    now = sampled(recovery)
    recovery.send(1, now)
    due = now + (40 + 4 * 20 + 25) * MS
    assert recovery.deadline() == due
    assert recovery.timer(due)[0]
    recovery.send(1, due)
    assert recovery.deadline() == due + 2 * 145 * MS
    assert recovery.timer(due + 290 * MS)[0]
    # 4 x 145 ms would be more than half a second, which is the most that it waits.
    assert recovery.deadline() == due + 290 * MS + 500 * MS
    assert recovery.ack(due + 300 * MS, (1, 1)).acked_packets == 1
    assert recovery.stats.probe_timeouts == 2
    assert recovery.deadline() == due + (300 - 10) * MS + recovery_pto(recovery)


def recovery_pto(recovery: Recovery) -> int:
    stats = recovery.stats
    return int(stats.smoothed_rtt_ns + max(4 * stats.rtt_variance_ns, MS) + 25 * MS)


def test_nothing_in_flight_no_deadline(recovery: Recovery) -> None:
    assert recovery.deadline() == NEVER
    sampled(recovery)
    assert recovery.deadline() == NEVER


def test_a_peer_that_is_heard_again_is_probed_soon(recovery: Recovery) -> None:
    now = sampled(recovery, rtt_ms=1)
    recovery.send(1, now)
    for _ in range(12):
        now = recovery.deadline()
        assert recovery.timer(now)[0]
    assert recovery.deadline() == now + 500 * MS
    recovery.heard(now + MS)
    assert recovery.deadline() == now + 2 * recovery_pto(recovery)


# Congestion: RFC 9002 section 7


def test_the_initial_window(recovery: Recovery) -> None:
    for congestion in (MODEL, CUBIC):
        other = Recovery(congestion)
        assert other.stats.window_bytes == 10 * BYTES
        assert other.allowance(SECOND) == 10 * BYTES
        other.send(10, SECOND)
        assert other.allowance(SECOND) == 0
        assert other.send_at(SECOND) == NEVER
        other.free()
    assert recovery.allowance(SECOND) == 32 << 20


@pytest.mark.parametrize("congestion", [MODEL, CUBIC])
def test_persistent_congestion(congestion: int) -> None:
    recovery = Recovery(congestion)
    now = sampled(recovery)
    for _ in range(3):  # a window that can shrink
        begin = recovery.next
        recovery.send(10, now)
        now += 40 * MS
        recovery.ack(now, (begin, begin + 9))
    begin = recovery.next
    for _ in range(12):
        recovery.send(1, now)
        now += 100 * MS
    recovery.send(1, now)
    recovery.ack(now + 40 * MS, (begin + 12, begin + 12))
    stats = recovery.stats
    assert stats.persistent_congestion == 1
    assert stats.window_bytes == (2 if congestion == CUBIC else 4) * BYTES
    recovery.free()


def test_no_persistent_congestion_with_an_ack_between(recovery: Recovery) -> None:
    now = sampled(recovery)
    begin = recovery.next
    for _ in range(12):
        recovery.send(1, now, first=recovery.next + 1)  # every second number is aioquic's
        now += 100 * MS
    middle = begin + 12
    recovery.ack(now + 40 * MS, (recovery.next - 1, recovery.next - 1), (middle, middle))
    assert recovery.stats.lost_packets == 11
    assert recovery.stats.persistent_congestion == 0


def test_no_persistent_congestion_before_a_sample(recovery: Recovery) -> None:
    now = SECOND
    for _ in range(40):
        recovery.send(1, now)
        now += 100 * MS
    recovery.ack(now, (39, 39))
    assert recovery.stats.lost_packets >= 37
    assert recovery.stats.persistent_congestion == 0


def test_another_path_begins_anew(any_recovery: Recovery) -> None:
    now = sampled(any_recovery)
    any_recovery.send(9, now)
    any_recovery.path_changed()
    stats = any_recovery.stats
    assert stats.in_flight_bytes == 0
    assert stats.smoothed_rtt_ns == 333 * MS
    assert stats.window_bytes in (10 * BYTES, 32 << 20)
    assert any_recovery.deadline() == NEVER
    # An ACK of what went the old way tells nothing.
    outcome = any_recovery.ack(now + 40 * MS, (5, 9))
    assert (outcome.acked_packets, outcome.lost_packets, outcome.bad) == (0, 0, False)


# ECN: RFC 9000 section 13.4.2


def counts(ect0: int = 0, ect1: int = 0, ce: int = 0) -> EcnCounts:
    return EcnCounts(ect0, ect1, ce)


@pytest.mark.parametrize("congestion", [MODEL, CUBIC])
def test_ecn_is_validated(congestion: int) -> None:
    recovery = Recovery(congestion)
    assert recovery.marks()
    recovery.send(9, SECOND)
    assert recovery.marks()
    recovery.send(1, SECOND)
    assert not recovery.marks()  # ten were sent: the answer is awaited
    recovery.ack(SECOND + 40 * MS, (0, 9), ecn=counts(ect0=10))
    assert recovery.marks()
    assert recovery.stats.ecn_capable


def test_9484_s10_2_nothing_is_marked_without_congestion_control() -> None:
    recovery = Recovery(NONE)
    assert not recovery.marks()
    recovery.send(10, SECOND)
    recovery.ack(SECOND + 40 * MS, (0, 9), ecn=counts())
    assert not recovery.marks()


@pytest.mark.parametrize(
    "answer",
    [None, counts(ect0=4), counts(ect0=11), counts(ect0=5, ect1=5), counts(ect0=6, ce=5)],
    ids=["no counts", "too few", "too many", "ECT(1)", "too many with CE"],
)
def test_ecn_that_does_not_add_up_is_given_up(answer: EcnCounts | None) -> None:
    recovery = Recovery(MODEL)
    recovery.send(10, SECOND)
    recovery.ack(SECOND + 40 * MS, (0, 9), ecn=answer)
    assert not recovery.marks()
    assert not recovery.stats.ecn_capable


def test_counts_of_an_old_ack_are_no_matter() -> None:
    recovery = Recovery(MODEL)
    recovery.send(10, SECOND)
    recovery.ack(SECOND + 40 * MS, (0, 9), ecn=counts(ect0=10))
    recovery.ack(SECOND + 41 * MS, (0, 5), ecn=counts(ect0=6))
    assert recovery.marks()


def test_a_path_that_drops_marked_packets() -> None:
    recovery = Recovery(MODEL)
    recovery.send(10, SECOND)
    recovery.send(1, SECOND + MS)
    recovery.ack(SECOND + 40 * MS, (10, 10))
    recovery.timer(recovery.deadline())
    assert not recovery.marks()


@pytest.mark.parametrize("congestion", [MODEL, CUBIC])
def test_congestion_experienced_shrinks_the_window(congestion: int) -> None:
    recovery = Recovery(congestion)
    now, sent, ce = SECOND, 0, 0
    for _ in range(8):
        begin = recovery.next
        count = recovery.allowance(now) // BYTES
        marked = recovery.marks()
        recovery.send(count, now)
        sent += count if marked else 0
        now += 40 * MS
        recovery.ack(now, (begin, begin + count - 1), ecn=counts(ect0=sent))
    grown = recovery.stats.window_bytes
    for _ in range(2):
        begin = recovery.next
        count = recovery.allowance(now) // BYTES
        recovery.send(count, now)
        ce += count
        now += 40 * MS
        recovery.ack(now, (begin, begin + count - 1), ecn=counts(ect0=sent, ce=ce))
    assert recovery.stats.ce_packets == ce
    assert recovery.stats.window_bytes < 0.9 * grown
    recovery.free()


# Pacing: RFC 9002 section 7.7


def test_pacing_hands_out_quanta() -> None:
    recovery = Recovery(CUBIC)
    now = SECOND
    for _ in range(7):
        begin = recovery.next
        count = 0
        while part := recovery.allowance(now) // BYTES:
            recovery.send(part, now)
            count += part
        now += 40 * MS
        recovery.ack(now, (begin, begin + count - 1))
    rate = recovery.stats.pacing_bytes_per_s
    assert rate == pytest.approx(2 * recovery.stats.window_bytes / 0.04, rel=0.01)
    sent, begin_ns, sizes = 0, now, []
    while recovery.send_at(now) != NEVER and now < begin_ns + 15 * MS:
        allowed = recovery.allowance(now) // BYTES
        if allowed:
            recovery.send(allowed, now)
            sizes.append(allowed)
            sent += allowed * BYTES
        else:
            assert recovery.send_at(now) > now
            now = recovery.send_at(now)
            assert recovery.allowance(now) > 0
    assert max(sizes[1:]) <= 45
    assert min(sizes) >= 2
    assert sent == pytest.approx(rate * (now - begin_ns) / SECOND, abs=rate * 0.003 + 10 * BYTES)
    recovery.free()


# Memory and cost


def test_small_when_idle(any_recovery: Recovery) -> None:
    now = sampled(any_recovery)
    idle = any_recovery.stats.memory_bytes
    assert idle < 1024
    numbers = any_recovery.send(20_000, now)
    for _ in range(500):
        any_recovery.send(1, now := now + 1000)
    assert any_recovery.stats.memory_bytes - idle < 100_000
    any_recovery.ack(now + 40 * MS, (numbers.start, any_recovery.next - 1))
    assert any_recovery.stats.memory_bytes < 1024


def test_lost_ones_are_forgotten_without_another_ack(recovery: Recovery) -> None:
    now = sampled(recovery)
    for _ in range(100):
        recovery.send(1, now)
        now += MS
    recovery.ack(now + 10 * MS, (recovery.next - 1, recovery.next - 1))
    while (due := recovery.deadline()) != NEVER:
        assert due < now + SECOND
        assert not recovery.timer(due)[0]
    assert recovery.stats.memory_bytes < 1024


class Naive:
    """What each packet is, one by one: `out`, `acked`, `lost`."""

    def __init__(self) -> None:
        self.state: dict[int, str] = {}

    def ack(self, numbers: set[int]) -> int:
        new = [n for n in numbers if self.state.get(n) == "out"]
        for number in numbers & self.state.keys():
            self.state[number] = "acked"
        return len(new)


@pytest.mark.parametrize("seed", range(4 if SANITIZED else 12))
def test_against_a_naive_model(seed: int) -> None:
    """Numbers of others in between, lost and reordered packets, ACKs with many ranges, cut ones."""
    chance = random.Random(seed)
    recovery, naive = Recovery(chance.choice([MODEL, CUBIC, NONE])), Naive()
    now, arrived, travelling, foreign = SECOND, set[int](), list[int](), set[int]()
    acked = lost = 0
    for _ in range(600):
        now += chance.randrange(5 * MS)
        if chance.random() < 0.7:
            if chance.random() < 0.3:
                foreign |= set(range(recovery.next, recovery.next + 3))
                travelling += range(recovery.next, recovery.next + 3)
                recovery.next += 3
            for number in recovery.send(chance.choice([1, 1, 2, 7, 45, 64, 130]), now):
                naive.state[number] = "out"
                if chance.random() > 0.1:
                    travelling.append(number)
        here = max(0, len(travelling) - chance.randrange(80))
        arrived |= {n for n in travelling[:here] if chance.random() < 0.97}
        travelling = [n for n in travelling if n not in arrived]
        if not arrived or chance.random() < 0.3:
            continue
        ranges: list[tuple[int, int]] = []
        for number in sorted(arrived, reverse=True):
            if ranges and ranges[-1][0] == number + 1:
                ranges[-1] = (number, ranges[-1][1])
            elif len(ranges) < 64:
                ranges.append((number, number))
            else:
                break
        named = {n for a, b in ranges for n in range(a, b + 1)}
        outcome = recovery.ack(now, *ranges)
        assert not outcome.bad
        assert outcome.acked_packets == naive.ack(named)
        acked += outcome.acked_packets
        lost += outcome.lost_packets
        # How many are lost is the recovery's to say; they are always the oldest.
        out = sorted(n for n, s in naive.state.items() if s == "out")
        for number in out[: outcome.lost_packets]:
            naive.state[number] = "lost"
        still = sum(s == "out" for s in naive.state.values())
        assert recovery.stats.in_flight_bytes == still * BYTES
    assert acked
    assert lost
    recovery.free()


def test_garbage_does_no_harm() -> None:
    """Any ranges, in any order, at any time: no crash, and counts that stay sane."""
    chance = random.Random(7)
    for congestion in (NONE, MODEL, CUBIC):
        recovery = Recovery(congestion)
        now = SECOND
        for _ in range(3000):
            now += chance.choice([0, 1, MS, SECOND])
            recovery.send(chance.randrange(1, 100), now, first=recovery.next + chance.randrange(3))
            ranges = []
            for _ in range(chance.randrange(64)):
                first = chance.randrange(recovery.next)
                ranges.append((first, min(first + chance.randrange(50), recovery.next - 1)))
            recovery.ack(
                now,
                *ranges,
                delay=chance.choice([0, 100, 2**62 - 1]),
                ecn=counts(*(chance.choice([0, 5, 2**62 - 1]) for _ in range(3))),
            )
            if recovery.deadline() <= now:
                recovery.timer(now)
            recovery.allowance(now)
            stats = recovery.stats
            assert stats.acked_packets + stats.lost_packets <= stats.sent_packets
            assert stats.window_bytes >= 2 * BYTES
        recovery.free()
