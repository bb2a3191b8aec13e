"""Opening and sealing 1-RTT packets, against aioquic's CryptoPair and RFC 9001's example."""

import os
import random
from collections import Counter
from dataclasses import replace

import pytest
from aioquic.quic.crypto import CryptoContext, CryptoPair, derive_key_iv_hp, next_key_phase
from aioquic.quic.packet import QuicProtocolVersion, decode_packet_number
from aioquic.tls import CipherSuite

from .bindings import (
    BACKENDS,
    BATCH,
    CIPHERS,
    DUPLICATE,
    FOREIGN,
    FORGED,
    NONE,
    OPENED,
    Keys,
    Opened,
    Opener,
    Sealer,
    choose,
    native,
)
from .build import SANITIZED
from .test_crypto import CHACHA20

SUITES = (
    CipherSuite.AES_128_GCM_SHA256,
    CipherSuite.AES_256_GCM_SHA384,
    CipherSuite.CHACHA20_POLY1305_SHA256,
)
ROUNDS = 100 if SANITIZED else 700  # of a batch each, for every suite and library
CID = bytes(range(0x80, 0x88))
WINDOW = 8192  # of replay


@pytest.fixture(autouse=True, params=BACKENDS)
def backend(request):
    if not choose(request.param):
        pytest.skip(f"{request.param} is not here")
    yield request.param
    assert choose("auto")


def context(cipher: int, secret: bytes) -> CryptoContext:
    made = CryptoContext()
    made.setup(cipher_suite=SUITES[cipher], secret=secret, version=QuicProtocolVersion.VERSION_1)
    return made


def next_phase(made: CryptoContext) -> CryptoContext:
    """As aioquic does it: what changes is the key and the IV, the header key stays."""
    after = next_key_phase(made)
    after.hp = made.hp
    return after


class Direction:
    """One sender's keys over its key phases, for aioquic and for the engine."""

    def __init__(self, cipher: int, random_source: random.Random) -> None:
        size = 48 if cipher == 1 else 32
        self.cipher = cipher
        self.phases = [context(cipher, random_source.randbytes(size))]

    def phase(self, number: int) -> CryptoContext:
        while len(self.phases) <= number:
            self.phases.append(next_phase(self.phases[-1]))
        return self.phases[number]

    def keys(self, phase: int = 0) -> Keys:
        def derive(made: CryptoContext) -> tuple[bytes, bytes, bytes]:
            return derive_key_iv_hp(
                cipher_suite=made.cipher_suite, secret=made.secret, version=made.version
            )

        key, iv, _ = derive(self.phase(phase))
        return Keys(self.cipher, key, iv, derive(self.phases[0])[2])

    def seal(
        self,
        number: int,
        payload: bytes,
        *,
        phase: int = 0,
        cid: bytes = CID,
        number_bytes: int = 4,
        spin: bool = False,
        reserved: int = 0,
    ) -> bytes:
        """What aioquic sends. Padded, where header protection asks for it, as aioquic pads."""
        payload += bytes(max(0, 4 - number_bytes - len(payload)))
        first = 0x40 | spin << 5 | reserved << 3 | (phase & 1) << 2 | number_bytes - 1
        header = bytes([first]) + cid
        header += (number & (1 << 8 * number_bytes) - 1).to_bytes(number_bytes, "big")
        return self.phase(phase).encrypt_packet(header, payload, number)


@pytest.fixture(params=CIPHERS, ids=("aes128", "aes256", "chacha20"))
def sender(request, seeded) -> Direction:
    return Direction(request.param, seeded)


@pytest.fixture
def seeded(request) -> random.Random:
    return random.Random(request.node.name)


def test_rfc9001_a5_chacha20_short_header() -> None:
    packet = bytes.fromhex("4cfe4189655e5cd55c41f69080575d7999c25a5bfb")
    with Opener(CHACHA20, cid_bytes=0) as opener:
        opener.received(654360563)
        assert opener.open_one(packet) == Opened(OPENED, b"\x01", 654360564, spin=False)


def test_rfc9000_a3_packet_number() -> None:
    """Its own example: after 0xa82f30ea, 0x9b32 is 0xa82f9b32."""
    sender = Direction(0, random.Random(0))
    with Opener(sender.keys()) as opener:
        opener.received(0xA82F30EA)
        packet = sender.seal(0xA82F9B32, b"payload", number_bytes=2)
        assert opener.open_one(packet).number == 0xA82F9B32


