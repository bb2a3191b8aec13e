"""The reachability check against trying every packet that could make a difference."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_network
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zgate_bpf.tables import Action
from zgate_gateway.policy import PolicySet, check, check_policy, check_rules, first_match
from zgate_gateway.policy.model import RuleType
from zgate_gateway.policy.rules import Rule
from zgate_gateway.policy.services import Service


def make(index, action, destinations, services, ipv6_services=None):
    return Rule(
        id=f"r{index}",
        type=RuleType.IP_CIDR,
        action=action,
        destinations=tuple(map(ip_network, destinations)),
        services_ipv4=tuple(services),
        services_ipv6=tuple(services if ipv6_services is None else ipv6_services),
        path=f"rules[{index}]",
        line=index + 1,
    )


NETWORKS = [f"10.0.0.{i << bits}/{32 - bits}" for bits in range(4) for i in range(8 >> bits)]
NETWORKS += ["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "::/0", "::/1", "8000::/1", "fd00::/8"]
ranges = st.sampled_from(
    [(0, 65535), (0, 32767), (32768, 65535), (80, 80), (81, 81), (80, 81), (0, 79), (82, 65535)]
)
services = st.lists(
    st.one_of(
        st.just(Service(-1, 0, 65535)),
        st.tuples(st.sampled_from([6, 17]), ranges).map(lambda s: Service(s[0], *s[1])),
    ),
    min_size=1,
    max_size=2,
)
rule_lists = st.lists(
    st.tuples(
        st.sampled_from(Action),
        st.lists(st.sampled_from(NETWORKS), min_size=1, max_size=3, unique=True),
        services,
    ),
    max_size=9,
).map(lambda made: [make(index, *parts) for index, parts in enumerate(made)])


def deciding(rules):
    """Rules that decide a packet, by trying all places where anything can begin or end."""
    addresses = {IPv4Address(0), IPv6Address(0)}
    for network in {network for rule in rules for network in rule.destinations}:
        addresses.add(network.network_address)
        if int(network.broadcast_address) + 1 < 1 << network.max_prefixlen:
            addresses.add(network.broadcast_address + 1)
    ports = {0} | {edge for rule in rules for s in rule.services_ipv4 for edge in (s[1], s[2] + 1)}
    packets = product(addresses, (6, 17, 99), sorted(ports - {65536}))
    return {first_match(rules, *packet) for packet in packets} - {None}


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(rule_lists)
def test_exactly_the_rules_that_decide_nothing_are_found(rules):
    found = {int(finding.rule_id[1:]) for finding in check_rules(rules)}
    assert found == set(range(len(rules))) - deciding(rules)


def check_text(*rules):
    return [finding.text for finding in check_rules(rules)]


ANY = [Service(-1, 0, 65535)]


def test_a_shadowed_rule_names_the_one_that_shadows_it_and_what_that_does():
    texts = check_text(
        make(0, Action.DENY, ["10.0.0.0/8"], ANY),
        make(1, Action.ALLOW, ["10.1.0.0/16"], [Service(6, 80, 80)]),
    )
    assert texts == [
        'rule "r1" is never reached: rule "r0" (line 1, deny) comes first '
        "and matches everything that it matches"
    ]


def test_rules_that_hide_one_only_together():
    texts = check_text(
        make(0, Action.ALLOW, ["10.0.0.0/9"], ANY),
        make(1, Action.ALLOW, ["10.128.0.0/9"], ANY),
        make(2, Action.ALLOW, ["10.0.0.0/8"], ANY),
    )
    assert len(texts) == 1
    assert texts[0].startswith('rule "r2" is never reached: rules before it together match')


def test_all_protocols_one_by_one_hide_a_rule_for_any():
    rules = [make(n, Action.ALLOW, ["10.0.0.0/8"], [Service(n, 0, 65535)]) for n in range(256)]
    last = make(256, Action.DENY, ["10.0.0.0/8"], ANY)
    assert [finding.rule_id for finding in check_rules([*rules, last])] == ["r256"]
    assert check_rules([*rules[1:], last]) == []


def test_a_rule_whose_protocol_its_family_does_not_have():
    policy_set = PolicySet.parse(
        'version: "1.0"\nclients: {a: {rules: [{id: x, type: ip_cidr, action: allow,'
        " destinations: [10.0.0.0/8], protocols: [icmpv6]}]}}"
    )
    (finding,) = check_policy(policy_set)
    assert (finding.rule_id, finding.path, finding.line) == ("x", "clients.a.rules[0]", 2)
    assert "never matches" in finding.text


def test_default_allow_is_worth_a_word():
    policy_set = PolicySet.parse('version: "1.0"\n\ndefault_action: allow\n')
    (finding,) = check_policy(policy_set)
    assert (finding.path, finding.line) == ("default_action", 3)


def test_groups_are_checked_and_findings_are_in_the_order_of_the_file():
    rules = (
        "{rules: [{id: all, type: default, action: allow}, {id: no, type: default, action: deny}]}"
    )
    policy_set = PolicySet.parse(f'version: "1.0"\ngroups:\n  g: {rules}\nclients:\n  a: {rules}\n')
    assert [(f.path, f.line) for f in check_policy(policy_set)] == [
        ("groups.g.rules[1]", 3),
        ("clients.a.rules[1]", 5),  # never reached
        ("clients.a.rules[0]", 5),  # hides its groups
    ]


def test_ten_thousand_rules_that_are_fine_give_no_finding():
    rules = [
        make(i, Action.ALLOW, [f"10.{i >> 8}.{i & 255}.5/32"], [Service(6, i, i)])
        for i in range(10_000)
    ]
    assert check_rules([*rules, make(10_000, Action.DENY, ["0.0.0.0/0"], ANY)]) == []


def test_a_default_rule_of_a_client_hides_its_groups():
    default = "{rules: [{id: rest, type: default, action: deny}]}"
    group = (
        "groups: {g: {rules: [{id: x, type: ip_cidr, action: allow, destinations: [10.0.0.1]}]}}"
    )
    text = f'version: "1.0"\nclients:\n  a: {default}\n'
    assert check_policy(PolicySet.parse(text)) == []
    (finding,) = check_policy(PolicySet.parse(text + group))
    assert (finding.rule_id, finding.line, finding.is_note) == ("rest", 3, False)
    assert "whatever groups a has, their rules are never reached" in finding.text


def test_too_much_work_is_said_and_not_done(monkeypatch):
    monkeypatch.setattr(check, "_MAX_WORK", 10)
    rules = [make(i, Action.ALLOW, ["10.0.0.0/8"], [Service(6, i, i)]) for i in range(20)]
    (finding,) = check_rules(rules)
    assert finding.text.startswith("not checked for rules that are never reached")
    assert (finding.path, finding.line) == ("rules", 1)


def test_ports_one_by_one_hide_a_range():
    rules = [make(i, Action.ALLOW, ["10.0.0.0/8"], [Service(6, 80 + i, 80 + i)]) for i in range(8)]
    covered = make(8, Action.DENY, ["10.0.0.0/8"], [Service(6, 80, 87)])
    assert [finding.rule_id for finding in check_rules([*rules, covered])] == ["r8"]
    assert check_rules([*rules[1:], covered]) == []
    assert check_rules([*rules, make(8, Action.DENY, ["10.0.0.0/8"], [Service(6, 80, 88)])]) == []


# Time.

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def timed(index, action, network, begins=None, ends=None):
    times = [None if hour is None else NOW + timedelta(hours=hour) for hour in (begins, ends)]
    made = make(index, action, [network], [Service(6, 0, 65535)])
    return replace(made, not_before=times[0], expires_at=times[1])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(rule_lists, st.lists(st.tuples(st.integers(-2, 4), st.integers(1, 4)), max_size=4))
def test_a_rule_is_never_reached_if_it_decides_at_no_time(rules, windows):
    """Tried at every time at which anything changes."""
    for index, (begins, lasts) in enumerate(windows[: len(rules)]):
        rules[-index - 1] = replace(
            rules[-index - 1],
            not_before=NOW + timedelta(hours=begins),
            expires_at=NOW + timedelta(hours=begins + lasts),
        )
    lists = [
        [rule if rule.holds(NOW + timedelta(hours=hour)) else rule.dormant() for rule in rules]
        for hour in range(10)
    ]
    named = {i for held in lists for i, rule in enumerate(held) if rule.services_ipv4}
    decide = set().union(*map(deciding, lists))
    found = {int(one.rule_id[1:]) for one in check_rules(rules, NOW) if "reached" in one.text}
    assert found == named - decide


def test_a_rule_that_is_over_is_told():
    over = timed(0, Action.DENY, "10.0.0.0/8", None, 0)
    (finding,) = check_rules([over, timed(1, Action.ALLOW, "10.0.0.0/8")], NOW)
    assert finding.text == 'rule "r0" ended at 2030-01-01T00:00:00Z: it can be removed'
    assert not finding.is_note


@pytest.mark.parametrize(
    ("windows", "notes"),
    [
        (((None, 2), (1, 3)), 1),
        (((None, 2), (2, 3)), 0),
        (((None, 2), (None, None)), 1),
        (((None, -1), (None, -1)), 0),
    ],
)
def test_rules_overlap_only_if_there_is_a_time_for_both(windows, notes):
    rules = (
        timed(0, Action.ALLOW, "10.0.0.0/8", *windows[0]),
        replace(timed(1, Action.DENY, "0.0.0.0/0", *windows[1]), services_ipv4=(Service(6, 1, 2),)),
    )
    found = check_policy(PolicySet(clients={"a": rules}), NOW)
    assert sum(finding.is_note for finding in found) == notes


def test_too_many_times_are_told(monkeypatch):
    rules = [timed(i, Action.ALLOW, "10.0.0.0/8", None, 4 - i) for i in range(3)]
    hidden = [finding.rule_id for finding in check_rules(rules, NOW)]
    assert hidden == ["r1", "r2"]  # whenever they hold, so does the first
    monkeypatch.setattr(check, "_MAX_TIMED_RULES", 5)
    (finding,) = check_rules(rules, NOW)
    assert "too many times" in finding.text


def test_many_times_cost_nothing_where_every_rule_decides_today(monkeypatch):
    monkeypatch.setattr(check, "_MAX_TIMED_RULES", 200)
    rules = [timed(i, Action.ALLOW, f"10.0.{i}.0/24", None, i + 1) for i in range(200)]
    assert check_rules(rules, NOW) == []


def test_a_temporary_rule_for_everything_hides_no_group():
    text = (
        'version: "1.0"\nclients: {a: {rules: [{id: r, type: default, action: allow'
        "%s}]}}\ngroups: {g: {rules: [{id: x, type: default, action: deny}]}}"
    )
    (hides,) = check_policy(PolicySet.parse(text % ""), NOW)
    assert "whatever groups" in hides.text
    assert check_policy(PolicySet.parse(text % ", not_before: 2031-01-01T00:00:00Z"), NOW) == []
