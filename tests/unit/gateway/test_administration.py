"""The daemon as its administrators see it: real parts, but for the kernel, sessions and port."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from zgate_bpf.encoding import ALWAYS, Period
from zgate_bpf.kernel_policy import NO_CLIENT, ClientCounters, MapUsage, Verdict
from zgate_bpf.limits import UNLIMITED, ClientLimits
from zgate_bpf.tables import NO_RULE, CompiledPolicy
from zgate_control.store import ClientRecord, Store, StoreError
from zgate_gateway.administration import Administration
from zgate_gateway.alerts import MapAlerts
from zgate_gateway.api import schemas
from zgate_gateway.api.facade import (
    OperationFailed,
    PolicyConflict,
    PolicyRefused,
    UnknownClient,
    UnknownPolicy,
)
from zgate_gateway.audit import AuditLog
from zgate_gateway.drain import DrainState
from zgate_gateway.edge import EdgeState
from zgate_gateway.flows import FlowFeed
from zgate_gateway.kernel import Kernel
from zgate_gateway.loop_lag import LoopLag
from zgate_gateway.metrics.snapshot import DrainLevel
from zgate_gateway.net.errors import NetError
from zgate_gateway.policy.lookup import Tables
from zgate_gateway.policy_keeper import PolicyKeeper
from zgate_gateway.pool import AddressPool
from zgate_gateway.problems import Problems
from zgate_gateway.worker.crew import WorkerState
from zgate_gateway.worker.messages import SessionReport
from zgate_protocol.drop_reason import DropReason

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)
OFFICE = ip_address("10.20.0.5")
A4 = ip_address("10.100.0.2")
TCP, ICMP = 6, 1


def stamp(hours: int) -> str:
    return (NOW + hours * HOUR).isoformat()


POLICY = f"""\
version: "1.0"
default_limits: {{new_flows_per_s: 500}}
clients:
  alice:
    limits: {{bandwidth_mbit: 50}}
    rules:
      - {{id: over, type: ip_cidr, action: deny, destinations: [10.20.0.5], ports: [443],
         expires_at: "{stamp(-1)}"}}
      - {{id: web, type: ip_cidr, action: allow, destinations: [10.20.0.5], ports: [443],
         expires_at: "{stamp(1)}"}}
      - {{id: later, type: ip_cidr, action: allow, destinations: [10.20.0.5], ports: [443],
         not_before: "{stamp(2)}"}}
groups:
  staff:
    limits: {{bandwidth_mbit: 10}}
    rules:
      - {{id: ping, type: ip_cidr, action: allow, destinations: [10.20.0.0/16],
         icmp_types: [echo-request]}}
