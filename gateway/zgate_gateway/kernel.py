"""The policy in the kernel: which client has which policy, under which revision, and what it did.

The kernel knows clients by a small number and policies by another. This module gives the
numbers, keeps equal policies shared, and turns the kernel's events back into names.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv6Address

from zgate_bpf.kernel_policy import ClientCounters, Generation, KernelEvent, KernelPolicy
from zgate_bpf.tables import NO_RULE, CompiledPolicy

from zgate_gateway.policy.compiler import PolicyTooLarge
from zgate_gateway.policy.policy_set import PolicySet
from zgate_gateway.policy.rules import Rule

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


@dataclass(slots=True)
class _Revision:
    """One policy set as it stands in the kernel."""

    number: int
    policy_set: PolicySet
    generation: Generation
    # By identity: equal policies are one object, and hashing ten thousand rules takes long.
    policies: dict[int, CompiledPolicy] = field(default_factory=dict)
    policy_ids: dict[int, int] = field(default_factory=dict)
    built_for: tuple[_Client, ...] = ()

    def policy_of(self, name: str, groups: Sequence[str]) -> int:
        """The kernel's number of this client's policy; compiled and loaded when it is new."""
        compiled = self.policy_set.compiled_for(name, groups)
        policy_id = self.policy_ids.get(id(compiled))
        if policy_id is None:
            policy_id = self.generation.add_policy(compiled)
            self.policies[policy_id] = compiled  # keeps its identity taken
            self.policy_ids[id(compiled)] = policy_id
        return policy_id


def _policy_for(revision: _Revision, client: _Client) -> int:
    try:
        return revision.policy_of(client.name, client.groups)
    except PolicyTooLarge as error:
        groups = ", ".join(client.groups) or "none"
        raise ValueError(f"client {client.name} (groups: {groups}): {error}") from error


@dataclass(frozen=True, slots=True)
class FlowEvent:
    """What the kernel said of a new flow or a denial, with names."""

    event: KernelEvent
    client: str | None
    rule_id: str | None


class Kernel:
    """Clients and policies in the loaded programs."""

    def __init__(self, programs: KernelPolicy, *, max_clients: int) -> None:
        self.programs = programs
        self._clients: dict[str, _Client] = {}
        self._names: dict[int, str] = {}
        # Freed numbers go to the end: an event that is still under way finds no other client.
        self._free: deque[int] = deque(range(max_clients))
        self._current: _Revision | None = None
        self._previous: _Revision | None = None

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

        Large policies take seconds. Nothing here touches what packets are judged by, nor what the
        event loop changes meanwhile; one build at a time.

        Raises:
            KernelError: it does not fit or cannot be read back.
        """
        try:
            generation = self.programs.begin(revision)
            fresh = _Revision(revision, policy_set, generation, built_for=clients)
            for client in clients:
                generation.assign(client.index, _policy_for(fresh, client))
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

    def _catch_up(self, fresh: _Revision) -> None:
        """Bring in the clients that came, and leave out those that went, during the build."""
        for client in fresh.built_for:
            if self._clients.get(client.name) is not client:
                fresh.generation.unassign(client.index)
        known = {id(client) for client in fresh.built_for}
        came = [client for client in self._clients.values() if id(client) not in known]
        for client in came:  # after those that went: a number may be used again
            fresh.generation.assign(client.index, _policy_for(fresh, client))
        if came:
            fresh.generation.verify()
        fresh.built_for = ()

    # Clients.

    def add_client(self, name: str, groups: Sequence[str], addresses: Sequence[IpAddress]) -> None:
        """The kernel judges packets of these addresses by this client's policy from now on.

        Raises:
            KernelError: the tables are full, or the kernel refused.
        """
        self.remove_client(name)
        if self._current is None or not self._free:
            raise KernelError("no policy is loaded" if self._free else "the client table is full")
        client = _Client(self._free.popleft(), name, tuple(groups), tuple(addresses))
        try:
            policy_id = self._current.policy_of(name, groups)
            self.programs.reset_counters(client.index)
            self._current.generation.assign(client.index, policy_id)
            # The address last: until then the client is nobody, and nobody passes.
            for address in addresses:
                self.programs.set_client(address, client.index)
        except (OSError, RuntimeError, ValueError) as error:
            with contextlib.suppress(KernelError):  # the first error is the one to tell
                self._forget(client)
            raise KernelError(f"client {name}: {error}") from error
        self._clients[name] = client
        self._names[client.index] = name

    def remove_client(self, name: str) -> None:
        """The kernel passes none of the client's packets any more, and forgets its flows."""
        client = self._clients.pop(name, None)
        if client is not None:
            self._forget(client)

    def _forget(self, client: _Client) -> None:
        """Every step is tried; KernelError at the end if one failed.

        The number is then never given again: an address that is still in the kernel under it
        must not come to stand for another client. Without a policy it passes nothing.
        """
        steps: list[Callable[[], None]] = [
            partial(self.programs.remove_client, address) for address in client.addresses
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

    def counters(self, name: str) -> ClientCounters | None:
        """What was counted for a client since it connected."""
        client = self._clients.get(name)
        return self.programs.counters(client.index) if client is not None else None

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
        return FlowEvent(event, name, rule.id if rule is not None else None)

    def rule(self, client_name: str, revision: int, global_rule: int) -> Rule | None:
        """The rule that a verdict names; None: no rule, or of a revision long gone.

        Clients whose rules mean the same share one policy in the kernel, whatever the rules are
        called: so the name comes from the client's own rules.
        """
        client = self._clients.get(client_name)
        if global_rule == NO_RULE or client is None:
            return None
        for known in (self._current, self._previous):
            if known is not None and known.number == revision:
                try:
                    _, index = known.generation.rule_of(global_rule)
                except KeyError:
                    return None  # an event of a policy that no client has any more
                rules = known.policy_set.rules_for(client.name, client.groups)
                return rules[index] if index < len(rules) else None
        return None
