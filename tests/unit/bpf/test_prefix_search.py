import random
from ipaddress import ip_address, ip_network

import pytest
from zgate_bpf.prefix_search import NO_STEP, make_plan, with_marks

WIDTHS = {4: 32, 6: 128}


def search(table, plan, base, address):
    """As the program does it."""
    whole = WIDTHS[address.version]
    value, at, asked = None, plan.first, 0
    while at != NO_STEP:
        step = plan.steps[at - base]
        asked += 1
        key = step.bits, int(address) >> (whole - step.bits) << (whole - step.bits)
        if key in table:
            value, at = table[key], step.longer
        else:
            at = step.shorter
    return value, asked


@pytest.mark.parametrize("family", [4, 6])
def test_longest_prefix_is_found(family):
    chosen = random.Random(family)
    whole = WIDTHS[family]
    for _ in range(50):
        addresses = [chosen.getrandbits(whole) for _ in range(4)]
        prefixes = {}
        for value in range(chosen.choice([0, 1, 5, 30])):
            near = chosen.choice(addresses) ^ chosen.getrandbits(chosen.randrange(1, whole))
            bits = chosen.randint(0, whole)
            address = ip_address(near.to_bytes(whole // 8))
            prefixes[ip_network((address, bits), strict=False)] = value
        plan = make_plan((n.prefixlen for n in prefixes), 7)
        table = with_marks(prefixes, plan, 7, family)
        for number in [*addresses, *(int(n.network_address) for n in prefixes)]:
            address = ip_address(number.to_bytes(whole // 8))
            around = [n for n in prefixes if address in n]
            longest = max(around, key=lambda n: n.prefixlen, default=None)
            expected = None if longest is None else prefixes[longest]
            assert search(table, plan, 7, address)[0] == expected


@pytest.mark.parametrize(("lengths", "most"), [(1, 1), (7, 3), (33, 6), (129, 8)])
def test_few_questions(lengths, most):
    plan = make_plan(range(lengths), 0)

    def depth(at):
        return (
            0
            if at == NO_STEP
            else 1 + max(depth(plan.steps[at].longer), depth(plan.steps[at].shorter))
        )

    assert depth(plan.first) == most


def test_no_lengths_no_search():
    plan = make_plan([], 0)
    assert plan.first == NO_STEP
    assert with_marks({}, plan, 0, 4) == {}
