"""crypto.h, packet.h and frames.h by ctypes, and what makes tests of them short."""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_bool, c_char_p, c_size_t, c_uint8, c_uint32, c_uint64
from dataclasses import dataclass
from functools import cache

from .build import load

AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305 = range(3)
CIPHERS = (AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305)
BACKENDS = ("openssl", "ipsec-mb")
OPENED, FOREIGN, DUPLICATE, FORGED = range(4)
FRAMES_OURS, FRAMES_OTHER = range(2)
TAG_BYTES = 16
SAMPLE_BYTES = 16
MASK_BYTES = 5
BATCH = 64
NONE = 2**64 - 1

Key = ctypes.c_void_p
Bytes = POINTER(c_uint8)


class AeadJob(Structure):
    _fields_ = [
        ("packet_number", c_uint64),
        ("header", Bytes),
        ("header_bytes", c_size_t),
        ("text", Bytes),
        ("text_bytes", c_size_t),
        ("out", Bytes),
        ("ok", c_bool),
    ]


class ReplayWindow(Structure):
    _fields_ = [("next", c_uint64), ("bits", ctypes.c_void_p), ("size", c_uint32)]


class OpenerStruct(Structure):
    _fields_ = [
        ("key", Key),
        ("previous", Key),
        ("next", Key),
        ("phase_begin", c_uint64),
        ("forged", c_uint64),
        ("phase", c_uint8),
        ("cid_bytes", c_uint8),
        ("window", ReplayWindow),
    ]


class OpenJob(Structure):
    _fields_ = [
        ("packet", Bytes),
        ("packet_bytes", c_size_t),
        ("out", Bytes),
        ("result", ctypes.c_int),
        ("out_bytes", c_size_t),
        ("number", c_uint64),
        ("spin", c_bool),
    ]


class SealerStruct(Structure):
    _fields_ = [
        ("key", Key),
        ("next_number", c_uint64),
        ("largest_acked", c_uint64),
        ("sealed_with_key", c_uint64),
        ("phase", c_uint8),
        ("spin", c_bool),
        ("cid", c_uint8 * 20),
        ("cid_bytes", c_uint8),
    ]


class SealJob(Structure):
    _fields_ = [
        ("payload", Bytes),
        ("payload_bytes", c_size_t),
        ("out", Bytes),
        ("out_bytes", c_size_t),
        ("number", c_uint64),
    ]


class Range(Structure):
    _fields_ = [("first", c_uint64), ("last", c_uint64)]


class Ranges(Structure):
    _fields_ = [("count", c_uint32), ("capacity", c_uint32), ("items", POINTER(Range))]


class EcnCounts(Structure):
    _fields_ = [("ect0", c_uint64), ("ect1", c_uint64), ("ce", c_uint64)]


class Ack(Structure):
    _fields_ = [
        ("delay", c_uint64),
        ("has_ecn", c_bool),
        ("ecn", EcnCounts),
        ("count", c_size_t),
        ("ranges", Range * 64),
        ("cut", c_bool),
    ]


class Datagram(Structure):
    _fields_ = [("data", ctypes.c_void_p), ("bytes", c_size_t)]


class Frames(Structure):
    _fields_ = [
        ("ack_eliciting", c_bool),
        ("has_ack", c_bool),
        ("ack", Ack),
        ("datagram_count", c_size_t),
        ("datagrams", Datagram * 128),
    ]


# Structures are written twice, in C and above: sizes tell when one was forgotten.
STRUCTURES = {
    "zdp_aead_job": AeadJob,
    "zdp_replay_window": ReplayWindow,
    "zdp_opener": OpenerStruct,
    "zdp_open_job": OpenJob,
    "zdp_sealer": SealerStruct,
    "zdp_seal_job": SealJob,
    "zdp_ranges": Ranges,
    "zdp_frames": Frames,
}
SHIM = '#include "frames.h"\n#include "packet.h"\n' + "".join(
    f"size_t zdp_test_sizeof_{name}(void);\n"
    f"size_t zdp_test_sizeof_{name}(void) {{ return sizeof(struct {name}); }}\n"
    for name in STRUCTURES
)


@cache
def native() -> ctypes.CDLL:
    library = load("crypto.c", "crypto_ipsec_mb.c", "packet.c", "frames.c", shim=SHIM)
    for name, structure in STRUCTURES.items():
        assert getattr(library, f"zdp_test_sizeof_{name}")() == ctypes.sizeof(structure), name
    _declare(library)
    return library


