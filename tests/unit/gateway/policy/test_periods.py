"""What holds when, and what the kernel is given of it."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zgate_bpf.layouts import MAX_PERIODS
from zgate_bpf.tables import Action
from zgate_gateway.policy import PolicySet, first_match
from zgate_gateway.policy.lookup import Tables
from zgate_gateway.policy.model import RuleType
from zgate_gateway.policy.periods import Schedule, boundaries, rules_at, schedule
from zgate_gateway.policy.rules import Rule
from zgate_gateway.policy.services import Service

NOW = datetime(2030, 1, 1, tzinfo=UTC)
NETWORKS = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "0.0.0.0/0"]
PLACES = [ip_address(text) for text in ("10.9.9.9", "10.1.9.9", "10.1.2.9", "11.0.0.1")]


def at(hours):
    return NOW + timedelta(hours=hours)


def rule(index, action, network, begins=None, ends=None):
    return Rule(
        id=f"r{index}",
        type=RuleType.IP_CIDR,
        action=action,
        destinations=(ip_network(network),),
        services_ipv4=(Service(6, 0, 65535),),
        services_ipv6=(),
        not_before=None if begins is None else at(begins),
        expires_at=None if ends is None else at(ends),
    )


def in_step(found: Schedule, time):
    """The tables that the kernel looks in at that time."""
    return Tables(next(s.policy for s in found.steps if s.until is None or time < s.until))


hours = st.one_of(st.none(), st.integers(-3, 12))
windows = st.tuples(hours, hours).filter(lambda w: None in w or w[0] < w[1])
rule_lists = st.lists(
    st.tuples(st.sampled_from(Action), st.sampled_from(NETWORKS), windows), max_size=9
).map(lambda made: [rule(i, action, net, *when) for i, (action, net, when) in enumerate(made)])


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(rule_lists, st.sampled_from(Action))
def test_at_every_time_the_first_rule_that_holds_decides(rules, default):
    """And beyond what the kernel can hold, nothing passes that should not."""
    found = schedule(rules, default, NOW)
    assert len(found.steps) <= MAX_PERIODS
    exact_until = None
    if found.refill_at is not None:
        assert NOW < found.refill_at < found.steps[-2].until
        exact_until = found.steps[-2].until
    for half in range(0, 30):
        time = at(half / 2)
        tables = in_step(found, time)
        for place in PLACES:
            index = first_match(rules, place, 6, 80, time)
            if exact_until is None or time < exact_until:
                assert tables.rule(place, 6, 80) == index
            elif tables.action(place, 6, 80) is Action.ALLOW:
                assert (default if index is None else rules[index].action) is Action.ALLOW


def test_rules_without_times_are_one_step():
    rules = [rule(0, Action.ALLOW, "10.0.0.0/8")]
    found = schedule(rules, Action.DENY, NOW)
    assert [step.until for step in found.steps] == [None]
    assert boundaries(rules) == []
    assert rules_at(rules, NOW) == tuple(rules)


def test_what_is_over_makes_no_step():
    rules = [rule(0, Action.ALLOW, "10.0.0.0/8", -5, -1), rule(1, Action.ALLOW, "10.0.0.0/8", -1)]
    assert [step.until for step in schedule(rules, Action.DENY, NOW).steps] == [None]


@pytest.mark.parametrize(("count", "refill"), [(MAX_PERIODS - 1, None), (MAX_PERIODS, at(4))])
def test_more_than_the_kernel_holds_is_to_be_refilled_in_time(count, refill):
    rules = [rule(i, Action.ALLOW, "10.0.0.0/8", None, i + 1) for i in range(count)]
    found = schedule(rules, Action.DENY, NOW)
    assert (len(found.steps), found.refill_at) == (MAX_PERIODS, refill)


def test_clients_of_the_same_rules_and_times_share():
    text = "{{rules: [{{id: {}, type: default, action: allow, expires_at: 2031-01-01T00:00:00Z}}]}}"
    policy_set = PolicySet.parse(
        f'version: "1.0"\nclients: {{a: {text.format("x")}, b: {text.format("y")}}}'
    )
    one, other = (policy_set.schedule_for(name, (), NOW) for name in "ab")
    assert [id(s.policy) for s in one.steps] == [id(s.policy) for s in other.steps]
    assert [s.until for s in one.steps] == [datetime(2031, 1, 1, tzinfo=UTC), None]


# Why, at a time.

WHY = """\
version: "1.0"
clients:
  a:
    rules:
      - {id: visit, type: ip_cidr, action: allow, destinations: [10.0.0.0/8],
         not_before: 2030-01-01T01:00:00Z, expires_at: 2030-01-01T02:00:00Z}
      - {id: elsewhere, type: ip_cidr, action: allow, destinations: [11.0.0.0/8],
         expires_at: 2030-01-01T00:30:00Z}
      - {id: never, type: ip_cidr, action: deny, destinations: [10.0.0.0/8]}
"""


@pytest.mark.parametrize(
    ("hour", "rule_id", "waiting", "change"),
    [
        (0, "never", ["visit"], (at(1), "visit")),
        (1, "visit", [], (at(2), "never")),
        (2, "never", ["visit"], None),
    ],
)
def test_explanations_say_what_time_has_to_do_with_it(hour, rule_id, waiting, change):
    found = PolicySet.parse(WHY).explain("a", (), ip_address("10.0.0.1"), 6, 80, at=at(hour))
    assert found.rule_id == rule_id
    assert [one.id for one in found.out_of_time] == waiting
    told = found.next_change
    assert (None if told is None else (told.at, told.rule.id)) == change


def test_a_change_to_the_default_action():
    found = PolicySet.parse(WHY).explain("a", (), ip_address("11.0.0.1"), 6, 80, at=NOW)
    assert (found.next_change.at, found.next_change.action) == (at(0.5), Action.DENY)
    assert found.next_change.rule is None


# Tests in the file.

ASK = "{client: a, destination: 10.0.0.1, protocol: tcp, port: 80"


def failures(*tests):
    text = WHY + "tests:\n" + "".join(f"  - {ASK}{test}}}\n" for test in tests)
    return [
        one.text for one in PolicySet.parse(text, must_pass=False).run_tests() if not one.passed
    ]


def test_a_test_may_name_its_time():
    assert (
        failures(
            ", at: 2030-01-01T01:59:59Z, expect: allow, rule: visit",
            ", at: 2030-01-01T02:00:00Z, expect: deny, rule: never",
            ", at: 2030-01-01T01:59:59+01:00, expect: deny",
        )
        == []
    )
    assert failures(", at: 2030-01-01T02:00:00Z, expect: allow") == [
        "a -> 10.0.0.1 tcp/80 at 2030-01-01T02:00:00Z: expected allow, "
        'got deny by rule "never" (line 9)'
    ]


def test_a_test_without_a_time_is_about_all_times():
    """Whenever it is run: its answer must not be another one tomorrow."""
    assert failures(", expect: deny") == [
        'a -> 10.0.0.1 tcp/80: expected deny, got allow by rule "visit" (line 5) '
        "from 2030-01-01T01:00:00Z on: say with `at` when it is asked"
    ]
    assert failures(", expect: allow") == [
        'a -> 10.0.0.1 tcp/80: expected allow, got deny by rule "never" (line 9)'
    ]
