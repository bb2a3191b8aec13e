"""Which packets a compiled policy allows, as sets: address ranges and what is allowed in each.

Exact: computed from the tables that the kernel gets, for all addresses and services at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, summarize_address_range
from typing import NamedTuple

from zgate_bpf.tables import Action, CompiledPolicy, ServicePrefix

from zgate_gateway.policy.rules import Rule
from zgate_gateway.policy.services import (
    ANY_PROTOCOL,
    ANYTHING,
    ICMP,
    ICMPV6,
    LAST_PORT,
    SCTP,
    TCP,
    UDP,
    Entries,
    IpAddress,
    IpNetwork,
    Prefix,
    merge,
    prefixes_of,
    resolve,
)

Ranges = tuple[tuple[int, int], ...]
"""Ports (or ICMP types and codes), both ends included, sorted, not touching each other."""

ALL_PORTS: Ranges = ((0, LAST_PORT),)
LAST_PROTOCOL = 0xFF
_WIDTH = {4: 32, 6: 128}
_NAMES = {TCP: "tcp", UDP: "udp", SCTP: "sctp"}


class Span(NamedTuple):
    """Some protocols with some ports, both ends included."""

    protocol: int
    last_protocol: int
    port: int
    last_port: int

    def contains(self, protocol: int, port: int) -> bool:
        """Whether packets of this protocol and port are in it."""
        return (
            self.protocol <= protocol <= self.last_protocol and self.port <= port <= self.last_port
        )

    def text(self, family: int) -> str:
        """``tcp/443``, ``udp/8000-8100``, ``icmp type 8``, ``protocols 7-16``, ``any``."""
        if self.protocol == 0 and self.last_protocol == LAST_PROTOCOL:
            name = "any"
        elif self.protocol != self.last_protocol:
            name = f"protocols {self.protocol}-{self.last_protocol}"
        elif self.protocol == (ICMP if family == 4 else ICMPV6):
            return ("icmp" if family == 4 else "icmpv6") + self._icmp_text()
        else:
            name = _NAMES.get(self.protocol, f"protocol {self.protocol}")
        if (self.port, self.last_port) == ALL_PORTS[0]:
            return name
        last = f"-{self.last_port}" if self.last_port != self.port else ""
        return f"{name}/{self.port}{last}"

    def _icmp_text(self) -> str:
        if (self.port, self.last_port) == ALL_PORTS[0]:
            return ""
        (kind, code), (last_kind, last_code) = divmod(self.port, 256), divmod(self.last_port, 256)
        if (code, last_code) == (0, 255):
            return f" type {kind}" if kind == last_kind else f" types {kind}-{last_kind}"
        if kind == last_kind:
            codes = f"code {code}" if code == last_code else f"codes {code}-{last_code}"
            return f" type {kind} {codes}"
        return f" type {kind} code {code} to type {last_kind} code {last_code}"


@dataclass(frozen=True, slots=True)
class Allowed:
    """The services that are allowed: by protocol, and for all protocols not named."""

    named: Mapping[int, Ranges] = field(default_factory=dict)
    other: bool = False

    def of(self, protocol: int) -> Ranges:
        """Return the ports of a protocol that are allowed."""
        return self.named.get(protocol, ALL_PORTS if self.other else ())

    def without(self, less: Allowed) -> tuple[Span, ...]:
        """Return what is allowed here and not there, in the fewest spans."""
        named = self.named.keys() | less.named.keys()
        rest = {protocol: subtract(self.of(protocol), less.of(protocol)) for protocol in named}
        other = self.other and not less.other
        if not other and not any(rest.values()):
            return ()
        return to_spans(_in_order(rest, other))


def _in_order(named: Mapping[int, Ranges], other: bool) -> Iterator[tuple[int, int, Ranges]]:
    """Protocols that are named, and if ``other`` is set all those between, with their ports."""
    position = 0
    for protocol in sorted(named):
        if other and position < protocol:
            yield position, protocol - 1, ALL_PORTS
        yield protocol, protocol, named[protocol]
        position = protocol + 1
    if other and position <= LAST_PROTOCOL:
        yield position, LAST_PROTOCOL, ALL_PORTS


def to_spans(items: Iterable[tuple[int, int, Ranges]]) -> tuple[Span, ...]:
    """Join neighbouring protocols that have equal ports; ``items`` are in order."""
    joined: list[tuple[int, int, Ranges]] = []
    for first, last, ranges in items:
        if joined and joined[-1][2] == ranges and joined[-1][1] + 1 == first:
            joined[-1] = (joined[-1][0], last, ranges)
        else:
            joined.append((first, last, ranges))
    return tuple(
        Span(first, last, port, last_port)
        for first, last, ranges in joined
        for port, last_port in ranges
    )


def subtract(ranges: Ranges, less: Ranges) -> Ranges:
    """Return what is in ``ranges`` and not in ``less``."""
    left: list[tuple[int, int]] = []
    for first, last in ranges:
        position = first
        for less_first, less_last in less:
            if less_last < position or less_first > last:
                continue
            if less_first > position:
                left.append((position, less_first - 1))
            position = less_last + 1
        if position <= last:
            left.append((position, last))
    return tuple(left)


class Region(NamedTuple):
    """Addresses that one service list decides; None: no list, so the default action does."""

    first: int
    last: int
    service_list: int | None


class FlowSets:
    """A compiled policy, as sets."""

    def __init__(self, policy: CompiledPolicy) -> None:
        self._policy = policy
        self._allowed: dict[int | None, Allowed] = {}

    def regions(self, family: int) -> Iterator[Region]:
        """Cut a family's whole address space into regions, in order."""
        end = (1 << _WIDTH[family]) - 1
        open_regions: list[tuple[int, int | None]] = [(end, None)]
        position = 0
        for first, last, service_list in self._sorted(family):
            while open_regions[-1][0] < first:
                inner_end, inner = open_regions.pop()
                if position <= inner_end:
                    yield Region(position, inner_end, inner)
                    position = inner_end + 1
            if position < first:
                yield Region(position, first - 1, open_regions[-1][1])
            position = first
            open_regions.append((last, service_list))
        for outer_end, outer in reversed(open_regions):
            if position <= outer_end:
                yield Region(position, outer_end, outer)
                position = outer_end + 1

    def _sorted(self, family: int) -> list[tuple[int, int, int]]:
        found = [
            (int(one.network.network_address), int(one.network.broadcast_address), one.service_list)
            for one in self._policy.destinations
            if one.network.version == family
        ]
        return sorted(found, key=lambda item: (item[0], -item[1]))

    def allowed(self, service_list: int | None) -> Allowed:
        """Return what is allowed where this list decides."""
        if service_list not in self._allowed:
            self._allowed[service_list] = self._compute(service_list)
        return self._allowed[service_list]

    def _compute(self, service_list: int | None) -> Allowed:
        entries: Entries = {}
        while service_list is not None:
            item = self._policy.lists[service_list]
            named = {_prefix(one): one.rule for one in item.entries}
            entries = merge(entries, named)
            service_list = item.parent
        return _allowed(resolve(entries), self._allows)

    def _allows(self, rule: int | None) -> bool:
        policy = self._policy
        return (policy.default_action if rule is None else policy.rules[rule]) is Action.ALLOW


