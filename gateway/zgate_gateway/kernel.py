"""The policy in the kernel: which client has which policy, under which revision, and what it did.

The kernel knows clients by a small number and policies by another. This module gives the
numbers, keeps equal policies shared, and turns the kernel's events back into names.

A revision may be built more than once: time goes on, or is set, and the kernel must be given anew
what lies ahead (docs/adr/0009-rules-that-hold-for-a-time.md). So the kernel numbers *generations*,
and which revision one belongs to is known here.
"""

from __future__ import annotations

import contextlib
import logging
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, fields
from functools import partial
from ipaddress import IPv4Address, IPv6Address

from zgate_bpf.encoding import FOREVER_NS, Period
from zgate_bpf.kernel_policy import ClientCounters, Generation, KernelEvent, KernelPolicy
from zgate_bpf.tables import NO_RULE, CompiledPolicy

from zgate_gateway.policy.compiler import PolicyTooLarge
from zgate_gateway.policy.periods import Step
from zgate_gateway.policy.policy_set import PolicySet
from zgate_gateway.policy.rules import Rule
from zgate_gateway.wall_clock import WallClock

logger = logging.getLogger(__name__)

IpAddress = IPv4Address | IPv6Address


class KernelError(RuntimeError):
    """The kernel's tables could not be changed; what was in force stays in force."""


@dataclass(slots=True)
class _Client:
    index: int
    name: str
    groups: tuple[str, ...]
    addresses: tuple[IpAddress, ...]
    reaches: tuple[str, ...] | None = None


@dataclass(slots=True)
class _Revision:
    """One policy set as it stands in the kernel."""

    number: int
    policy_set: PolicySet
    generation: Generation
    clock: WallClock
    # By identity: equal policies are one object, and hashing ten thousand rules takes long.
    policies: dict[int, CompiledPolicy] = field(default_factory=dict)
    policy_ids: dict[tuple[int, Period], int] = field(default_factory=dict)
    refill_at_ns: int = FOREVER_NS
    built_for: tuple[_Client, ...] = ()

    def policy_of(
        self, name: str, groups: Sequence[str], reaches: Sequence[str] | None = None
    ) -> int:
        """The kernel's number of this client's policy; compiled and loaded when it is new.

        What holds later is loaded first: each policy names the one that follows it.
        """
        now = self.clock.now()
        schedule = self.policy_set.schedule_for(name, groups, now, reaches=reaches)
        following = 0
        for step in reversed(schedule.steps):
            following = self._load(step, following)
        if schedule.refill_at is not None:
            refill_at_ns = self.clock.monotonic_ns(schedule.refill_at)
            self.refill_at_ns = min(self.refill_at_ns, refill_at_ns)
        return following

    def _load(self, step: Step, following: int) -> int:
        until_ns = FOREVER_NS if step.until is None else self.clock.monotonic_ns(step.until)
        key = id(step.policy), Period(until_ns, following)
        policy_id = self.policy_ids.get(key)
        if policy_id is None:
            policy_id = self.generation.add_policy(step.policy, key[1])
            self.policies[policy_id] = step.policy  # keeps its identity taken
            self.policy_ids[key] = policy_id
        return policy_id

    def is_behind(self) -> str | None:
        """Why what lies ahead has to be worked out anew; None: it need not."""
        if time.monotonic_ns() >= self.refill_at_ns:
            return "the kernel was given as many periods as it takes, and some have passed"
        if self.policy_set.is_temporary and self.clock.has_stepped():
            return "the wall clock was set"
        return None


def _assign(revision: _Revision, client: _Client) -> None:
    """Give a client its policy and its limits in a generation."""
    policy_id = revision.policy_of(client.name, client.groups, client.reaches)
    limits = revision.policy_set.limits_for(client.name, client.groups)
    revision.generation.assign(client.index, policy_id, limits)


def _assign_or_name(revision: _Revision, client: _Client) -> None:
    """As :func:`_assign`, where it is one of many that may have too many rules."""
    try:
        _assign(revision, client)
    except PolicyTooLarge as error:
        groups = ", ".join(client.groups) or "none"
        raise ValueError(f"client {client.name} (groups: {groups}): {error}") from error


@dataclass(frozen=True, slots=True)
class FlowEvent:
    """What the kernel said of a new flow or a denial, with names.

    :ivar rule: None: no rule decided, or it has no name any more.
    :ivar revision: of the policy; ``event.revision`` is the kernel's number of the generation.
    """

    event: KernelEvent
    client: str | None
    rule: Rule | None
    revision: int

    @property
    def rule_id(self) -> str | None:
        """The rule's name."""
        return self.rule.id if self.rule is not None else None


