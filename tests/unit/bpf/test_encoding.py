import struct
from ipaddress import ip_network

import pytest
from zgate_bpf import layouts
from zgate_bpf.encoding import FOREVER_NS, Placement, check_policy, encode_policy
from zgate_bpf.errors import CapacityError
from zgate_bpf.tables import (
    MAX_LIST_DEPTH,
    MAX_RULES_PER_POLICY,
    Action,
    CompiledPolicy,
    Destination,
    ServiceList,
    ServicePrefix,
)

POLICY = CompiledPolicy(
    rules=(Action.ALLOW, Action.DENY),
    lists=(
        ServiceList(None, (ServicePrefix(None, 0, 0, 1),)),
        ServiceList(0, (ServicePrefix(17, 53, 16, 0), ServicePrefix(6, 0x1F00, 8, 1))),
    ),
    destinations=(
        Destination(ip_network("10.0.0.0/8"), 0),
        Destination(ip_network("10.20.0.0/16"), 1),
        Destination(ip_network("2001:db8::/32"), 1),
    ),
    default_action=Action.DENY,
)
PLACEMENT = Placement(policy_id=7, list_base=100, rule_base=1000, interval_base=500)
NONE = 0xFFFFFFFF


def native(*numbers):
    return struct.pack(f"={len(numbers)}I", *numbers)


def test_rules_and_lists():
    entries = encode_policy(POLICY, PLACEMENT)
    assert entries["rules"] == [(native(1000), native(1)), (native(1001), native(0))]
    # Root, parent, and the lowest rule above.
    assert entries["lists"] == [
        (native(100), native(500, NONE, NONE)),
        (native(101), native(503, 100, 1001)),
    ]


def test_intervals_are_a_tree():
    entries = encode_policy(POLICY, PLACEMENT)
    tcp, udp = 6 << 16, 17 << 16
    assert entries["intervals"] == [
        (native(500), native(0, 1001, NONE, NONE)),
        (native(501), native(0, NONE, NONE, NONE)),
        (native(502), native(tcp | 0x1F00, 1001, 501, NONE)),
        (native(503), native(tcp | 0x2000, NONE, 502, 505)),
        (native(504), native(udp | 53, 1000, NONE, NONE)),
        (native(505), native(udp | 54, NONE, 504, NONE)),
    ]


def test_destinations_and_their_marks():
    entries = dict(encode_policy(POLICY, PLACEMENT)["destinations"])
    head = struct.Struct("=IHH")
    # The search asks for 16 bits first, then for 8: no mark is needed.
    assert entries == {
        head.pack(7, 4, 8) + bytes([10]) + bytes(15): native(100),
        head.pack(7, 4, 16) + bytes([10, 20]) + bytes(14): native(101),
        head.pack(7, 6, 32) + bytes.fromhex("20010db8") + bytes(12): native(101),
    }
    ((key, record),) = encode_policy(POLICY, PLACEMENT)["policies"]
    assert key == native(7)
    until_ns, following, action, first4, first6, steps = layouts.POLICY.unpack(record)
    assert (until_ns, following, action) == (FOREVER_NS, 0, Action.DENY)
    assert (first4, first6) == (0, 2)
    assert steps[:12] == bytes([16, 255, 1, 0, 8, 255, 255, 0, 32, 255, 255, 0])


def test_chain_that_takes_too_long_is_merged():
    """Sixteen lists of a hundred ports each: none of them may cost the kernel too much."""
    ports = tuple(ServicePrefix(6, 2 * n, 16, 0) for n in range(100))
    lists = tuple(
        ServiceList(index - 1 if index else None, ports) for index in range(MAX_LIST_DEPTH)
    )
    policy = CompiledPolicy((Action.ALLOW,), lists, (), Action.DENY)
    entries = encode_policy(policy, PLACEMENT)
    parents = {key: struct.unpack("=3I", value)[1] for key, value in entries["lists"]}
    assert len([parent for parent in parents.values() if parent == NONE]) > 1
    assert len([parent for parent in parents.values() if parent != NONE]) > 1


def test_a_good_policy_is_not_refused():
    check_policy(POLICY)
    check_policy(CompiledPolicy((), (), (), Action.DENY))


def nested(depth):
    lists = tuple(ServiceList(index - 1 if index else None, ()) for index in range(depth))
    return CompiledPolicy((), lists, (), Action.DENY)


def test_lists_nest_so_deep_and_no_deeper():
    check_policy(nested(MAX_LIST_DEPTH))
    with pytest.raises(CapacityError, match=f"{MAX_LIST_DEPTH} fit"):
        check_policy(nested(MAX_LIST_DEPTH + 1))


def test_lists_in_a_circle():
    circle = CompiledPolicy((), (ServiceList(1, ()), ServiceList(0, ())), (), Action.DENY)
    with pytest.raises(CapacityError, match="nested"):
        check_policy(circle)


def test_too_many_rules():
    rules = (Action.ALLOW,) * (MAX_RULES_PER_POLICY + 1)
    with pytest.raises(CapacityError) as caught:
        check_policy(CompiledPolicy(rules, (), (), Action.DENY))
    assert caught.value.needed == MAX_RULES_PER_POLICY + 1
    assert caught.value.capacity == MAX_RULES_PER_POLICY


@pytest.mark.parametrize(
    ("prefix", "complaint"),
    [
        (ServicePrefix(6, 80, 16, 2), "rule"),
        (ServicePrefix(6, 80, 16, -1), "rule"),
        (ServicePrefix(None, 0, 4, 0), "no protocol"),
        (ServicePrefix(256, 0, 0, 0), "protocols"),
        (ServicePrefix(6, 0, 17, 0), "16 bits"),
        (ServicePrefix(6, 0x0100, 4, 0), "behind its prefix"),
        (ServicePrefix(6, 0x10000, 16, 0), "behind its prefix"),
    ],
)
def test_prefix_that_means_nothing(prefix, complaint):
    policy = CompiledPolicy(
        (Action.ALLOW, Action.DENY), (ServiceList(None, (prefix,)),), (), Action.DENY
    )
    with pytest.raises(ValueError, match=complaint):
        check_policy(policy)
