"""The daemon as its administrators see it (`zgate_gateway.api.facade.GatewayFacade`).

Thin: each answer is a snapshot of what the daemon's parts hold.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from zgate_config import ConfigError
from zgate_control.store import StoreError

from zgate_gateway.api import schemas
from zgate_gateway.api.facade import (
    NotDrained,
    NotReady,
    OperationFailed,
    PolicyConflict,
    PolicyRefused,
    UnknownClient,
    UnknownConnector,
    UnknownPolicy,
)
from zgate_gateway.api.policy_report import (
    action_of,
    check_text,
    diff_text,
    limits_in,
    rights_in,
    warnings_among,
)
from zgate_gateway.drain import gateway_drain_in
from zgate_gateway.flows import open_flows
from zgate_gateway.kernel import KernelError
from zgate_gateway.log_level import log_level_in
from zgate_gateway.metrics.snapshot import MetricsSnapshot
from zgate_gateway.metrics.source import MetricsSource, drops_of, refused_of
from zgate_gateway.policy.rules import Rule
from zgate_gateway.policy_file import PolicyFileError
from zgate_gateway.policy_keeper import PolicyMoved, PolicyNotWritten, UnknownRevision
from zgate_gateway.readiness import CHECKS, Readiness
from zgate_gateway.services.report import (
    connectors_in,
    drain_in,
    services_in,
    services_up,
)
from zgate_gateway.session_list import SessionLists, counters_in
from zgate_gateway.why import why

if TYPE_CHECKING:
    from zgate_gateway.daemon import Gateway

_HISTORY = "zgatectl policy history lists those that there are"


class Administration:
    """Implements the facade on a running gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._sessions = SessionLists(gateway)
        self._readiness = Readiness(gateway)
        self._metrics = MetricsSource(gateway, self._readiness)

    # Reading.

    @property
    def state(self) -> schemas.GatewayState:
        """See `GatewayFacade.state`."""
        return schemas.GatewayState(self._gateway.state)

    async def readiness(self) -> schemas.Probe:
        """See `GatewayFacade.readiness`."""
        objections = await self._readiness.objections()
        return schemas.Probe(
            ok=not objections,
            state=self.state,
            because=list(objections.values()),
            checks={name: name not in objections for name in CHECKS},
        )

    async def metrics(self) -> MetricsSnapshot:
        """See `GatewayFacade.metrics`."""
        try:
            return await self._metrics.take()
        except OSError as error:
            raise OperationFailed(
                f"the kernel's tables: {error.strerror}", "see the gateway's log"
            ) from error

    async def refresh(self) -> None:
        """See `GatewayFacade.refresh`."""
        await self._gateway.crew.refresh({})

    def status(self) -> schemas.Status:
        """See `GatewayFacade.status`."""
        gateway = self._gateway
        programs = gateway.kernel.programs
        held = self._sessions_by_worker()
        return schemas.Status(
            version=gateway.version,
            state=schemas.GatewayState(gateway.state),
            not_ready_because=self._not_ready(),
            drain=gateway_drain_in(gateway.drain),
            started_at=gateway.started_at,
            uptime_s=time.monotonic() - gateway.started_s,
            pid=os.getpid(),
            listen=[gateway.local_address],
            engine=gateway.engine_name,
            workers=[
                schemas.Worker(
                    worker=one.index,
                    pid=one.pid,
                    sessions=held[one.index],
                    restarts=one.restarts,
                    misdirected_packets=one.counters.get("misdirected_packets", 0),
                )
                for one in gateway.crew.states()
            ],
            tun_name=gateway.config.tun.name,
            tun_mtu_bytes=gateway.config.tun.mtu_bytes,
            sessions=len(gateway.sessions.by_client),
            sessions_max=gateway.config.sessions.max,
            sessions_total=gateway.sessions.established_total,
            sessions_refused=refused_of(gateway),
            services=len(gateway.services.directory),
            services_up=services_up(gateway.services.connectors),
            connectors=len(gateway.services.connectors.by_session),
            networks=len(gateway.services.routes.routes),
            pools=[
                schemas.PoolUse(
                    family=pool.family,
                    network=str(pool.network),
                    gateway=str(pool.gateway),
                    capacity=pool.capacity,
                    leased=pool.leased,
                    connected=pool.connected,
                )
                for pool in gateway.pools
            ],
            policy=self._policy_summary(),
            alerts=[
                schemas.Alert(name=problem.name, text=problem.text, since=problem.since)
                for problem in gateway.problems.active()
            ],
            kernel_maps={
                name: schemas.MapUse(used=use.used, size=use.capacity)
                for name, use in programs.map_usage(gateway.alerts.usage).items()
            },
            kernel_events=schemas.EventState(
                received=gateway.journal.events_received,
                lost=programs.lost_events(),
                suppressed=programs.suppressed_events(),
            ),
            drops=drops_of(gateway),
            audit=schemas.AuditState(
                path=str(gateway.audit.path),
                written=gateway.audit.written,
                lost=gateway.audit.lost,
                last_error=gateway.audit.last_error,
            ),
            edge=self._edge(),
            dns=schemas.DnsState(
                domain=gateway.services.domain,
                problem=gateway.dns.problem,
                queries=dict(gateway.dns.counters),
            ),
        )

    def _edge(self) -> schemas.EdgeState:
        gateway = self._gateway
        state = gateway.edge.state()
        return schemas.EdgeState(
            mode=state.mode,
            interface=state.interface,
            note=state.note,
            passed={one.name: n for one, n in state.packets.items() if one.passed},
            dropped={one.name: n for one, n in state.packets.items() if not one.passed},
            blocked=state.blocked,
            blocklist_problem=state.blocklist_problem,
            retry_active=gateway.crew.retry_active,
        )

    def _not_ready(self) -> list[str]:
        state = self._gateway.state
        first = [] if state == "ready" else [f"the gateway is {state}"]
        return first + self._gateway.problems.blocking()

    def _sessions_by_worker(self) -> Counter[int]:
        return Counter(one.worker.index for one in self._gateway.sessions.by_id.values())

    def _policy_summary(self) -> schemas.PolicySummary:
        gateway = self._gateway
        policy_set = gateway.kernel.policy_set
        return schemas.PolicySummary(
            revision=gateway.kernel.revision,
            source=str(policy_set.source) if policy_set.source else None,
            sha256=policy_set.sha256,
            loaded_at=gateway.policy.loaded_at,
            default_action=action_of(policy_set.default_action),
            clients=policy_set.client_count,
            groups=policy_set.group_count,
            rules=policy_set.rule_count,
            kernel_policies=gateway.kernel.distinct_policies,
            not_in_force_because=gateway.policy.error,
        )

    async def sessions(self, query: schemas.SessionQuery) -> schemas.SessionList:
        """See `GatewayFacade.sessions`."""
        return await self._sessions.list(query)

    async def ping(self, client: str) -> schemas.Ping:
        """See `GatewayFacade.ping`."""
        return await self._sessions.ping(client)

    def clients(self) -> list[schemas.Client]:
        """See `GatewayFacade.clients`."""
        gateway = self._gateway
        policy_set = gateway.kernel.policy_set
        gateway.journal.write_seen()
        known = {record.name: record for record in gateway.store.clients()}
        addresses: dict[str, list[str]] = {}
        for pool in gateway.pools:
            for lease in pool.leases():
                addresses.setdefault(lease.client, []).append(str(lease.address))
        names = {*known, *addresses, *policy_set.clients, *gateway.sessions.by_client}
        answer = []
        for name in sorted(names):
            session = gateway.sessions.by_client.get(name)
            record = known.get(name)
            groups = session.identity.groups if session else record.groups if record else ()
            answer.append(
                schemas.Client(
                    name=name,
                    groups=list(groups),
                    connected=session is not None,
                    addresses=addresses.get(name, []),
                    in_policy=name in policy_set.clients,
                    rules=len(policy_set.rules_for(name, groups)),
                    limits=limits_in(policy_set.limits_for(name, groups)),
                    created_at=record.created_at if record else None,
                    last_seen_at=record.last_seen_at if record else None,
                    counters=counters_in(gateway.kernel.counters(name)),
                )
            )
        return answer

    def services(self) -> list[schemas.Service]:
        """See `GatewayFacade.services`."""
        desk = self._gateway.services
        return services_in(desk.connectors, desk.domain)

    def connectors(self) -> list[schemas.Connector]:
        """See `GatewayFacade.connectors`."""
        return connectors_in(self._gateway.services.connectors)

    def policy(self) -> schemas.PolicyView:
        """See `GatewayFacade.policy`."""
        policy_set = self._gateway.kernel.policy_set
        now = datetime.now(UTC)
        return schemas.PolicyView(
            summary=self._policy_summary(),
            clients={name: _rules(rules, now) for name, rules in policy_set.clients.items()},
            groups={name: _rules(rules, now) for name, rules in policy_set.groups.items()},
            client_limits={n: limits_in(said) for n, said in policy_set.client_limits.items()},
            group_limits={n: limits_in(said) for n, said in policy_set.group_limits.items()},
            default_limits=limits_in(policy_set.default_limits),
            connectors={n: rights_in(given) for n, given in policy_set.connectors.items()},
            connector_groups={
                name: rights_in(given) for name, given in policy_set.connector_groups.items()
            },
            warnings=self._warnings(),
        )

    def _warnings(self) -> list[schemas.PolicyFinding]:
        policy = self._gateway.policy
        return warnings_among(policy.findings, str(policy.policy_set.source or "policy"))

    async def flows(self, query: schemas.FlowQuery) -> schemas.FlowList:
        """See `GatewayFacade.flows`."""
        gateway = self._gateway
        if query.denied:
            denials = gateway.journal.feed.denials(query.client, query.limit)
            return schemas.FlowList(denials=denials)
        holders = {
            address: session.client
            for session in gateway.sessions.by_client.values()
            for address in session.addresses
        }
        return await open_flows(gateway.kernel.programs, gateway.kernel, holders, query)

    def follow_flows(self, query: schemas.FlowEventQuery) -> AsyncIterator[list[schemas.FlowNews]]:
        """See `GatewayFacade.follow_flows`."""
        return self._gateway.journal.feed.follow(query)

    def why(self, query: schemas.WhyQuery) -> schemas.Why:
        """See `GatewayFacade.why`."""
        return why(self._gateway, query)

    # Changing.

    async def check_policy(self, request: schemas.PolicyCheckRequest) -> schemas.PolicyCheck:
        """See `GatewayFacade.check_policy`."""
        in_force = self._gateway.kernel.policy_set
        return await asyncio.to_thread(
            check_text,
            request.text,
            request.name,
            services=in_force.services,
            pools=in_force.pools,
        )

    async def diff_policy(self, request: schemas.PolicyDiffRequest) -> schemas.PolicyDiff:
        """See `GatewayFacade.diff_policy`."""
        return await asyncio.to_thread(self._diff, request)

    def _diff(self, request: schemas.PolicyDiffRequest) -> schemas.PolicyDiff:
        kernel, policy = self._gateway.kernel, self._gateway.policy
        revision, before = kernel.revision, kernel.policy_set
        known = {record.name: record.groups for record in self._gateway.store.clients()}
        if request.revision is None:
            return diff_text(before, revision, known, request.text or "", request.name)
        try:
            text = policy.text_of(request.revision)
        except UnknownRevision as error:
            raise UnknownPolicy(str(error), _HISTORY) from error
        return diff_text(before, revision, known, text, f"revision {request.revision}")

    async def reload_policy(self) -> schemas.PolicyReload:
        """See `GatewayFacade.reload_policy`."""
        cure = "revision {} stays in force; correct the file and reload"
        return await self._change(self._gateway.policy.reload, cure)

    async def apply_policy(self, request: schemas.PolicyApplyRequest) -> schemas.PolicyReload:
        """See `GatewayFacade.apply_policy`."""

        def apply() -> Awaitable[bool]:
            text = request.text.encode("utf-8", "surrogatepass")  # refused where it is parsed
            return self._gateway.policy.apply(text, expected=request.expected_revision)

        return await self._change(apply, "revision {} stays in force")

    async def rollback_policy(self, request: schemas.PolicyRollbackRequest) -> schemas.PolicyReload:
        """See `GatewayFacade.rollback_policy`."""

        def rollback() -> Awaitable[bool]:
            return self._gateway.policy.rollback(
                request.revision, expected=request.expected_revision
            )

        return await self._change(rollback, "revision {} stays in force")

    async def _change(
        self, change: Callable[[], Awaitable[bool]], cure: str
    ) -> schemas.PolicyReload:
        previous = self._gateway.kernel.revision
        stays = cure.format(previous)
        began_s = time.monotonic()
        try:
            changed = await change()
        except ConfigError as error:
            raise PolicyRefused(str(error), stays) from error
        except PolicyMoved as error:
            raise PolicyConflict(str(error), "look at the difference again") from error
        except UnknownRevision as error:
            raise UnknownPolicy(str(error), _HISTORY) from error
        except PolicyNotWritten as error:
            raise OperationFailed(str(error), "make it writable, and apply again") from error
        except (KernelError, StoreError, PolicyFileError) as error:
            raise OperationFailed(str(error), stays) from error
        return schemas.PolicyReload(
            previous_revision=previous,
            summary=self._policy_summary(),
            changed=changed,
            duration_ms=(time.monotonic() - began_s) * 1000,
            warnings=self._warnings(),
        )

    async def policy_history(self, limit: int) -> schemas.PolicyHistory:
        """See `GatewayFacade.policy_history`."""
        in_force = self._gateway.kernel.revision
        found = await asyncio.to_thread(self._gateway.policy.history, limit)
        return schemas.PolicyHistory(
            revisions=[
                schemas.PolicyRevision(
                    revision=one.revision,
                    loaded_at=one.loaded_at,
                    sha256=one.sha256 or None,
                    origin=one.origin,
                    source=one.source,
                    clients=one.clients,
                    groups=one.groups,
                    rules=one.rules,
                    in_force=one.revision == in_force,
                    has_text=has_text,
                )
                for one, has_text in found
            ]
        )

    def log_level(self) -> schemas.LogLevelState:
        """See `GatewayFacade.log_level`."""
        return log_level_in(self._gateway.log_level)

    def set_log_level(self, request: schemas.LogLevelRequest) -> schemas.LogLevelState:
        """See `GatewayFacade.set_log_level`."""
        self._gateway.log_level.set(str(request.level), request.for_s)
        return self.log_level()

    async def drain_gateway(self, request: schemas.GatewayDrainRequest) -> schemas.GatewayDrain:
        """See `GatewayFacade.drain_gateway`."""
        gateway = self._gateway
        if gateway.state not in ("ready", "draining"):
            raise NotReady(f"the gateway is {gateway.state}", "wait until it has started")
        if not request.undo:
            gateway.drain.begin(request.deadline_s)
        elif not gateway.drain.undo():
            raise NotDrained("the gateway is not drained", "zgatectl status says so")
        return schemas.GatewayDrain(drain=gateway_drain_in(gateway.drain))

    async def drain(self, connector: str, request: schemas.DrainRequest) -> schemas.Drain:
        """See `GatewayFacade.drain`."""
        connectors = self._gateway.services.connectors
        if connector not in connectors.drains and connectors.named(connector) is None:
            raise UnknownConnector(
                f"{connector} offers nothing, and is not drained",
                "zgatectl connectors lists those that do",
            )
        if not request.undo:
            connectors.drain(connector, request.deadline_s)
        elif not connectors.undrain(connector):
            raise UnknownConnector(
                f"{connector} is not drained", "zgatectl connectors says who is drained"
            )
        return drain_in(connectors, connector)

    async def kick(self, client: str, reason: str) -> schemas.Kick:
        """See `GatewayFacade.kick`."""
        gateway = self._gateway
        session = gateway.sessions.by_client.get(client)
        if session is None:
            raise UnknownClient(
                f"{client} has no session", "zgatectl sessions lists those that are up"
            )
        gateway.sessions.close(session, f"kicked: {reason}" if reason else "kicked")
        gateway.audit.client_kicked(client=client, sessions=1, reason=reason)
        return schemas.Kick(
            client=client, sessions_closed=1, addresses=[str(a) for a in session.addresses]
        )


def _rules(rules: tuple[Rule, ...], now: datetime) -> list[schemas.RuleView]:
    return [
        schemas.RuleView(
            rule_id=rule.id,
            action=action_of(rule.action),
            kind=str(rule.type),
            destinations=[str(network) for network in rule.destinations],
            services=list(rule.service_names),
            protocols=list(rule.protocols),
            ports=list(rule.ports),
            icmp_types=list(rule.icmp_types),
            not_before=rule.not_before,
            expires_at=rule.expires_at,
            holds=rule.holds(now),
            line=rule.line,
        )
        for rule in rules
    ]
