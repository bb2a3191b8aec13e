"""Frames that wait for the congestion window, and the packets they are put into."""

from __future__ import annotations

from collections import deque

# A second small frame shares a QUIC packet only when this much room is left.
_LEAST_SHARED_BYTES = 64
_LENGTH_ONE_BYTE_MAX = 63


class SendQueue:
    """DATAGRAM frames without length: type byte 0x30, then the payload.

    Attributes:
        too_big: frames dropped because the path has shrunk since they were queued.
    """

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self.too_big = 0

    def __len__(self) -> int:
        return len(self._frames)

    def append(self, frame: bytes) -> None:
        """Queue one frame."""
        self._frames.append(frame)

    def clear(self) -> int:
        """Forget all frames; how many there were."""
        count = len(self._frames)
        self._frames.clear()
        return count

    def take(self, window_bytes: int, most_bytes: int, overhead_bytes: int) -> list[bytes]:
        """Packet payloads of at most `most_bytes`, as many as the window takes.

        Small frames share one packet. `overhead_bytes` is what each packet adds to its payload.
        """
        frames = self._frames
        payloads: list[bytes] = []
        while frames:
            first = frames[0]
            size = len(first)
            if size > most_bytes:
                # It was fitting when it was queued; the path has shrunk since.
                frames.popleft()
                self.too_big += 1
                continue
            if size + overhead_bytes > window_bytes:
                break
            frames.popleft()
            if frames and most_bytes - size > _LEAST_SHARED_BYTES:
                first = self._share_packet(first, most_bytes)
                size = len(first)
            payloads.append(first)
            window_bytes -= size + overhead_bytes
        return payloads

    def _share_packet(self, frame: bytes, most: int) -> bytes:
        """Put following small frames into the same packet, each with a length but the last."""
        frames = self._frames
        parts: list[bytes] = []
        total = 0
        while frames:
            with_length = 2 + len(frame)
            if total + with_length + 1 + len(frames[0]) > most:
                break
            length = len(frame) - 1
            head = (
                bytes((0x31, length))
                if length <= _LENGTH_ONE_BYTE_MAX
                else bytes((0x31, 0x40 | length >> 8, length & 0xFF))
            )
            parts += (head, frame[1:])
            total += len(head) + length
            frame = frames.popleft()
        parts.append(frame)
        return b"".join(parts)
