"""The TUN's offloads by ctypes: cut a super-packet, merge packets; scapy judges checksums."""

import ctypes
import errno
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from scapy.utils import checksum

from .build import load

SOURCES = (
    "offload_segment.c",
    "offload_coalesce.c",
    "offload_parse.c",
    "offload_checksum.c",
)
NEEDS_CHECKSUM = 1
GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 3, 4, 5, 0x80
OK, BAD, TOO_BIG = 0, 1, 2
TCP, UDP = 6, 17
CHECKSUM_OFFSETS = {TCP: 16, UDP: 6}
VNET = struct.Struct("=BBHHHH")

# A segmenter behind a pointer, and a writer that keeps what it is given (or fails).
SHIM = """
#include <errno.h>
#include <stdlib.h>
#include "offload.h"
#include "offload_checksum.h"

struct zdp_segmenter *test_segmenter_new(void) { return malloc(sizeof(struct zdp_segmenter)); }
void test_free(void *at) { free(at); }
uint32_t test_segment_count(const struct zdp_segmenter *s) { return s->count; }
int test_fold(uint64_t sum) { return zdp_fold(sum); }

struct test_sink {
	uint8_t *out;
	size_t room, used;
	int fail_merged, fail_all;
};
long test_write(void *context, const struct iovec *iov, int count)
{
	struct test_sink *sink = context;
	size_t bytes = 0;
	uint32_t length;

	for (int i = 0; i < count; i++)
		bytes += iov[i].iov_len;
	errno = iov[0].iov_len > 10 ? sink->fail_merged : 0;
	if (sink->fail_all)
		errno = sink->fail_all;
	if (errno)
		return -1;
	if (sink->used + 4 + bytes > sink->room)
		abort();
	length = (uint32_t)bytes;
	memcpy(sink->out + sink->used, &length, 4);
	sink->used += 4;
	for (int i = 0; i < count; i++) {
		memcpy(sink->out + sink->used, iov[i].iov_base, iov[i].iov_len);
		sink->used += iov[i].iov_len;
	}
	return (long)bytes;
}
void *test_sink_writer(void) { return (void *)test_write; }
"""


class Sink(ctypes.Structure):
    _fields_ = [
        ("out", ctypes.c_void_p),
        ("room", ctypes.c_size_t),
        ("used", ctypes.c_size_t),
        ("fail_merged", ctypes.c_int),
        ("fail_all", ctypes.c_int),
    ]


class Stats(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in ("packets", "writes", "merged_packets", "failed_writes", "failed_packets")
    ]


