"""Every struct and number that the edge program and Python share, and the proof that they agree.

As :mod:`zgate_bpf.layouts` is for the policy program: :func:`assertions` go into the program's
text, so that one that sees its tables differently than Python does cannot be loaded at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

from zgate_bpf.layouts import Layout

REASONS = 32
"""How many counters there are."""

VERSION_1, VERSION_2 = 0x00000001, 0x6B3343CF
"""The QUIC versions whose packets are known (RFC 9000, RFC 9369)."""

CONNECTION_ID_BYTES = 8
"""Of the connection IDs that the gateway gives."""


class EdgeReason(IntEnum):
    """What became of a packet to our UDP port; below 8 it passed."""

    NOT_OURS = 0
    SHORT_HEADER = 1
    HANDSHAKE = 2
    INITIAL = 3
    VERSION_TRICKLE = 4
    BLOCKLISTED = 8
    FRAGMENT = 9
    MALFORMED = 10
    TOO_SHORT = 11
    FIXED_BIT = 12
    UNKNOWN_VERSION = 13
    PACKET_TYPE = 14
    CONNECTION_ID = 15
    UNKNOWN_CONNECTION = 16
    INITIAL_TOO_SMALL = 17
    SOURCE_RATE = 18
    TOTAL_RATE = 19

    @property
    def passed(self) -> bool:
        """Whether userspace gets the packet."""
        return self < FIRST_DROP


FIRST_DROP = 8
"""Reasons from here on are drops."""


class Total(IntEnum):
    """What is limited over all sources."""

    INITIALS = 0
    VERSIONS = 1


SETTINGS = Layout(
    "zg_edge_settings",
    (
        ("source_interval_ns", "Q"),
        ("source_tolerance_ns", "Q"),
        ("total_interval_ns", "Q"),
        ("total_tolerance_ns", "Q"),
        ("version_interval_ns", "Q"),
        ("version_tolerance_ns", "Q"),
        ("owner_factor", "Q"),
        ("owner_offset", "Q"),
        ("owners", "I"),
        ("port", "H"),
        ("zero", "2x"),
    ),
)
ADDRESS = Layout("zg_edge_address", (("family", "I"), ("word", "16s")))
SOURCE = Layout("zg_edge_source", (("family", "I"), ("prefix", "8s")))
PREFIX4 = Layout("zg_edge_prefix4", (("bits", "I"), ("word", "4s")))
PREFIX6 = Layout("zg_edge_prefix6", (("bits", "I"), ("word", "16s")))

LAYOUTS = (SETTINGS, ADDRESS, SOURCE, PREFIX4, PREFIX6)
"""All structs of ``edge_tables.h``."""


def constants() -> Iterator[tuple[str, int]]:
    """Names in C, and what Python takes them for."""
    yield from ((f"ZG_EDGE_{reason.name}", reason) for reason in EdgeReason)
    yield from (
        ("ZG_EDGE_FIRST_DROP", FIRST_DROP),
        ("ZG_EDGE_REASONS", REASONS),
        ("ZG_EDGE_VERSION_1", VERSION_1),
        ("ZG_EDGE_VERSION_2", VERSION_2),
        ("ZG_EDGE_CONNECTION_ID_BYTES", CONNECTION_ID_BYTES),
        ("ZG_EDGE_TOTAL_INITIALS", Total.INITIALS),
        ("ZG_EDGE_TOTAL_VERSIONS", Total.VERSIONS),
        ("ZG_EDGE_TOTALS", len(Total)),
    )


def assertions() -> str:
    """C text that compiles only where C and Python agree."""
    lines = []
    for layout in LAYOUTS:
        tag = f"struct {layout.name}"
        lines.append(f'_Static_assert(sizeof({tag}) == {layout.size_bytes}, "{tag}");')
        lines += [
            f'_Static_assert(__builtin_offsetof({tag}, {member}) == {offset}, "{tag}: {member}");'
            for member, offset in layout.offsets()
        ]
    lines += [f'_Static_assert({name} == {int(value)}u, "{name}");' for name, value in constants()]
    return "\n".join(lines) + "\n"
