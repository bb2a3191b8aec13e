"""The diff of two policies, against asking both about every packet that could differ."""

from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zgate_bpf.limits import UNLIMITED, ClientLimits
from zgate_bpf.tables import Action
from zgate_gateway.policy import PolicySet, compile_policy, diff, first_match
from zgate_gateway.policy.diff import Subject, diff_policies, diff_sets
from zgate_gateway.policy.model import RuleType
from zgate_gateway.policy.rules import Rule
from zgate_gateway.policy.services import Service


def make(index, action, destinations, services):
    return Rule(
        id=f"r{index}",
        type=RuleType.IP_CIDR,
        action=action,
        destinations=tuple(map(ip_network, destinations)),
        services_ipv4=tuple(services),
        services_ipv6=tuple(services),
        line=index + 1,
    )


NETWORKS = [f"10.0.0.{i << bits}/{32 - bits}" for bits in range(4) for i in range(8 >> bits)]
NETWORKS += ["0.0.0.0/0", "128.0.0.0/1", "255.255.255.255/32", "::/0", "8000::/1", "fd00::/8"]
ranges = st.one_of(
    st.sampled_from([(0, 65535), (0, 32767), (80, 80), (81, 81), (80, 443), (443, 65535)]),
    st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(lambda r: (min(r), max(r))),
)
services = st.lists(
    st.one_of(
        st.just(Service(-1, 0, 65535)),
        st.tuples(st.sampled_from([0, 5, 6, 17, 255]), ranges).map(lambda s: Service(s[0], *s[1])),
    ),
    min_size=1,
    max_size=3,
)
rule_lists = st.lists(
    st.tuples(
        st.sampled_from(Action),
        st.lists(st.sampled_from(NETWORKS), min_size=1, max_size=3, unique=True),
        services,
    ),
    max_size=7,
).map(lambda made: [make(index, *parts) for index, parts in enumerate(made)])


def packets_that_may_differ(rules):
    addresses = {IPv4Address(0), IPv6Address(0)}
    for network in {network for rule in rules for network in rule.destinations}:
        addresses.add(network.network_address)
        if int(network.broadcast_address) + 1 < 1 << network.max_prefixlen:
            addresses.add(network.broadcast_address + 1)
    ports = {0} | {edge for rule in rules for s in rule.services_ipv4 for edge in (s[1], s[2] + 1)}
    return list(product(addresses, (0, 5, 6, 17, 18, 255), sorted(ports - {65536})))


def verdict(rules, default, packet):
    index = first_match(rules, *packet)
    return default if index is None else rules[index].action


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rule_lists,
    rule_lists,
    st.sampled_from(Action),
    st.sampled_from(Action),
    st.sampled_from([0, 200_000]),
    st.data(),
)
def test_exactly_the_packets_with_another_verdict(old, new, was, becomes, regrouped, data):
    if data.draw(st.booleans()):  # most changes are small
        kept = data.draw(st.integers(0, len(old)))
        new = old[:kept] + new[:1] + old[kept:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diff, "_MAX_REGROUPED", regrouped)
        changes = diff_policies(compile_policy(old, was), compile_policy(new, becomes))
    for packet in packets_that_may_differ([*old, *new]):
        before, after = verdict(old, was, packet), verdict(new, becomes, packet)
        told = [change.action for change in changes if change.contains(*packet)]
        assert told == ([] if before is after else [after]), packet
    for change in changes:
        assert list(change.services) == sorted(set(change.services))
        assert {network.version for network in change.networks} == {change.family}


def changes_of(old, new):
    def compiled(rules):
        text = "".join(f"  - {{{rule}}}\n" for rule in rules)
        return PolicySet.parse(f'version: "1.0"\nclients:\n a:\n  rules:\n{text}').compiled_for("a")

    return [
        (
            change.action.name.lower(),
            [str(network) for network in change.networks],
            [span.text(change.family) for span in change.services],
        )
        for change in diff_policies(compiled(old), compiled(new))
    ]


ALL = "id: all, type: default, action: deny"
WEB = "id: web, type: ip_cidr, action: allow, destinations: [10.0.0.0/8], ports: [443]"
WIDE = "id: w, type: ip_cidr, action: allow, destinations: [10.0.0.0/8, 'fd00::/8']"


