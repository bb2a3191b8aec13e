"""Ranges of IP addresses, as ROUTE_ADVERTISEMENT carries them (RFC 9484 section 4.7.3).

Addresses are compared as bytes: of one length they order like the numbers they stand for,
so that a lookup needs no conversion.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    summarize_address_range,
)
from itertools import pairwise
from typing import Final

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network

ALL_PROTOCOLS: Final = 0
ICMP: Final = 1
ICMPV6: Final = 58


class RouteError(ValueError):
    """A list of ranges that no ROUTE_ADVERTISEMENT may carry."""


@dataclass(frozen=True, slots=True)
class IpRange:
    """An inclusive range of addresses; ``ip_protocol`` 0 means every protocol.

    ICMP may always be sent to a range, whatever its protocol. RouteError if the ends are of
    two versions or in the wrong order, or if the protocol is not a byte.
    """

    start: IpAddress
    end: IpAddress
    ip_protocol: int = ALL_PROTOCOLS

    def __post_init__(self) -> None:
        if self.start.version != self.end.version:
            raise RouteError(f"a range of two IP versions: {self.start} to {self.end}")
        if int(self.start) > int(self.end):
            raise RouteError(f"a range that ends before it starts: {self.start} to {self.end}")
        if not 0 <= self.ip_protocol <= 255:
            raise RouteError(f"an IP protocol is 0 to 255, not {self.ip_protocol}")

    @classmethod
    def of(cls, network: IpNetwork, ip_protocol: int = ALL_PROTOCOLS) -> "IpRange":
        """Return the range that a network spans."""
        return cls(network.network_address, network.broadcast_address, ip_protocol)

    @property
    def version(self) -> int:
        """The IP version, 4 or 6."""
        return self.start.version

    def networks(self) -> tuple[IpNetwork, ...]:
        """Return the fewest networks that cover the range exactly."""
        return tuple(summarize_address_range(self.start, self.end))


EVERYTHING: Final = (
    IpRange.of(IPv4Network("0.0.0.0/0")),
    IpRange.of(IPv6Network("::/0")),
)
"""The routes of a full tunnel."""


def _order(item: IpRange) -> tuple[int, int, int]:
    return item.version, item.ip_protocol, int(item.start)


def check_ranges(ranges: Sequence[IpRange]) -> None:
    """Raise RouteError unless the list is in order and free of overlap (section 4.7.3).

    The overlap of a protocol with "all protocols", which receivers need not look for, is
    looked for.
    """
    for before, after in pairwise(ranges):
        if (before.version, before.ip_protocol) > (after.version, after.ip_protocol):
            raise RouteError(f"{after} after {before}: order is version, protocol, address")
        same = (before.version, before.ip_protocol) == (after.version, after.ip_protocol)
        if same and int(before.end) >= int(after.start):
            raise RouteError(f"{after} does not start after the end of {before}")
    _check_protocol_overlap(ranges)


def _check_protocol_overlap(ranges: Sequence[IpRange]) -> None:
    for version in (4, 6):
        general = [r for r in ranges if r.version == version and r.ip_protocol == ALL_PROTOCOLS]
        starts = [int(r.start) for r in general]
        for item in ranges:
            if item.version != version or item.ip_protocol == ALL_PROTOCOLS:
                continue
            at = bisect_right(starts, int(item.end)) - 1
            if at >= 0 and int(general[at].end) >= int(item.start):
                raise RouteError(f"{item} overlaps {general[at]}, which allows all protocols")


def normalize_ranges(ranges: Iterable[IpRange]) -> tuple[IpRange, ...]:
    """Return the same set of (address, protocol) as a list that ``check_ranges`` accepts.

    Neighbours and overlaps of one protocol are joined; what "all protocols" covers is cut
    out of the single protocols.
    """
    joined = _join(sorted(set(ranges), key=_order))
    general = [r for r in joined if r.ip_protocol == ALL_PROTOCOLS]
    special = [r for r in joined if r.ip_protocol != ALL_PROTOCOLS]
    pieces = [piece for item in special for piece in _subtract(item, general)]
    return tuple(sorted(general + pieces, key=_order))


def _join(ordered: Sequence[IpRange]) -> list[IpRange]:
    joined: list[IpRange] = []
    for item in ordered:
        last = joined[-1] if joined else None
        alike = last and (last.version, last.ip_protocol) == (item.version, item.ip_protocol)
        if last and alike and int(item.start) <= int(last.end) + 1:
            end = max(last.end, item.end, key=int)
            joined[-1] = IpRange(last.start, end, last.ip_protocol)
        else:
            joined.append(item)
    return joined


def _subtract(item: IpRange, holes: Sequence[IpRange]) -> list[IpRange]:
    """Cut ``holes`` (ordered, of any version) out of ``item``."""
    left: list[IpRange] = []
    make = type(item.start)
    start, end = int(item.start), int(item.end)
    for hole in holes:
        if hole.version != item.version or int(hole.end) < start or int(hole.start) > end:
            continue
        if int(hole.start) > start:
            left.append(IpRange(make(start), make(int(hole.start) - 1), item.ip_protocol))
        start = int(hole.end) + 1
    if start <= end:
        left.append(IpRange(make(start), make(end), item.ip_protocol))
    return left


def limit_ranges(
    ranges: Iterable[IpRange],
    targets: Iterable[IpNetwork] | None,
    ip_protocol: int | None,
) -> tuple[IpRange, ...]:
    """Return what is left of ``ranges`` inside a request's scope (section 4.6).

    ``targets`` None means any address and ``ip_protocol`` None any protocol. Ranges for
    another protocol than the one asked for disappear.
    """
    windows = None if targets is None else [IpRange.of(network) for network in targets]
    kept: list[IpRange] = []
    for item in ranges:
        if ip_protocol is not None and item.ip_protocol not in (ALL_PROTOCOLS, ip_protocol):
            continue
        protocol = item.ip_protocol if ip_protocol is None else ip_protocol
        for window in [item] if windows is None else windows:
            if window.version != item.version:
                continue
            start = max(item.start, window.start, key=int)
            end = min(item.end, window.end, key=int)
            if int(start) <= int(end):
                kept.append(IpRange(start, end, protocol))
    return normalize_ranges(kept)


def ranges_of(networks: Iterable[IpNetwork], ip_protocol: int = 0) -> tuple[IpRange, ...]:
    """Return networks as an advertisable list of ranges."""
    return normalize_ranges(IpRange.of(network, ip_protocol) for network in networks)


def networks_of(ranges: Iterable[IpRange]) -> tuple[IpNetwork, ...]:
    """Return the fewest networks that cover the ranges of all protocols, version 4 first."""
    networks = [network for item in ranges for network in item.networks()]
    v4 = [network for network in networks if isinstance(network, IPv4Network)]
    v6 = [network for network in networks if isinstance(network, IPv6Network)]
    return (*collapse_addresses(v4), *collapse_addresses(v6))


class Match(IntEnum):
    """What a table says about an address and a protocol."""

    NO_RANGE = 0
    OTHER_PROTOCOL = 1
    """A range holds the address, but for other protocols."""
    THIS_PROTOCOL = 2
    """Allowed for this protocol, or because ICMP always is."""
    ALL_PROTOCOLS = 3
    """Allowed whatever the protocol is."""


class _Intervals:
    """Disjoint ordered intervals of addresses of one length."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, ranges: Iterable[IpRange]) -> None:
        self._starts: list[bytes] = []
        self._ends: list[bytes] = []
        for item in sorted(ranges, key=lambda r: int(r.start)):
            if self._ends and item.start.packed <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], item.end.packed)
                continue
            self._starts.append(item.start.packed)
            self._ends.append(item.end.packed)

    def __contains__(self, address: bytes) -> bool:
        at = bisect_right(self._starts, address) - 1
        return at >= 0 and address <= self._ends[at]