"""


class FakeGeneration:
    """Numbers rules as they come, and judges by what holds now."""

    def __init__(self, revision: int) -> None:
        self.revision = revision
        self.policies: list[tuple[CompiledPolicy, Period]] = []
        self.assigned: dict[int, int] = {}

    def add_policy(self, policy: CompiledPolicy, period: Period = ALWAYS) -> int:
        self.policies.append((policy, period))
        return len(self.policies)

    def assign(self, client: int, policy_id: int, limits: ClientLimits = UNLIMITED) -> None:
        self.assigned[client] = policy_id

    def unassign(self, client: int) -> None:
        self.assigned.pop(client, None)

    def verify(self) -> None:
        pass

    def activate(self) -> None:
        pass

    def rule_of(self, global_rule: int) -> tuple[int, int]:
        return divmod(global_rule, 100)


class FakePrograms:
    """`KernelPolicy` as far as it is asked. ``mistake`` makes it judge otherwise."""

    def __init__(self) -> None:
        self.generations: list[FakeGeneration] = []
        self.mistake = False
        self.no_offer = False
        self.fails: OSError | None = None
        self.counted = ClientCounters(1, 100, 2, 200, 3, 4, 5)

    def begin(self, revision: int) -> FakeGeneration:
        self.generations.append(FakeGeneration(revision))
        return self.generations[-1]

    def set_client(self, *_: object) -> None:
        pass

    def remove_client(self, *_: object) -> None:
        pass

    def reset_counters(self, *_: object) -> None:
        pass

    def counters(self, _: int) -> ClientCounters:
        return self.counted

    def counters_of(self, indices: list[int]) -> dict[int, tuple[int, ...]]:
        return {index: astuple(self.counters(index)) for index in indices}

    def drops(self) -> dict[DropReason, int]:
        return {DropReason.POLICY_RULE: 2, DropReason.RATE_LIMITED: 7}

    def lost_events(self) -> int:
        return 1

    def suppressed_events(self) -> int:
        return 2

    def map_usage(self, _known: object = None) -> dict[str, MapUsage]:
        return {"flows": MapUsage(95, 100)}

    def flows(self) -> list[Any]:
        return []

    def evaluate(self, packet: bytes, _: object) -> Verdict:
        if self.fails is not None:
            raise self.fails
        generation = self.generations[-1]
        policy_id = generation.assigned[0]
        policy, _period = generation.policies[policy_id - 1]
        service = 443 if packet[9] == TCP else 8 << 8
        index = Tables(policy).rule(ip_address(packet[16:20]), packet[9], service)
        passed = (index is not None and bool(policy.rules[index])) is not self.mistake
        return Verdict(
            passed=passed,
            reason=DropReason.NONE if passed else DropReason.POLICY_DEFAULT,
            client_index=NO_CLIENT,
            rule=NO_RULE if index is None else policy_id * 100 + index,
            revision=generation.revision,
            known_flow=False,
            related=False,
            new_flow=True,
            judged=True,
            mark=0,
            duration_ns=1,
            no_offer=self.no_offer,
        )


class FakeCrew:
    """Two workers, one of which is being started again."""

    retry_active = True

    def __init__(self) -> None:
        self.refreshed = 0

    async def refresh(self, only: object = None) -> None:
        self.refreshed += only != {}

    def states(self) -> list[WorkerState]:
        counters = {"unknown_packets": 6, "misdirected_packets": 0}
        return [WorkerState(0, None, 3, counters), WorkerState(1, 4243, 0, counters, 0.5)]

    def session(self, session_id: str, worker: int) -> SessionReport | None:
        if (session_id, worker) != ("s1", 1) or not self.refreshed:
            return None
        return SessionReport("s1", 0.02, 1400, 999.0, {"TOO_BIG": 1})

    def drops(self) -> Counter[str]:
        return Counter({"TOO_BIG": 5})

    def certificates_refused(self) -> Counter[str]:
        return Counter({"expired": 2})

    def handshakes(self) -> Counter[str]:
        return Counter({"completed": 9})

    def retry_tokens(self) -> Counter[str]:
        return Counter({"issued": 8})


class World:
    """A gateway that is none of a daemon's, and its administration."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "policy.yaml"
        self.file.write_text(POLICY)
        self.programs = FakePrograms()
        self.store = Store(folder / "zgate.db")
        self.audit = AuditLog(folder / "audit.jsonl")
        self.kernel = Kernel(self.programs, max_clients=4)  # type: ignore[arg-type]
        self.policy = PolicyKeeper(policy_file=self.file, state_dir=folder)
        self.policy.start(store=self.store, kernel=self.kernel, audit=self.audit)
        self.closed: list[tuple[str, str]] = []
        self.detached = ""
        self.problems = Problems()
        self.alerts = MapAlerts(self.programs.map_usage, self.problems)
        self.pool = AddressPool(IPv4Network("10.100.0.0/16"), self.store)
        gateway: Any = SimpleNamespace(
            version="1.2.3",
            engine_name="python",
            state="ready",
            started_at=NOW,
            started_s=time.monotonic() - 60,
            loop_lag=LoopLag(),
            drain=SimpleNamespace(state=None, sessions_left=0),
            network=SimpleNamespace(verify_programs=self._verify_programs),
            certificates=SimpleNamespace(expiries=lambda: {"gateway": NOW + HOUR}),
            config=SimpleNamespace(
                tun=SimpleNamespace(name="zgate0", mtu_bytes=1420),
                sessions=SimpleNamespace(max=9),
                metrics=SimpleNamespace(per_client="auto"),
            ),
            store=self.store,
            audit=self.audit,
            kernel=self.kernel,
            policy=self.policy,
            pools=[self.pool],
            alerts=self.alerts,
            problems=self.problems,
            journal=SimpleNamespace(feed=FlowFeed(), events_received=3, write_seen=lambda: None),
            local_address="[::]:443",
            crew=FakeCrew(),
            edge=SimpleNamespace(state=EdgeState),
            dns=SimpleNamespace(problem=None, counters=Counter({"answered": 8})),
            services=SimpleNamespace(
                directory=["pacs"],
                domain="zgate.internal",
                routes=SimpleNamespace(routes={}),
                connectors=SimpleNamespace(
                    by_session={},
                    drains={},
                    refused={},
                    directory=SimpleNamespace(snapshot=lambda: {"pacs": ()}),
                    routes=SimpleNamespace(routes={}),
                ),
            ),
            sessions=SimpleNamespace(
                by_client={},
                by_id={},
                refused={"expired": 1, "pool": 1},
                reconnects=Counter({"up": 2}),
                established_total=4,
                loop=SimpleNamespace(time=lambda: 1000.0),
                close=lambda session, why: self.closed.append((session.client, why)),
            ),
        )
        self.gateway = gateway
        self.administration = Administration(gateway)

    def _verify_programs(self) -> None:
        if self.detached:
            raise NetError(self.detached)

    def connect(self, name: str, *groups: str, reaches: tuple[str, ...] | None = None) -> None:
        self.kernel.add_client(name, groups, [A4], reaches)
        sessions = self.gateway.sessions
        sessions.by_client[name] = sessions.by_id["s1"] = SimpleNamespace(
            client=name,
            session_id="s1",
            addresses=(A4,),
            established_at=NOW,
            established_s=990.0,
            identity=SimpleNamespace(
                name=name, groups=groups, reaches=reaches, serial=0xAB, not_after=NOW + HOUR
            ),
            peer="192.0.2.1:5",
            worker=SimpleNamespace(index=1),
            target="*",
            ip_protocol=None,
        )

    def why(self, client: str = "alice", protocol: int = TCP) -> schemas.Why:
        port = 443 if protocol == TCP else None
        query = schemas.WhyQuery(client=client, destination=OFFICE, protocol=protocol, port=port)
        return self.administration.why(query)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.audit.close()
    made.store.close()