def allows_something(rules: Sequence[Rule], default_action: Action, destination: IpAddress) -> bool:
    """Whether any packet to a destination passes."""
    entries: Entries = {}
    for index, rule in enumerate(rules):
        if any(destination in network for network in rule.destinations):
            for prefix in prefixes_of(rule.services(destination.version)):
                entries.setdefault(prefix, index)  # ascending: the first is the lowest

    def allows(index: int | None) -> bool:
        return (default_action if index is None else rules[index].action) is Action.ALLOW

    found = _allowed(resolve(entries), allows)
    return found.other or any(found.named.values())


def _allowed(entries: Entries, allows: Callable[[int | None], bool]) -> Allowed:
    """What is allowed where these entries, resolved, decide."""
    other = allows(entries.pop(ANYTHING, None))
    by_protocol: dict[int, list[tuple[int, int, bool]]] = {}
    for prefix in sorted(entries):
        painted = (prefix.port, prefix.last, allows(entries[prefix]))
        by_protocol.setdefault(prefix.protocol, []).append(painted)
    return Allowed({number: _paint(other, all_) for number, all_ in by_protocol.items()}, other)


def _prefix(entry: ServicePrefix) -> Prefix:
    protocol = ANY_PROTOCOL if entry.protocol is None else entry.protocol
    return Prefix(protocol, entry.port, entry.port_bits)


def _paint(base: bool, painted: Sequence[tuple[int, int, bool]]) -> Ranges:
    """Paint ranges, one inside the other, on all ports; return what is allowed in the end."""
    allowed: list[tuple[int, int]] = []

    def emit(first: int, last: int, is_allowed: bool) -> None:
        if not is_allowed or first > last:
            return
        if allowed and allowed[-1][1] + 1 == first:
            allowed[-1] = (allowed[-1][0], last)
        else:
            allowed.append((first, last))

    position = 0
    under: list[tuple[int, bool]] = [(LAST_PORT, base)]
    for first, last, is_allowed in painted:
        while under[-1][0] < first:
            end, below = under.pop()
            emit(position, end, below)
            position = end + 1
        emit(position, first - 1, under[-1][1])
        position = first
        under.append((last, is_allowed))
    for end, below in reversed(under):
        emit(position, end, below)
        position = max(position, end + 1)
    return tuple(allowed)


def networks_of(ranges: Iterable[tuple[int, int]], family: int) -> list[IpNetwork]:
    """Return the fewest prefixes that hold these addresses; ``ranges`` are sorted."""
    joined: list[tuple[int, int]] = []
    for first, last in ranges:
        if joined and joined[-1][1] + 1 == first:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    kind = IPv4Address if family == 4 else IPv6Address
    networks: list[IpNetwork] = []
    for first, last in joined:
        networks.extend(summarize_address_range(kind(first), kind(last)))
    return networks
