"""New flows and denials, as the program tells them through its ring buffer."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

from zgate_protocol.drop_reason import DropReason

from zgate_bpf.errors import BpfLoadError
from zgate_bpf.layouts import EVENT, Direction, EventKind, IpAddress, unpack_address

LIMIT_REASONS = frozenset((DropReason.RATE_LIMITED, DropReason.NEW_FLOW_LIMITED))
"""Drops by a client's limits: at most one event per client and second."""

#: ``ring_buffer_sample_fn``: context, sample, its size.
_SAMPLE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def _libbpf() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libbpf.so.1")
    except OSError as error:
        raise BpfLoadError(
            f"libbpf is not installed ({error}): install Debian's libbpf1"
        ) from error
    library.ring_buffer__new.argtypes = (ctypes.c_int, _SAMPLE, ctypes.c_void_p, ctypes.c_void_p)
    library.ring_buffer__new.restype = ctypes.c_void_p
    library.ring_buffer__consume.argtypes = (ctypes.c_void_p,)
    library.ring_buffer__free.argtypes = (ctypes.c_void_p,)
    library.ring_buffer__free.restype = None
    return library


@dataclass(frozen=True, slots=True)
class KernelEvent:
    """One new flow that was allowed, or one packet that was not.

    :ivar time_ns: CLOCK_MONOTONIC, to within a timer tick.
    :ivar client_index: ``NO_CLIENT`` when the address belongs to none.
    :ivar rule: global number, see ``Generation.rule_of``; ``NO_RULE`` when none decided.
    :ivar revision: of the policy set that judged; 0 when it did not come to that.
    :ivar source_port: 0 where there is none; the identifier of an ICMP echo request.
    :ivar destination_port: or ICMP ``type << 8 | code``.
    :ivar suppressed: events of this client that were left out since the last one. That a
        limit bites (``RATE_LIMITED``, ``NEW_FLOW_LIMITED``) is told once a second and counted
        apart from everything else.
    """

    kind: EventKind
    time_ns: int
    client_index: int
    rule: int
    revision: int
    reason: DropReason
    direction: Direction
    source: IpAddress
    destination: IpAddress
    protocol: int
    source_port: int
    destination_port: int
    length_bytes: int
    suppressed: int


class EventReader:
    """Takes events out of the ring buffer.

    The memory protocol of the buffer is libbpf's business. Not through bcc, which wraps it too:
    with bcc comes the whole compiler, some 90 MB of it.

    Raises:
        BpfLoadError: libbpf is missing, or the buffer cannot be mapped.
    """

    def __init__(self, ring_fd: int) -> None:
        self._library = _libbpf()
        self._waiting: list[bytes] = []
        # Kept: the library calls it for as long as the buffer is open.
        self._callback = _SAMPLE(self._take)
        self._ring = self._library.ring_buffer__new(ring_fd, self._callback, None, None)
        if not self._ring:
            raise BpfLoadError("the event ring buffer cannot be mapped: not enough locked memory?")
        self._suppressed: dict[tuple[int, bool], int] = {}

    def poll(self, handle: Callable[[KernelEvent], None]) -> int:
        """Hand out every event that waits, without waiting; gives their number."""
        self._library.ring_buffer__consume(self._ring)
        waiting, self._waiting = self._waiting, []
        for data in waiting:
            handle(self._decode(data))
        return len(waiting)

    def forget_client(self, client_index: int) -> None:
        """The client's count of suppressed events begins at zero again."""
        for about_limits in (False, True):
            self._suppressed.pop((client_index, about_limits), None)

    def close(self) -> None:
        """Unmap the buffer."""
        if self._ring:
            self._library.ring_buffer__free(self._ring)
            self._ring = None

    def _take(self, _context: int | None, data: int, size: int) -> int:
        # Inside a C callback: an exception could go nowhere, so nothing is decoded here.
        self._waiting.append(ctypes.string_at(data, size))
        return 0

    def _decode(self, data: bytes) -> KernelEvent:
        (
            time_ns,
            client_index,
            rule,
            revision,
            length_bytes,
            suppressed,
            kind,
            reason,
            direction,
            family,
            protocol,
            source_port,
            destination_port,
            source,
            destination,
        ) = EVENT.unpack(data[: EVENT.size_bytes])
        return KernelEvent(
            kind=EventKind(kind),
            time_ns=time_ns,
            client_index=client_index,
            rule=rule,
            revision=revision,
            reason=DropReason(reason),
            direction=Direction(direction),
            source=unpack_address(family, source),
            destination=unpack_address(family, destination),
            protocol=protocol,
            source_port=source_port,
            destination_port=destination_port,
            length_bytes=length_bytes,
            suppressed=self._newly_suppressed((client_index, reason in LIMIT_REASONS), suppressed),
        )

    def _newly_suppressed(self, counter: tuple[int, bool], ever: int) -> int:
        before = self._suppressed.get(counter, 0)
        self._suppressed[counter] = ever
        # The kernel counts in 32 bits, and round.
        return (ever - before) & 0xFFFFFFFF
