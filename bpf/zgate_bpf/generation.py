"""One generation of a policy set's tables: filled beside the active one, read back, swapped in.

The program reads one word per packet that says which of two slots is active, and looks
everything else up in that slot's tables. A generation's tables are made new, filled and read
back while no packet can reach them; then they are put into the slot that is not active, and
the word is changed. The tables of the generation before stay in their slot, unreachable,
until the next change takes it.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum

from zgate_bpf import layouts, syscalls
from zgate_bpf.encoding import (
    ALWAYS,
    FOREVER_NS,
    Entry,
    Period,
    Placement,
    check_policy,
    encode_policy,
)
from zgate_bpf.errors import CapacityError, GenerationError
from zgate_bpf.limits import UNLIMITED, ClientLimits
from zgate_bpf.maps import Map, index_key
from zgate_bpf.syscalls import NO_PREALLOC, MapType
from zgate_bpf.tables import CompiledPolicy

SLOTS = 2


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much fits, chosen when the programs are loaded.

    Per generation, summed over its policies: ``max_policies``, ``max_rules``, ``max_lists``,
    ``max_destinations`` (prefixes of both families, and the marks between them),
    ``max_intervals``. Destinations and clients take memory for what is in them (and 16 bytes
    for what could be); everything else for what could be.
    """

    max_clients: int = 65_536
    max_flows: int = 262_144
    max_fragments: int = 8_192
    max_policies: int = 4_096
    max_rules: int = 262_144
    max_lists: int = 262_144
    max_destinations: int = 1_048_576
    max_intervals: int = 1_048_576
    event_buffer_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class TableSpec:
    """How one table of a generation is made."""

    name: str
    kind: MapType
    key_bytes: int
    value_bytes: int
    max_entries: int

    def create(self) -> Map:
        """A new, empty table."""
        flags = NO_PREALLOC if self.kind is MapType.HASH else 0
        return Map(
            self.kind,
            self.name,
            self.key_bytes,
            self.value_bytes,
            self.max_entries,
            flags=flags,
        )


def table_specs(capacity: Capacity) -> tuple[TableSpec, ...]:
    """The tables that every generation has."""
    array = MapType.ARRAY
    key, destination = layouts.DESTINATION_KEY.size_bytes, layouts.DESTINATION.size_bytes

    def indexed(name: str, layout: layouts.Layout, entries: int) -> TableSpec:
        return TableSpec(name, array, 4, layout.size_bytes, entries)

    return (
        indexed("assignments", layouts.ASSIGNMENT, capacity.max_clients),
        # Policies are numbered from 1 on.
        indexed("policies", layouts.POLICY, capacity.max_policies + 1),
        TableSpec("destinations", MapType.HASH, key, destination, capacity.max_destinations),
        indexed("lists", layouts.SERVICE_LIST, capacity.max_lists),
        indexed("intervals", layouts.INTERVAL, capacity.max_intervals),
        indexed("rules", layouts.RULE, capacity.max_rules),
    )


class Slots:
    """The two places for generations: one outer map per table, and the word that chooses."""

    def __init__(self, specs: tuple[TableSpec, ...]) -> None:
        self.specs = specs
        self.active = Map(MapType.ARRAY, "zg_active", 4, layouts.ACTIVE.size_bytes, 1)
        self.outer: dict[str, Map] = {}
        for spec in specs:
            # Only the template's kind matters; arrays must have the same size as well.
            template = spec.create()
            try:
                self.outer[spec.name] = Map(
                    MapType.ARRAY_OF_MAPS, f"zg_{spec.name}", 4, 4, SLOTS, inner_fd=template.fd
                )
            finally:
                template.close()

    def install(self, slot: int, tables: dict[str, Map]) -> None:
        """Put a generation's tables into a slot that is not active.

        The kernel waits after each change until no packet is using the map; in threads these
        waits pass together.
        """
        with ThreadPoolExecutor(len(tables)) as pool:
            list(pool.map(lambda item: self._put(item[0], slot, item[1]), tables.items()))

    def switch(self, slot: int, revision: int, tables: dict[str, Map]) -> None:
        """Make a slot the active one; after this no packet is judged by the other any more."""
        self.active.update(index_key(0), layouts.ACTIVE.pack(revision, slot + 1))
        # Changes nothing but the time: returns when every packet that read the word before
        # has been decided.
        name, table = next(iter(tables.items()))
        self._put(name, slot, table)

    def _put(self, name: str, slot: int, table: Map) -> None:
        self.outer[name].update(index_key(slot), struct.pack("=I", table.fd))

    def new_tables(self) -> dict[str, Map]:
        """The empty tables of a generation, in no slot yet; all or none."""
        tables: dict[str, Map] = {}
        try:
            for spec in self.specs:
                tables[spec.name] = spec.create()
        except OSError:
            for table in tables.values():
                table.close()
            raise
        return tables

    def close(self) -> None:
        """Give all descriptors back."""
        self.active.close()
        for outer in self.outer.values():
            outer.close()


