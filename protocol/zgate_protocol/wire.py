"""Reading and writing the fields that capsules are made of."""

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

from zgate_protocol.errors import H3Error, MalformedCapsule
from zgate_protocol.ip_range import IpAddress
from zgate_protocol.varint import Truncated, decode_varint, encode_varint

_Item = TypeVar("_Item")


def encode_capsule(capsule_type: int, value: bytes) -> bytes:
    """Return the capsule: type, length, value."""
    return encode_varint(capsule_type) + encode_varint(len(value)) + value


def encode_bytes(value: bytes) -> bytes:
    """Return the bytes with their length, a varint, before them."""
    return encode_varint(len(value)) + value


def encode_text(value: str, max_bytes: int) -> bytes:
    """Return UTF-8 with its length before it, cut at a character if it is over the limit."""
    return encode_bytes(value.encode()[:max_bytes].decode(errors="ignore").encode())


def encode_list(items: Sequence[bytes]) -> bytes:
    """Return the items with their number, a varint, before them."""
    return encode_varint(len(items)) + b"".join(items)


def encode_address(address: IpAddress) -> bytes:
    """Return the IP version in a byte, and the address."""
    return bytes((address.version,)) + address.packed


def over_limit(what: str) -> MalformedCapsule:
    """Return the error that ends a stream whose peer goes beyond a limit."""
    return MalformedCapsule(f"{what} is over the limit", H3Error.EXCESSIVE_LOAD)


class FieldReader:
    """Takes fields off the front of one capsule's whole value.

    Every method raises MalformedCapsule if the value ends before the field does, or if the
    field breaks its rule.
    """

    def __init__(self, value: bytes) -> None:
        self._value = value
        self._offset = 0

    @property
    def is_empty(self) -> bool:
        """Whether every byte was taken."""
        return self._offset == len(self._value)

    def finish(self) -> None:
        """Raise MalformedCapsule if bytes are left over."""
        if not self.is_empty:
            raise MalformedCapsule(f"{len(self._value) - self._offset} bytes after the last field")

    def take(self, length_bytes: int) -> bytes:
        """Take exactly this many bytes."""
        end = self._offset + length_bytes
        if end > len(self._value):
            raise MalformedCapsule("a capsule ends inside a field")
        taken = self._value[self._offset : end]
        self._offset = end
        return taken

    def number(self, length_bytes: int) -> int:
        """Take an unsigned number of fixed length, in network byte order."""
        return int.from_bytes(self.take(length_bytes), "big")

    def varint(self) -> int:
        """Take a variable-length integer."""
        try:
            value, self._offset = decode_varint(self._value, self._offset)
        except Truncated:
            raise MalformedCapsule("a capsule ends inside a number") from None
        return value

    def text(self, max_bytes: int) -> str:
        """Take UTF-8 with its length before it."""
        length_bytes = self.varint()
        if length_bytes > max_bytes:
            raise over_limit(f"a text of {length_bytes} bytes")
        try:
            return self.take(length_bytes).decode()
        except UnicodeDecodeError:
            raise MalformedCapsule("a text that is not UTF-8") from None

    def address(self) -> IpAddress:
        """Take an IP version and an address."""
        version = self.number(1)
        if version == 4:
            return IPv4Address(self.take(4))
        if version == 6:
            return IPv6Address(self.take(16))
        raise MalformedCapsule(f"IP version {version} is neither 4 nor 6")

    def list_of(self, take_item: Callable[[], _Item], max_items: int) -> tuple[_Item, ...]:
        """Take a number of items, and the items."""
        count = self.varint()
        if count > max_items:
            raise over_limit(f"a list of {count} entries")
        return tuple(take_item() for _ in range(count))
