"""The policy program and its maps: what the gateway calls.

Two programs of type SCHED_CLS are loaded, for the two directions of the TUN. They share all
maps. Everything they need to decide is in the kernel: they go on deciding, by what was last
activated, when this process is stopped, and a program with empty tables passes nothing.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import IPv6Network
from types import TracebackType
from typing import Self, TypeVar

from zgate_protocol.drop_reason import DropReason

from zgate_bpf import layouts, loader, verdict
from zgate_bpf.errors import BpfError, BpfLoadError, CapacityError, GenerationError
from zgate_bpf.events import EventReader, KernelEvent
from zgate_bpf.generation import SLOTS, Capacity, Generation, Slots, State, table_specs
from zgate_bpf.layouts import (
    NO_CLIENT,
    Direction,
    EventKind,
    FlowState,
    IpAddress,
    Statistic,
    pack_address,
    unpack_address,
)
from zgate_bpf.limits import UNLIMITED, ClientLimits
from zgate_bpf.many_counters import sum_many
from zgate_bpf.maps import Map, PerCpuArray, RingBuffer, index_key
from zgate_bpf.services import ServiceTables
from zgate_bpf.syscalls import NO_PREALLOC, MapType
from zgate_bpf.verdict import Verdict

__all__ = [
    "NO_CLIENT",
    "UNLIMITED",
    "BpfError",
    "BpfLoadError",
    "Capacity",
    "CapacityError",
    "ClientCounters",
    "ClientLimits",
    "Direction",
    "EventKind",
    "Flow",
    "FlowState",
    "Generation",
    "GenerationError",
    "KernelEvent",
    "KernelPolicy",
    "MapUsage",
    "State",
    "Verdict",
]

AnyMap = TypeVar("AnyMap", bound=Map)

_ADDRESSES_PER_CLIENT = 2
#: Of no revision, and by no rule.
_NEVER_JUDGED = 0
_MAX_REVISION = 0xFFFFFFFF
# By prefix length; IPv4 addresses lie in front.
_PREFIX_MASKS = [int(IPv6Network((0, bits)).netmask).to_bytes(16) for bits in range(129)]


@dataclass(frozen=True, slots=True)
class ClientCounters:
    """What passed and what did not, for one client.

    Packets are counted as they are on the wire: a super-packet as its segments, and its bytes
    with the headers that each segment repeats. Bytes are those of IP packets. Dropped packets
    are not among the others.
    """

    up_packets: int
    up_bytes: int
    down_packets: int
    down_bytes: int
    up_dropped_packets: int
    down_dropped_packets: int
    flows: int

    @property
    def dropped_packets(self) -> int:
        """Both directions."""
        return self.up_dropped_packets + self.down_dropped_packets


@dataclass(frozen=True, slots=True)
class MapUsage:
    """How full a map is: entries, or for the event buffer bytes."""

    used: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Flow:
    """One allowed flow.

    :ivar client_port: for ICMP echo the identifier, for other ICMP ``type << 8 | code``.
    :ivar seen_ns: CLOCK_MONOTONIC, to within a second.
    :ivar rule: global number in the revision, see ``Generation.rule_of``.
    :ivar offer: of a flow to a service, the offer that it was last given to.
    """

    client_index: int
    client: IpAddress
    remote: IpAddress
    protocol: int
    client_port: int
    remote_port: int
    rule: int
    revision: int
    seen_ns: int
    state: FlowState
    offer: int | None = None


class KernelPolicy:
    """The loaded programs. Nothing is attached by it: ``ingress_fd`` and ``egress_fd`` go to tc.

    :ivar ingress_fd: decides what clients send (read by the kernel from the TUN).
    :ivar egress_fd: decides what is sent to clients.
    :ivar services: what agents reach through connectors.

    ``max_clients`` and ``max_flows`` stand in for those of ``capacity``. Events are limited per
    client and second. A full flow table gives up the flow that was unused for longest; with
    ``evict_flows=False`` it refuses new ones instead.

    Raises:
        BpfLoadError: the programs or their maps cannot be loaded; the text says what to do.
    """

    def __init__(
        self,
        *,
        capacity: Capacity | None = None,
        max_clients: int | None = None,
        max_flows: int | None = None,
        allowed_events_per_s: int = 256,
        denied_events_per_s: int = 32,
        evict_flows: bool = True,
    ) -> None:
        base = capacity or Capacity()
        self.capacity = replace(
            base,
            max_clients=max_clients or base.max_clients,
            max_flows=max_flows or base.max_flows,
        )
        self.active: Generation | None = None
        self._last_revision = 0
        self._pending: Generation | None = None
        self._holders: dict[IpAddress, int] = {}
        self._epoch = 0
        with ExitStack() as undo:
            self._undo = undo
            try:
                self._make_maps(evict_flows)
            except OSError as error:
                raise BpfLoadError(loader.explain_os_error("BPF maps", error)) from error
            self._program_defines = self._defines(allowed_events_per_s, denied_events_per_s)
            self.ingress_fd, self.egress_fd = self._load()
            self._events = EventReader(self._ring.fd)
            undo.callback(self._events.close)
            self._undo = undo.pop_all()

    # Loading.

    def _make_maps(self, evict_flows: bool) -> None:
        """All maps, first of all those without which a packet finds nothing and is dropped."""
        size, fit = layouts, self.capacity
        self._slots = Slots(table_specs(fit))
        self._undo.callback(self._slots.close)
        self._clients = self._keep(
            Map(
                MapType.HASH,
                "zg_clients",
                size.CLIENT_KEY.size_bytes,
                size.CLIENT.size_bytes,
                fit.max_clients * _ADDRESSES_PER_CLIENT,
                flags=NO_PREALLOC,
            )
        )
        self._flows = self._keep(
            Map(
                MapType.LRU_HASH if evict_flows else MapType.HASH,
                "zg_flows",
                size.FLOW_KEY.size_bytes,
                size.FLOW.size_bytes,
                fit.max_flows,
            )
        )
        self._fragments = self._keep(
            Map(
                MapType.LRU_HASH,
                "zg_fragments",
                size.FRAGMENT_KEY.size_bytes,
                size.FRAGMENT.size_bytes,
                fit.max_fragments,
            )
        )
        counters, counter = size.COUNTERS.size_bytes, size.COUNTER.size
        self._counters = self._keep(PerCpuArray("zg_counters", counters, fit.max_clients))
        self._drops = self._keep(PerCpuArray("zg_drops", counter, size.DROP_REASONS))
        self._statistics = self._keep(PerCpuArray("zg_statistics", counter, len(Statistic)))
        self._scratch = self._keep(PerCpuArray("zg_scratch", size.SCRATCH_BYTES, 1))
        self._masks = self._keep(Map(MapType.ARRAY, "zg_masks", 4, 16, len(_PREFIX_MASKS)))
        self._masks.update_many(
            [(index_key(bits), mask) for bits, mask in enumerate(_PREFIX_MASKS)]
        )
        # The last gate is that of unknown clients.
        gate = size.GATE.size_bytes
        self._gates = self._keep(Map(MapType.ARRAY, "zg_gates", 4, gate, fit.max_clients + 1))
        limiter = size.LIMITER.size_bytes
        self._limiters = self._keep(Map(MapType.ARRAY, "zg_limiters", 4, limiter, fit.max_clients))
        self._ring = self._keep(RingBuffer("zg_events", fit.event_buffer_bytes))
        self.services = ServiceTables(fit.max_clients)
        self._undo.callback(self.services.close)

    def _keep(self, table: AnyMap) -> AnyMap:
        self._undo.callback(table.close)
        return table

    def _maps(self) -> Iterator[tuple[str, Map]]:
        """Every map that the program names, by its name there."""
        yield "active", self._slots.active
        yield from self._slots.outer.items()
        yield from (
            ("clients", self._clients),
            ("flows", self._flows),
            ("fragments", self._fragments),
            ("counters", self._counters),
            ("drops", self._drops),
            ("statistics", self._statistics),
            ("gates", self._gates),
            ("limiters", self._limiters),
            ("masks", self._masks),
            ("scratch", self._scratch),
            ("events", self._ring),
        )
        yield from self.services.maps()

    def _defines(self, allowed_events_per_s: int, denied_events_per_s: int) -> dict[str, int]:
        return {
            "ZG_MAX_CLIENTS": self.capacity.max_clients,
            "ZG_ALLOWED_EVENTS_PER_S": allowed_events_per_s,
            "ZG_DENIED_EVENTS_PER_S": denied_events_per_s,
        }

    def _compile(self, program: str, functions: tuple[str, ...]) -> dict[str, bytes]:
        maps = {name: table.fd for name, table in self._maps()}
        return loader.compile_program(program, functions, self._program_defines, maps=maps)

    def _load(self) -> tuple[int, int]:
        names = ("zg_ingress", "zg_egress")
        compiled = self._compile("policy", names)
        # The verifier takes its time with each of them, and holds nothing of Python's meanwhile.
        with ThreadPoolExecutor(len(names)) as threads:
            loads = [
                threads.submit(loader.load_program, compiled[name], name=name) for name in names
            ]
        for load in loads:
            if load.exception() is None:
                self._undo.callback(os.close, load.result())
        return loads[0].result(), loads[1].result()

    def load_beside(self, name: str, functions: tuple[str, ...]) -> dict[str, int]:
        """Load functions of another program over the same maps, to measure parts of this one.

        Gives their descriptors, which are the caller's to close.
        """
        compiled = self._compile(name, functions)
        return {
            function: loader.load_program(compiled[function], name=function)
            for function in functions
        }

    # Policy.

    def begin(self, revision: int) -> Generation:
        """An empty generation beside the active one. One that was begun before is given up.

        Raises:
            ValueError: the revision is not greater than every activated one: flows are known
                by it, and must never be taken for judged when they are not.
            OSError: not enough memory in the kernel.
        """
        if not self._last_revision < revision <= _MAX_REVISION:
            raise ValueError(
                f"revision {revision} must lie above {self._last_revision}, up to {_MAX_REVISION}"
            )
        if self._pending is not None:
            self._pending.retire()
        slot = 0 if self.active is None else (self.active.slot + 1) % SLOTS
        self._pending = Generation(
            revision,
            slot,
            self._slots,
            self.capacity,
            on_activate=self._activated,
            on_reassign=self._end_flows_of,
        )
        return self._pending

    def _activated(self, generation: Generation) -> None:
        if self.active is not None:
            self.active.retire()
        self.active, self._pending = generation, None
        self._last_revision = generation.revision

    # Clients.

    def set_client(self, address: IpAddress, client_index: int) -> None:
        """From now on packets with this address are this client's.

        Flows of whoever held the address before end here.

        Raises:
            CapacityError: the table of addresses is full.
            ValueError: the index is beyond ``max_clients``.
        """
        if not 0 <= client_index < self.capacity.max_clients:
            raise ValueError(f"client index {client_index} is beyond {self.capacity.max_clients}")
        self._write_client(address, client_index)
        self._holders[address] = client_index

    def remove_client(self, address: IpAddress) -> None:
        """From now on packets with this address are nobody's. Its flows end with it.

        A flow belongs to an address and the epoch in which it was given, so nothing has to be
        searched: none of them counts for whoever gets the address next.
        """
        self._clients.delete(_client_key(address))
        self._holders.pop(address, None)

    def _write_client(self, address: IpAddress, client_index: int) -> None:
        self._epoch += 1
        value = layouts.CLIENT.pack(client_index, self._epoch & 0xFFFFFFFF)
        self._clients.update(_client_key(address), value)

    def _end_flows_of(self, client_index: int) -> None:
        for address, holder in self._holders.items():
            if holder == client_index:
                self._write_client(address, client_index)

    def counters(self, client_index: int) -> ClientCounters:
        """What was counted for a client since the last reset."""
        per_cpu = map(layouts.COUNTERS.unpack, self._counters.per_cpu(client_index))
        return ClientCounters(*(sum(values) for values in zip(*per_cpu, strict=True)))

    def counters_of(self, client_indices: Sequence[int]) -> dict[int, tuple[int, ...]]:
        """The same of many clients at once, as plain fields of `ClientCounters`.

        May run in a thread.
        """
        return sum_many(self._counters, client_indices)

    def reset_counters(self, client_index: int) -> None:
        """Count from zero again: before an index is given to another client."""
        self._counters.clear(client_index)
        self._gates.update(index_key(client_index), bytes(layouts.GATE.size_bytes))
        self._events.forget_client(client_index)

    # What can be looked at.

    def drops(self) -> dict[DropReason, int]:
        """Packets dropped, by reason, since loading."""
        return {
            reason: _sum(self._drops, reason)
            for reason in DropReason
            if 0 < reason < layouts.FIRST_USERSPACE_REASON
        }

    def lost_events(self) -> int:
        """Events for which the ring buffer had no room."""
        return _sum(self._statistics, Statistic.EVENTS_LOST)

    def suppressed_events(self, client_index: int | None = None) -> int:
        """Events left out because there were too many: of one client, or of all since loading."""
        if client_index is None:
            return _sum(self._statistics, Statistic.EVENTS_SUPPRESSED)
        gate = min(client_index, self.capacity.max_clients)
        value = self._gates.lookup(index_key(gate))
        return sum(layouts.GATE.unpack(value)[-2:]) if value is not None else 0

    def map_usage(self, known: Mapping[str, MapUsage] | None = None) -> dict[str, MapUsage]:
        """How full every map is that can be full. Reads the flow table through: not per packet.

        ``known`` is an earlier answer; what would have to be read through is taken from it, which
        is then quick enough for an event loop.

        The flow table keeps flows that have ended until it needs their place. ``events`` are
        bytes. What has a place for each client is used by those that have an address. Left out
        are ``active``, ``drops``, ``statistics``, ``masks`` and ``scratch``: nothing is ever added.
        """
        fit = self.capacity
        if known and "flows" in known and "fragments" in known:
            flows, fragments = known["flows"], known["fragments"]
        else:
            flows = MapUsage(self._flows.count(), fit.max_flows)
            fragments = MapUsage(self._fragments.count(), fit.max_fragments)
        present = MapUsage(len(set(self._holders.values())), fit.max_clients)
        usage = {
            "clients": MapUsage(len(self._holders), fit.max_clients * _ADDRESSES_PER_CLIENT),
            "flows": flows,
            "fragments": fragments,
            "counters": present,
            "gates": present,
            "limiters": present,
            "events": MapUsage(self._ring.used_bytes(), fit.event_buffer_bytes),
        }
        for name, used_entries, capacity in self.services.usage():
            usage[name] = MapUsage(used_entries, capacity)
        used = self.active.used if self.active is not None else {}
        for spec in self._slots.specs:
            usage[spec.name] = MapUsage(used.get(spec.name, 0), spec.max_entries)
        return usage

    def client_tables(self) -> tuple[Map, ...]:
        """The tables that have a place for every client."""
        tables = self.active.tables() if self.active is not None else ()
        assignments = (table for table in tables if table.name == "assignments")
        return (self._clients, self._counters, self._gates, self._limiters, *assignments)

    def flows(self) -> Iterator[Flow]:
        """The flows of present clients, idle ones too."""
        epochs = dict(self._client_epochs())
        for key, value in self._flows.items():
            family, protocol, client_port, remote_port, client, remote = layouts.FLOW_KEY.unpack(
                key
            )
            seen_ns, judged, _, epoch, client_index, _, state, _, backend = layouts.FLOW.unpack(
                value
            )
            if epochs.get((family, client)) != (client_index, epoch):
                continue
            yield Flow(
                client_index=client_index,
                client=unpack_address(family, client),
                remote=unpack_address(family, remote),
                protocol=protocol,
                client_port=client_port,
                remote_port=remote_port,
                rule=judged >> 32,
                revision=judged & 0xFFFFFFFF,
                seen_ns=seen_ns,
                state=FlowState(state),
                offer=backend - 1 if backend else None,
            )

    def restore_flow(
        self, client: IpAddress, remote: IpAddress, protocol: int, ports: tuple[int, int]
    ) -> bool:
        """Know a flow that was allowed before; False if it is known, or there is no such client.

        ``ports`` are the client's and the remote's, of TCP or UDP. It passes nothing by itself: the
        first packet of it, either way, is judged by the policy in force, as if that were new.

        Raises:
            OSError: the table is full of newer ones, or the kernel refused.
        """
        found = self._clients.lookup(_client_key(client))
        if found is None:
            return False
        index, epoch = layouts.CLIENT.unpack(found)
        key = layouts.FLOW_KEY.pack(
            client.version, protocol, *ports, pack_address(client), pack_address(remote)
        )
        present = self._flows.lookup(key)
        if present is not None:
            _, _, _, its_epoch, *_ = layouts.FLOW.unpack(present)
            if its_epoch == epoch:
                return False  # opened since: its verdict, and the offer that it goes by, stay
        flow = layouts.FLOW.pack(
            time.clock_gettime_ns(time.CLOCK_MONOTONIC),
            _NEVER_JUDGED,
            0,
            epoch,
            index,
            ports[1],
            FlowState.ANSWERED,
            0,
            0,
        )
        self._flows.update(key, flow)
        return True

    def _client_epochs(self) -> Iterator[tuple[tuple[int, bytes], tuple[int, int]]]:
        for key, value in self._clients.items():
            family, address = layouts.CLIENT_KEY.unpack(key)
            index, epoch = layouts.CLIENT.unpack(value)
            yield (family, address), (index, epoch)

    # Events.

    @property
    def event_fd(self) -> int:
        """Readable (epoll, not select) while events wait; then call :meth:`poll_events`."""
        return self._ring.fd

    def poll_events(self, handle: Callable[[KernelEvent], None]) -> int:
        """Hand out every event that waits, without waiting; gives their number."""
        return self._events.poll(handle)

    # Asking.

    def evaluate(self, packet: bytes, direction: Direction) -> Verdict:
        """What the loaded program would say of this packet now.

        It leaves no trace: no flow, no counter, no event. (The flow table's order of eviction
        knows that an entry was looked at.)

        Raises:
            ValueError: the kernel runs no test on a packet of this size.
        """
        return verdict.run_packet(self._program(direction), packet, dry_run=True)

    def run(
        self,
        packet: bytes,
        direction: Direction,
        *,
        repeat: int = 1,
        gso_segs: int = 0,
        gso_size: int = 0,
        ethertype: int | None = None,
    ) -> Verdict:
        """Run the program as for a real packet: flows, counters and events included.

        For tests and measurements. ``repeat`` gives the mean duration of that many runs.
        """
        return verdict.run_packet(
            self._program(direction),
            packet,
            dry_run=False,
            repeat=repeat,
            gso_segs=gso_segs,
            gso_size=gso_size,
            ethertype=ethertype,
        )

    def _program(self, direction: Direction) -> int:
        return self.ingress_fd if direction is Direction.UP else self.egress_fd

    # The end.

    def close(self) -> None:
        """Give everything back. Programs that tc still holds stay, and go on deciding."""
        for generation in (self._pending, self.active):
            if generation is not None:
                generation.retire()
        self._pending = self.active = None
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _client_key(address: IpAddress) -> bytes:
    return layouts.CLIENT_KEY.pack(address.version, pack_address(address))


def _sum(table: PerCpuArray, index: int) -> int:
    return sum(struct.unpack("=Q", value)[0] for value in table.per_cpu(index))
