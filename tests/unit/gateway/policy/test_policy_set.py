"""Whole policy files: loading, whose rules apply, why, and every way to be broken."""

import hashlib
import json
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zgate_bpf.tables import Action
from zgate_config import ConfigError
from zgate_gateway.policy import PolicySet, check_policy
from zgate_gateway.policy.capacity import MAX_POLICIES, MAX_RULES

EXAMPLE = Path("gateway/examples/policy.yaml")
POLICY = """\
version: "1.0"
metadata: {name: zgate-policy}
default_action: deny
clients:
  client-1:
    description: "Restricted"
    rules:
      - id: allow-dns
        type: ip_cidr
        action: allow
        destinations: [8.8.8.8/32, 1.1.1.1/32]
        protocols: [udp, tcp]        # optional; any when absent
        ports: [53, 8000-8100]       # optional
        metadata: {reason: "DNS resolution"}
      - id: deny-lan
        type: ip_cidr
        action: deny
        destinations: [10.0.0.0/8]
groups:                               # same shape, after the client's own rules
  staff: {rules: [{id: lan, type: ip_cidr, action: allow, destinations: [10.0.0.0/8, "::/0"]}]}
  guests:
    rules:
      - {id: rest, type: default, action: deny}
"""


def example() -> Path:
    return Path(__file__).parents[4] / EXAMPLE


@pytest.fixture
def policy_set(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return PolicySet.load(path)


def test_what_a_file_says_of_itself(policy_set, tmp_path):
    assert policy_set.source == tmp_path / "policy.yaml"
    assert policy_set.sha256 == hashlib.sha256(POLICY.encode()).hexdigest()
    assert policy_set.name == "zgate-policy"
    assert policy_set.default_action is Action.DENY
    counts = policy_set.client_count, policy_set.group_count, policy_set.rule_count
    assert counts == (1, 2, 4)


def ids(rules):
    return [rule.id for rule in rules]


@pytest.mark.parametrize(
    ("client", "groups", "expected"),
    [
        ("client-1", [], ["allow-dns", "deny-lan"]),
        ("client-1", ["guests", "staff"], ["allow-dns", "deny-lan", "rest", "lan"]),
        ("client-1", ["staff", "guests", "staff"], ["allow-dns", "deny-lan", "lan", "rest"]),
        ("nobody", ["staff", "unknown"], ["lan"]),
        ("nobody", [], []),
    ],
)
def test_own_rules_then_those_of_the_groups_in_their_order(policy_set, client, groups, expected):
    assert ids(policy_set.rules_for(client, groups)) == expected


def test_rules_know_where_they_are_written(policy_set):
    own = policy_set.rules_for("client-1", ["guests"])
    assert [(rule.path, rule.line) for rule in own] == [
        ("clients.client-1.rules[0]", 8),
        ("clients.client-1.rules[1]", 15),
        ("groups.guests.rules[0]", 23),
    ]


def test_explanations(policy_set):
    def why(address, protocol, port=None, groups=("staff",)):
        answer = policy_set.explain("client-1", groups, ip_address(address), protocol, port)
        return answer.action, answer.rule_id, answer.rule_index, answer.rule_path, answer.line

    dns = (Action.ALLOW, "allow-dns", 0, "clients.client-1.rules[0]", 8)
    lan = (Action.DENY, "deny-lan", 1, "clients.client-1.rules[1]", 15)
    assert why("8.8.8.8", 17, 53) == dns
    assert why("8.8.8.8", 17, 54) == (Action.DENY, None, None, None, None)
    assert why("10.0.0.1", 6, 443) == lan
    assert why("2001:db8::1", 6, 1)[:3] == (Action.ALLOW, "lan", 2)
    assert why("2001:db8::1", 6, 1, groups=())[:3] == (Action.DENY, None, None)


def test_icmp_without_a_type_is_an_echo_request():
    policy_set = PolicySet.parse(
        'version: "1.0"\nclients: {a: {rules: [{id: ping, type: ip_cidr, action: allow,'
        ' destinations: [10.0.0.0/8, "fd00::/8"], icmp_types: [echo-request]}]}}'
    )
    for address, protocol in (("10.0.0.1", 1), ("fd00::1", 58)):
        assert policy_set.explain("a", (), ip_address(address), protocol).rule_id == "ping"
        other = policy_set.explain("a", (), ip_address(address), protocol, 3 << 8)
        assert other.action is Action.DENY


def test_the_empty_set_denies_everything():
    empty = PolicySet.empty()
    assert empty.rules_for("anyone", ["staff"]) == ()
    assert empty.explain("anyone", ["staff"], ip_address("10.0.0.1"), 6, 80).action is Action.DENY
    compiled = empty.compiled_for("anyone")
    assert (compiled.rules, compiled.destinations) == ((), ())
    assert compiled.default_action is Action.DENY
    assert (empty.source, empty.sha256, empty.name, empty.rule_count) == (None, None, "", 0)


def test_default_allow_reaches_the_tables():
    policy_set = PolicySet.parse('version: "1.0"\ndefault_action: allow')
    assert policy_set.compiled_for("a").default_action is Action.ALLOW


def test_an_id_twice_names_both_places():
    rules = (
        "{rules: [{id: x, type: default, action: deny},\n {id: x, type: default, action: deny}]}"
    )
    text = f'version: "1.0"\nclients:\n  a: {rules}\ngroups:\n  g: {rules}\n'
    with pytest.raises(ConfigError) as caught:
        PolicySet.parse(text, "p.yaml")
    assert caught.value.lines == (
        'p.yaml:4: clients.a.rules[1].id: expected an id of its own, got "x" again',
        'p.yaml:7: groups.g.rules[1].id: expected an id of its own, got "x" again',
    )


def test_the_same_id_for_client_and_group_is_fine():
    rules = "{rules: [{id: x, type: default, action: deny}]}"
    policy_set = PolicySet.parse(f'version: "1.0"\nclients: {{a: {rules}}}\ngroups: {{g: {rules}}}')
    assert ids(policy_set.rules_for("a", ["g"])) == ["x", "x"]


def test_a_client_given_twice_is_refused():
    with pytest.raises(ConfigError, match=r"p.yaml:4: clients.a: expected each key once"):
        PolicySet.parse('version: "1.0"\nclients:\n  a: {}\n  a: {}\n', "p.yaml")


def test_more_rules_than_fit_are_refused_with_the_number(monkeypatch):
    monkeypatch.setattr("zgate_gateway.policy.policy_set.MAX_RULES", 1)
    with pytest.raises(
        ConfigError, match=r"clients.client-1.rules: expected at most 1 rules, got 2"
    ):
        PolicySet.parse(POLICY)
    assert MAX_RULES == 10_000


def clients_with_own_rules(count):
    rules = "{{rules: [{{id: r, type: ip_cidr, action: allow, destinations: [10.0.{}.{}]}}]}}"
    entries = (f"  c{i}: {rules.format(i >> 8, i & 255)}\n" for i in range(count))
    return 'version: "1.0"\nclients:\n' + "".join(entries)


def test_more_distinct_policies_than_fit_are_refused_with_the_number():
    text = clients_with_own_rules(MAX_POLICIES)
    same = "  again: {rules: [{id: other, type: ip_cidr, action: allow, destinations: [10.0.0.0]}]}"
    assert PolicySet.parse(text + same).client_count == MAX_POLICIES + 1
    with pytest.raises(ConfigError, match=r"clients: expected at most 1000 .*, got 1001"):
        PolicySet.parse(clients_with_own_rules(MAX_POLICIES + 1))


def test_a_missing_file(tmp_path):
    path = tmp_path / "none.yaml"
    with pytest.raises(ConfigError) as caught:
        PolicySet.load(path)
    assert str(caught.value) == (
        f"{path}: expected a readable file, got: No such file or directory"
    )


def test_json_is_read_too(policy_set):
    rules = [{"id": "a", "type": "default", "action": "allow"}]
    text = json.dumps({"version": "1.0", "clients": {"ünï \U0001f600": {"rules": rules}}}, indent=1)
    assert ids(PolicySet.parse(text).rules_for("ünï \U0001f600")) == ["a"]


def test_ten_thousand_rules_load_in_seconds():
    rules = "".join(
        f"  - {{id: r{i}, type: ip_cidr, action: allow, destinations: [10.{i >> 8}.{i & 255}.0/24],"
        f" protocols: [tcp], ports: [{i}]}}\n"
        for i in range(10_000)
    )
    started = time.process_time()
    assert PolicySet.parse(f'version: "1.0"\nclients:\n a:\n  rules:\n{rules}').rule_count == 10_000
    assert time.process_time() - started < 8


def test_the_example_is_valid_and_only_what_is_meant_to_be_is_odd():
    policy_set = PolicySet.load(example())
    odd = [finding.rule_id for finding in check_policy(policy_set) if not finding.is_note]
    assert odd == ["nothing-else"]  # on purpose, and said so beside it
    assert policy_set.name == "clinic"
    assert policy_set.expectations and all(one.passed for one in policy_set.run_tests())

    def may(client, groups, address, protocol, port):
        answer = policy_set.explain(client, groups, ip_address(address), protocol, port)
        return answer.action is Action.ALLOW

    assert may("alice", [], "10.20.0.5", 6, 443)
    assert not may("alice", [], "10.20.0.5", 17, 443)
    assert may("alice", ["staff"], "fd00:20::9", 58, 128 << 8)
    assert not may("alice", ["staff"], "10.20.66.1", 6, 80)
    assert not may("contractor-7", ["staff"], "10.20.0.53", 17, 53)


def test_policies_are_read_where_nothing_privileged_is_installed():
    """zgatectl policy check runs on a laptop too."""
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['bcc', 'nftables', 'pyroute2']));"
        "import zgate_gateway.policy, zgate_gateway.config"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# -- broken files: a policy, or ConfigError with one line for each mistake; nothing else ----------


