"""What kind of address translation is on the way, as far as it can be told (RFC 4787 section 4).

A gateway says which address and port it sees us at. One gateway address tells whether there is
a NAT and whether ports stay what they are. Whether the mapping depends on the destination takes a
second address that the same port is used towards: of a second gateway, or of one that has two.
What comes in unasked (filtering) cannot be told from inside at all without help from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from zgate_cli.answers import Finding
from zgate_cli.findings import ok, skip, warn

_TITLE = "nat"
_DIRECT = "nothing for the tunnel; direct paths between devices will not come about behind this"


@dataclass(frozen=True, slots=True)
class Observation:
    """One connection: from where, to where, and how the gateway sees us. Host and port each."""

    local: tuple[str, int]
    gateway: tuple[str, int]
    seen: tuple[str, int]


class NatKind(StrEnum):
    """RFC 4787's words."""

    NONE = "none"
    ENDPOINT_INDEPENDENT = "endpoint-independent"
    DEPENDENT = "address- or port-dependent"
    UNKNOWN = "unknown"
    """There is a NAT; its mapping was seen towards one address only."""


def kind_of(seen: Sequence[Observation]) -> NatKind:
    """The mapping behaviour that the observations show."""
    if all(one.local == one.seen for one in seen):
        return NatKind.NONE
    by_local: dict[tuple[str, int], dict[tuple[str, int], tuple[str, int]]] = {}
    for one in seen:
        by_local.setdefault(one.local, {})[one.gateway] = one.seen
    several = [mapped for mapped in by_local.values() if len(mapped) > 1]
    if not several:
        return NatKind.UNKNOWN
    if any(len(set(mapped.values())) > 1 for mapped in several):
        return NatKind.DEPENDENT
    return NatKind.ENDPOINT_INDEPENDENT


def judge_nat(seen: Sequence[Observation]) -> Finding:
    """What the observations of one address family mean."""
    if not seen:
        return skip("nat", _TITLE, "the gateway does not say where it sees us", "upgrade it")
    kind = kind_of(seen)
    outside = sorted({one.seen[0] for one in seen})
    keeps = all(one.local[1] == one.seen[1] for one in seen)
    values: dict[str, str | int | float | bool | None] = {
        "mapping": kind.value,
        "outside_address": outside[0],
        "port_kept": keeps,
        "observations": len(seen),
    }
    if kind is NatKind.NONE:
        return ok("nat", _TITLE, f"none: the gateway sees {outside[0]} itself", **values)
    ports = "ports are kept" if keeps else "ports are changed"
    text = f"seen as {', '.join(outside)}, {ports}; mapping: "
    if kind is NatKind.DEPENDENT:
        text += "another one for each destination (symmetric)"
        return warn("nat", _TITLE, text, _DIRECT, **values)
    if kind is NatKind.ENDPOINT_INDEPENDENT:
        text += "the same for every destination (cone)"
        return ok("nat", _TITLE, text, **values)
    if len(outside) > 1:
        text += "several public addresses for this device"
        return warn("nat", _TITLE, text, _DIRECT, **values)
    text += "one gateway address cannot tell whether it is the same for every destination"
    return ok("nat", _TITLE, text, **values)
