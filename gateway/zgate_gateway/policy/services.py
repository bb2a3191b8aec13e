"""Services: which (protocol, port) pairs a rule means, per address family.

A service is a protocol and a range of a 16-bit number: the destination port, or for ICMP the type
in the upper and the code in the lower byte. Compiled tables speak of prefixes of that number
(:class:`zgate_bpf.tables.ServicePrefix`), which either nest or do not touch, so that the longest
one decides; a range of ports is split into 30 at most. The kernel gets intervals made of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple, NewType

IpNetwork = IPv4Network | IPv6Network
IpAddress = IPv4Address | IPv6Address

PORT_SPACE_BITS = 16
LAST_PORT = (1 << PORT_SPACE_BITS) - 1
ANY_PROTOCOL = -1
"""In place of a protocol number: all of them."""

ICMP = 1
TCP = 6
UDP = 17
ICMPV6 = 58
SCTP = 132

Protocol = NewType("Protocol", str)
"""A protocol as a policy names it, checked: a name in lower case, or a decimal number."""

PROTOCOL_NUMBERS: Mapping[str, tuple[int | None, int | None]] = {
    "tcp": (TCP, TCP),
    "udp": (UDP, UDP),
    "icmp": (ICMP, ICMPV6),
    "icmpv6": (None, ICMPV6),
    "sctp": (SCTP, SCTP),
    "any": (ANY_PROTOCOL, ANY_PROTOCOL),
}
"""Number in IPv4 and in IPv6; None: the name means nothing in that family."""

PORT_PROTOCOLS = frozenset({"tcp", "udp", "sctp", str(TCP), str(UDP), str(SCTP)})
ICMP_PROTOCOLS = frozenset({"icmp", "icmpv6", str(ICMP), str(ICMPV6)})

ICMP_NAMES: Mapping[str, tuple[int, int]] = {
    "echo-request": (8, 128),
    "echo-reply": (0, 129),
    "destination-unreachable": (3, 1),
    "time-exceeded": (11, 3),
    "parameter-problem": (12, 4),
}
"""ICMP and ICMPv6 type."""


def echo_request(family: int, protocol: int) -> int:
    """Type and code of a ping for the family's own ICMP; 0 for every other protocol."""
    is_icmp = protocol == (ICMP if family == 4 else ICMPV6)
    return ICMP_NAMES["echo-request"][family == 6] << 8 if is_icmp else 0