def read(data: bytes):
    try:
        return PolicySet.parse(data, "p.yaml")
    except ConfigError as error:
        assert "\n" not in str(error)
        assert all(line.isprintable() and line.startswith("p.yaml") for line in error.lines)
        return None


@pytest.mark.parametrize("text", [POLICY, json.dumps({"version": "1.0", "clients": {"a": {}}})])
def test_truncated_at_every_byte(text):
    data = text.encode()
    for length in range(len(data)):
        read(data[:length])
    assert read(data) is not None


def test_one_byte_changed_at_every_place():
    data = POLICY.encode()
    for position in range(len(data)):
        for value in (0x00, 0x0A, 0x22, 0x5B, 0x7B, 0xFF):
            read(data[:position] + bytes([value]) + data[position + 1 :])


@given(st.binary(max_size=200))
def test_any_bytes(data):
    read(data)


keys = st.sampled_from(
    [
        *("version", "metadata", "default_action", "clients", "groups", "a", "rules", "id", "type"),
        *("action", "destinations", "protocols", "ports", "icmp_types", "description", "name"),
    ]
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["1.0", "allow", "default", "ip_cidr", "10.0.0.0/8", "tcp", "1-2"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=5)),
    max_leaves=25,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(keys, values, max_size=5))
def test_any_shape_of_values(value):
    read(json.dumps({"version": "1.0", **value}).encode())