@pytest.mark.parametrize("number_bytes", (1, 2, 3, 4))
def test_packet_numbers_at_the_ends_of_what_can_be_told(number_bytes: int) -> None:
    """RFC 9000 appendix A.3: half the range above what is expected, a little less below."""
    sender = Direction(0, random.Random(0))
    half = 1 << 8 * number_bytes - 1
    for expected in (1 << 40, (1 << 40) + half, (1 << 40) - 1, 3 * half + 7):
        for number, told in (
            (expected + half, True),
            (expected + half + 1, False),
            (expected - half + 1, True),
            (expected - half, False),
        ):
            packet = sender.seal(number, b"payload", number_bytes=number_bytes)
            with Opener(sender.keys()) as opener:
                opener.received(expected - 1)
                # None of these is in the window of what was received, but some are behind it.
                behind = number < expected - WINDOW
                result = opener.open_one(packet).result
            assert result == (FORGED if not told else DUPLICATE if behind else OPENED), number
            decoded = decode_packet_number(number & (2 * half - 1), 8 * number_bytes, expected)
            assert (decoded == number) is told


@pytest.mark.parametrize(
    ("expected", "number", "number_bytes"),
    (
        (0, 200, 1),  # a range lower would be below zero
        (10, 255, 1),
        (2**62 - 2, 2**62 - 250, 1),  # a range higher would be no packet number
        (2**62 - 1, 2**62 - 8000, 2),
        (2**62, 2**62 - 131, 1),  # the last number was received
    ),
)
def test_packet_numbers_end_at_both_ends(expected: int, number: int, number_bytes: int) -> None:
    sender = Direction(0, random.Random(0))
    packet = sender.seal(number, b"payload", number_bytes=number_bytes)
    with Opener(sender.keys()) as opener:
        if expected:
            opener.received(expected - 1)
        assert opener.open_one(packet) == Opened(OPENED, b"payload", number, spin=False)


def random_number(source: random.Random) -> int:
    """Small ones, large ones, and those beside a power of two."""
    bits = source.choice((6, 14, 30, 32, 40, 61))
    return max(0, min(2**62 - 2000, (1 << bits) + source.randint(-300, 300)))


def fitting_bytes(number: int, next_number: int, source: random.Random) -> int:
    """A packet number length that a sender may use (RFC 9000 appendix A.2)."""
    distance = abs(number - next_number) + 2
    least = next(n for n in range(1, 5) if 2 * distance < 1 << 8 * n)
    return source.randint(least, 4)


def test_opens_what_aioquic_seals(sender: Direction, seeded: random.Random) -> None:
    results: Counter[int] = Counter()
    for _ in range(ROUNDS):
        cid = seeded.randbytes(seeded.randint(0, 20))
        phase = seeded.randint(0, 3)
        base = random_number(seeded)
        expected, packets = [], []
        for number in seeded.sample(range(base, base + 100), seeded.randint(1, 20)):
            payload = seeded.randbytes(seeded.choice((1, 2, 3, 4, 17, 64, 400, 1400)))
            number_bytes = fitting_bytes(number, base, seeded)
            spin = seeded.random() < 0.5
            packet = sender.seal(
                number, payload, phase=phase, cid=cid, number_bytes=number_bytes, spin=spin
            )
            packets.append(packet)
            padded = payload + bytes(max(0, 4 - number_bytes - len(payload)))
            expected.append(Opened(OPENED, padded, number, spin))
        with Opener(sender.keys(phase), phase=phase & 1, cid_bytes=len(cid)) as opener:
            if base:
                opener.received(base - 1)
            assert opener.open(packets) == expected
            assert opener.struct.phase_begin == min(one.number for one in expected)
            for one in expected:
                opener.received(one.number)
            again = opener.open(packets)
            assert {one.result for one in again} == {DUPLICATE}
        results[OPENED] += len(expected)
    assert results[OPENED] > 5 * ROUNDS