# Reading.


def test_status_is_what_the_parts_say(world: World) -> None:
    world.connect("alice")
    status = world.administration.status()
    assert (status.state, status.not_ready_because) == ("ready", [])
    assert (status.sessions, status.sessions_max, status.sessions_total) == (1, 9, 4)
    assert status.sessions_refused == {"expired": 3, "pool": 1}  # by sessions and by handshakes
    assert status.drops == {"POLICY_RULE": 2, "RATE_LIMITED": 7, "TOO_BIG": 5}
    assert (status.policy.revision, status.policy.rules) == (1, 4)
    assert status.policy.kernel_policies == 3  # one for each period ahead
    assert (status.kernel_events.received, status.kernel_events.lost) == (3, 1)
    assert status.kernel_maps == {"flows": schemas.MapUse(used=95, size=100)}
    assert status.alerts == []
    assert status.workers == [
        schemas.Worker(worker=0, pid=None, sessions=0, restarts=3),
        schemas.Worker(worker=1, pid=4243, sessions=1),
    ]
    world.gateway.state = "draining"
    assert world.administration.status().not_ready_because == ["the gateway is draining"]


async def test_alerts_are_in_status_and_metrics(world: World) -> None:
    world.alerts.update(world.programs.map_usage())
    (alert,) = world.administration.status().alerts
    assert (alert.name, "95 of 100" in alert.text) == ("map_flows", True)
    alerts = (await world.administration.metrics()).alerts
    assert {name for name, lasts in alerts.items() if lasts} == {"map_flows"}
    assert alerts["disk_full"] is False


async def test_a_session_is_shown(world: World) -> None:
    world.connect("alice", "staff")
    await world.administration.refresh()  # which is of sessions no matter
    (session,) = (await world.administration.sessions(schemas.SessionQuery())).sessions
    assert session.worker == 1
    assert (session.client, session.groups, session.peer) == ("alice", ["staff"], "192.0.2.1:5")
    assert (session.age_s, session.idle_s, session.rtt_ms) == (10, 1, 20)
    assert (session.addresses, session.certificate_serial) == (["10.100.0.2/32"], f"{0xAB:040x}")
    assert session.counters.dropped_packets == 7
    assert session.drops == {"TOO_BIG": 1}


