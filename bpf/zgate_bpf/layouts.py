"""Every struct and number that the program and Python share, and the proof that they agree.

Each :class:`Layout` describes a struct of ``programs/include/zgate/policy_tables.h``. The
loader appends :func:`assertions` to the program's text: one ``_Static_assert`` for every
size, offset and constant, so that a program which sees a table differently than Python does
cannot be loaded at all.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from zgate_protocol.drop_reason import DropReason

from zgate_bpf.limits import COST_SHIFT, FLOW_BURST_NS
from zgate_bpf.tables import (
    NO_RULE,
    PASS_MARK,
    PASS_MASK,
    Action,
)

IpAddress = IPv4Address | IPv6Address

NO_LIST = 0xFFFFFFFF
"""The parent of a service list that has none."""

NO_INTERVAL = 0xFFFFFFFF
"""The end of a search through a list's intervals."""

NO_CLIENT = 0xFFFFFFFF
"""The client index of a packet that belongs to no known client."""

DRY_RUN_MARK = 0x7A670001
"""What a test run says in the packet's mark to leave no trace."""

SEARCH_STEPS = 164
"""Steps of a policy's search for destinations: prefix lengths of both families, rounded up."""

MAX_RULE_STEPS = 40
"""Intervals that the program visits in a list and its parents, to find a rule."""

MAX_PERIODS = 8
"""Policies that the program walks to find the one that holds now."""

MAX_SERVICES = 4096
"""Services are numbered below this."""

MAX_OFFERS = 16_384
"""Offers, of all connectors and services, are numbered below this."""

MAX_NETWORKS = 4096
"""Networks of connectors."""

OFFERS_PER_SERVICE = 16
"""How many connectors may offer one service."""

SCRATCH_BYTES = 128
"""What each CPU's run of the program has to work in, beside its stack."""

DROP_REASONS = 64
"""How many drop counters there are."""

FIRST_USERSPACE_REASON = 32

_FAMILY_BITS = 32


class Direction(IntEnum):
    """Which way a packet goes: UP from a client, DOWN to it."""

    UP = 0
    DOWN = 1


class EventKind(IntEnum):
    """What an event tells."""

    FLOW_ALLOWED = 1
    DENIED = 2


class FlowState(IntFlag):
    """What is known of a flow's course."""

    ANSWERED = 1
    CLIENT_FIN = 2
    REMOTE_FIN = 4
    RESET = 8


class VerdictFlag(IntFlag):
    """How a verdict came about."""

    KNOWN_FLOW = 1
    RELATED = 2
    NEW_FLOW = 4
    JUDGED = 8
    CHOSEN = 16
    NO_OFFER = 32


class EndpointKind(IntEnum):
    """What an address is that no client holds."""

    SERVICE = 1
    OFFER = 2
    GATEWAY = 3


class OfferUse(IntEnum):
    """What may be done with an offer.

    GONE: nothing, its flows choose another. KEEP: its flows stay, and no new ones come.
    """

    GONE = 0
    UP = 1
    KEEP = 2


class Statistic(IntEnum):
    """Index into the program's own statistics."""

    EVENTS_LOST = 0
    EVENTS_SUPPRESSED = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """One C struct.

    :ivar name: its tag in C.
    :ivar fields: names of its members in order, each with its format for :mod:`struct`.
    """

    name: str
    fields: tuple[tuple[str, str], ...]

    @property
    def format(self) -> str:
        """The struct as :mod:`struct` reads it: host order, no hidden padding."""
        return "=" + "".join(form for _, form in self.fields)

    @property
    def size_bytes(self) -> int:
        """The struct's size."""
        return struct.calcsize(self.format)

    def offsets(self) -> Iterator[tuple[str, int]]:
        """Each member and where it begins."""
        before = "="
        for name, form in self.fields:
            yield name, struct.calcsize(before)
            before += form

    def pack(self, *values: Any) -> bytes:
        """The struct's bytes; one value for each member."""
        return struct.pack(self.format, *values)

    def unpack(self, data: bytes) -> tuple[Any, ...]:
        """The members' values."""
        return struct.unpack(self.format, data)


