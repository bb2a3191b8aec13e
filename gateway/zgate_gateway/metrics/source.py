"""Asks the running gateway for a snapshot.

The daemon's own numbers are read in its event loop, which is quick. The kernel's are read in a
thread: ten thousand clients are some megabytes. Packets are the workers' matter, and these are only
asked for counters that they have anyway.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from zgate_datapath.tunnel import add_drops
from zgate_protocol.drop_reason import DropReason

from zgate_gateway.metrics.processes import read_process
from zgate_gateway.metrics.snapshot import (
    ClientTraffic,
    DrainLevel,
    MetricsSnapshot,
    PoolLevel,
    ProcessLoad,
    ServiceLevels,
    WorkerLoad,
)
from zgate_gateway.metrics.top import busiest
from zgate_gateway.problems import MAP_PREFIX, NAMES
from zgate_gateway.readiness import CHECKS, Readiness
from zgate_gateway.services.report import levels_of

if TYPE_CHECKING:
    from zgate_gateway.daemon import Gateway


def drops_of(gateway: Gateway) -> dict[str, int]:
    """Packets dropped by the kernel and by the workers, by reason; only what was counted."""
    return _drops_of(gateway, gateway.crew.drops())


def _drops_of(gateway: Gateway, by_workers: Mapping[str, int]) -> dict[str, int]:
    """May run in a thread; what the workers say is asked in the loop."""
    total = {DropReason(reason): n for reason, n in gateway.kernel.programs.drops().items()}
    add_drops(total, ((DropReason[name], n) for name, n in by_workers.items()))
    return {reason.name: count for reason, count in sorted(total.items()) if count}


def refused_of(gateway: Gateway) -> dict[str, int]:
    """Sessions and certificates refused, by reason."""
    return dict(Counter(gateway.sessions.refused) + gateway.crew.certificates_refused())


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the thread needs to know of the moment in which the loop was asked."""

    numbers: Mapping[str, int]
    gone: ClientTraffic
    dropped: Mapping[str, int]
    pids: Mapping[str, tuple[int, float]]