def test_clients_are_those_of_store_pool_policy_and_sessions(world: World) -> None:
    world.store.note_clients([ClientRecord("seen", ("staff",), "1", NOW, NOW, NOW)])
    world.pool.acquire("leased", NOW)
    world.connect("bob", "staff")
    found = {one.name: one for one in world.administration.clients()}
    assert sorted(found) == ["alice", "bob", "leased", "seen"]
    assert (found["alice"].in_policy, found["alice"].connected, found["alice"].rules) == (
        True,
        False,
        3,
    )
    assert (found["bob"].connected, found["bob"].rules) == (True, 1)
    assert found["seen"].last_seen_at is not None and found["seen"].counters is None
    limits = {
        name: (one.limits.bandwidth_mbit, one.limits.new_flows_per_s) for name, one in found.items()
    }
    assert limits == {
        "alice": (50, 500),
        "bob": (10, 500),
        "seen": (10, 500),
        "leased": (None, 500),
    }


def test_the_policy_is_shown_with_times_and_limits(world: World) -> None:
    view = world.administration.policy()
    assert [(rule.rule_id, rule.holds) for rule in view.clients["alice"]] == [
        ("over", False),
        ("web", True),
        ("later", False),
    ]
    assert view.clients["alice"][1].expires_at == NOW + HOUR
    assert view.groups["staff"][0].icmp_types == ["echo-request"]
    assert view.client_limits == {"alice": schemas.Limits(bandwidth_mbit=50)}
    assert view.group_limits == {"staff": schemas.Limits(bandwidth_mbit=10)}
    assert view.default_limits == schemas.Limits(new_flows_per_s=500)
    (warning,) = view.warnings
    assert 'rule "over" ended at' in warning.text


async def test_metrics_are_the_same_numbers(world: World) -> None:
    world.connect("alice")
    world.alerts.update(world.programs.map_usage())
    metrics, status = await world.administration.metrics(), world.administration.status()
    assert (metrics.ready, metrics.sessions, metrics.policy_revision) == (True, 1, 1)
    assert set(metrics.checks.values()) == {True}
    assert metrics.drops == status.drops
    assert metrics.kernel_maps == {"flows": (95, 100)}
    assert metrics.clients["alice"] == metrics.traffic == (1, 100, 2, 200, 3, 4, 5)
    assert sum(metrics.services.services.values()) == status.services == 1
    assert (metrics.handshakes, metrics.retry_tokens) == ({"completed": 9}, {"issued": 8})
    assert (metrics.reconnects, metrics.policy_loads) == ({"up": 2}, {"loaded": 1})
    assert metrics.expiries == {"gateway": (NOW + HOUR).timestamp()}
    assert 60 <= metrics.uptime_s < 120
    assert metrics.processes["supervisor"].resident_bytes > 0


async def test_what_was_counted_for_those_that_have_gone_stays_in_the_sum(world: World) -> None:
    for name in ("alice", "bob"):
        world.connect(name)
        await world.administration.metrics()
    world.kernel.remove_client("alice")
    metrics = await world.administration.metrics()
    assert metrics.traffic[:2] == (2, 200)
    assert list(metrics.clients) == ["bob"]
    world.programs.counted = ClientCounters(0, 0, 0, 0, 0, 0, 0)  # read while it is reset
    assert (await world.administration.metrics()).traffic == metrics.traffic


async def test_some_clients_have_no_series(world: World) -> None:
    world.connect("alice")
    world.gateway.config.metrics.per_client = "none"
    metrics = await world.administration.metrics()
    assert (metrics.clients, metrics.clients_left_out) == ({}, 1)
    assert metrics.traffic.up_packets == 1


async def test_a_drain_is_among_the_metrics(world: World) -> None:
    assert (await world.administration.metrics()).drain is None
    world.gateway.drain.state = DrainState(NOW, 30.0)
    world.gateway.drain.sessions_left = 4
    drain = (await world.administration.metrics()).drain
    assert drain == DrainLevel((NOW + timedelta(seconds=30)).timestamp(), 4)


# Ready, or why not.


async def test_ready(world: World) -> None:
    probe = await world.administration.readiness()
    assert (probe.ok, probe.state, probe.because) == (True, "ready", [])
    assert probe.checks == dict.fromkeys(("state", "bpf", "policy", "store", "problems"), True)


