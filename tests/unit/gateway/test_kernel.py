"""Clients and policies in the kernel's numbers, against a fake of the loaded programs."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import SimpleNamespace
from typing import Any

import pytest
from zgate_bpf.encoding import ALWAYS, FOREVER_NS, Period
from zgate_bpf.kernel_policy import (
    NO_CLIENT,
    ClientCounters,
    Direction,
    EventKind,
    GenerationError,
    KernelEvent,
)
from zgate_bpf.layouts import MAX_PERIODS
from zgate_bpf.limits import UNLIMITED, ClientLimits
from zgate_bpf.tables import NO_RULE, CompiledPolicy
from zgate_gateway.kernel import FlowEvent, Kernel, KernelError
from zgate_gateway.policy.policy_set import PolicySet
from zgate_gateway.wall_clock import STEP_NS, WallClock, read_offset_ns
from zgate_protocol.drop_reason import DropReason

POLICY = """\
version: "1.0"
metadata: {name: test}
default_action: deny
clients:
  alice:
    rules:
      - {id: alice-web, type: ip_cidr, action: allow, destinations: [10.0.0.0/8], protocols: [tcp]}
  bob:
    rules:
      - {id: bob-web, type: ip_cidr, action: allow, destinations: [10.0.0.0/8], protocols: [tcp]}
  carol:
    rules:
      - {id: carol-all, type: default, action: allow}
groups:
  staff:
    rules:
      - {id: staff-dns, type: ip_cidr, action: allow, destinations: [8.8.8.8/32], protocols: [udp]}
"""
RULES_PER_POLICY = 100
A4, A6, B4 = ip_address("10.100.0.2"), ip_address("fd00::2"), ip_address("10.100.0.3")


class FakeGeneration:
    """Writes down what is asked of it; a policy's rules begin at 100 times its number."""

    def __init__(self, revision: int, log: list[str]) -> None:
        self.revision = revision
        self.log = log
        self.policies: list[CompiledPolicy] = []
        self.periods: list[Period] = []
        self.assigned: dict[int, int] = {}
        self.limits: dict[int, ClientLimits] = {}
        self.fails: dict[str, Exception] = {}

    def _step(self, name: str) -> None:
        if name in self.fails:
            raise self.fails[name]
        self.log.append(f"{name} r{self.revision}")

    def add_policy(self, policy: CompiledPolicy, period: Period = ALWAYS) -> int:
        self._step("add_policy")
        self.policies.append(policy)
        self.periods.append(period)
        return len(self.policies)

    def assign(self, client_index: int, policy_id: int, limits: ClientLimits = UNLIMITED) -> None:
        self._step("assign")
        self.assigned[client_index] = policy_id
        self.limits[client_index] = limits

    def unassign(self, client_index: int) -> None:
        self._step("unassign")
        self.assigned.pop(client_index, None)

    def verify(self) -> None:
        self._step("verify")

    def activate(self) -> None:
        self._step("activate")

    def rule_of(self, global_rule: int) -> tuple[int, int]:
        policy_id, index = divmod(global_rule, RULES_PER_POLICY)
        if not 1 <= policy_id <= len(self.policies):
            raise KeyError(global_rule)
        return policy_id, index


