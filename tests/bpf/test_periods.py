"""Policies that hold until a time, and what holds from then on: known flows too."""

import time

import pytest
from bpf_support import packets as p
from bpf_support.limited import now_ns
from bpf_support.policies import allow, compiled, deny
from bpf_support.world import ALICE, ALICE4, SERVER4
from zgate_bpf.encoding import ALWAYS, Period
from zgate_bpf.layouts import MAX_PERIODS
from zgate_bpf.tables import NO_RULE
from zgate_protocol.drop_reason import DropReason as Reason

PACKET = p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(4000, 53))
SOON_NS = 2_000_000_000
OPEN = compiled([allow("0.0.0.0/0")])
SHUT = compiled([deny("0.0.0.0/0")])


def in_force(world, *policies, ends_ns):
    """The policies, one after the other; the last one has no end unless one is given for it."""
    world.revision += 1
    generation = world.generation = world.kernel.begin(world.revision)
    following = 0
    for index in reversed(range(len(policies))):
        period = Period(ends_ns[index], following) if index < len(ends_ns) else ALWAYS
        following = generation.add_policy(policies[index], period)
    generation.assign(ALICE, following)
    generation.verify()
    generation.activate()


def wait_past(end_ns):
    """By the program's own clock; the promise is a second."""
    while now_ns() <= end_ns:
        time.sleep(0.01)


def test_access_ends_for_known_flows_too(world):
    end_ns = time.monotonic_ns() + SOON_NS
    in_force(world, OPEN, SHUT, ends_ns=[end_ns])
    assert world.up(PACKET).new_flow
    assert not world.up(PACKET).judged
    wait_past(end_ns)
    verdict = world.up(PACKET)
    assert (verdict.reason, verdict.known_flow, verdict.judged) == (Reason.POLICY_RULE, True, True)
    answer = p.ipv4(SERVER4, ALICE4, p.UDP, p.udp(53, 4000))
    assert world.down(answer).reason is Reason.UNSOLICITED


def test_access_begins(world):
    end_ns = time.monotonic_ns() + SOON_NS
    in_force(world, SHUT, OPEN, ends_ns=[end_ns])
    assert world.up(PACKET).reason is Reason.POLICY_RULE
    wait_past(end_ns)
    assert world.up(PACKET).passed


def test_flow_that_both_allow_goes_on(world):
    end_ns = time.monotonic_ns() + SOON_NS
    in_force(world, OPEN, compiled([deny("::/0"), allow("0.0.0.0/0")]), ends_ns=[end_ns])
    first = world.up(PACKET)
    wait_past(end_ns)
    again = world.up(PACKET)
    assert again.passed
    assert not again.new_flow
    assert world.generation.rule_of(first.rule)[1] == 0
    assert world.generation.rule_of(again.rule)[1] == 1


def test_end_of_the_last_one_passes_nothing(world):
    in_force(world, OPEN, ends_ns=[1])
    verdict = world.up(PACKET)
    assert (verdict.reason, verdict.rule) == (Reason.NO_POLICY, NO_RULE)


def test_a_row_as_long_as_the_kernel_walks(world):
    ends_ns = [1] * (MAX_PERIODS - 1)
    in_force(world, *[SHUT] * (MAX_PERIODS - 1), OPEN, ends_ns=ends_ns)
    assert world.up(PACKET).passed
    with pytest.raises(ValueError, match="the kernel walks"):
        in_force(world, *[SHUT] * MAX_PERIODS, OPEN, ends_ns=[*ends_ns, 1])


def test_period_that_names_no_policy(world):
    generation = world.kernel.begin(world.revision + 1)
    with pytest.raises(ValueError, match="policy 7 is not in revision"):
        generation.add_policy(OPEN, Period(1, 7))
