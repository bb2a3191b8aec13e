import struct
from ipaddress import ip_network

import pytest
from zgate_bpf.encoding import Placement, check_policy, encode_policy
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
PLACEMENT = Placement(policy_id=0x010203, list_base=100, rule_base=1000)
NO_PARENT = struct.pack("=I", 0xFFFFFFFF)


def native(*numbers):
    return struct.pack(f"={len(numbers)}I", *numbers)


def test_entries_of_every_table():
    entries = encode_policy(POLICY, PLACEMENT)
    assert entries["rules"] == [(native(1000), native(1, 0)), (native(1001), native(0, 0))]
    assert entries["lists"] == [(native(100), NO_PARENT), (native(101), native(100))]
    assert entries["services"] == [
        (native(32) + b"\0\0\0\x64" + b"\0" + b"\0\0" + b"\0", native(1001)),
        (native(56) + b"\0\0\0\x65" + b"\x11" + b"\0\x35" + b"\0", native(1000)),
        (native(48) + b"\0\0\0\x65" + b"\x06" + b"\x1f\0" + b"\0", native(1001)),
    ]
    assert entries["destinations4"] == [
        (native(40) + b"\0\x01\x02\x03" + b"\x0a\0\0\0", native(100) + NO_PARENT),
        (native(48) + b"\0\x01\x02\x03" + b"\x0a\x14\0\0", native(101, 100)),
    ]
    assert entries["destinations6"] == [
        (
            native(64) + b"\0\x01\x02\x03" + bytes.fromhex("20010db8") + bytes(12),
            native(101, 100),
        ),
    ]


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
