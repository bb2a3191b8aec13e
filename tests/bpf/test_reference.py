"""The loaded program against a plain Python evaluator: random policies, random packets.

ZGATE_FUZZ_SECONDS=60 runs for longer; ZGATE_FUZZ_SEED repeats a run.
"""

import os
import random
import time
from ipaddress import ip_address

import pytest
from bpf_support import packets as p
from bpf_support.generator import CLIENTS, Generator
from bpf_support.policies import allow, deny
from bpf_support.reference import Reference
from bpf_support.world import ALICE4, SERVER4
from zgate_bpf.kernel_policy import Direction
from zgate_bpf.tables import NO_RULE, Action
from zgate_protocol.drop_reason import DropReason as Reason

KINDS = ("new_flow", "known_flow", "related")
ROUNDS = 60
PACKETS = 250
LEAST_DECIDED = ROUNDS * PACKETS // 2


class Comparison:
    """One round: the same clients, policies and packets, in order, for both."""

    def __init__(self, world):
        self.world = world
        self.reference = Reference()
        self.reference.clients = {ip_address(address) for address in CLIENTS}
        self.log = []
        self.seen = set()
        world.clients()
        # Fragments outlive their client, by design; the reference begins with none.
        for key, _ in world.kernel._fragments.items():
            world.kernel._fragments.delete(key)

    def policy(self, rules, default):
        self.world.policy(*rules, default=default, shared=True)
        self.reference.rules = rules
        self.reference.default_allow = default is Action.ALLOW
        self.reference.revision = self.world.revision
        self.log.append((rules, default))

    def packet(self, data, up):
        """True if the kernel took the packet for a test."""
        direction = Direction.UP if up else Direction.DOWN
        try:
            asked = self.world.kernel.evaluate(data, direction)
            verdict = self.world.kernel.run(data, direction)
        except ValueError:
            return False
        expected = self.reference.decide(data, up)
        self.log.append((data.hex(), "up" if up else "down"))
        for found in (asked, verdict):
            rule = None
            if found.rule != NO_RULE:
                _, rule = self.world.generation.rule_of(found.rule)
            assert (
                found.reason,
                rule,
                found.new_flow,
                found.known_flow,
                found.related,
            ) == (
                expected.reason,
                expected.rule,
                expected.new_flow,
                expected.known_flow,
                expected.related,
            ), f"{found}, {expected}: {data.hex()} {direction.name} after {self.log}"
        self.seen.add(expected.reason)
        self.seen |= {name for name in KINDS if getattr(expected, name)}
        return True


def one_round(world, seed, number):
    generator = Generator(random.Random(f"{seed}/{number}"))
    comparison = Comparison(world)
    taken = 0
    for half in range(2):
        default = generator.random.choice([Action.DENY, Action.DENY, Action.ALLOW])
        rules = generator.rules()
        if half and generator.random.random() < 0.5:
            rules = comparison.reference.rules[1:]
        comparison.policy(rules, default)
        for _ in range(PACKETS // 2):
            up = generator.random.random() < 0.6
            taken += comparison.packet(generator.packet(up), up)
    return taken, comparison.seen


@pytest.mark.timeout(0)
def test_program_and_reference_agree(world):
    seed = int(os.environ.get("ZGATE_FUZZ_SEED", "9484"))
    budget_s = float(os.environ.get("ZGATE_FUZZ_SECONDS", "0"))
    end = time.monotonic() + budget_s
    number, decided, seen = 0, 0, set()
    while number < ROUNDS or time.monotonic() < end:
        taken, reasons = one_round(world, seed, number)
        number, decided = number + 1, decided + taken
        seen |= reasons
    print(f"{decided} packets in {number} rounds, seed {seed}: no difference")
    assert decided >= LEAST_DECIDED
    assert seen >= {
        *KINDS,
        Reason.NONE,
        Reason.MALFORMED,
        Reason.UNKNOWN_NEXT_HEADER,
        Reason.FRAGMENT_WITHOUT_FIRST,
        Reason.POLICY_RULE,
        Reason.POLICY_DEFAULT,
        Reason.UNSOLICITED,
        Reason.LINK_LOCAL,
    }


def test_a_difference_is_found(world):
    """The comparison compares: another policy in the reference makes it fail."""
    comparison = Comparison(world)
    comparison.policy([deny("0.0.0.0/0")], Action.DENY)
    comparison.reference.rules = [allow("0.0.0.0/0")]
    with pytest.raises(AssertionError):
        comparison.packet(p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 2)), up=True)