class FakePrograms:
    """`KernelPolicy` without a kernel."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.generations: list[FakeGeneration] = []
        self.next_fails: dict[str, Exception] = {}
        self.clients: dict[IPv4Address | IPv6Address, int] = {}
        self.events: list[KernelEvent] = []
        self.fails: dict[str, Exception] = {}

    def _step(self, name: str, detail: object = "") -> None:
        if name in self.fails:
            raise self.fails[name]
        self.log.append(f"{name} {detail}".strip())

    def begin(self, revision: int) -> FakeGeneration:
        generation = FakeGeneration(revision, self.log)
        generation.fails, self.next_fails = self.next_fails, {}
        self.generations.append(generation)
        return generation

    def set_client(self, address: IPv4Address | IPv6Address, client_index: int) -> None:
        self._step("set_client", address)
        self.clients[address] = client_index

    def remove_client(self, address: IPv4Address | IPv6Address) -> None:
        self._step("remove_client", address)
        self.clients.pop(address, None)

    def reset_counters(self, client_index: int) -> None:
        self._step("reset_counters")

    def counters(self, client_index: int) -> ClientCounters:
        return ClientCounters(1, 100 + client_index, 2, 200 + client_index, 0, 0, 0)

    def poll_events(self, handler: Callable[[KernelEvent], None]) -> None:
        waiting, self.events = self.events, []
        for event in waiting:
            handler(event)


def event_of(client_index: int, rule: int, revision: int) -> KernelEvent:
    return KernelEvent(
        kind=EventKind.FLOW_ALLOWED,
        time_ns=1,
        client_index=client_index,
        rule=rule,
        revision=revision,
        reason=DropReason.NONE,
        direction=Direction.UP,
        source=A4,
        destination=ip_address("10.20.0.5"),
        protocol=6,
        source_port=1,
        destination_port=443,
        length_bytes=60,
        suppressed=0,
    )


@pytest.fixture
def programs() -> FakePrograms:
    return FakePrograms()


@pytest.fixture
def kernel(programs: FakePrograms) -> Kernel:
    made = Kernel(programs, max_clients=4)  # type: ignore[arg-type]
    made.load_policy(PolicySet.parse(POLICY), 1)
    return made


def named(kernel: Kernel, programs: FakePrograms, event: KernelEvent) -> FlowEvent:
    seen: list[FlowEvent] = []
    programs.events.append(event)
    kernel.poll_events(seen.append)
    return seen[0]


# Clients.


def test_a_client_is_known_by_its_addresses_last(kernel: Kernel, programs: FakePrograms) -> None:
    """Until policy and counters are in place, its packets are nobody's and drop."""
    programs.log.clear()
    kernel.add_client("alice", ["staff"], [A4, A6])
    assert programs.log == [
        "reset_counters",
        "add_policy r1",
        "assign r1",
        f"set_client {A4}",
        f"set_client {A6}",
    ]
    assert programs.clients == {A4: 0, A6: 0}


def test_a_client_that_goes_is_nobody_first(kernel: Kernel, programs: FakePrograms) -> None:
    kernel.add_client("alice", [], [A4, A6])
    programs.log.clear()
    kernel.remove_client("alice")
    assert programs.log == [f"remove_client {A4}", f"remove_client {A6}", "unassign r1"]
    assert programs.clients == {}
    kernel.remove_client("alice")
    assert kernel.counters("alice") is None
    assert kernel.client_bytes("alice") == (0, 0)


def test_what_was_counted_for_a_client_outlives_it(kernel: Kernel, programs: FakePrograms) -> None:
    kernel.add_client("alice", (), [A4])
    kernel.add_client("bob", (), [A6])
    assert kernel.numbers() == {"alice": 0, "bob": 1}
    assert kernel.gone == (0,) * 7
    kernel.remove_client("alice")
    assert kernel.gone == (1, 100, 2, 200, 0, 0, 0)
    kernel.add_client("bob", (), [A6])  # anew: what was counted before is not lost
    assert kernel.gone == (2, 201, 4, 401, 0, 0, 0)
    kernel.remove_client("bob")
    assert kernel.gone == (3, 303, 6, 603, 0, 0, 0)
    assert kernel.numbers() == {}


def test_a_client_that_cannot_be_forgotten_is_counted_all_the_same(
    kernel: Kernel, programs: FakePrograms
) -> None:
    kernel.add_client("alice", (), [A4])
    programs.fails["remove_client"] = OSError("no")
    with pytest.raises(KernelError):
        kernel.remove_client("alice")
    assert kernel.gone[1] == 100


def test_clients_of_the_same_meaning_share_a_policy(kernel: Kernel, programs: FakePrograms) -> None:
    kernel.add_client("alice", [], [A4])
    kernel.add_client("bob", [], [B4])
    (generation,) = programs.generations
    assert kernel.distinct_policies == 1
    assert generation.assigned == {0: 1, 1: 1}
    kernel.add_client("carol", [], [A6])
    assert kernel.distinct_policies == 2


def test_adding_a_client_again_replaces_it(kernel: Kernel, programs: FakePrograms) -> None:
    kernel.add_client("alice", [], [A4])
    kernel.add_client("alice", ["staff"], [A6])
    assert programs.clients == {A6: 1}
    assert kernel.client_bytes("alice") == (101, 201)