@dataclass(frozen=True, slots=True)
class PortRange:
    """Destination ports, both ends included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class IcmpType:
    """An ICMP type by name, or by number with or without a code."""

    name: str | None = None
    number: int = 0
    code: int | None = None

    def __str__(self) -> str:
        if self.name is not None:
            return self.name
        return str(self.number) if self.code is None else f"{self.number}/{self.code}"

    def range(self, family: int) -> PortRange:
        """Return the type and code as a range of the 16-bit number, for family 4 or 6."""
        number = ICMP_NAMES[self.name][family == 6] if self.name is not None else self.number
        if self.code is None:
            return PortRange(number << 8, number << 8 | 0xFF)
        return PortRange(number << 8 | self.code, number << 8 | self.code)


class Service(NamedTuple):
    """A protocol (or :data:`ANY_PROTOCOL`) and a range of ports or ICMP types and codes."""

    protocol: int
    first: int
    last: int

    def contains(self, protocol: int, port: int) -> bool:
        """Whether a packet of this protocol and port (or type and code) is meant."""
        return self.protocol in (protocol, ANY_PROTOCOL) and self.first <= port <= self.last


class Prefix(NamedTuple):
    """A service whose range is a prefix. Sorted, a prefix comes before those that it contains."""

    protocol: int
    port: int
    bits: int

    @property
    def last(self) -> int:
        """The last port of the prefix."""
        return self.port | LAST_PORT >> self.bits


ANYTHING = Prefix(ANY_PROTOCOL, 0, 0)
_EVERY_SERVICE = (Service(ANY_PROTOCOL, 0, LAST_PORT),)


def services_of(
    protocols: Iterable[Protocol] | None,
    ports: Iterable[PortRange] | None,
    icmp_types: Iterable[IcmpType] | None,
    family: int,
) -> tuple[Service, ...]:
    """Return what the keys of a rule mean for one family (4 or 6), sorted, without repetition.

    Empty: the rule means nothing in this family (``icmpv6`` to an IPv4 destination).
    """
    if protocols is None:
        if ports is not None:
            protocols = (Protocol("tcp"), Protocol("udp"))
        elif icmp_types is not None:
            protocols = (Protocol("icmp"),)
        else:
            return _EVERY_SERVICE
    numbers = {number for name in protocols if (number := _number(name, family)) is not None}
    if ANY_PROTOCOL in numbers:
        return _EVERY_SERVICE
    ranges = [PortRange(0, LAST_PORT)]
    if ports is not None:
        ranges = _merge(ports)
    elif icmp_types is not None:
        # Types have a meaning in the family's own ICMP only; 58 in IPv4 is just a number.
        numbers &= {ICMP if family == 4 else ICMPV6}
        ranges = _merge(icmp_type.range(family) for icmp_type in icmp_types)
    return tuple(Service(number, r.first, r.last) for number in sorted(numbers) for r in ranges)


def _number(name: Protocol, family: int) -> int | None:
    return int(name) if name.isdecimal() else PROTOCOL_NUMBERS[name][family == 6]


def _merge(ranges: Iterable[PortRange]) -> list[PortRange]:
    """Sort ranges and join those that touch or overlap."""
    merged: list[PortRange] = []
    for current in sorted(ranges, key=lambda r: r.first):
        if merged and current.first <= merged[-1].last + 1:
            merged[-1] = PortRange(merged[-1].first, max(merged[-1].last, current.last))
        else:
            merged.append(current)
    return merged


@lru_cache(maxsize=4096)
def prefixes_of(services: tuple[Service, ...]) -> tuple[Prefix, ...]:
    """Split services into prefixes."""
    return tuple(prefix for service in services for prefix in _split(service))


def _split(service: Service) -> Iterable[Prefix]:
    """Cut a range into the fewest prefixes: each the largest that is aligned and fits."""
    port = service.first
    while port <= service.last:
        fitting = (service.last - port + 1).bit_length() - 1
        aligned = (port & -port).bit_length() - 1 if port else PORT_SPACE_BITS
        size_bits = min(fitting, aligned)
        yield Prefix(service.protocol, port, PORT_SPACE_BITS - size_bits)
        port += 1 << size_bits


Entries = dict[Prefix, int]
"""Prefixes and the lowest rule that names each, before or after :func:`resolve`."""


def resolve(entries: Mapping[Prefix, int]) -> Entries:
    """Make "longest prefix" mean "first rule": keep what beats every shorter prefix around it.

    Going down to longer prefixes, rules then only get lower. So the longest kept prefix around a
    packet has the lowest rule of all the prefixes around it, which is the first match. The result
    is in sorted order.
    """
    kept: Entries = {}
    anything = entries.get(ANYTHING)
    enclosing: list[Prefix] = []
    for prefix in sorted(entries):
        while enclosing and not encloses(enclosing[-1], prefix):
            enclosing.pop()
        rule = entries[prefix]
        best = kept[enclosing[-1]] if enclosing else anything
        if best is None or rule < best or prefix == ANYTHING:
            kept[prefix] = rule
            if prefix != ANYTHING:
                enclosing.append(prefix)
    return kept


def encloses(outer: Prefix, inner: Prefix) -> bool:
    """Whether ``outer``, which sorts before ``inner``, contains it."""
    return outer.protocol == inner.protocol and inner.port <= outer.port | LAST_PORT >> outer.bits


def merge(first: Mapping[Prefix, int], second: Mapping[Prefix, int]) -> Entries:
    """Both, with the lower rule where both have a prefix. Not resolved."""
    merged = dict(first)
    for prefix, rule in second.items():
        known = merged.get(prefix)
        if known is None or rule < known:
            merged[prefix] = rule
    return merged
