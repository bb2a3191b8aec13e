"""From a compiled policy to the entries of the kernel's tables."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from zgate_bpf import layouts
from zgate_bpf.errors import CapacityError
from zgate_bpf.layouts import NO_LIST
from zgate_bpf.maps import index_key
from zgate_bpf.tables import (
    MAX_LIST_DEPTH,
    MAX_RULES_PER_POLICY,
    CompiledPolicy,
    Destination,
    ServicePrefix,
)

Entry = tuple[bytes, bytes]

_LIST_BITS = 32
_POLICY_BITS = 32
_PROTOCOL_BITS = 8
_PORT_BITS = 16


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a policy lies in the tables of its generation.

    :ivar list_base: its list 0.
    :ivar rule_base: its rule 0.
    """

    policy_id: int
    list_base: int
    rule_base: int


def check_policy(policy: CompiledPolicy) -> None:
    """Refuse what the kernel could not mean.

    Raises:
        ValueError: the policy contradicts itself.
        CapacityError: too many rules, or lists nested too deeply.
    """
    if len(policy.rules) > MAX_RULES_PER_POLICY:
        raise CapacityError("rules of one policy", len(policy.rules), MAX_RULES_PER_POLICY)
    for index, service_list in enumerate(policy.lists):
        seen = set()
        for prefix in service_list.entries:
            _check_prefix(policy, prefix)
            key = (prefix.protocol, prefix.port, prefix.port_bits)
            if key in seen:
                raise ValueError(f"list {index} holds the prefix {key} twice")
            seen.add(key)
    _check_nesting(policy)
    networks = set()
    for destination in policy.destinations:
        if not 0 <= destination.service_list < len(policy.lists):
            raise ValueError(f"{destination.network} has no list {destination.service_list}")
        if destination.network in networks:
            raise ValueError(f"{destination.network} is there twice")
        networks.add(destination.network)


def _check_prefix(policy: CompiledPolicy, prefix: ServicePrefix) -> None:
    if not 0 <= prefix.rule < len(policy.rules):
        raise ValueError(f"{prefix} names a rule that is not there")
    if prefix.protocol is None and prefix.port_bits:
        raise ValueError(f"{prefix} has a port but no protocol")
    if prefix.protocol is not None and not 0 <= prefix.protocol <= 255:
        raise ValueError(f"{prefix}: protocols are 0 to 255")
    if not 0 <= prefix.port_bits <= _PORT_BITS:
        raise ValueError(f"{prefix}: a port has {_PORT_BITS} bits")
    if not 0 <= prefix.port <= 0xFFFF or prefix.port & (0xFFFF >> prefix.port_bits):
        raise ValueError(f"{prefix} has bits behind its prefix")


def _check_nesting(policy: CompiledPolicy) -> None:
    for index in range(len(policy.lists)):
        depth = 0
        at: int | None = index
        while at is not None:
            if not 0 <= at < len(policy.lists):
                raise ValueError(f"list {index} has a parent {at} that is not there")
            depth += 1
            if depth > MAX_LIST_DEPTH:
                raise CapacityError("nested destination prefixes", depth, MAX_LIST_DEPTH)
            at = policy.lists[at].parent


def encode_policy(policy: CompiledPolicy, placement: Placement) -> dict[str, list[Entry]]:
    """The entries of each table, by the table's name."""
    parents = [
        NO_LIST if service_list.parent is None else placement.list_base + service_list.parent
        for service_list in policy.lists
    ]
    four = [d for d in policy.destinations if d.network.version == 4]
    six = [d for d in policy.destinations if d.network.version == 6]
    return {
        "rules": [
            (index_key(placement.rule_base + index), layouts.RULE.pack(action))
            for index, action in enumerate(policy.rules)
        ],
        "lists": [
            (index_key(placement.list_base + index), layouts.SERVICE_LIST.pack(parent))
            for index, parent in enumerate(parents)
        ],
        "services": [
            _service(placement, index, prefix)
            for index, service_list in enumerate(policy.lists)
            for prefix in service_list.entries
        ],
        "destinations4": [_destination(placement, parents, d) for d in four],
        "destinations6": [_destination(placement, parents, d) for d in six],
    }


def _service(placement: Placement, list_index: int, prefix: ServicePrefix) -> Entry:
    bits = _LIST_BITS
    if prefix.protocol is not None:
        bits += _PROTOCOL_BITS + prefix.port_bits
    key = layouts.SERVICE_KEY.pack(
        bits,
        _big_endian(placement.list_base + list_index),
        prefix.protocol or 0,
        struct.pack("!H", prefix.port),
    )
    return key, struct.pack("=I", placement.rule_base + prefix.rule)


def _destination(placement: Placement, parents: list[int], destination: Destination) -> Entry:
    network = destination.network
    layout = layouts.DESTINATION4_KEY if network.version == 4 else layouts.DESTINATION6_KEY
    key = layout.pack(
        _POLICY_BITS + network.prefixlen,
        _big_endian(placement.policy_id),
        network.network_address.packed,
    )
    list_index = destination.service_list
    return key, layouts.DESTINATION.pack(placement.list_base + list_index, parents[list_index])


def _big_endian(number: int) -> bytes:
    return struct.pack("!I", number)
