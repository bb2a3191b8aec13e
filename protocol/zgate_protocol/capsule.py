"""Capsules (RFC 9297 section 3) and the three of CONNECT-IP (RFC 9484 section 4.7).

    Capsule { Type (i), Length (i), Value (..) }

    0x00 DATAGRAM             { HTTP Datagram Payload (..) }
    0x01 ADDRESS_ASSIGN       { Request ID (i), Version (8), Address (32..128), Prefix (8) } ...
    0x02 ADDRESS_REQUEST      the same entries, at least one
    0x03 ROUTE_ADVERTISEMENT  { Version (8), Start (32..128), End (32..128), Protocol (8) } ...

The decoder takes entries out of the stream as they arrive: it holds at most one entry that
is incomplete, and never a byte of a capsule that it does not know. The capsules about
services (``service_capsule``) are parsed whole, and are bounded by their length.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, Generic, TypeVar

from zgate_protocol.errors import MalformedCapsule
from zgate_protocol.ip_range import IpAddress, IpNetwork, IpRange, RouteError, check_ranges
from zgate_protocol.limits import DEFAULT_LIMITS, Limits
from zgate_protocol.service_capsule import (
    ServiceCapsule,
    is_service_capsule,
    parse_service_capsule,
)
from zgate_protocol.varint import Truncated, decode_varint, encode_varint
from zgate_protocol.wire import encode_capsule, over_limit

NO_REQUEST: Final = 0
_MAX_ADDRESS_ENTRY_BYTES: Final = 8 + 1 + 16 + 1
_MAX_ROUTE_ENTRY_BYTES: Final = 1 + 16 + 16 + 1


class CapsuleType(IntEnum):
    """The capsule types of the RFCs; beside them ``service_capsule`` knows some."""

    DATAGRAM = 0x00
    ADDRESS_ASSIGN = 0x01
    ADDRESS_REQUEST = 0x02
    ROUTE_ADVERTISEMENT = 0x03


@dataclass(frozen=True, slots=True)
class AssignedAddress:
    """One address or prefix, assigned or asked for (RFC 9484 sections 4.7.1 and 4.7.2)."""

    request_id: int
    """The request that this answers, 0 for an assignment that nobody asked for."""
    prefix: IpNetwork
    """The network's host bits are zero, as the RFC wants; a single address is a /32 or /128."""

    @property
    def address(self) -> IpAddress:
        """The first (often the only) address of the prefix."""
        return self.prefix.network_address

    @property
    def is_refusal(self) -> bool:
        """True of 0.0.0.0/32 and ::/128, which answer a request with "no address"."""
        return self.prefix.prefixlen == self.prefix.max_prefixlen and int(self.address) == 0

    def refusal(self) -> "AssignedAddress":
        """Return the entry that refuses this request."""
        nothing = IPv4Network(0) if self.prefix.version == 4 else IPv6Network(0)
        return AssignedAddress(self.request_id, nothing)

    def encode(self) -> bytes:
        """Return the entry's bytes."""
        return b"".join(
            (
                encode_varint(self.request_id),
                bytes((self.prefix.version,)),
                self.address.packed,
                bytes((self.prefix.prefixlen,)),
            )
        )


@dataclass(frozen=True, slots=True)
class AddressAssign:
    """The full list of what the receiver holds; empty takes everything away (4.7.1)."""

    addresses: tuple[AssignedAddress, ...]

    def encode(self) -> bytes:
        """Return the capsule's bytes."""
        return _encode_list(CapsuleType.ADDRESS_ASSIGN, (a.encode() for a in self.addresses))


@dataclass(frozen=True, slots=True)
class AddressRequest:
    """A wish for addresses; an all-zero address means no preference (4.7.2)."""

    requests: tuple[AssignedAddress, ...]

    def encode(self) -> bytes:
        """Return the capsule's bytes."""
        return _encode_list(CapsuleType.ADDRESS_REQUEST, (r.encode() for r in self.requests))


@dataclass(frozen=True, slots=True)
class RouteAdvertisement:
    """The full list of what the sender routes (4.7.3)."""

    ranges: tuple[IpRange, ...]

    def encode(self) -> bytes:
        """Return the capsule's bytes."""
        entries = (_encode_range(item) for item in self.ranges)
        return _encode_list(CapsuleType.ROUTE_ADVERTISEMENT, entries)


@dataclass(frozen=True, slots=True)
class DatagramCapsule:
    """An HTTP datagram on the stream (RFC 9297 section 3.5)."""

    payload: bytes

    def encode(self) -> bytes:
        """Return the capsule's bytes."""
        return encode_capsule(CapsuleType.DATAGRAM, self.payload)