def test_a_freed_number_is_used_again_last(kernel: Kernel, programs: FakePrograms) -> None:
    """An event that is still under way must not name the next client."""
    kernel.add_client("alice", [], [A4])
    kernel.remove_client("alice")
    for number, name in enumerate(["bob", "carol", "dave"], 1):
        kernel.add_client(name, [], [ip_address(f"10.100.0.{number}")])
    assert sorted(programs.clients.values()) == [1, 2, 3]
    kernel.add_client("erin", [], [A4])
    assert programs.clients[A4] == 0


def test_a_full_table_refuses_and_says_so(kernel: Kernel, programs: FakePrograms) -> None:
    for number in range(4):
        kernel.add_client(f"c{number}", [], [ip_address(f"10.100.0.{number}")])
    with pytest.raises(KernelError, match="client table is full"):
        kernel.add_client("one-too-many", [], [ip_address("10.100.0.9")])
    # ... but one that is there already may come again.
    kernel.add_client("c0", [], [ip_address("10.100.0.0")])


def test_without_a_policy_nobody_gets_in(programs: FakePrograms) -> None:
    empty = Kernel(programs, max_clients=4)  # type: ignore[arg-type]
    assert empty.revision == 0 and empty.distinct_policies == 0
    with pytest.raises(KernelError, match="no policy is loaded"):
        empty.add_client("alice", [], [A4])
    assert programs.clients == {}


@pytest.mark.parametrize("step", ["set_client", "reset_counters"])
def test_a_client_that_cannot_be_added_leaves_nothing(
    kernel: Kernel, programs: FakePrograms, step: str
) -> None:
    programs.fails[step] = OSError("E2BIG")
    with pytest.raises(KernelError, match="client alice: E2BIG"):
        kernel.add_client("alice", [], [A4, A6])
    assert programs.clients == {}
    assert programs.generations[0].assigned == {}
    programs.fails.clear()
    for number in range(4):
        kernel.add_client(f"c{number}", [], [ip_address(f"10.100.0.{number}")])


# Policies.


def test_a_new_policy_set_is_verified_before_it_is_in_force(
    kernel: Kernel, programs: FakePrograms
) -> None:
    kernel.add_client("alice", [], [A4])
    kernel.add_client("bob", [], [B4])
    programs.log.clear()
    kernel.load_policy(PolicySet.parse(POLICY), 2)
    assert programs.log == [
        "add_policy r2",
        "assign r2",
        "assign r2",
        "verify r2",
        "activate r2",
    ]
    assert kernel.revision == 2
    assert programs.generations[1].assigned == {0: 1, 1: 1}


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("add_policy", GenerationError("too many rules")),
        ("assign", OSError("E2BIG")),
        ("verify", GenerationError("it does not read back as written")),
        ("activate", OSError("EPERM")),
    ],
)
def test_a_policy_set_that_fails_leaves_the_old_one_in_force(
    kernel: Kernel, programs: FakePrograms, step: str, error: Exception
) -> None:
    kernel.add_client("alice", [], [A4])
    before = kernel.policy_set
    programs.next_fails = {step: error}
    with pytest.raises(KernelError, match=f"policy revision 2: {error}"):
        kernel.load_policy(PolicySet.parse(POLICY.replace("tcp", "udp")), 2)
    assert kernel.revision == 1
    assert kernel.policy_set is before
    kernel.add_client("bob", [], [B4])
    assert programs.generations[0].assigned == {0: 1, 1: 1}
    assert 1 not in programs.generations[1].assigned


def test_who_comes_and_goes_during_a_build_is_right_in_the_end(
    kernel: Kernel, programs: FakePrograms
) -> None:
    kernel.add_client("alice", [], [A4])
    kernel.add_client("bob", [], [B4])
    built = kernel.build(PolicySet.parse(POLICY.replace("tcp", "udp")), 2, kernel.snapshot())
    assert kernel.revision == 1
    kernel.remove_client("alice")
    kernel.add_client("carol", [], [A4])
    kernel.add_client("bob", ["staff"], [B4])  # again, under another number
    programs.log.clear()
    kernel.put_in_force(built)
    assert kernel.revision == 2
    assert programs.log[-2:] == ["verify r2", "activate r2"]
    generation = programs.generations[1]
    assert generation.assigned == {2: 2, 3: 3}
    assert kernel.distinct_policies == 3