async def test_programs_that_somebody_took_away(world: World) -> None:
    world.detached = "zgate0: program 7 is not what decides at ingress"
    probe = await world.administration.readiness()
    assert (probe.ok, probe.because) == (False, [world.detached])
    assert [name for name, good in probe.checks.items() if not good] == ["bpf"]
    metrics = await world.administration.metrics()
    assert (metrics.ready, metrics.checks["bpf"], metrics.checks["store"]) == (False, False, True)


async def test_draining_and_a_problem_that_keeps_clients_out(world: World) -> None:
    world.gateway.state = "draining"
    world.problems.begin("store_unavailable", "no leases", is_blocking=True)
    probe = await world.administration.readiness()
    assert probe.because == ["the gateway is draining", "store_unavailable: no leases"]
    assert [name for name, good in probe.checks.items() if not good] == ["state", "problems"]


async def test_a_store_that_cannot_be_read(world: World, monkeypatch: Any) -> None:
    def fail() -> None:
        raise StoreError("zgate.db", "disk I/O error", "replace the disk")

    monkeypatch.setattr(world.store, "check", fail)
    probe = await world.administration.readiness()
    assert probe.checks["store"] is False and "disk I/O error" in probe.because[0]


async def test_a_store_that_hangs_is_asked_once(world: World, monkeypatch: Any) -> None:
    asked, release = [], threading.Event()

    def hang() -> None:
        asked.append(1)
        release.wait(30)

    monkeypatch.setattr(world.store, "check", hang)
    monkeypatch.setattr("zgate_gateway.readiness._PATIENCE_S", 0.05)
    for _ in range(3):
        assert (await world.administration.readiness()).checks["store"] is False
    assert len(asked) == 1
    release.set()
    async with asyncio.timeout(10):
        while not (await world.administration.readiness()).ok:
            await asyncio.sleep(0.01)


async def test_flows_of_an_empty_table(world: World) -> None:
    found = await world.administration.flows(schemas.FlowQuery())
    assert (found.flows, found.total) == ([], 0)
    denied = await world.administration.flows(schemas.FlowQuery(denied=True))
    assert denied.denials == []


# Why.


def test_why_asks_both(world: World) -> None:
    world.connect("alice", "staff")
    answer = world.why()
    assert answer.agree and answer.kernel is not None
    for verdict in (answer.compiler, answer.kernel):
        assert (verdict.action, verdict.rule_id, verdict.revision) == ("allow", "web", 1)
        assert verdict.expires_at == NOW + HOUR
        assert (verdict.rule_file, verdict.rule_line) == (str(world.file), 9)
    assert world.why(protocol=ICMP).compiler.rule_id == "ping"


def test_why_says_what_time_and_limits_have_to_do_with_it(world: World) -> None:
    world.connect("alice")
    answer = world.why()
    (over,) = answer.out_of_time  # "later" comes behind the one that decides
    assert (over.rule_id, over.action, over.expired_at) == ("over", "deny", NOW - HOUR)
    assert over.not_before is None
    change = answer.next_change
    assert change is not None
    assert (change.at, change.action, change.rule_id) == (NOW + HOUR, "deny", None)
    assert answer.limits == schemas.Limits(bandwidth_mbit=50, new_flows_per_s=500)


def test_a_kernel_that_differs_is_told(world: World) -> None:
    world.connect("alice")
    world.programs.mistake = True
    assert not world.why().agree