Capsule = AddressAssign | AddressRequest | RouteAdvertisement | DatagramCapsule | ServiceCapsule


def _encode_list(capsule_type: CapsuleType, entries: Iterable[bytes]) -> bytes:
    return encode_capsule(capsule_type, b"".join(entries))


def _encode_range(item: IpRange) -> bytes:
    ends = item.start.packed + item.end.packed
    return bytes((item.version,)) + ends + bytes((item.ip_protocol,))


# Entries. Each parser gets the bytes from the entry's start on and returns the entry and
# its length; Truncated means that more bytes are needed.


def _parse_version(window: bytes, offset: int) -> int:
    """Return the size in bytes of the addresses that follow the version byte."""
    if offset >= len(window):
        raise Truncated("no IP version")
    version = window[offset]
    if version not in (4, 6):
        raise MalformedCapsule(f"IP version {version} is neither 4 nor 6")
    return 4 if version == 4 else 16


def _parse_address(packed: bytes) -> IpAddress:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _parse_prefix(packed: bytes, length_bits: int) -> IpNetwork:
    if length_bits > len(packed) * 8:
        raise MalformedCapsule(f"a prefix of {length_bits} bits in {len(packed)} bytes")
    number = int.from_bytes(packed, "big")
    if number & ((1 << len(packed) * 8 - length_bits) - 1):
        raise MalformedCapsule(f"{_parse_address(packed)}/{length_bits} has host bits set")
    if len(packed) == 4:
        return IPv4Network((number, length_bits))
    return IPv6Network((number, length_bits))


def _parse_assigned(window: bytes) -> tuple[AssignedAddress, int]:
    request_id, offset = decode_varint(window, 0)
    size = _parse_version(window, offset)
    end = offset + 1 + size + 1
    if end > len(window):
        raise Truncated("an address entry that is not complete")
    packed = window[offset + 1 : offset + 1 + size]
    return AssignedAddress(request_id, _parse_prefix(packed, window[end - 1])), end


def _parse_requested(window: bytes) -> tuple[AssignedAddress, int]:
    entry, end = _parse_assigned(window)
    if entry.request_id == NO_REQUEST:
        raise MalformedCapsule("request ID 0 in an ADDRESS_REQUEST")
    return entry, end


def _parse_range(window: bytes) -> tuple[IpRange, int]:
    size = _parse_version(window, 0)
    end = 1 + 2 * size + 1
    if end > len(window):
        raise Truncated("a route entry that is not complete")
    start, last = _parse_address(window[1 : 1 + size]), _parse_address(window[1 + size : end - 1])
    try:
        return IpRange(start, last, window[end - 1]), end
    except RouteError as error:
        raise MalformedCapsule(str(error)) from error


# Readers of one capsule's value. ``take`` consumes what it can of data[offset:] and returns
# the new offset; ``remaining`` is 0 when the value is complete.


class _SkipReader:
    """Counts the bytes of a value away."""

    def __init__(self, length: int) -> None:
        self.remaining = length

    def take(self, data: bytes, offset: int) -> int:
        taken = min(self.remaining, len(data) - offset)
        self.remaining -= taken
        return offset + taken

    def finish(self) -> Capsule | None:
        return None


class _DatagramReader:
    """Collects a datagram that is known to be short enough."""

    def __init__(self, length: int) -> None:
        self.remaining = length
        self._payload = bytearray()

    def take(self, data: bytes, offset: int) -> int:
        end = min(offset + self.remaining, len(data))
        self._payload += data[offset:end]
        self.remaining -= end - offset
        return end

    def finish(self) -> Capsule | None:
        return DatagramCapsule(bytes(self._payload))


class _ServiceReader:
    """Collects the value of a capsule about services, and parses it whole."""

    def __init__(self, capsule_type: int, length: int, limits: Limits) -> None:
        if length > limits.max_service_capsule_bytes:
            raise over_limit(f"a capsule of {length} bytes")
        self.remaining = length
        self._type = capsule_type
        self._limits = limits
        self._value = bytearray()

    @property
    def buffered_bytes(self) -> int:
        return len(self._value)

    def take(self, data: bytes, offset: int) -> int:
        end = min(offset + self.remaining, len(data))
        self._value += data[offset:end]
        self.remaining -= end - offset
        return end

    def finish(self) -> Capsule | None:
        return parse_service_capsule(self._type, bytes(self._value), self._limits)


_Entry = TypeVar("_Entry")