def _library() -> ctypes.CDLL:
    library = load(*SOURCES, shim=SHIM)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for name, result, arguments in (
        ("test_segmenter_new", pointer, []),
        ("test_free", None, [pointer]),
        ("test_segment_count", ctypes.c_uint32, [pointer]),
        ("test_fold", ctypes.c_int, [ctypes.c_uint64]),
        ("test_sink_writer", pointer, []),
        ("zdp_segment_begin", ctypes.c_int, [pointer, pointer, size, size]),
        ("zdp_segment_bytes", size, [pointer]),
        ("zdp_segment_next", size, [pointer, pointer]),
        ("zdp_segment_seek", None, [pointer, ctypes.c_uint32]),
        ("zdp_mark_ce", ctypes.c_bool, [pointer, size]),
        ("zdp_sum", ctypes.c_uint64, [pointer, size]),
        ("zdp_copy_sum", ctypes.c_uint64, [pointer, pointer, size]),
        ("zdp_coalescer_new", pointer, [pointer, pointer, ctypes.c_bool, ctypes.c_bool]),
        ("zdp_coalescer_free", None, [pointer]),
        ("zdp_coalesce_add", None, [pointer, pointer, size]),
        ("zdp_coalesce_flush", None, [pointer]),
        ("zdp_coalesce_stats", None, [pointer, ctypes.POINTER(Stats)]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


LIBRARY = _library()


def exact(data: bytes) -> ctypes.Array[ctypes.c_char]:
    """A buffer without a byte behind it, so that the sanitizer sees an overread."""
    return (ctypes.c_char * len(data)).from_buffer_copy(data)


@dataclass(frozen=True)
class Vnet:
    """A vnet header."""

    flags: int = 0
    gso_type: int = GSO_NONE
    header_bytes: int = 0
    gso_bytes: int = 0
    checksum_start: int = 0
    checksum_offset: int = 0

    def __bytes__(self) -> bytes:
        return VNET.pack(
            self.flags,
            self.gso_type,
            self.header_bytes,
            self.gso_bytes,
            self.checksum_start,
            self.checksum_offset,
        )

    @classmethod
    def of(cls, read: bytes) -> "Vnet":
        return cls(*VNET.unpack_from(read))


class Segmenter:
    """One read of the TUN, being cut. ``close`` it."""

    def __init__(self, read: bytes, max_segment_bytes: int = 65535) -> None:
        self._read = exact(read)
        self._at = LIBRARY.test_segmenter_new()
        self.result = LIBRARY.zdp_segment_begin(self._at, self._read, len(read), max_segment_bytes)

    @property
    def count(self) -> int:
        return int(LIBRARY.test_segment_count(self._at))

    def seek(self, index: int) -> None:
        LIBRARY.zdp_segment_seek(self._at, index)

    def next(self) -> bytes:
        """The next segment; b"" at the end."""
        room = LIBRARY.zdp_segment_bytes(self._at)
        out = exact(bytes(room))
        assert LIBRARY.zdp_segment_next(self._at, out) == room
        return bytes(out)

    def close(self) -> None:
        LIBRARY.test_free(self._at)


def begin(read: bytes, max_segment_bytes: int = 65535) -> int:
    """What zdp_segment_begin says."""
    segmenter = Segmenter(read, max_segment_bytes)
    segmenter.close()
    return segmenter.result


def cut(vnet: Vnet, packet: bytes, max_segment_bytes: int = 65535) -> list[bytes]:
    """All segments, which must be there."""
    segmenter = Segmenter(bytes(vnet) + packet, max_segment_bytes)
    assert segmenter.result == OK
    segments = [segmenter.next() for _ in range(segmenter.count)]
    assert segmenter.next() == b""
    segmenter.close()
    return segments


@dataclass
class Merged:
    """What the coalescer wrote, each with its vnet header, and its counts."""

    writes: list[bytes] = field(default_factory=list)
    stats: Stats = field(default_factory=Stats)

    def cut(self) -> list[bytes]:
        """The packets that a network card would make of it."""
        packets = []
        for write in self.writes:
            vnet, packet = Vnet.of(write), write[VNET.size :]
            packets += [packet] if vnet == Vnet() else cut(vnet, packet)
        return packets


def merge(
    packets: Sequence[bytes],
    *,
    tcp: bool = True,
    udp: bool = True,
    fail_merged: int = 0,
    fail_all: int = 0,
) -> Merged:
    """One batch through a coalescer. ``fail_merged``: errno of a super-packet's write."""
    room = sum(len(packet) + 200 for packet in packets)
    out = ctypes.create_string_buffer(room or 1)
    sink = Sink(ctypes.addressof(out), room, 0, fail_merged, fail_all)
    coalescer = LIBRARY.zdp_coalescer_new(
        LIBRARY.test_sink_writer(), ctypes.addressof(sink), tcp, udp
    )
    buffers = [exact(packet) for packet in packets]
    for buffer in buffers:
        LIBRARY.zdp_coalesce_add(coalescer, buffer, len(buffer))
    LIBRARY.zdp_coalesce_flush(coalescer)
    assert [bytes(buffer) for buffer in buffers] == list(packets), "what was added is unchanged"
    merged = Merged()
    LIBRARY.zdp_coalesce_stats(coalescer, ctypes.byref(merged.stats))
    LIBRARY.zdp_coalescer_free(coalescer)
    at = 0
    while at < sink.used:
        length = int.from_bytes(out[at : at + 4], "little")
        merged.writes.append(out[at + 4 : at + 4 + length])
        at += 4 + length
    return merged


WRITE_FUNCTION = ctypes.CFUNCTYPE(
    ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, use_errno=True
)


class LiveCoalescer:
    """A coalescer that calls Python for every write. ``close`` it."""

    def __init__(self, write: Callable[[bytes], int], *, tcp: bool = True, udp: bool = True):
        def writer(_context: int, iov: int, count: int) -> int:
            pieces = (ctypes.c_size_t * (2 * count)).from_address(iov)
            data = b"".join(
                ctypes.string_at(pieces[2 * i], pieces[2 * i + 1]) for i in range(count)
            )
            try:
                return write(data)
            except OSError as error:
                ctypes.set_errno(error.errno or errno.EIO)
                return -1

        self._writer = WRITE_FUNCTION(writer)
        self._at = LIBRARY.zdp_coalescer_new(
            ctypes.cast(self._writer, ctypes.c_void_p), None, tcp, udp
        )
        self._buffers: list[object] = []

    def add(self, packet: bytes) -> None:
        buffer = exact(packet)
        self._buffers.append(buffer)
        LIBRARY.zdp_coalesce_add(self._at, buffer, len(packet))

    def flush(self) -> None:
        LIBRARY.zdp_coalesce_flush(self._at)
        self._buffers.clear()

    @property
    def stats(self) -> Stats:
        stats = Stats()
        LIBRARY.zdp_coalesce_stats(self._at, ctypes.byref(stats))
        return stats

    def close(self) -> None:
        LIBRARY.zdp_coalescer_free(self._at)


# Packets.


def upper_at(packet: bytes) -> tuple[int, int]:
    """Where the upper layer begins, and its protocol. Walks IPv6's extension headers."""
    if packet[0] >> 4 == 4:
        return (packet[0] & 15) * 4, packet[9]
    at, following = 40, packet[6]
    while following in (0, 43, 60):
        following, at = packet[at], at + 8 * (packet[at + 1] + 1)
    return at, following


def _pseudo_header(packet: bytes) -> bytes:
    at, protocol = upper_at(packet)
    addresses = packet[12:20] if packet[0] >> 4 == 4 else packet[8:40]
    return addresses + struct.pack("!IBBBB", len(packet) - at, 0, 0, 0, protocol)


def _set16(packet: bytes, at: int, value: int) -> bytes:
    return packet[:at] + value.to_bytes(2, "big") + packet[at + 2 :]


def with_right_checksums(packet: bytes) -> bytes:
    """The packet with the checksums that scapy computes."""
    at, protocol = upper_at(packet)
    if packet[0] >> 4 == 4:
        packet = _set16(packet, 10, 0)
        packet = _set16(packet, 10, checksum(packet[:at]))
    place = at + CHECKSUM_OFFSETS[protocol]
    packet = _set16(packet, place, 0)
    value = checksum(_pseudo_header(packet) + packet[at:])
    return _set16(packet, place, 0xFFFF if protocol == UDP and value == 0 else value)


def with_partial_checksum(packet: bytes) -> bytes:
    """Put the pseudo-header's sum where the checksum goes, as the kernel does before an offload."""
    at, protocol = upper_at(packet)
    sum_ = ~checksum(_pseudo_header(packet)) & 0xFFFF
    return _set16(packet, at + CHECKSUM_OFFSETS[protocol], sum_)


def super_read(packet: bytes, gso_bytes: int, *, ecn: bool = False) -> tuple[Vnet, bytes]:
    """The vnet header and packet that a TUN gives for a TCP or UDP packet with a right header."""
    at, protocol = upper_at(packet)
    gso_type = GSO_UDP_L4
    if protocol == TCP:
        gso_type = (GSO_TCPV6 if packet[0] >> 4 == 6 else GSO_TCPV4) | (GSO_ECN if ecn else 0)
    vnet = Vnet(NEEDS_CHECKSUM, gso_type, at, gso_bytes, at, CHECKSUM_OFFSETS[protocol])
    return vnet, with_partial_checksum(packet)