def test_a_rule_that_ends_while_both_are_asked_is_no_difference(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel said what was right when it was asked; a moment later the rule is over."""
    world.connect("alice")
    times = iter([NOW + HOUR, NOW + HOUR + timedelta(milliseconds=1)])
    clock = SimpleNamespace(now=lambda _: next(times))
    monkeypatch.setattr("zgate_gateway.why.datetime", clock)
    answer = world.why()
    assert answer.agree and answer.compiler.rule_id == "web"


def test_a_service_that_nobody_offers_is_told(world: World) -> None:
    """The policy allows it, and the kernel agrees; but nobody would get it."""
    world.connect("alice")
    assert world.why().kernel_note is None
    world.programs.no_offer = True
    answer = world.why()
    assert answer.agree and answer.compiler.action == "allow"
    assert "NO_BACKEND" in str(answer.kernel_note)


def test_a_clock_that_was_set_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.connect("alice")
    monkeypatch.setattr("zgate_gateway.wall_clock.read_offset_ns", lambda: 0)
    assert "the wall clock was set" in str(world.why().kernel_note)


@pytest.mark.parametrize("revisions", [1, 3])
async def test_the_revision_is_the_policy_s_and_not_the_kernel_s(
    world: World, revisions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.connect("alice")
    monkeypatch.setattr(world.kernel, "is_behind", lambda: "the wall clock was set")
    for _ in range(revisions):
        assert await world.policy.refresh()
    monkeypatch.undo()
    answer = world.why()
    assert answer.kernel is not None and answer.kernel.revision == 1
    assert world.programs.generations[-1].revision == 1 + revisions
    await world.policy.close()


def test_who_is_not_connected_has_no_kernel_verdict(world: World) -> None:
    answer = world.why()
    assert answer.kernel is None and answer.agree and "not connected" in str(answer.kernel_note)
    world.connect("bob")
    world.gateway.sessions.by_client["bob"].addresses = ()
    assert world.why("bob").kernel_note == "the client holds no IPv4 address"
    world.connect("alice")
    world.programs.fails = OSError("no memory")
    assert "could not be asked: no memory" in str(world.why().kernel_note)


def test_nobody_knows_a_stranger(world: World) -> None:
    with pytest.raises(UnknownClient, match="no client is called mallory"):
        world.why("mallory")


# Changing.


async def test_what_cannot_be_done_says_why_and_what_helps(world: World) -> None:
    do = world.administration
    world.file.write_text("{")
    with pytest.raises(PolicyRefused, match="revision 1 stays in force; correct the file"):
        await do.reload_policy()
    assert do.status().policy.not_in_force_because is not None
    with pytest.raises(PolicyConflict, match="revision 1 is in force, and not 7"):
        await do.apply_policy(schemas.PolicyApplyRequest(text=POLICY, expected_revision=7))
    with pytest.raises(UnknownPolicy, match="policy history"):
        await do.rollback_policy(schemas.PolicyRollbackRequest(revision=9))
    with pytest.raises(UnknownPolicy, match="no policy revision 9"):
        await do.diff_policy(schemas.PolicyDiffRequest(revision=9))
    await world.policy.close()


async def test_a_store_that_fails_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise StoreError("zgate.db", "the disk is full", "free some space")

    monkeypatch.setattr(world.store, "record_policy", refuse)
    with pytest.raises(OperationFailed, match="revision 1 stays in force"):
        await world.administration.apply_policy(
            schemas.PolicyApplyRequest(
                text=POLICY.replace("bandwidth_mbit: 50", "bandwidth_mbit: 60")
            )
        )
    await world.policy.close()


async def test_apply_diff_history_and_rollback(world: World) -> None:
    do = world.administration
    changed = POLICY.replace("bandwidth_mbit: 50", "bandwidth_mbit: 60")
    found = await do.diff_policy(schemas.PolicyDiffRequest(text=changed))
    (difference,) = found.differences
    assert (found.revision, difference.changes) == (1, [])
    assert difference.limits is not None and difference.limits.after.bandwidth_mbit == 60
    done = await do.apply_policy(schemas.PolicyApplyRequest(text=changed, expected_revision=1))
    assert (done.previous_revision, done.summary.revision, done.changed) == (1, 2, True)
    back = await do.rollback_policy(schemas.PolicyRollbackRequest(revision=1))
    assert back.summary.revision == 3
    history = (await do.policy_history(10)).revisions
    assert [(one.revision, one.origin, one.in_force) for one in history] == [
        (3, "rollback", True),
        (2, "apply", False),
        (1, "start", False),
    ]
    assert (await do.check_policy(schemas.PolicyCheckRequest(text="{"))).valid is False
    await world.policy.close()


async def test_a_kick_closes_and_is_audited(world: World) -> None:
    world.connect("alice")
    answer = await world.administration.kick("alice", "maintenance")
    assert (answer.sessions_closed, answer.addresses) == (1, ["10.100.0.2"])
    assert world.closed == [("alice", "kicked: maintenance")]
    records = [json.loads(line) for line in world.audit.path.read_text().splitlines()]
    assert [one["reason"] for one in records if one["event"] == "client_kicked"] == ["maintenance"]
    with pytest.raises(UnknownClient, match="bob has no session"):
        await world.administration.kick("bob", "")


async def test_followers_hear_of_nothing_at_first(world: World) -> None:
    stream = world.administration.follow_flows(schemas.FlowEventQuery())
    async with asyncio.timeout(5):
        assert await anext(stream) == []