def test_aioquic_opens_what_it_seals(sender: Direction, seeded: random.Random) -> None:
    for _ in range(ROUNDS):
        cid = seeded.randbytes(seeded.randint(0, 20))
        phase = seeded.randint(0, 3)
        first = random_number(seeded)
        payloads = [
            seeded.randbytes(seeded.choice((1, 2, 3, 4, 17, 64, 400, 1400)))
            for _ in range(seeded.randint(1, 20))
        ]
        pair = CryptoPair()
        pair.recv = sender.phase(phase)
        with Sealer(sender.keys(phase), phase=phase & 1, cid=cid, number=first) as sealer:
            sealer.struct.spin = seeded.random() < 0.5
            sealed = sealer.seal(payloads)
            assert sealer.struct.next_number == first + len(payloads)
            assert sealer.struct.sealed_with_key == len(payloads)
            for i, ((number, packet), payload) in enumerate(zip(sealed, payloads, strict=True)):
                assert number == first + i
                header, opened, opened_number = pair.decrypt_packet(packet, 1 + len(cid), number)
                assert (opened, opened_number) == (payload, number)
                assert header[0] == 0x43 | sealer.struct.spin << 5 | (phase & 1) << 2
                assert header[1:] == cid + (number & 0xFFFFFFFF).to_bytes(4, "big")


def test_a_packet_cut_at_any_byte(sender: Direction) -> None:
    packet = sender.seal(5, b"some payload", number_bytes=2)
    with Opener(sender.keys()) as opener:
        for length in range(len(packet)):
            # One byte of flags, the connection ID, four bytes before the sample of 16.
            too_short = length < 1 + 8 + 4 + 16
            result = opener.open_one(packet[:length]).result
            assert result == (FOREIGN if too_short else FORGED), length
        assert opener.open_one(packet).result == OPENED
        assert opener.struct.forged == len(packet) - 29


def test_every_bit_of_a_packet_counts(sender: Direction) -> None:
    packet = sender.seal(5, b"some payload")
    whole = int.from_bytes(packet, "big")
    with Opener(sender.keys()) as opener:
        opener.set_next(sender.keys(1))
        for bit in range(8 * len(packet)):
            # The caller compares the connection ID before; it is authenticated all the same.
            flipped = (whole ^ 1 << bit).to_bytes(len(packet), "big")
            result = opener.open_one(flipped).result
            form = flipped[0] & 0xC0 != 0x40
            assert result == (FOREIGN if form else FORGED), bit
        assert opener.struct.forged == 8 * len(packet) - 2
        assert opener.open_one(packet).result == OPENED


def test_what_is_no_short_header_is_aioquics(sender: Direction) -> None:
    with Opener(sender.keys()) as opener:
        for first in (0x00, 0x3F, 0x80, 0xC0, 0xFF):
            assert opener.open_one(bytes([first]) + bytes(100)).result == FOREIGN
        assert opener.struct.forged == 0


def test_without_a_key_every_packet_is_aioquics(sender: Direction) -> None:
    with Opener(None) as opener:
        assert opener.open_one(sender.seal(0, b"payload")).result == FOREIGN


def test_a_batch_of_all_kinds_keeps_its_order(sender: Direction) -> None:
    good = [sender.seal(n, bytes([n]) * 20) for n in range(BATCH)]
    forged = [packet[:-1] + bytes([packet[-1] ^ 1]) for packet in good]
    packets = list(good)
    packets[7] = b"\x40"
    packets[20] = forged[20]
    packets[33] = good[32]
    packets[48] = sender.seal(48, b"next phase", phase=1)
    packets[60] = sender.seal(60, b"reserved", reserved=2)
    with Opener(sender.keys()) as opener:
        results = [one.result for one in opener.open(packets)]
    special = {7: FOREIGN, 20: FORGED, 33: DUPLICATE, 48: FOREIGN, 60: FOREIGN}
    assert results == [special.get(i, OPENED) for i in range(BATCH)]


def test_a_forgery_does_not_take_its_number_from_the_true_packet(sender: Direction) -> None:
    packet = sender.seal(3, b"payload")
    forged = packet[:-1] + bytes([packet[-1] ^ 1])
    with Opener(sender.keys()) as opener:
        results = [one.result for one in opener.open([forged, packet, forged, packet])]
        assert results == [FORGED, OPENED, FORGED, DUPLICATE]
        later = sender.seal(5, b"payload")
        results = [one.result for one in opener.open([later, forged, packet])]
        assert results == [OPENED, FORGED, OPENED]