ACTIVE = Layout("zg_active", (("revision", "I"), ("slot_plus_1", "I")))
CLIENT_KEY = Layout("zg_client_key", (("family", "I"), ("address", "16s")))
CLIENT = Layout("zg_client", (("index", "I"), ("epoch", "I")))
ASSIGNMENT = Layout(
    "zg_assignment",
    (("policy", "I"), ("byte_cost", "I"), ("burst_ns", "I"), ("flow_cost_ns", "I")),
)
STEP = Layout("zg_step", (("bits", "B"), ("longer", "B"), ("shorter", "B"), ("zero", "x")))
POLICY = Layout(
    "zg_policy",
    (
        ("until_ns", "Q"),
        ("next", "I"),
        ("default_action", "I"),
        ("first4", "B"),
        ("first6", "B"),
        ("zero", "6x"),
        ("steps", f"{4 * SEARCH_STEPS}s"),
    ),
)
DESTINATION_KEY = Layout(
    "zg_destination_key", (("policy", "I"), ("family", "H"), ("bits", "H"), ("address", "16s"))
)
DESTINATION = Layout("zg_destination", (("list", "I"),))
SERVICE_LIST = Layout("zg_list", (("root", "I"), ("parent", "I"), ("lowest_above", "I")))
INTERVAL = Layout("zg_interval", (("start", "I"), ("rule", "I"), ("before", "I"), ("after", "I")))
RULE = Layout("zg_rule", (("action", "I"),))
FLOW_KEY = Layout(
    "zg_flow_key",
    (
        ("family", "B"),
        ("protocol", "B"),
        ("zero", "2x"),
        ("client_port", "H"),
        ("remote_port", "H"),
        ("client", "16s"),
        ("remote", "16s"),
    ),
)
FLOW = Layout(
    "zg_flow",
    (
        ("seen_ns", "Q"),
        ("verdict", "Q"),
        ("until_ns", "Q"),
        ("epoch", "I"),
        ("client_index", "I"),
        ("service", "H"),
        ("state", "B"),
        ("limited", "B"),
        ("backend", "I"),
    ),
)
FRAGMENT_KEY = Layout(
    "zg_fragment_key",
    (
        ("family", "B"),
        ("protocol", "B"),
        ("zero", "2x"),
        ("identification_be", "4s"),
        ("source", "16s"),
        ("destination", "16s"),
    ),
)
FRAGMENT = Layout(
    "zg_fragment",
    (
        ("seen_ns", "Q"),
        ("source_port", "H"),
        ("destination_port", "H"),
        ("service", "H"),
        ("protocol", "B"),
        ("icmp", "B"),
    ),
)
COUNTERS = Layout(
    "zg_counters",
    (
        ("up_packets", "Q"),
        ("up_bytes", "Q"),
        ("down_packets", "Q"),
        ("down_bytes", "Q"),
        ("up_dropped_packets", "Q"),
        ("down_dropped_packets", "Q"),
        ("flows", "Q"),
    ),
)
GATE = Layout(
    "zg_gate",
    (("window", "I"), ("sent", "8s"), ("suppressed", "I"), ("limited_suppressed", "I")),
)
LIMITER = Layout(
    "zg_limiter",
    (("up_due_ns", "Q"), ("down_due_ns", "Q"), ("flows_due_ns", "Q"), ("told_ns", "Q")),
)
EVENT = Layout(
    "zg_event",
    (
        ("time_ns", "Q"),
        ("client_index", "I"),
        ("rule", "I"),
        ("revision", "I"),
        ("length_bytes", "I"),
        ("suppressed", "I"),
        ("kind", "B"),
        ("reason", "B"),
        ("direction", "B"),
        ("family", "B"),
        ("protocol", "B"),
        ("zero", "x"),
        ("source_port", "H"),
        ("destination_port", "H"),
        ("zero2", "2x"),
        ("source", "16s"),
        ("destination", "16s"),
    ),
)
ENDPOINT = Layout("zg_endpoint", (("kind", "I"), ("number", "I")))
SERVICE = Layout(
    "zg_service",
    (("address4", "16s"), ("address6", "16s"), ("offers", f"{2 * OFFERS_PER_SERVICE}s")),
)
OFFER = Layout(
    "zg_offer",
    (
        ("service_plus_1", "I"),
        ("client_index", "I"),
        ("use", "I"),
        ("open_flows", "I"),
        ("address4", "16s"),
        ("address6", "16s"),
    ),
)
NETWORK_KEY = Layout("zg_network_key", (("bits", "I"), ("family", "I"), ("address", "16s")))
NETWORK = Layout("zg_network", (("client_index", "I"),))
COUNTER = struct.Struct("=Q")

