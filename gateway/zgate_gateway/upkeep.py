"""What the gateway looks after while it runs, so that it keeps its sessions when the world breaks.

    clients        where they are, for the next life (`zgate_gateway.path_memory`)
    certificates   `zgate_gateway.certificates`
    store          `zgate_gateway.store_keeper`
    directories    `zgate_gateway.state_watch`
    clock          a jump is told and lived through (`zgate_gateway.steady_clock`)
    audit log      followed when it is moved, tried again when it could not be written
    API socket     made anew when somebody has removed it
    parts          DNS, edge, workers, policy file: what they say of themselves becomes a problem

Nothing here stops the gateway (`zgate_gateway.keep_going`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from zgate_control.store import ClientRecord, Memory

from zgate_gateway.net.errors import NetError
from zgate_gateway.state_watch import StateWatch
from zgate_gateway.steady_clock import ACCEPTED_AFTER_S
from zgate_gateway.store_keeper import StoreKeeper

if TYPE_CHECKING:
    from zgate_gateway.daemon import Gateway

_LOOK_INTERVAL_S = 1.0
_AUDIT_INTERVAL_S = 2.0
_NAMES_INTERVAL_S = 2.0

Work = Callable[[], Awaitable[None]]


class Upkeep:
    """See the module's text; for a gateway that is ready."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._problems = gateway.problems
        self._jumped_at = datetime.now(UTC)
        config = gateway.config
        self._state = StateWatch(
            [config.state_dir, gateway.audit.path.parent, config.runtime_dir], self._problems
        )
        self._store = StoreKeeper(
            gateway.store, self._problems, memory=self._memory, mended=self._mended
        )

    @property
    def works(self) -> Mapping[str, Work]:
        """What goes on for ever, by what it does."""

        def every(interval_s: float, look: Work) -> Work:
            return lambda: _again_and_again(look, interval_s)

        return {
            "following the certificates": self._gateway.certificates.keep,
            "looking after the store": self._store.keep,
            "looking at the directories": self._state.keep,
            "looking at clock and parts": every(_LOOK_INTERVAL_S, self._look),
            "looking at the audit log": every(_AUDIT_INTERVAL_S, self._look_at_audit),
            "remembering where clients are": every(_LOOK_INTERVAL_S, self._remember_paths),
            "looking at the API socket": every(_NAMES_INTERVAL_S, self._look_at_names),
        }

    async def _remember_paths(self) -> None:
        gateway = self._gateway
        gateway.path_memory.keep(session.path for session in gateway.sessions.by_id.values())

    # The store.

    def _memory(self) -> Memory:
        gateway = self._gateway
        sessions = list(gateway.sessions.by_client.values())
        now = datetime.now(UTC)
        return Memory(
            leases=[lease for pool in gateway.pools for lease in pool.leases()],
            services=dict(gateway.services.directory.snapshot()),
            clients=[
                ClientRecord(
                    name=one.client,
                    groups=one.identity.groups,
                    certificate_serial=f"{one.identity.serial:040x}",
                    certificate_not_after=one.identity.not_after,
                    created_at=one.established_at,
                    last_seen_at=now,
                )
                for one in sessions
            ],
            policies=gateway.policy.remembered(),
        )

    def _mended(self, memory: Memory) -> None:
        self._gateway.policy.written(revision for revision, _ in memory.policies)

    # The clock, and what the parts say.

    async def _look(self) -> None:
        self._look_at_clock()
        gateway, problems = self._gateway, self._problems
        self._look_at_policy()
        problems.set("dns_down", gateway.dns.problem)
        problems.set("edge_down", gateway.edge.problem)
        down = gateway.crew.not_ready()
        text = ", ".join(f"worker {one.index} (started again {one.restarts} times)" for one in down)
        problems.set(
            "worker_restarting",
            f"{text}: its clients come back to it or to others; the log says why it ended"
            if down
            else None,
        )

    def _look_at_clock(self) -> None:
        gateway = self._gateway
        jump_s = gateway.clock.look()
        if jump_s:
            self._jumped_at = datetime.now(UTC)
            gateway.audit.clock_jumped(seconds=jump_s)
            gateway.certificates.reload()
        by_s = gateway.clock.jumped_by_s
        if not by_s:
            self._problems.end("clock_jumped", "sessions are judged by the wall clock again")
            return
        way = "ahead" if by_s > 0 else "back"
        self._problems.begin(
            "clock_jumped",
            f"the wall clock was set {abs(by_s):.0f} s {way} (now {self._jumped_at:%F %T} UTC); "
            f"sessions that are up are judged by the clock before, for {ACCEPTED_AFTER_S:.0f} s; "
            "correct it if that was a mistake: timedatectl, chronyc tracking",
        )

    def _look_at_policy(self) -> None:
        policy, problems = self._gateway.policy, self._problems
        revision = self._gateway.kernel.revision
        is_missing = policy.error is not None and not policy.path.exists()
        stays = f"revision {revision} stays in force"
        problems.set(
            "policy_missing",
            f"{policy.path} is gone; {stays}, and the next start would have none: put it back, or "
            f"zgatectl policy history and rollback {revision}"
            if is_missing
            else None,
        )
        problems.set(
            "policy_refused",
            f"{policy.error}; {stays}; correct the file: it is read when it changes"
            if policy.error is not None and not is_missing
            else None,
        )

    # What has a name in a file system.

    async def _look_at_audit(self) -> None:
        audit = self._gateway.audit
        await asyncio.to_thread(audit.look)
        text = audit.last_error
        self._problems.set(
            "audit_not_written",
            f"{audit.path}: {text}; {audit.lost} records lost; make room, or make it writable"
            if text is not None
            else None,
        )

    async def _look_at_names(self) -> None:
        gateway = self._gateway
        self._problems.set("api_socket_missing", await gateway.api.look())
        self._problems.set("metrics_port_taken", await gateway.api.look_at_metrics_port())
        with contextlib.suppress(NetError):  # the directory's own problem is told
            await asyncio.to_thread(gateway.network.look_at_state_file)


async def _again_and_again(look: Work, interval_s: float) -> None:
    while True:
        await asyncio.sleep(interval_s)
        await look()