class MetricsSource:
    """One scrape at a time; whoever comes meanwhile waits."""

    def __init__(self, gateway: Gateway, readiness: Readiness) -> None:
        self._gateway = gateway
        self._readiness = readiness
        self._turn = asyncio.Lock()
        self._traffic = ClientTraffic()

    async def take(self) -> MetricsSnapshot:
        """Everything, now. Raises OSError: the kernel's tables cannot be read."""
        async with self._turn:
            gateway = self._gateway
            objections = await self._readiness.objections()
            await gateway.crew.refresh({})
            snapshot = self._own(objections)
            asked = _Asked(
                gateway.kernel.numbers(),
                ClientTraffic(*gateway.kernel.gone),
                gateway.crew.drops(),
                self._pids(),
            )
            return await asyncio.to_thread(self._with_kernel, snapshot, asked)

    # In the event loop.

    def _own(self, objections: Mapping[str, str]) -> MetricsSnapshot:
        gateway = self._gateway
        policy_set = gateway.kernel.policy_set
        edge = gateway.edge.state()
        return MetricsSnapshot(
            version=gateway.version,
            engine_name=gateway.engine_name,
            ready=not objections,
            started_at_s=gateway.started_at.timestamp(),
            uptime_s=time.monotonic() - gateway.started_s,
            checks={name: name not in objections for name in CHECKS},
            drain=_drain_of(gateway),
            sessions=len(gateway.sessions.by_client),
            sessions_max=gateway.config.sessions.max,
            sessions_total=gateway.sessions.established_total,
            sessions_refused=refused_of(gateway),
            reconnects=dict(gateway.sessions.reconnects),
            handshakes=gateway.crew.handshakes(),
            retry_tokens=gateway.crew.retry_tokens(),
            retry_active=gateway.crew.retry_active,
            policy_revision=gateway.kernel.revision,
            policy_rules=policy_set.rule_count,
            policy_loaded_at_s=gateway.policy.loaded_at.timestamp(),
            policy_loads=dict(gateway.policy.loads),
            expiries={name: at.timestamp() for name, at in gateway.certificates.expiries().items()},
            pools={
                f"ipv{pool.family}": PoolLevel(pool.capacity, pool.leased, pool.connected)
                for pool in gateway.pools
            },
            # What was seen last: a scrape does not read the whole flow table.
            kernel_maps={n: (use.used, use.capacity) for n, use in gateway.alerts.usage.items()},
            alerts=self._alerts(),
            audit_written=gateway.audit.written,
            audit_lost=gateway.audit.lost,
            workers=self._workers(),
            edge_mode=edge.mode,
            edge_interface=edge.interface or "",
            edge_packets={
                ("pass" if reason.passed else "drop", reason.name): count
                for reason, count in edge.packets.items()
            },
            dns_up=gateway.dns.problem is None,
            dns_queries=dict(gateway.dns.counters),
            services=self._services(),
        )

    def _alerts(self) -> dict[str, bool]:
        gateway = self._gateway
        names = {*NAMES, *(MAP_PREFIX + name for name in gateway.alerts.usage)}
        return {name: name in gateway.problems for name in sorted(names)}

    def _workers(self) -> dict[int, WorkerLoad]:
        gateway = self._gateway
        held = Counter(one.worker.index for one in gateway.sessions.by_id.values())
        return {
            one.index: WorkerLoad(
                is_up=one.pid is not None,
                sessions=held[one.index],
                restarts=one.restarts,
                counters=one.counters,
            )
            for one in gateway.crew.states()
        }

    def _pids(self) -> dict[str, tuple[int, float]]:
        """Each process, and how late its event loop was."""
        gateway = self._gateway
        now = asyncio.get_running_loop().time()
        workers = {
            f"worker-{one.index}": (one.pid, one.loop_lag_s)
            for one in gateway.crew.states()
            if one.pid is not None
        }
        return {"supervisor": (os.getpid(), gateway.loop_lag.worst_s(now)), **workers}

    def _services(self) -> ServiceLevels:
        levels = levels_of(self._gateway.services.connectors)
        setting = self._gateway.config.metrics.per_client
        flows = busiest(levels.flows, setting, lambda one: one.bytes_up + one.bytes_down)
        return replace(levels, flows=flows)

    # In a thread.

    def _with_kernel(self, snapshot: MetricsSnapshot, asked: _Asked) -> MetricsSnapshot:
        programs = self._gateway.kernel.programs
        setting = self._gateway.config.metrics.per_client
        by_number = programs.counters_of(list(asked.numbers.values()))
        counted = {name: by_number[number] for name, number in asked.numbers.items()}
        clients = busiest(counted, setting, _size)
        return replace(
            snapshot,
            drops=_drops_of(self._gateway, asked.dropped),
            traffic=self._sum(asked.gone, counted),
            clients={name: ClientTraffic(*values) for name, values in clients.items()},
            clients_left_out=len(counted) - len(clients),
            events_lost=programs.lost_events(),
            events_suppressed=programs.suppressed_events(),
            processes=_processes(asked.pids),
        )

    def _sum(self, gone: ClientTraffic, counted: Mapping[str, tuple[int, ...]]) -> ClientTraffic:
        now = map(sum, zip(gone, *counted.values(), strict=True))
        # A client that went while we read may be counted less: a counter must not fall.
        self._traffic = ClientTraffic(*map(max, zip(self._traffic, now, strict=True)))
        return self._traffic


def _size(values: tuple[int, ...]) -> int:
    traffic = ClientTraffic(*values)
    return traffic.up_bytes + traffic.down_bytes


def _processes(pids: Mapping[str, tuple[int, float]]) -> dict[str, ProcessLoad]:
    found = {name: read_process(pid, lag_s) for name, (pid, lag_s) in pids.items()}
    return {name: load for name, load in found.items() if load is not None}


def _drain_of(gateway: Gateway) -> DrainLevel | None:
    drain = gateway.drain
    if drain.state is None:
        return None
    return DrainLevel(drain.state.deadline_at.timestamp(), drain.sessions_left)