@pytest.mark.parametrize("reserved", (1, 2, 3))
def test_reserved_bits_count_only_in_authentic_packets(sender: Direction, reserved: int) -> None:
    """RFC 9000 section 17.3.1. A forger cannot have them judged, nor looked at by aioquic."""
    packet = sender.seal(1, b"payload", reserved=reserved)
    forged = packet[:-1] + bytes([packet[-1] ^ 1])
    with Opener(sender.keys()) as opener:
        assert opener.open_one(packet).result == FOREIGN
        assert opener.open_one(forged).result == FORGED


def test_key_update_with_the_key_made_ahead(sender: Direction) -> None:
    """RFC 9001 section 6.3: a forged update costs one AEAD, here, and none of aioquic's."""
    update = sender.seal(10, b"payload", phase=1)
    forged = update[:-1] + bytes([update[-1] ^ 1])
    with Opener(sender.keys()) as opener:
        assert [one.result for one in opener.open([update, forged])] == [FOREIGN, FOREIGN]
        assert opener.struct.forged == 0
        opener.set_next(sender.keys(1))
        assert [one.result for one in opener.open([update, forged])] == [FOREIGN, FORGED]
        assert opener.struct.forged == 1
        opener.set_key(sender.keys(1), 1)
        assert opener.struct.next is None
        assert opener.open_one(update) == Opened(OPENED, b"payload", 10, spin=False)


def test_overtaken_packets_of_the_phase_before(sender: Direction) -> None:
    """RFC 9001 section 6.5: lower numbers are the old key's until it is dropped."""
    with Opener(sender.keys()) as opener:
        assert opener.open_one(sender.seal(4, b"old")).result == OPENED
        opener.set_key(sender.keys(1), 1)
        # Nothing seen in the new phase yet: what has the other bit can only be old.
        assert opener.open_one(sender.seal(5, b"old")).result == OPENED
        batch = [
            sender.seal(9, b"new", phase=1),
            sender.seal(6, b"old"),
            sender.seal(8, b"new", phase=1),
        ]
        assert [one.result for one in opener.open(batch)] == [OPENED] * 3
        assert opener.struct.phase_begin == 8
        assert opener.open_one(sender.seal(7, b"old")).result == OPENED
        # Not below the phase's begin: an update, and not with the old key (section 6.4).
        assert opener.open_one(sender.seal(8, b"old")).result == FOREIGN
        assert opener.open_one(sender.seal(10, b"old")).result == FOREIGN
        assert opener.open_one(sender.seal(11, b"newer", phase=2)).result == FOREIGN
        native().zdp_opener_drop_previous(opener.struct)
        assert opener.open_one(sender.seal(3, b"old")).result == FOREIGN
        assert opener.open_one(sender.seal(12, b"new", phase=1)).result == OPENED