def test_when_nobody_comes_nothing_is_read_back_twice(
    kernel: Kernel, programs: FakePrograms
) -> None:
    kernel.add_client("alice", [], [A4])
    kernel.add_client("bob", [], [B4])
    built = kernel.build(PolicySet.parse(POLICY), 2, kernel.snapshot())
    kernel.remove_client("bob")
    programs.log.clear()
    kernel.put_in_force(built)
    assert programs.log == ["unassign r2", "activate r2"]


def test_a_client_with_too_many_rules_is_named(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.add_client("alice", ["staff"], [A4])
    monkeypatch.setattr("zgate_gateway.policy.compiler.MAX_RULES", 1)
    with pytest.raises(KernelError, match=r"client alice \(groups: staff\): 2 rules in one policy"):
        kernel.load_policy(PolicySet.parse(POLICY.replace("tcp", "udp")), 2)
    assert kernel.revision == 1


def test_limits_come_with_the_policy(kernel: Kernel, programs: FakePrograms) -> None:
    limited = POLICY + "default_limits: {new_flows_per_s: 9}\n"
    limited = limited.replace("  staff:\n", "  staff:\n    limits: {bandwidth_mbit: 50}\n")
    kernel.add_client("alice", ["staff"], [A4])
    assert programs.generations[-1].limits == {0: UNLIMITED}
    kernel.load_policy(PolicySet.parse(limited), 2)
    kernel.add_client("bob", [], [B4])
    assert programs.generations[-1].limits == {0: ClientLimits(50, 9), 1: ClientLimits(None, 9)}
    assert kernel.distinct_policies == 2  # that of staff, and the one without


# Events.


def test_an_event_gets_the_names_of_its_client_and_rule(
    kernel: Kernel, programs: FakePrograms
) -> None:
    kernel.add_client("alice", ["staff"], [A4])
    first = named(kernel, programs, event_of(0, RULES_PER_POLICY, 1))
    assert (first.client, first.rule_id) == ("alice", "alice-web")
    second = named(kernel, programs, event_of(0, RULES_PER_POLICY + 1, 1))
    assert second.rule_id == "staff-dns"


def test_clients_that_share_a_policy_have_their_own_rule_names(
    kernel: Kernel, programs: FakePrograms
) -> None:
    kernel.add_client("alice", [], [A4])
    kernel.add_client("bob", [], [B4])
    event = event_of(1, RULES_PER_POLICY, 1)
    assert named(kernel, programs, event).rule_id == "bob-web"


def test_events_of_the_revision_before_are_still_named(
    kernel: Kernel, programs: FakePrograms
) -> None:
    kernel.add_client("alice", [], [A4])
    kernel.load_policy(PolicySet.parse(POLICY.replace("alice-web", "renamed")), 2)
    assert named(kernel, programs, event_of(0, RULES_PER_POLICY, 1)).rule_id == "alice-web"
    assert named(kernel, programs, event_of(0, RULES_PER_POLICY, 2)).rule_id == "renamed"
    kernel.load_policy(PolicySet.parse(POLICY), 3)
    assert named(kernel, programs, event_of(0, RULES_PER_POLICY, 1)).rule_id is None


def test_what_has_no_name_stays_without(kernel: Kernel, programs: FakePrograms) -> None:
    kernel.add_client("alice", [], [A4])
    assert named(kernel, programs, event_of(NO_CLIENT, NO_RULE, 0)).client is None
    assert named(kernel, programs, event_of(0, NO_RULE, 1)).rule_id is None
    assert named(kernel, programs, event_of(0, RULES_PER_POLICY + 57, 1)).rule_id is None
    kernel.remove_client("alice")
    late: Any = named(kernel, programs, event_of(0, RULES_PER_POLICY, 1))
    assert (late.client, late.rule_id) == ("alice", None)


# Time.


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The wall clock, as far ahead of CLOCK_MONOTONIC as ``offset_ns`` says."""
    made = SimpleNamespace(offset_ns=read_offset_ns())
    monkeypatch.setattr("zgate_gateway.wall_clock.read_offset_ns", lambda: made.offset_ns)
    return made


def in_hours(wall: SimpleNamespace, hours: float) -> datetime:
    wall_s = (time.monotonic_ns() + wall.offset_ns) // 10**9 + int(hours * 3600)
    return datetime.fromtimestamp(wall_s, UTC)


def temporary(**ends: datetime) -> PolicySet:
    clients = "".join(
        f"  {name}: {{rules: [{{id: {name}-visit, type: default, action: allow,"
        f" expires_at: {end.isoformat()}}}]}}\n"
        for name, end in ends.items()
    )
    return PolicySet.parse(f'version: "1.0"\nclients:\n{clients}')


def hours_until(period: Period) -> float:
    return (period.until_ns - time.monotonic_ns()) / 3600 / 10**9


def test_a_rule_that_ends_is_followed_by_what_holds_then(
    kernel: Kernel, programs: FakePrograms, wall: SimpleNamespace
) -> None:
    end = in_hours(wall, 2)
    kernel.load_policy(temporary(alice=end, bob=end, carol=in_hours(wall, 3)), 2)
    for name, address in (("alice", A4), ("bob", B4), ("carol", A6)):
        kernel.add_client(name, [], [address])
    generation = programs.generations[-1]
    last, first, carols = generation.periods
    assert last == ALWAYS
    assert first.next_policy == carols.next_policy == 1  # one end for all, loaded first
    assert hours_until(first) == pytest.approx(2, abs=0.01)
    assert hours_until(carols) == pytest.approx(3, abs=0.01)
    assert generation.assigned == {0: 2, 1: 2, 2: 3}
    # In each period a rule has its own number, so that it has its name.
    event = event_of(1, RULES_PER_POLICY * 2, 2)
    assert named(kernel, programs, event).rule_id == "bob-visit"


def test_a_clock_that_is_set_moves_what_lies_ahead(
    kernel: Kernel, programs: FakePrograms, wall: SimpleNamespace
) -> None:
    kernel.load_policy(temporary(alice=in_hours(wall, 2)), 7)
    kernel.add_client("alice", [], [A4])
    policy_set = kernel.policy_set
    assert kernel.is_behind() is None
    for step_hours, left in ((1, 1), (-5, 6)):
        wall.offset_ns += step_hours * 3600 * 10**9
        assert kernel.is_behind() == "the wall clock was set"
        kernel.load_policy(policy_set, 7)
        assert kernel.is_behind() is None
        assert hours_until(programs.generations[-1].periods[1]) == pytest.approx(left, abs=0.01)
    wall.offset_ns += 7 * 3600 * 10**9
    kernel.load_policy(policy_set, 7)
    assert programs.generations[-1].periods == [ALWAYS]  # it is over


def test_a_clock_that_is_corrected_a_little_changes_nothing(
    kernel: Kernel, wall: SimpleNamespace
) -> None:
    kernel.load_policy(temporary(alice=in_hours(wall, 2)), 2)
    wall.offset_ns += STEP_NS // 2
    assert kernel.is_behind() is None
    wall.offset_ns += STEP_NS
    assert kernel.is_behind() is not None


def test_without_times_nobody_looks_at_the_clock(kernel: Kernel, wall: SimpleNamespace) -> None:
    wall.offset_ns += 3600 * 10**9
    assert kernel.is_behind() is None


def test_more_times_than_the_kernel_holds_are_given_in_time(
    kernel: Kernel, programs: FakePrograms, wall: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = {f"g{number}": in_hours(wall, number) for number in range(1, 12)}
    groups = temporary(**ends)
    many = PolicySet(groups=groups.clients)
    kernel.load_policy(many, 2)
    kernel.add_client("alice", list(ends), [A4])
    assert len(programs.generations[-1].periods) == MAX_PERIODS
    assert kernel.is_behind() is None
    began_ns = time.monotonic_ns()
    monkeypatch.setattr(time, "monotonic_ns", lambda: began_ns + 4 * 3600 * 10**9)
    assert "as many periods as it takes" in str(kernel.is_behind())
    kernel.load_policy(many, 2)
    assert len(programs.generations[-1].periods) == MAX_PERIODS
    assert kernel.is_behind() is None


def test_generations_are_numbered_by_themselves(kernel: Kernel, programs: FakePrograms) -> None:
    """A revision that is built again stays what it is; the kernel sees another number."""
    kernel.add_client("alice", [], [A4])
    policy_set = PolicySet.parse(POLICY)
    for revision in (1, 8, 8, 8, 30):
        kernel.load_policy(policy_set, revision)
    assert [generation.revision for generation in programs.generations] == [1, 2, 3, 4, 5, 6]
    assert [kernel.revision_of(number) for number in range(8)] == [0, 1, 1, 8, 8, 8, 30, 30]
    found = named(kernel, programs, event_of(0, RULES_PER_POLICY, 5))
    assert (found.revision, found.rule_id) == (8, "alice-web")


def test_a_time_beyond_what_the_kernel_can_count_is_its_end() -> None:
    clock = WallClock.read()
    assert clock.monotonic_ns(datetime(9999, 1, 1, tzinfo=UTC)) == FOREVER_NS
    assert clock.monotonic_ns(datetime(1, 1, 1, tzinfo=UTC)) == 0
    assert abs((clock.now() - datetime.now(UTC)).total_seconds()) < 1
    assert not clock.has_stepped()


# Services, and clients that a certificate narrows to some.

SERVICES = {"pacs": (ip_address("10.101.0.1"),), "echo-1": (ip_address("10.101.0.2"),)}
ABOUT_SERVICES = """\
version: "1.0"
clients:
  alice:
    rules:
      - {id: echo, type: service, action: allow, services: ["echo-*"]}
      - {id: pacs, type: service, action: allow, services: [pacs]}
"""


def test_a_narrowed_client_has_a_policy_of_its_own(kernel: Kernel, programs: FakePrograms) -> None:
    kernel.load_policy(PolicySet.parse(ABOUT_SERVICES).bound_to(SERVICES), 2)
    kernel.add_client("alice", [], [A4], ("pacs",))
    generation = programs.generations[-1]
    assert [str(one.network) for one in generation.policies[-1].destinations] == ["10.101.0.1/32"]
    event = event_of(0, RULES_PER_POLICY + 1, generation.revision)
    assert named(kernel, programs, event).rule_id == "pacs"  # rules keep their places
    kernel.add_client("alice", [], [A4])
    assert len(generation.policies[-1].destinations) == 2
    kernel.add_client("alice", [], [A4], ())
    assert generation.policies[-1].destinations == ()
    # It stays narrowed under the next policy.
    kernel.load_policy(PolicySet.parse('version: "1.0"\ndefault_action: allow\n'), 3)
    (policy,) = programs.generations[-1].policies
    assert policy.default_action.name == "DENY"


def test_a_set_that_means_the_same_is_adopted_without_a_build(
    kernel: Kernel, programs: FakePrograms
) -> None:
    first = PolicySet.parse(ABOUT_SERVICES).bound_to(SERVICES)
    kernel.load_policy(first, 2)
    kernel.add_client("bob", [], [B4])
    built = len(programs.generations)
    same = first.bound_to({**SERVICES, "wiki": (ip_address("10.101.0.3"),)})
    assert kernel.adopt(same) and kernel.policy_set is same
    other = first.bound_to({**SERVICES, "echo-2": (ip_address("10.101.0.3"),)})
    assert not kernel.adopt(other) and kernel.policy_set is same
    # A narrowed client may reach other services, whatever the rules say of them.
    kernel.add_client("alice", [], [A4], ("wiki",))
    assert not kernel.adopt(first) and kernel.policy_set is same
    assert len(programs.generations) == built


def test_a_clients_number_is_told_while_it_is_there(kernel: Kernel) -> None:
    kernel.add_client("alice", (), [A4])
    kernel.add_client("bob", (), [B4])
    assert (kernel.client_index("alice"), kernel.client_index("bob")) == (0, 1)
    kernel.remove_client("alice")
    with pytest.raises(KernelError, match="no client alice"):
        kernel.client_index("alice")
