"""The loaded program against a plain Python evaluator: random policies, random packets.

fuzz_policy.py does the same for as long as wanted. ZGATE_FUZZ_SEED repeats a run.
"""

import os

import pytest
from bpf_support import packets as p
from bpf_support.comparison import (
    KINDS,
    Comparison,
    Difference,
    NewPacket,
    NewPolicy,
    compare_round,
    shrink,
)
from bpf_support.policies import allow, deny
from bpf_support.world import ALICE4, SERVER4
from zgate_bpf.tables import Action
from zgate_lab.waiting import SLOWNESS
from zgate_protocol.drop_reason import DropReason as Reason

LEAST_PAIRS = int(200_000 / SLOWNESS)
PACKETS = 2_000


@pytest.mark.timeout(0)
def test_program_and_reference_agree(world):
    seed = int(os.environ.get("ZGATE_FUZZ_SEED", "9484"))
    number, pairs, seen = 0, 0, set()
    while pairs < LEAST_PAIRS:
        taken, occurred = compare_round(world, seed, number, PACKETS)
        number, pairs = number + 1, pairs + taken
        seen |= occurred
    print(f"{pairs} packets in {number} rounds, seed {seed}: no difference")
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
    with pytest.raises(Difference, match="the reference: "):
        comparison.packet(p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 2)), up=True)


def test_a_difference_is_made_small():
    """What is left is what it takes: one packet, one rule."""
    wanted = NewPacket(b"this one", True)
    bad = deny("10.0.0.0/8")
    policy = NewPolicy((allow("::/0"), bad, allow("0.0.0.0/0")), Action.DENY)
    steps = [NewPolicy((), Action.DENY), *[NewPacket(b"x", True)] * 9, policy, wanted]

    def fails(steps):
        holds = any(isinstance(s, NewPolicy) and bad in s.rules for s in steps)
        return Difference("", steps) if holds and wanted in steps else None

    least = shrink(Difference("", steps), fails)
    assert least.steps == [NewPolicy((bad,), Action.DENY), wanted]