LAYOUTS = (
    ACTIVE,
    CLIENT_KEY,
    CLIENT,
    ASSIGNMENT,
    STEP,
    POLICY,
    DESTINATION_KEY,
    DESTINATION,
    SERVICE_LIST,
    INTERVAL,
    RULE,
    FLOW_KEY,
    FLOW,
    FRAGMENT_KEY,
    FRAGMENT,
    COUNTERS,
    GATE,
    LIMITER,
    EVENT,
    ENDPOINT,
    SERVICE,
    OFFER,
    NETWORK_KEY,
    NETWORK,
)
"""All structs of ``policy_tables.h`` that lie in a map."""


def constants() -> Iterator[tuple[str, int]]:
    """Names in C, and what Python takes them for."""
    yield from (
        ("ZG_NO_RULE", NO_RULE),
        ("ZG_NO_LIST", NO_LIST),
        ("ZG_NO_CLIENT", NO_CLIENT),
        ("ZG_MAX_RULE_STEPS", MAX_RULE_STEPS),
        ("ZG_NO_INTERVAL", NO_INTERVAL),
        ("ZG_STEPS", SEARCH_STEPS),
        ("ZG_MAX_PERIODS", MAX_PERIODS),
        ("ZG_MAX_SERVICES", MAX_SERVICES),
        ("ZG_MAX_OFFERS", MAX_OFFERS),
        ("ZG_MAX_NETWORKS", MAX_NETWORKS),
        ("ZG_OFFERS_PER_SERVICE", OFFERS_PER_SERVICE),
        ("ZG_SCRATCH_BYTES", SCRATCH_BYTES),
        ("ZG_COST_SHIFT", COST_SHIFT),
        ("ZG_FLOW_BURST_NS", FLOW_BURST_NS),
        ("ZG_PASS_MARK", PASS_MARK),
        ("ZG_PASS_MASK", PASS_MASK),
        ("ZG_DRY_RUN_MARK", DRY_RUN_MARK),
        ("ZG_DROP_REASONS", DROP_REASONS),
        ("ZG_STATISTICS", len(Statistic)),
    )
    for reason in DropReason:
        if reason < FIRST_USERSPACE_REASON:
            yield f"ZG_DROP_{reason.name}", reason
    yield from ((f"ZG_{action.name}", action) for action in Action)
    yield from ((f"ZG_{direction.name}", direction) for direction in Direction)
    yield from ((f"ZG_EVENT_{kind.name}", kind) for kind in EventKind)
    yield from ((f"ZG_FLOW_{state.name}", state) for state in FlowState)
    yield from ((f"ZG_VERDICT_{flag.name}", flag) for flag in VerdictFlag)
    yield from ((f"ZG_STATISTIC_{statistic.name}", statistic) for statistic in Statistic)
    yield from ((f"ZG_ENDPOINT_{kind.name}", kind) for kind in EndpointKind)
    yield from ((f"ZG_OFFER_{use.name}", use) for use in OfferUse)


def assertions(layouts: tuple[Layout, ...] = LAYOUTS) -> str:
    """C text that compiles only where C and Python agree."""
    lines = []
    for layout in layouts:
        tag = f"struct {layout.name}"
        lines.append(f'_Static_assert(sizeof({tag}) == {layout.size_bytes}, "{tag}");')
        for member, offset in layout.offsets():
            lines.append(
                f"_Static_assert(__builtin_offsetof({tag}, {member}) == {offset}, "
                f'"{tag}: {member}");'
            )
    for name, value in constants():
        lines.append(f'_Static_assert({name} == {int(value)}u, "{name}");')
    return "\n".join(lines) + "\n"


def pack_address(address: IpAddress) -> bytes:
    """An address as the tables hold it: 16 bytes, IPv4 in the first four."""
    return address.packed.ljust(16, b"\0")


def network_key(network: IPv4Network | IPv6Network) -> bytes:
    """A prefix as the tries hold it: the family lies before the address, and is part of it."""
    return NETWORK_KEY.pack(
        _FAMILY_BITS + network.prefixlen, network.version, pack_address(network.network_address)
    )


def unpack_address(family: int, data: bytes) -> IpAddress:
    """The inverse of :func:`pack_address`."""
    return IPv4Address(data[:4]) if family == 4 else IPv6Address(data)