def _declare(library: ctypes.CDLL) -> None:
    window, opener, sealer = POINTER(ReplayWindow), POINTER(OpenerStruct), POINTER(SealerStruct)
    for name, result, *arguments in (
        ("zdp_key_new", Key, ctypes.c_int, c_char_p, c_char_p, c_char_p),
        ("zdp_key_free", None, Key),
        ("zdp_cipher_key_bytes", c_size_t, ctypes.c_int),
        ("zdp_key_seal_limit", c_uint64, Key),
        ("zdp_key_forged_limit", c_uint64, Key),
        ("zdp_seal_batch", None, Key, POINTER(AeadJob), c_size_t),
        ("zdp_open_batch", None, Key, POINTER(AeadJob), c_size_t),
        ("zdp_masks", c_bool, Key, c_char_p, c_size_t, Bytes),
        ("zdp_crypto_backend", c_char_p),
        ("zdp_crypto_choose", c_bool, c_char_p),
        ("zdp_replay_free", None, window),
        ("zdp_replay_seen", c_bool, window, c_uint64),
        ("zdp_replay_add", c_bool, window, c_uint64),
        ("zdp_opener_set_key", None, opener, Key, c_uint8),
        ("zdp_opener_set_next", None, opener, Key),
        ("zdp_opener_drop_previous", None, opener),
        ("zdp_opener_free", None, opener),
        ("zdp_open_packets", None, opener, POINTER(OpenJob), c_size_t),
        ("zdp_sealer_set_key", None, sealer, Key, c_uint8),
        ("zdp_sealer_free", None, sealer),
        ("zdp_sealer_room", c_size_t, sealer),
        ("zdp_seal_packets", None, sealer, POINTER(SealJob), c_size_t),
        ("zdp_parse_frames", ctypes.c_int, Bytes, c_size_t, POINTER(Frames)),
        ("zdp_write_ack", c_size_t, Bytes, c_size_t, POINTER(Ranges), c_uint64, POINTER(EcnCounts)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


def choose(backend: str) -> bool:
    return bool(native().zdp_crypto_choose(backend.encode()))


def buffer(data: bytes) -> ctypes.Array[c_uint8]:
    """Exactly as long as the data, so that AddressSanitizer sees a read behind it."""
    return (c_uint8 * len(data)).from_buffer_copy(data)


def room(count: int) -> ctypes.Array[c_uint8]:
    return (c_uint8 * count)()


@dataclass(frozen=True)
class Keys:
    """A direction's keys, as bytes."""

    cipher: int
    key: bytes
    iv: bytes
    header_key: bytes

    def new(self) -> int:
        """Return a `struct zdp_key *`: the caller's to free or to give away."""
        made = native().zdp_key_new(self.cipher, self.key, self.iv, self.header_key)
        assert made
        return int(made)


@dataclass(frozen=True)
class Opened:
    result: int
    payload: bytes
    number: int
    spin: bool


class Opener:
    def __init__(self, keys: Keys | None, *, phase: int = 0, cid_bytes: int = 8) -> None:
        self.struct = OpenerStruct(cid_bytes=cid_bytes, phase_begin=NONE)
        if keys:
            self.set_key(keys, phase)

    def __enter__(self) -> "Opener":
        return self

    def __exit__(self, *_: object) -> None:
        native().zdp_opener_free(self.struct)

    def set_key(self, keys: Keys, phase: int) -> None:
        native().zdp_opener_set_key(self.struct, keys.new(), phase)

    def set_next(self, keys: Keys) -> None:
        native().zdp_opener_set_next(self.struct, keys.new())

    def received(self, number: int) -> None:
        assert native().zdp_replay_add(self.struct.window, number)

    def open(self, packets: Sequence[bytes]) -> list[Opened]:
        jobs = (OpenJob * len(packets))()
        kept = [(buffer(packet), room(len(packet))) for packet in packets]
        for job, (packet, out) in zip(jobs, kept, strict=True):
            job.packet = ctypes.cast(packet, Bytes)
            job.packet_bytes = len(packet)
            job.out = ctypes.cast(out, Bytes)
        native().zdp_open_packets(self.struct, jobs, len(packets))
        assert [bytes(packet) for packet, _ in kept] == list(packets), "packets stay as they came"
        return [
            Opened(job.result, bytes(out)[: job.out_bytes], job.number, job.spin)
            for job, (_, out) in zip(jobs, kept, strict=True)
        ]

    def open_one(self, packet: bytes) -> Opened:
        return self.open([packet])[0]


class Sealer:
    def __init__(self, keys: Keys, *, phase: int = 0, cid: bytes = b"", number: int = 0) -> None:
        self.struct = SealerStruct(next_number=number, cid_bytes=len(cid), largest_acked=NONE)
        if number:
            self.struct.largest_acked = number - 1
        self.struct.cid[: len(cid)] = list(cid)
        self.set_key(keys, phase)

    def __enter__(self) -> "Sealer":
        return self

    def __exit__(self, *_: object) -> None:
        native().zdp_sealer_free(self.struct)

    def set_key(self, keys: Keys, phase: int) -> None:
        native().zdp_sealer_set_key(self.struct, keys.new(), phase)

    def seal(self, payloads: Sequence[bytes]) -> list[tuple[int, bytes]]:
        """Return number and packet of each payload."""
        overhead = 1 + self.struct.cid_bytes + 4 + TAG_BYTES
        jobs = (SealJob * len(payloads))()
        kept = [(buffer(payload), room(len(payload) + overhead)) for payload in payloads]
        for job, (payload, out) in zip(jobs, kept, strict=True):
            job.payload = ctypes.cast(payload, Bytes)
            job.payload_bytes = len(payload)
            job.out = ctypes.cast(out, Bytes)
        native().zdp_seal_packets(self.struct, jobs, len(payloads))
        return [
            (job.number, bytes(out)[: job.out_bytes])
            for job, (_, out) in zip(jobs, kept, strict=True)
        ]