def test_prefixes_and_ranges_are_joined():
    some = [
        f"id: r{i}, type: ip_cidr, action: allow, destinations: [10.0.{i}.0/24], protocols: [tcp],"
        f" ports: [{80 + j}]"
        for i in range(4)
        for j in (0,)
    ]
    assert changes_of([ALL], some) == [("allow", ["10.0.0.0/22"], ["tcp/80"])]
    assert changes_of([ALL], [WIDE]) == [
        ("allow", ["10.0.0.0/8"], ["any"]),
        ("allow", ["fd00::/8"], ["any"]),
    ]
    assert changes_of([WIDE], [WEB]) == [
        (
            "deny",
            ["10.0.0.0/8"],
            [
                "protocols 0-5",
                "tcp/0-442",
                "tcp/444-65535",
                "protocols 7-16",
                "udp/0-442",
                "udp/444-65535",
                "protocols 18-255",
            ],
        ),
        ("deny", ["fd00::/8"], ["any"]),
    ]


def test_a_service_keeps_its_addresses_together_where_another_has_fewer():
    inner = "id: s, type: ip_cidr, action: allow, destinations: [10.1.0.0/16], ports: [22],"
    assert changes_of([ALL], [f"{inner} protocols: [tcp]", WEB + ", protocols: [tcp]"]) == [
        ("allow", ["10.0.0.0/8"], ["tcp/443"]),
        ("allow", ["10.1.0.0/16"], ["tcp/22"]),
    ]


def test_icmp_in_words():
    ping = "id: p, type: ip_cidr, action: allow, destinations: [10.0.0.1, 'fd00::1'], icmp_types: "
    assert changes_of([ALL], [ping + "[echo-request, 3/4]"]) == [
        ("allow", ["10.0.0.1/32"], ["icmp type 3 code 4", "icmp type 8"]),
        ("allow", ["fd00::1/128"], ["icmpv6 type 3 code 4", "icmpv6 type 128"]),
    ]
    assert changes_of([ALL], [ping + "[9, 10]"])[0][2] == ["icmp types 9-10"]


def test_what_changes_nothing_is_no_change():
    renamed = WEB.replace("web", "other")
    halves = [
        WEB.replace("10.0.0.0/8", "10.0.0.0/9, 10.128.0.0/9"),
        "id: dead, type: ip_cidr, action: allow, destinations: [10.2.3.0/24], ports: [443]",
    ]
    assert changes_of([WEB], [renamed]) == []
    assert changes_of([WEB], halves) == []
    assert changes_of([WEB, ALL], [WEB]) == []


BEFORE = """\
version: "1.0"
clients:
  a: {rules: [{id: x, type: ip_cidr, action: allow, destinations: [10.0.0.1]}]}
  b: {rules: [{id: y, type: ip_cidr, action: allow, destinations: [10.0.0.1]}]}
groups:
  g: {rules: [{id: z, type: ip_cidr, action: allow, destinations: [10.0.0.2]}]}
"""


def test_who_gains_and_who_loses():
    before = PolicySet.parse(BEFORE)
    after = PolicySet.parse(BEFORE.replace("10.0.0.1", "10.0.0.3").replace("10.0.0.2", "10.0.0.1"))
    both, group = diff_sets(before, after)
    assert both.subjects == (Subject("client", "a"), Subject("client", "b"))
    assert [(c.action, *map(str, c.networks)) for c in both.changes] == [
        (Action.ALLOW, "10.0.0.3/32"),
        (Action.DENY, "10.0.0.1/32"),
    ]
    assert group.subjects == (Subject("group", "g"),)
    assert diff_sets(before, before) == ()


def test_known_groups_count():
    before = PolicySet.parse(BEFORE)
    after = PolicySet.parse(BEFORE.replace("10.0.0.2", "10.0.0.1"))
    changed = diff_sets(before, after, {"a": ["g"], "seen": ["g"], "b": []})
    # a keeps 10.0.0.1 anyway, so it only loses 10.0.0.2; b has no such group.
    assert [one.subjects for one in changed] == [
        (Subject("client", "a", ("g",)),),
        (Subject("client", "seen", ("g",)), Subject("group", "g")),
    ]
    assert [str(n) for c in changed[0].changes for n in c.networks] == ["10.0.0.2/32"]


