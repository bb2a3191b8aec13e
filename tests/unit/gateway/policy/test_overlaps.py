"""Overlaps of contrary rules, against trying every pair."""

from ipaddress import ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zgate_bpf.tables import Action
from zgate_gateway.policy import PolicySet, check_policy, overlaps
from zgate_gateway.policy.model import RuleType
from zgate_gateway.policy.overlaps import find_overlaps
from zgate_gateway.policy.rules import Rule
from zgate_gateway.policy.services import Service

NETWORKS = [f"10.0.0.{i << bits}/{32 - bits}" for bits in range(3) for i in range(4 >> bits)]
ANY = (Service(-1, 0, 65535),)


def make(index, action, networks, services):
    return Rule(
        f"r{index}",
        RuleType.IP_CIDR,
        action,
        tuple(map(ip_network, networks)),
        tuple(services),
        tuple(services),
        path=f"rules[{index}]",
        line=index + 1,
    )


services = st.lists(
    st.sampled_from([ANY[0], Service(6, 80, 90), Service(6, 85, 95), Service(17, 0, 65535)]),
    min_size=1,
    max_size=2,
    unique=True,
)
rule_lists = st.lists(
    st.tuples(
        st.sampled_from(Action),
        st.lists(st.sampled_from(NETWORKS), min_size=1, max_size=2, unique=True),
        services,
    ),
    max_size=7,
).map(lambda made: [make(index, *parts) for index, parts in enumerate(made)])


def meets(one, other):
    return any(a.overlaps(b) for a in one.destinations for b in other.destinations) and any(
        a.first <= b.last
        and b.first <= a.last
        and (a.protocol == b.protocol or -1 in (a.protocol, b.protocol))
        for a in one.services_ipv4
        for b in other.services_ipv4
    )


def inside(inner, outer):
    """By single destinations and services: what several of them cover together is not asked."""
    return all(
        any(network.subnet_of(other) for other in outer.destinations)
        for network in inner.destinations
    ) and all(
        any(
            other.protocol in (service.protocol, -1)
            and other.first <= service.first
            and service.last <= other.last
            for other in outer.services_ipv4
        )
        for service in inner.services_ipv4
    )


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(rule_lists)
def test_exactly_the_contrary_pairs_of_which_neither_holds_the_other(rules):
    expected = {
        (first, second)
        for second in range(len(rules))
        for first in range(second)
        if rules[first].action is not rules[second].action
        and meets(rules[first], rules[second])
        and not inside(rules[first], rules[second])
        and not inside(rules[second], rules[first])
    }
    found = find_overlaps(rules)
    assert found.complete
    assert {(one.first, one.second) for one in found.found} == expected
    for one in found.found:
        for rule in (rules[one.first], rules[one.second]):
            assert any(one.network.subnet_of(network) for network in rule.destinations)


def test_it_is_a_note_that_names_both_rules_and_who_wins():
    policy_set = PolicySet.parse(
        'version: "1.0"\nclients:\n  a:\n    rules:\n'
        "    - {id: ping, type: ip_cidr, action: allow, destinations: [10.0.0.0/8],"
        " protocols: [icmp]}\n"
        "    - {id: lab, type: ip_cidr, action: deny, destinations: [10.66.0.0/16]}\n"
    )
    (finding,) = check_policy(policy_set)
    assert finding.is_note and (finding.rule_id, finding.line) == ("lab", 6)
    assert finding.text == (
        'rule "lab" (deny) overlaps with rule "ping" (line 5, allow), '
        "which comes first and decides what both match in 10.66.0.0/16"
    )


def test_too_many_are_said_and_not_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(overlaps, "_MAX_TOLD", 3)
    rules = [make(i, Action.ALLOW, ["10.0.0.0/8"], [Service(6, i, i)]) for i in range(5)]
    rules.append(make(5, Action.DENY, ["10.1.0.0/16", "11.0.0.0/8"], [Service(6, 0, 9)]))
    found = find_overlaps(rules)
    assert not found.complete and len(found.found) == 3


def test_ten_thousand_rules_of_one_action_at_one_place_are_no_work():
    rules = [make(i, Action.ALLOW, ["10.0.0.0/8"], [Service(6, i, i)]) for i in range(10_000)]
    assert find_overlaps(rules).found == []