class RouteTable:
    """Answers whether an address is inside a list of ranges, in logarithmic time."""

    __slots__ = ("_by_protocol", "_every")

    def __init__(self, ranges: Iterable[IpRange] = ()) -> None:
        groups: dict[tuple[int, int], list[IpRange]] = {}
        every: dict[int, list[IpRange]] = {4: [], 16: []}
        for item in ranges:
            size = item.start.max_prefixlen // 8
            groups.setdefault((size, item.ip_protocol), []).append(item)
            every[size].append(item)
        self._by_protocol = {key: _Intervals(group) for key, group in groups.items()}
        self._every = {size: _Intervals(group) for size, group in every.items()}

    def all_protocols(self, address: bytes) -> bool:
        """Say whether every protocol may go to ``address`` (4 or 16 bytes)."""
        intervals = self._by_protocol.get((len(address), ALL_PROTOCOLS))
        return intervals is not None and address in intervals

    def holds(self, address: bytes) -> bool:
        """Say whether any range, of whatever protocol, holds ``address`` (4 or 16 bytes)."""
        intervals = self._every.get(len(address))
        return intervals is not None and address in intervals

    def match(self, address: bytes, protocol: int) -> Match:
        """Say how ``address`` (4 or 16 bytes) and ``protocol`` stand in the table."""
        if self.all_protocols(address):
            return Match.ALL_PROTOCOLS
        if not self.holds(address):
            return Match.NO_RANGE
        if protocol == (ICMP if len(address) == 4 else ICMPV6):
            return Match.THIS_PROTOCOL
        intervals = self._by_protocol.get((len(address), protocol))
        if protocol != ALL_PROTOCOLS and intervals is not None and address in intervals:
            return Match.THIS_PROTOCOL
        return Match.OTHER_PROTOCOL

    def lookup(self, address: bytes, protocol: int) -> bool:
        """Say whether a packet of ``protocol`` may go to ``address`` (4 or 16 bytes)."""
        return self.match(address, protocol) >= Match.THIS_PROTOCOL