class _ListReader(Generic[_Entry]):
    """Parses one entry after the other."""

    def __init__(
        self,
        length: int,
        parse: Callable[[bytes], tuple[_Entry, int]],
        max_entry_bytes: int,
        max_entries: int,
        build: Callable[[tuple[_Entry, ...]], Capsule],
    ) -> None:
        if length > max_entries * max_entry_bytes:
            raise over_limit(f"a capsule of {length} bytes")
        self.remaining = length
        self._parse = parse
        self._max_entry_bytes = max_entry_bytes
        self._max_entries = max_entries
        self._build = build
        self._entries: list[_Entry] = []

    def take(self, data: bytes, offset: int) -> int:
        while self.remaining and offset < len(data):
            size = min(self.remaining, self._max_entry_bytes)
            window = data[offset : offset + size]
            try:
                entry, used = self._parse(window)
            except Truncated:
                if len(window) == self.remaining:
                    raise MalformedCapsule("a capsule ends inside an entry") from None
                break
            if len(self._entries) == self._max_entries:
                raise over_limit(f"a capsule of more than {self._max_entries} entries")
            self._entries.append(entry)
            offset += used
            self.remaining -= used
        return offset

    def finish(self) -> Capsule | None:
        return self._build(tuple(self._entries))


def _build_request(requests: tuple[AssignedAddress, ...]) -> AddressRequest:
    if not requests:
        raise MalformedCapsule("an ADDRESS_REQUEST without a request")
    return AddressRequest(requests)


def _build_routes(ranges: tuple[IpRange, ...]) -> RouteAdvertisement:
    try:
        check_ranges(ranges)
    except RouteError as error:
        raise MalformedCapsule(str(error)) from error
    return RouteAdvertisement(ranges)


_Reader = (
    _SkipReader
    | _DatagramReader
    | _ServiceReader
    | _ListReader[AssignedAddress]
    | _ListReader[IpRange]
)


class CapsuleDecoder:
    """Turns the bytes of a data stream into capsules, whatever the pieces they come in."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._rest = b""
        self._reader: _Reader | None = None

    @property
    def buffered_bytes(self) -> int:
        """Bytes held of an incomplete header or entry, a few dozen, or of a service capsule."""
        held = self._reader.buffered_bytes if isinstance(self._reader, _ServiceReader) else 0
        return len(self._rest) + held

    def feed(self, data: bytes, fin: bool = False) -> list[Capsule]:
        """Take in bytes, and with ``fin`` the end; return the capsules that became complete.

        MalformedCapsule ends the stream: nothing may be fed afterwards.
        """
        data = self._rest + data
        offset = 0
        capsules: list[Capsule] = []
        while True:
            if self._reader is None:
                header = self._read_header(data, offset)
                if header is None:
                    break
                offset = header
            assert self._reader is not None
            offset = self._reader.take(data, offset)
            if self._reader.remaining:
                break
            capsule = self._reader.finish()
            self._reader = None
            if capsule is not None:
                capsules.append(capsule)
        self._rest = data[offset:]
        if fin and (self._rest or self._reader is not None):
            raise MalformedCapsule("the stream ends inside a capsule")
        return capsules

    def _read_header(self, data: bytes, offset: int) -> int | None:
        """Begin a capsule; return the offset of its value, None when bytes are missing."""
        try:
            capsule_type, at = decode_varint(data, offset)
            length, at = decode_varint(data, at)
        except Truncated:
            return None
        self._reader = self._reader_of(capsule_type, length)
        return at

    def _reader_of(self, capsule_type: int, length: int) -> _Reader:
        limits = self._limits
        if capsule_type == CapsuleType.DATAGRAM:
            usable = length <= limits.max_datagram_capsule_bytes
            return _DatagramReader(length) if usable else _SkipReader(length)
        if capsule_type == CapsuleType.ADDRESS_ASSIGN:
            size, count = _MAX_ADDRESS_ENTRY_BYTES, limits.max_addresses
            return _ListReader(length, _parse_assigned, size, count, AddressAssign)
        if capsule_type == CapsuleType.ADDRESS_REQUEST:
            size, count = _MAX_ADDRESS_ENTRY_BYTES, limits.max_addresses
            return _ListReader(length, _parse_requested, size, count, _build_request)
        if capsule_type == CapsuleType.ROUTE_ADVERTISEMENT:
            size, count = _MAX_ROUTE_ENTRY_BYTES, limits.max_routes
            return _ListReader(length, _parse_range, size, count, _build_routes)
        if is_service_capsule(capsule_type):
            return _ServiceReader(capsule_type, length, limits)
        return _SkipReader(length)