class State(Enum):
    """Where a generation stands."""

    BUILDING = "building"
    VERIFIED = "verified"
    ACTIVE = "active"
    RETIRED = "retired"


class Generation:
    """A policy set under one revision; made by ``KernelPolicy.begin``.

    :ivar revision: its number, in the kernel, in every flow and in every event.
    """

    def __init__(
        self,
        revision: int,
        slot: int,
        slots: Slots,
        capacity: Capacity,
        *,
        on_activate: Callable[[Generation], None],
        on_reassign: Callable[[int], None],
    ) -> None:
        self.revision = revision
        self.slot = slot
        self._slots = slots
        self._capacity = capacity
        self._on_activate = on_activate
        self._on_reassign = on_reassign
        self._state = State.BUILDING
        self._tables = slots.new_tables()
        self._used = dict.fromkeys(self._tables, 0)
        self._policies: list[tuple[CompiledPolicy, Placement, Period]] = []
        self._rule_bases: list[int] = []
        self._assigned: dict[int, tuple[int, ClientLimits]] = {}

    @property
    def state(self) -> State:
        """Where it stands."""
        return self._state

    @property
    def used(self) -> dict[str, int]:
        """Entries in each table."""
        return {**self._used, "assignments": len(self._assigned)}

    def tables(self) -> tuple[Map, ...]:
        """Its tables, for whoever wants to know what they take."""
        return tuple(self._tables.values())

    def add_policy(self, policy: CompiledPolicy, period: Period = ALWAYS) -> int:
        """Load a policy, for clients to be assigned to. Works on the active generation too.

        With a period it holds until that ends, and then the policy that it names, which was
        added before. The kernel changes from one to the other by itself, flows included.

        Returns:
            Its number, from 1 on.

        Raises:
            CapacityError: it does not fit; nothing was changed.
            ValueError: the policy contradicts itself (an index out of range, a prefix twice),
                or its period names no policy, or more follow it than the kernel walks.
            GenerationError: written on the active generation, it did not read back.
            OSError: the kernel refused; this generation can then no longer be verified.
        """
        self._require(State.BUILDING, State.VERIFIED, State.ACTIVE)
        check_policy(policy)
        self._check_period(period)
        placement = Placement(
            policy_id=len(self._policies) + 1,
            list_base=self._used["lists"],
            rule_base=self._used["rules"],
            interval_base=self._used["intervals"],
        )
        entries = encode_policy(policy, placement, period)
        self._check_capacity(entries)
        # Its numbers are spent from here on, even if the kernel takes only half of it.
        self._policies.append((policy, placement, period))
        self._rule_bases.append(placement.rule_base)
        for name, rows in entries.items():
            self._used[name] += len(rows)
        for name, rows in entries.items():
            self._tables[name].update_many(rows)
        if self._state is State.ACTIVE:
            self._check_entries(entries)
        else:
            self._state = State.BUILDING
        return placement.policy_id

    def assign(self, client_index: int, policy_id: int, limits: ClientLimits = UNLIMITED) -> None:
        """Give a client a policy, and limits, which are in force with it.

        On the active generation: if it had another policy, or bandwidth without a limit and
        now with one, its flows end. A change from limit to limit holds for the next packet.

        Raises:
            ValueError: no such policy, or no such client index.
        """
        self._require(State.BUILDING, State.VERIFIED, State.ACTIVE)
        if not 1 <= policy_id <= len(self._policies):
            raise ValueError(f"policy {policy_id} is not in revision {self.revision}")
        if not 0 <= client_index < self._capacity.max_clients:
            raise ValueError(f"client index {client_index} is beyond {self._capacity.max_clients}")
        before = self._assigned.get(client_index)
        self._assigned[client_index] = policy_id, limits
        self._write_assignment(client_index, _assignment(policy_id, limits))
        if self._state is not State.ACTIVE:
            self._state = State.BUILDING
        elif before is not None and _ends_flows(before, (policy_id, limits)):
            self._on_reassign(client_index)

    def unassign(self, client_index: int) -> None:
        """Take a client's policy away: it may do nothing, and its flows end."""
        self._require(State.BUILDING, State.VERIFIED, State.ACTIVE)
        if self._assigned.pop(client_index, None) is None:
            return
        self._write_assignment(client_index, bytes(layouts.ASSIGNMENT.size_bytes))
        if self._state is State.ACTIVE:
            self._on_reassign(client_index)

    def verify(self) -> None:
        """Read everything back from the kernel.

        Raises:
            GenerationError: something is not as it was written; nothing is in force of it.
        """
        self._require(State.BUILDING, State.VERIFIED)
        for policy, placement, period in self._policies:
            self._check_entries(encode_policy(policy, placement, period))
        assignments = (
            (index_key(index), _assignment(policy_id, limits))
            for index, (policy_id, limits) in self._assigned.items()
        )
        self._check_entries({"assignments": assignments})
        self._state = State.VERIFIED

    def activate(self) -> None:
        """Swap this generation in. On return every packet is judged by it.

        Raises:
            GenerationError: it was not verified as it now is.
            OSError: the kernel refused; the one before stays in force.
        """
        self._require(State.VERIFIED)
        self._slots.install(self.slot, self._tables)
        self._slots.switch(self.slot, self.revision, self._tables)
        self._state = State.ACTIVE
        self._on_activate(self)

    def rule_of(self, global_rule_id: int) -> tuple[int, int]:
        """Whose rule a verdict or an event names: policy id, and index in its ``rules``.

        Raises:
            KeyError: this generation has no such rule.
        """
        at = bisect_right(self._rule_bases, global_rule_id) - 1
        # A policy without rules shares its base with the next one; the last of them has it.
        if at >= 0:
            policy, placement, _ = self._policies[at]
            index = global_rule_id - placement.rule_base
            if index < len(policy.rules):
                return placement.policy_id, index
        raise KeyError(f"revision {self.revision} has no rule {global_rule_id}")

    def retire(self) -> None:
        """Let go of the tables; the kernel keeps those that lie in a slot."""
        self._state = State.RETIRED
        for table in self._tables.values():
            table.close()

    def _require(self, *states: State) -> None:
        if self._state not in states:
            raise GenerationError(f"revision {self.revision} is {self._state.value}")

    def _check_period(self, period: Period) -> None:
        if not 0 <= period.next_policy <= len(self._policies):
            raise ValueError(f"policy {period.next_policy} is not in revision {self.revision}")
        if not 0 <= period.until_ns <= FOREVER_NS:
            raise ValueError(f"a policy cannot hold until {period.until_ns} ns")
        walked, at = 1, period.next_policy
        while at:
            walked, at = walked + 1, self._policies[at - 1][2].next_policy
        if walked > layouts.MAX_PERIODS:
            raise ValueError(f"{walked} policies in a row; the kernel walks {layouts.MAX_PERIODS}")

    def _check_capacity(self, entries: dict[str, list[Entry]]) -> None:
        if len(self._policies) >= self._capacity.max_policies:
            raise CapacityError("policies", len(self._policies) + 1, self._capacity.max_policies)
        for name, rows in entries.items():
            needed, capacity = self._used[name] + len(rows), self._tables[name].max_entries
            if needed > capacity:
                raise CapacityError(name, needed, capacity)

    def _check_entries(self, entries: Mapping[str, Iterable[Entry]]) -> None:
        for name, rows in entries.items():
            table = self._tables[name]
            reader = syscalls.MapReader(table.fd, table.key_bytes, table.value_bytes)
            for key, value in rows:
                if reader.lookup(key) != value:
                    raise GenerationError(
                        f"revision {self.revision}: {name} does not read back as written"
                    )

    def _write_assignment(self, client_index: int, value: bytes) -> None:
        self._tables["assignments"].update(index_key(client_index), value)


def _assignment(policy_id: int, limits: ClientLimits) -> bytes:
    return layouts.ASSIGNMENT.pack(
        policy_id, limits.byte_cost, limits.burst_ns, limits.flow_cost_ns
    )


def _ends_flows(before: tuple[int, ClientLimits], now: tuple[int, ClientLimits]) -> bool:
    """Flows know their policy, and whether the kernel has to look for a limit at all."""
    return before[0] != now[0] or (not before[1].byte_cost and now[1].byte_cost > 0)