def test_another_default_is_told_of_everybody():
    before = PolicySet.parse(BEFORE)
    after = PolicySet.parse(BEFORE + "default_action: allow\n")
    told = {subject.kind for change in diff_sets(before, after) for subject in change.subjects}
    assert told == {"client", "group", "others"}
    (others,) = [c for c in diff_sets(before, after) if Subject("others") in c.subjects]
    assert [str(n) for c in others.changes for n in c.networks] == ["0.0.0.0/0", "::/0"]


def test_ten_thousand_rules_differ_in_one():
    def rules(port):
        return [
            make(i, Action.ALLOW, [f"10.{i >> 8}.{i & 255}.0/24"], [Service(6, i, i)])
            for i in range(9_999)
        ] + [make(9_999, Action.ALLOW, ["10.200.0.0/16"], [Service(6, port, port)])]

    old, new = (compile_policy(rules(port), Action.DENY) for port in (80, 81))
    gained, lost = diff_policies(old, new)
    assert gained.contains(ip_address("10.200.255.255"), 6, 81)
    assert lost.contains(ip_address("10.200.0.0"), 6, 80)
    assert len(gained.networks) == len(lost.services) == 1


# Time and limits.

NOW = datetime(2030, 1, 1, tzinfo=UTC)
VISIT = """\
version: "1.0"
clients:
  a:
    rules:
      - {{id: x, type: ip_cidr, action: allow, destinations: [10.0.0.1], {}}}
"""


def times_of(before, after, now=NOW):
    changed = diff_sets(PolicySet.parse(before), PolicySet.parse(after), now=now)
    return [
        (c.action.name.lower(), *(t and t.strftime("%H:%M") for t in (c.since, c.until)))
        for one in changed
        for c in one.changes
    ]


def until(hour):
    return VISIT.format(f"expires_at: 2030-01-01T{hour:02}:00:00Z")


def test_a_change_says_from_when_until_when():
    always = VISIT.format("ports: [0-65535], protocols: [any]").replace(
        ", ports: [0-65535], protocols: [any]", ""
    )
    nothing = 'version: "1.0"'
    assert times_of(nothing, until(5)) == [("allow", None, "05:00")]
    assert times_of(until(5), nothing) == [("deny", None, "05:00")]
    assert times_of(until(5), until(7)) == [("allow", "05:00", "07:00")]
    assert times_of(until(7), until(5)) == [("deny", "05:00", "07:00")]
    assert times_of(until(5), always) == [("allow", "05:00", None)]
    later = VISIT.format("not_before: 2030-01-01T03:00:00Z, expires_at: 2030-01-01T06:00:00Z")
    assert times_of(until(5), later) == [("deny", None, "03:00"), ("allow", "05:00", "06:00")]
    # What is over on both sides is no change, and what lasts over a period is told once.
    assert times_of(until(5), until(7), now=NOW.replace(hour=8)) == []
    split = (
        until(7)
        + "      - {id: y, type: ip_cidr, action: allow, destinations: [10.0.0.9],"
        + (" expires_at: 2030-01-01T05:00:00Z}\n")
    )
    assert times_of(split, split.replace("10.0.0.1]", "10.0.0.2]")) == [
        ("allow", None, "07:00"),
        ("deny", None, "07:00"),
    ]


def test_more_times_than_are_compared_are_told(monkeypatch):
    monkeypatch.setattr(diff, "_MAX_TIMED_RULES", 6)  # two periods of one rule on both sides
    before, after = PolicySet.parse(until(5)), PolicySet.parse(until(7))
    (found,) = diff_sets(before, after, now=NOW)
    assert found.compared_until == NOW.replace(hour=7)
    assert [c.since for c in found.changes] == [NOW.replace(hour=5)]


def test_limits_that_change_are_told_of_whom():
    before = PolicySet.parse(BEFORE)
    limited = BEFORE.replace("a: {", "a: {limits: {bandwidth_mbit: 5}, ").replace(
        "g: {", "g: {limits: {bandwidth_mbit: 9, new_flows_per_s: 3}, "
    )
    found = diff_sets(before, PolicySet.parse(limited), {"a": ["g"], "c": ["g"]})
    assert {tuple(s.name for s in one.subjects): one.limits[1] for one in found} == {
        ("a",): ClientLimits(5, 3),
        ("c", "g"): ClientLimits(9, 3),
    }
    assert all(one.limits[0] == UNLIMITED and not one.changes for one in found)
    (everybody,) = diff_sets(
        before, PolicySet.parse(BEFORE + "default_limits: {bandwidth_mbit: 1}")
    )
    assert Subject("others") in everybody.subjects
