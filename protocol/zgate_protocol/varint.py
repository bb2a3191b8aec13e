"""Variable-length integers (RFC 9000 section 16).

The two high bits of the first byte give the length, 1, 2, 4 or 8 bytes; the rest is the
value in network byte order. A decoder accepts encodings that are longer than needed.
"""

from typing import Final

MAX_VARINT: Final = (1 << 62) - 1


class Truncated(ValueError):
    """The data ends before the value does; more bytes may cure it."""


def encode_varint(value: int) -> bytes:
    """Return the shortest encoding of ``value``; ValueError outside 0 to 2^62-1."""
    if value < 0:
        raise ValueError(f"a varint is not negative: {value}")
    if value < 1 << 6:
        return value.to_bytes(1, "big")
    if value < 1 << 14:
        return (value | 1 << 14).to_bytes(2, "big")
    if value < 1 << 30:
        return (value | 2 << 30).to_bytes(4, "big")
    if value <= MAX_VARINT:
        return (value | 3 << 62).to_bytes(8, "big")
    raise ValueError(f"a varint holds at most 62 bits: {value}")


def decode_varint(data: bytes | bytearray | memoryview, offset: int = 0) -> tuple[int, int]:
    """Return the value at ``offset`` and the offset after it; Truncated if the data ends first."""
    if offset >= len(data):
        raise Truncated("no byte where a varint begins")
    first = data[offset]
    if first < 0x40:
        return first, offset + 1
    end = offset + (1 << (first >> 6))
    if end > len(data):
        raise Truncated(f"a varint of {end - offset} bytes has only {len(data) - offset}")
    value = int.from_bytes(data[offset:end], "big")
    return value & ((1 << 8 * (end - offset) - 2) - 1), end