class Kernel:
    """Clients and policies in the loaded programs.

    :ivar gone: what was counted for clients that are here no more: the fields of `ClientCounters`.
    """

    def __init__(self, programs: KernelPolicy, *, max_clients: int) -> None:
        self.programs = programs
        self._clients: dict[str, _Client] = {}
        self._names: dict[int, str] = {}
        # Freed numbers go to the end: an event that is still under way finds no other client.
        self._free: deque[int] = deque(range(max_clients))
        self.gone: tuple[int, ...] = (0,) * len(fields(ClientCounters))
        self._current: _Revision | None = None
        self._previous: _Revision | None = None
        self._generation = 0
        # From which generation on which revision was in force.
        self._since: list[tuple[int, int]] = []

    # Policy.

    @property
    def revision(self) -> int:
        """The revision in force; 0 before the first."""
        return self._current.number if self._current is not None else 0

    @property
    def policy_set(self) -> PolicySet:
        """The policy set in force."""
        assert self._current is not None, "load_policy comes first"
        return self._current.policy_set

    @property
    def distinct_policies(self) -> int:
        """How many different policies the kernel holds."""
        return len(self._current.policy_ids) if self._current is not None else 0

    def load_policy(self, policy_set: PolicySet, revision: int) -> None:
        """Build the policy set beside the one in force, read it back, and swap.

        Raises:
            KernelError: it does not fit or cannot be read back; the old one stays in force.
        """
        self.put_in_force(self.build(policy_set, revision, self.snapshot()))

    def snapshot(self) -> tuple[_Client, ...]:
        """The clients that are there now, for :meth:`build`."""
        return tuple(self._clients.values())

    def build(
        self, policy_set: PolicySet, revision: int, clients: tuple[_Client, ...]
    ) -> _Revision:
        """Compile, write beside the policy in force, and read back. May run in a thread.

        The same revision may be built again, for the time that has come.

        Large policies take seconds. Nothing here touches what packets are judged by, nor what the
        event loop changes meanwhile; one build at a time.

        Raises:
            KernelError: it does not fit or cannot be read back.
        """
        self._generation += 1
        try:
            generation = self.programs.begin(self._generation)
            fresh = _Revision(revision, policy_set, generation, WallClock.read(), built_for=clients)
            for client in clients:
                _assign_or_name(fresh, client)
            generation.verify()
        except (OSError, RuntimeError, ValueError) as error:
            raise KernelError(f"policy revision {revision}: {error}") from error
        return fresh

    def put_in_force(self, fresh: _Revision) -> None:
        """Swap in what was built, for the clients that are there by now.

        Raises:
            KernelError: the kernel refused; the old one stays in force.
        """
        try:
            self._catch_up(fresh)
            fresh.generation.activate()
        except (OSError, RuntimeError, ValueError) as error:
            raise KernelError(f"policy revision {fresh.number}: {error}") from error
        self._previous, self._current = self._current, fresh
        if not self._since or self._since[-1][1] != fresh.number:
            self._since.append((fresh.generation.revision, fresh.number))

    def adopt(self, policy_set: PolicySet) -> bool:
        """Take a set for the one in force, if it means the same to every client; whether it does.

        The services that it is bound to are others, and the tables stay as they are.
        """
        assert self._current is not None, "load_policy comes first"
        is_narrowed = any(client.reaches is not None for client in self._clients.values())
        if is_narrowed or not policy_set.means_as(self._current.policy_set):
            return False
        self._current.policy_set = policy_set
        return True

    def is_behind(self) -> str | None:
        """Why the revision in force has to be built again; None: it need not."""
        return self._current.is_behind() if self._current is not None else None

    def revision_of(self, generation: int) -> int:
        """The policy revision behind the kernel's number; 0: none yet."""
        at = bisect_right(self._since, generation, key=lambda since: since[0])
        return self._since[at - 1][1] if at else 0

    def _catch_up(self, fresh: _Revision) -> None:
        """Bring in the clients that came, and leave out those that went, during the build."""
        for client in fresh.built_for:
            if self._clients.get(client.name) is not client:
                fresh.generation.unassign(client.index)
        known = {id(client) for client in fresh.built_for}
        came = [client for client in self._clients.values() if id(client) not in known]
        for client in came:  # after those that went: a number may be used again
            _assign_or_name(fresh, client)
        if came:
            fresh.generation.verify()
        fresh.built_for = ()

    # Clients.

    def add_client(
        self,
        name: str,
        groups: Sequence[str],
        addresses: Sequence[IpAddress],
        reaches: Sequence[str] | None = None,
    ) -> None:
        """The kernel judges packets of these addresses by this client's policy from now on.

        ``reaches``: the services that its certificate narrows it to, if it does. A client that is
        there already is never nobody meanwhile; its flows end.

        Raises:
            KernelError: the tables are full, or the kernel refused; the client is not there.
        """
        if not self._free:
            self.remove_client(name)
        before = self._clients.pop(name, None)
        if self._current is None or not self._free:
            raise KernelError("no policy is loaded" if self._free else "the client table is full")
        narrowed_to = None if reaches is None else tuple(reaches)
        client = _Client(self._free.popleft(), name, tuple(groups), tuple(addresses), narrowed_to)
        try:
            self.programs.reset_counters(client.index)
            _assign(self._current, client)
            # The address last: until then the client is nobody, and nobody passes.
            for address in addresses:
                self.programs.set_client(address, client.index)
        except (OSError, RuntimeError, ValueError) as error:
            for one in (client, before):
                with contextlib.suppress(KernelError):  # the first error is the one to tell
                    if one is not None:
                        self._leave(one)
            raise KernelError(f"client {name}: {error}") from error
        self._clients[name] = client
        self._names[client.index] = name
        if before is not None:
            self._leave(before, kept=addresses)

    def remove_client(self, name: str) -> None:
        """The kernel passes none of the client's packets any more, and forgets its flows."""
        client = self._clients.pop(name, None)
        if client is not None:
            self._leave(client)

    def _leave(self, client: _Client, kept: Sequence[IpAddress] = ()) -> None:
        try:
            self._forget(client, kept)
        finally:
            # By now nothing is added to it, and the next with this number begins at zero.
            with contextlib.suppress(OSError):
                counted = astuple(self.programs.counters(client.index))
                self.gone = tuple(map(sum, zip(self.gone, counted, strict=True)))

    def _forget(self, client: _Client, kept: Sequence[IpAddress]) -> None:
        """Every step is tried; KernelError at the end if one failed. Another has those kept.

        The number is then never given again: an address that is still in the kernel under it
        must not come to stand for another client. Without a policy it passes nothing.
        """
        steps: list[Callable[[], None]] = [
            partial(self.programs.remove_client, address)
            for address in client.addresses
            if address not in kept
        ]
        if self._current is not None:
            steps.append(partial(self._current.generation.unassign, client.index))
        problems = []
        for step in steps:
            try:
                step()
            except (OSError, RuntimeError, ValueError) as error:
                problems.append(str(error))
        if problems:
            raise KernelError(f"client {client.name} not forgotten: {'; '.join(problems)}")
        self._free.append(client.index)

    def client_index(self, name: str) -> int:
        """The kernel's number of a client. KernelError: it knows none of that name."""
        client = self._clients.get(name)
        if client is None:
            raise KernelError(f"no client {name}")
        return client.index

    def counters(self, name: str) -> ClientCounters | None:
        """What was counted for a client since it connected."""
        client = self._clients.get(name)
        return self.programs.counters(client.index) if client is not None else None

    def numbers(self) -> dict[str, int]:
        """The kernel's numbers of all clients."""
        return {client.name: client.index for client in self._clients.values()}

    def client_bytes(self, name: str) -> tuple[int, int]:
        """Bytes up and down; zeros for an unknown client."""
        counted = self.counters(name)
        return (counted.up_bytes, counted.down_bytes) if counted is not None else (0, 0)

    # Events.

    def poll_events(self, handle: Callable[[FlowEvent], None]) -> None:
        """Hand out the events that wait, with names."""
        self.programs.poll_events(lambda event: handle(self._named(event)))

    def _named(self, event: KernelEvent) -> FlowEvent:
        name = self._names.get(event.client_index)
        rule = self.rule(name, event.revision, event.rule) if name is not None else None
        return FlowEvent(event, name, rule, self.revision_of(event.revision))

    def rule(self, client_name: str, generation: int, global_rule: int) -> Rule | None:
        """The rule that a verdict names; None: no rule, or of a generation long gone.

        Clients whose rules mean the same share one policy in the kernel, whatever the rules are
        called: so the name comes from the client's own rules.
        """
        client = self._clients.get(client_name)
        if global_rule == NO_RULE or client is None:
            return None
        for known in (self._current, self._previous):
            if known is not None and known.generation.revision == generation:
                try:
                    _, index = known.generation.rule_of(global_rule)
                except KeyError:
                    return None  # an event of a policy that no client has any more
                rules = known.policy_set.rules_for(client.name, client.groups)
                return rules[index] if index < len(rules) else None
        return None
