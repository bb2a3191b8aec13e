"""The loaded program and the reference evaluator, asked the same things in the same order."""

import random
from dataclasses import dataclass
from ipaddress import ip_address

from zgate_bpf.kernel_policy import Direction
from zgate_bpf.tables import NO_RULE, Action

from bpf_support.generator import CLIENTS, Generator
from bpf_support.reference import Reference, RefRule

KINDS = ("new_flow", "known_flow", "related")


@dataclass(frozen=True)
class NewPolicy:
    rules: tuple[RefRule, ...]
    default: Action


@dataclass(frozen=True)
class NewPacket:
    data: bytes
    up: bool


class Difference(AssertionError):
    """They do not agree; `steps` is how it came to that."""

    def __init__(self, text, steps):
        super().__init__(text)
        self.steps = steps

    def __str__(self):
        return "\n".join([super().__str__(), *(f"  {step}" for step in self.steps)])


class Comparison:
    """The same clients, policies and packets for both."""

    def __init__(self, world):
        self.world = world
        self.reference = Reference()
        self.reference.clients = {ip_address(address) for address in CLIENTS}
        self.steps = []
        self.seen = set()
        world.clients()
        # Fragments outlive their client, by design; the reference begins with none.
        for key, _ in world.kernel._fragments.items():
            world.kernel._fragments.delete(key)

    def policy(self, rules, default):
        self.steps.append(NewPolicy(tuple(rules), default))
        self.world.policy(*rules, default=default, shared=True)
        self.reference.rules = rules
        self.reference.default_allow = default is Action.ALLOW
        self.reference.revision = self.world.revision

    def packet(self, data, up):
        """Compare; False if the kernel runs no test on such a packet."""
        direction = Direction.UP if up else Direction.DOWN
        try:
            asked = self.world.kernel.evaluate(data, direction)
            verdict = self.world.kernel.run(data, direction)
        except ValueError:
            return False
        expected = self.reference.decide(data, up)
        self.steps.append(NewPacket(data, up))
        for found in (asked, verdict):
            self._check(found, expected)
        self.seen.add(expected.reason)
        self.seen |= {name for name in KINDS if getattr(expected, name)}
        return True

    def _check(self, found, expected):
        rule = None
        if found.rule != NO_RULE:
            _, rule = self.world.generation.rule_of(found.rule)
        said = (found.reason, rule, found.new_flow, found.known_flow, found.related)
        if said != (
            expected.reason,
            expected.rule,
            expected.new_flow,
            expected.known_flow,
            expected.related,
        ):
            raise Difference(f"the kernel: {found}\nthe reference: {expected}", list(self.steps))


def compare_round(world, seed, number, packets):
    """Two random policies, each with half of the packets; gives how many, and what occurred."""
    generator = Generator(random.Random(f"{seed}/{number}"))
    comparison = Comparison(world)
    taken = 0
    for half in range(2):
        default = generator.random.choice([Action.DENY, Action.DENY, Action.ALLOW])
        rules = generator.rules()
        if half and generator.random.random() < 0.5:
            rules = comparison.reference.rules[1:]
        comparison.policy(rules, default)
        for _ in range(packets // 2):
            up = generator.random.random() < 0.6
            taken += comparison.packet(generator.packet(up), up)
    return taken, comparison.seen


def replay(world, steps):
    """Do the same again; gives the difference if there still is one."""
    world.clear()
    comparison = Comparison(world)
    try:
        for step in steps:
            if isinstance(step, NewPolicy):
                comparison.policy(list(step.rules), step.default)
            else:
                comparison.packet(step.data, step.up)
    except Difference as difference:
        return difference
    return None


def shrink(difference, fails):
    """The least that still differs: steps are left out, then rules, as long as it does.

    `fails(steps)` gives the difference that remains, or None.
    """
    size = len(difference.steps) // 2
    while size:
        at = 0
        while at < len(difference.steps):
            fewer = difference.steps[:at] + difference.steps[at + size :]
            smaller = fails(fewer) if any(isinstance(s, NewPolicy) for s in fewer) else None
            if smaller is None:
                at += size
            else:
                difference = smaller
        size //= 2
    return _with_fewer_rules(difference, fails)


def _with_fewer_rules(difference, fails):
    for at, step in enumerate(difference.steps):
        if not isinstance(step, NewPolicy):
            continue
        index = 0
        while index < len(difference.steps[at].rules):
            rules = difference.steps[at].rules
            fewer = NewPolicy(rules[:index] + rules[index + 1 :], step.default)
            smaller = fails([*difference.steps[:at], fewer, *difference.steps[at + 1 :]])
            if smaller is None or len(smaller.steps) != len(difference.steps):
                index += 1
            else:
                difference = smaller
    return difference