def test_random_updates_reordered(sender: Direction, seeded: random.Random) -> None:
    """Phases follow each other, packets overtake each other by less than a phase."""
    for _ in range(ROUNDS // 20):
        phase_of = [n // 40 for n in range(200)]
        packets = [sender.seal(n, b"%d" % n, phase=phase) for n, phase in enumerate(phase_of)]
        order = sorted(range(200), key=lambda n: n + seeded.uniform(0, 30))
        phase = 0
        with Opener(sender.keys()) as opener:
            opener.set_next(sender.keys(1))
            for n in order:
                one = opener.open_one(packets[n])
                if phase_of[n] > phase:
                    assert one.result == FOREIGN
                    phase = phase_of[n]
                    opener.set_key(sender.keys(phase), phase & 1)
                    opener.set_next(sender.keys(phase + 1))
                    one = opener.open_one(packets[n])
                assert one == Opened(OPENED, b"%d" % n, n, spin=False)
                opener.received(n)
            assert opener.struct.forged == 0


def test_a_number_that_cannot_be_is_not_made_up(sender: Direction) -> None:
    last = 2**62 - 1
    with Opener(sender.keys()) as opener:
        opener.received(last - 3)
        for number in (last - 1, last):
            for number_bytes in (1, 2, 3, 4):
                packet = sender.seal(number, b"payload", number_bytes=number_bytes)
                assert opener.open_one(packet).number == number
        opener.received(last)
        packet = sender.seal(last - 2, b"payload", number_bytes=1)
        assert opener.open_one(packet) == Opened(OPENED, b"payload", last - 2, spin=False)


def test_random_bytes_are_forged_or_aioquics(sender: Direction, seeded: random.Random) -> None:
    with Opener(sender.keys()) as opener:
        opener.set_next(sender.keys(1))
        for _ in range(ROUNDS):
            packets = [seeded.randbytes(seeded.randint(0, 80)) for _ in range(BATCH)]
            results = [one.result for one in opener.open(packets)]
            for packet, result in zip(packets, results, strict=True):
                short_header = len(packet) >= 29 and packet[0] & 0xC0 == 0x40
                assert result == (FORGED if short_header else FOREIGN)


# Sealing: what must never leave.


def test_limits_stop_the_sealer(sender: Direction) -> None:
    with Sealer(sender.keys(), cid=CID, number=2**62 - 2) as sealer:
        numbers = [number for number, packet in sealer.seal([b"a", b"b", b"c"]) if packet]
        assert numbers == [2**62 - 2, 2**62 - 1]
        assert sealer.seal([b"d"]) == [(NONE, b"")]
        sealer.struct.next_number += 1  # aioquic counts in it as well
        assert sealer.seal([b"d"]) == [(NONE, b"")]
    with Sealer(sender.keys(), cid=CID, number=7) as sealer:
        sealer.struct.largest_acked = NONE
        sealer.struct.next_number = 2**31 - 1
        assert [bool(packet) for _, packet in sealer.seal([b"a", b"b"])] == [True, False]
        sealer.struct.largest_acked = 0
        assert [bool(packet) for _, packet in sealer.seal([b"a", b"b"])] == [True, False]
        assert native().zdp_sealer_room(sealer.struct) == 0
        sealer.struct.next_number += 1000
        assert native().zdp_sealer_room(sealer.struct) == 0
        sealer.struct.largest_acked = 2**31 - 1
        assert native().zdp_sealer_room(sealer.struct) == BATCH


def test_a_key_seals_no_more_than_it_may(sender: Direction) -> None:
    key = sender.keys().new()
    limit = native().zdp_key_seal_limit(key)
    native().zdp_key_free(key)
    with Sealer(sender.keys(), cid=CID) as sealer:
        sealer.struct.sealed_with_key = limit - 1
        assert [bool(packet) for _, packet in sealer.seal([b"a", b"b"])] == [True, False]
        sealer.set_key(sender.keys(1), 1)
        (number, packet), _ = sealer.seal([b"b", b"c"])
        assert number == 1
    with Opener(sender.keys(1), phase=1) as opener:
        assert opener.open_one(packet) == Opened(OPENED, b"b", 1, spin=False)


def test_nothing_is_sealed_without_a_key(sender: Direction) -> None:
    with Sealer(sender.keys(), cid=CID) as sealer:
        native().zdp_sealer_set_key(sealer.struct, None, 0)
        assert sealer.seal([b"payload"]) == [(NONE, b"")]


def test_both_ends_the_engines(sender: Direction, seeded: random.Random) -> None:
    with Sealer(sender.keys(), cid=CID) as sealer, Opener(sender.keys()) as opener:
        for _ in range(ROUNDS // 10):
            payloads = [seeded.randbytes(seeded.randint(1, 1400)) for _ in range(BATCH)]
            opened = opener.open([packet for _, packet in sealer.seal(payloads)])
            assert [one.payload for one in opened] == payloads
            for one in opened:
                opener.received(one.number)


def test_the_header_key_stays_over_an_update(sender: Direction) -> None:
    """Were it derived anew, as the others are, aioquic could not read the header."""
    wrong = replace(sender.keys(1), header_key=os.urandom(len(sender.keys().header_key)))
    packet = sender.seal(1, b"payload", phase=1)
    with Opener(sender.keys(1), phase=1) as opener, Opener(wrong, phase=1) as other:
        assert opener.open_one(packet).result == OPENED
        assert other.open_one(packet).result in (FORGED, FOREIGN)
