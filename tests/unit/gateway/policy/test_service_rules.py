"""Rules of type service: what they match, when they are bound, and what narrows a client."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_bpf.tables import Action
from zgate_config import ConfigError
from zgate_gateway.policy import PolicySet, capacity
from zgate_gateway.policy.connectors import ConnectorRights
from zgate_gateway.policy.flow_sets import FlowSets
from zgate_gateway.policy.lookup import Tables
from zgate_gateway.policy.service_names import ServicePools, matches
from zgate_gateway.policy.services import TCP, UDP

NAMES = ("pacs", "echo-1", "echo-2", "wiki")
SERVICES = {
    name: (ip_address(f"10.101.0.{n}"), ip_address(f"fd7a:7a67:6174:66::{n}"))
    for n, name in enumerate(NAMES, 1)
}
ELSEWHERE = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
POLICY = """\
version: "1.0"
clients:
  alice:
    rules:
      - {id: no-echo-2, type: service, action: deny, services: [echo-2]}
      - {id: imaging, type: service, action: allow, services: [pacs, "echo-*"], ports: [104]}
      - {id: office, type: ip_cidr, action: allow, destinations: [192.0.2.0/24], ports: [104]}
"""


def parse(text: str = POLICY, **options: Any) -> PolicySet:
    return PolicySet.parse(text, "p.yaml", **options)


def verdict(policy_set: PolicySet, destination: Any, port: int = 104, **options: Any) -> Any:
    """The compiled tables' answer, and the rules': they must be one."""
    compiled = policy_set.compiled_for("alice", **options)
    action = Tables(compiled).action(destination, TCP, port)
    explained = policy_set.explain("alice", (), destination, TCP, port, **options)
    assert explained.action is action
    return action.name, explained.rule_id


def test_a_rule_matches_the_virtual_ips_of_its_services_in_both_families() -> None:
    bound = parse().bound_to(SERVICES)
    for address in (*SERVICES["pacs"], *SERVICES["echo-1"]):
        assert verdict(bound, address) == ("ALLOW", "imaging")
        assert verdict(bound, address, 105) == ("DENY", None)
    for address in SERVICES["echo-2"]:
        assert verdict(bound, address) == ("DENY", "no-echo-2")
    for address in SERVICES["wiki"]:
        assert verdict(bound, address) == ("DENY", None)
    assert bound.services == SERVICES


def test_a_set_that_is_bound_to_nothing_allows_nothing() -> None:
    for policy_set in (parse(), parse().bound_to({})):
        assert {verdict(policy_set, a) for a in SERVICES["pacs"]} == {("DENY", None)}
        assert verdict(policy_set, ELSEWHERE[0]) == ("ALLOW", "office")


def test_bound_anew_it_forgets_what_it_was_bound_to() -> None:
    first = parse().bound_to(SERVICES)
    moved = {"pacs": SERVICES["wiki"]}
    again = first.bound_to(moved)
    assert verdict(again, SERVICES["wiki"][0]) == ("ALLOW", "imaging")
    assert verdict(again, SERVICES["pacs"][0]) == ("DENY", None)
    assert verdict(first, SERVICES["pacs"][0]) == ("ALLOW", "imaging")
    assert first.means_as(parse().bound_to(SERVICES)) and not first.means_as(again)
    assert first.means_as(first.bound_to({**SERVICES, "other": ELSEWHERE}))
    assert not first.means_as(first.bound_to({**SERVICES, "echo-3": ELSEWHERE}))


def test_names_and_patterns_that_it_uses() -> None:
    policy_set = parse()
    assert policy_set.service_names() == {"pacs", "echo-2"}
    assert policy_set.service_patterns() == {"pacs", "echo-2", "echo-*"}


@pytest.mark.parametrize(
    ("rule", "mistake"),
    [
        ("services: []", "expected"),
        ("", "services: expected a list of services' names (type service needs one)"),
        ("services: [pacs], destinations: [10.0.0.1]",
         "destinations: expected no such key in a rule of type service"),
        ('services: [""]', "expected a service's name such as pacs"),
        ('services: ["a\\tb"]', "the name has control characters"),
        (f"services: [{'x' * 256}]", "the name has 256 bytes, more than 255"),
        ("services: pacs", "expected a list"),
    ],
)  # fmt: skip
def test_mistakes(rule: str, mistake: str) -> None:
    text = f"clients: {{a: {{rules: [{{id: r, type: service, action: allow, {rule}}}]}}}}"
    with pytest.raises(ConfigError) as caught:
        parse(f'version: "1.0"\n{text}\n')
    assert mistake in str(caught.value)


@pytest.mark.parametrize("kind", ["ip_cidr, destinations: [10.0.0.1]", "default"])
def test_only_a_rule_about_services_names_any(kind: str) -> None:
    rule = f"{{id: r, type: {kind}, action: allow, services: [pacs]}}"
    with pytest.raises(ConfigError, match="no such key in a rule of type"):
        parse(f'version: "1.0"\nclients: {{a: {{rules: [{rule}]}}}}\n')


def test_more_services_than_there_are_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    pools = ServicePools(IPv4Network("10.9.0.0/29"), IPv6Network("fd00::/64"))
    rule = "{id: r, type: service, action: allow, services: [%s]}"
    text = f'version: "1.0"\nclients: {{a: {{rules: [{rule}]}}}}\n'
    assert parse(text % "a, b, c", pools=pools).pools == pools
    with pytest.raises(ConfigError, match="expected at most 3 names of services, got 4"):
        parse(text % 'a, b, c, "d*"', pools=pools)
    monkeypatch.setattr("zgate_gateway.policy.policy_set.MAX_SERVICES", 2)
    with pytest.raises(ConfigError, match="expected at most 2 names of services, got 3"):
        parse(text % "a, b, c")
    assert capacity.MAX_SERVICES == 4096


def test_clients_that_differ_in_services_only_are_different_policies() -> None:
    entry = "c{n}: {{rules: [{{id: r, type: service, action: allow, services: [s{n}]}}]}}"
    many = ", ".join(entry.format(n=n) for n in range(capacity.MAX_POLICIES + 1))
    with pytest.raises(ConfigError, match="clients with different rules"):
        parse(f'version: "1.0"\nclients: {{{many}}}\n')


# The file's own tests.


def with_tests(*tests: str, **options: Any) -> PolicySet:
    return parse(POLICY + "tests:\n" + "".join(f"  - {{{one}}}\n" for one in tests), **options)


def test_tests_name_services() -> None:
    policy_set = with_tests(
        "client: alice, service: pacs, protocol: tcp, port: 104, expect: allow, rule: imaging",
        "client: alice, service: pacs, protocol: tcp, port: 105, expect: deny",
        "client: alice, service: echo-77, protocol: udp, port: 104, expect: allow",
        "client: alice, service: echo-2, protocol: tcp, port: 104, expect: deny, rule: no-echo-2",
        "client: alice, service: never-seen, protocol: icmp, expect: deny",
        "client: alice, service: pacs, protocol: icmpv6, expect: deny",
    )
    outcomes = policy_set.run_tests()
    assert all(one.passed for one in outcomes)
    assert outcomes[0].expectation.question == "alice -> pacs tcp/104"
    # Whatever services there are now: the answer is the same tomorrow.
    assert policy_set.bound_to({}).run_tests() == outcomes
    assert policy_set.bound_to(SERVICES).run_tests() == outcomes


@pytest.mark.parametrize(
    ("test", "mistake"),
    [
        ("service: wiki, protocol: tcp, port: 104, expect: allow",
         "test failed: alice -> wiki tcp/104: expected allow, got deny by default_action "
         "(no rule matches) over IPv4"),
        ("service: pacs, protocol: tcp, port: 104, expect: deny",
         'expected deny, got allow by rule "imaging" (line 6) over IPv4'),
        ("service: pacs, destination: 10.0.0.1, protocol: tcp, port: 104, expect: deny",
         "expected either a destination or a service, got both"),
        ("protocol: tcp, port: 104, expect: deny",
         "expected either a destination or a service, got neither"),
        ('service: "echo-*", protocol: tcp, port: 104, expect: deny',
         "expected the name of one service, without *"),
        ("service: pacs, protocol: any, expect: deny", "expected one protocol"),
        ("service: pacs, protocol: tcp, expect: deny", "expected a port"),
    ],
)  # fmt: skip
def test_tests_that_keep_the_file_out(test: str, mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_tests(f"client: alice, {test}")
    (line,) = caught.value.lines
    assert mistake in line


def test_both_families_must_come_out_as_expected() -> None:
    network = "destinations: [10.101.0.0/16]"
    wide = f"      - {{id: pool, type: ip_cidr, action: allow, {network}}}\n"
    test = "tests: [{client: alice, service: wiki, protocol: tcp, port: 1, expect: allow}]\n"
    with pytest.raises(ConfigError, match=r"got deny by default_action .* over IPv6"):
        parse(POLICY + wide + test)
    both = wide.replace("]}", ', "fd7a:7a67:6174:66::/64"]}')
    assert parse(POLICY + both + test).run_tests()[0].passed


# Clients whose certificate narrows them.


def test_a_narrowed_client_keeps_what_its_rules_allow_of_its_services() -> None:
    bound = parse().bound_to(SERVICES)
    for address in SERVICES["pacs"]:
        assert verdict(bound, address, reaches=("pacs",)) == ("ALLOW", "imaging")
        assert verdict(bound, address, reaches=("wiki",)) == ("DENY", None)
        assert verdict(bound, address, reaches=()) == ("DENY", None)
        assert verdict(bound, address, reaches=("*",)) == ("ALLOW", "imaging")
    assert verdict(bound, ELSEWHERE[0]) == ("ALLOW", "office")
    assert verdict(bound, ELSEWHERE[0], reaches=("*",)) == ("DENY", None)
    # It gets nothing that the rules do not allow.
    assert verdict(bound, SERVICES["wiki"][0], reaches=("wiki",)) == ("DENY", None)
    assert verdict(bound, SERVICES["echo-2"][0], reaches=("*",)) == ("DENY", "no-echo-2")


def test_a_narrowed_client_is_denied_by_default() -> None:
    bound = parse('version: "1.0"\ndefault_action: allow\n').bound_to(SERVICES)
    assert verdict(bound, ELSEWHERE[0]) == ("ALLOW", None)
    assert verdict(bound, ELSEWHERE[0], reaches=("pacs",)) == ("DENY", None)
    # default_action is no rule: what it allows is not kept for a narrowed client.
    assert verdict(bound, SERVICES["pacs"][0], reaches=("pacs",)) == ("DENY", None)


PORTS = st.sampled_from(["", ", ports: [104]", ", ports: [100-200], protocols: [udp]"])
DESTINATIONS = st.sampled_from(
    [
        'type: service, services: ["*"]',
        "type: service, services: [pacs, wiki]",
        'type: service, services: ["echo-*"]',
        "type: service, services: [unknown]",
        "type: ip_cidr, destinations: [10.101.0.0/30]",
        'type: ip_cidr, destinations: ["::/0"]',
        "type: ip_cidr, destinations: [0.0.0.0/0]",
    ]
)
RULES = st.lists(st.tuples(DESTINATIONS, PORTS, st.sampled_from(["allow", "deny"])), max_size=5)
REACHES = st.none() | st.lists(st.sampled_from(["pacs", "echo-1", "wiki", "*", "none"]), max_size=2)
ADDRESSES = [one for held in (*SERVICES.values(), ELSEWHERE) for one in held]
FLOWS = [(TCP, 104), (TCP, 443), (UDP, 104), (UDP, 1)]


@given(RULES, REACHES, st.sampled_from(["allow", "deny"]))
def test_narrowing_and_reaching_mean_what_they_say(
    rules: list[tuple[str, str, str]], reaches: list[str] | None, default: str
) -> None:
    text = "".join(
        f"      - {{id: r{n}, {what}{ports}, action: {action}}}\n"
        for n, (what, ports, action) in enumerate(rules)
    )
    head = f'version: "1.0"\ndefault_action: {default}\nclients:\n  alice:\n    rules:\n'
    bound = parse(head + (text or "      []\n")).bound_to(SERVICES)
    plain = Tables(bound.compiled_for("alice"))
    narrow = Tables(bound.compiled_for("alice", reaches=reaches))
    owner = {address: name for name, held in SERVICES.items() for address in held}
    for address in ADDRESSES:
        is_reached = reaches is None or any(
            address in owner and matches(one, owner[address]) for one in reaches
        )
        for protocol, port in FLOWS:
            free = plain.action(address, protocol, port) is Action.ALLOW
            by_rule = plain.rule(address, protocol, port) is not None
            expected = free and is_reached and (by_rule or reaches is None)
            assert (narrow.action(address, protocol, port) is Action.ALLOW) is expected
    for name, held in SERVICES.items():
        assert bound.may_reach("alice", (), name, reaches=reaches) is any(
            allows_any(bound, address, reaches) for address in held
        )


def allows_any(bound: PolicySet, address: Any, reaches: list[str] | None) -> bool:
    """By the tables that the kernel gets: everything that is allowed at an address."""
    sets = FlowSets(bound.compiled_for("alice", reaches=reaches))
    number = int(address)
    region = next(r for r in sets.regions(address.version) if r.first <= number <= r.last)
    allowed = sets.allowed(region.service_list)
    return allowed.other or any(allowed.named.values())


def test_may_reach_asks_for_a_time() -> None:
    rule = (
        "{id: r, type: service, action: allow, services: [pacs], expires_at: 2030-01-01T00:00:00Z}"
    )
    bound = parse(f'version: "1.0"\nclients: {{a: {{rules: [{rule}]}}}}\n').bound_to(SERVICES)
    for year, expected in ((2029, True), (2030, False)):
        assert bound.may_reach("a", (), "pacs", at=datetime(year, 1, 1, tzinfo=UTC)) is expected
    assert not bound.may_reach("a", (), "no-such", at=datetime(2029, 1, 1, tzinfo=UTC))


# Connectors.

CONNECTORS = """\
version: "1.0"
connectors:
  site-a:
    description: "cellar"
    services: [pacs, "echo-*"]
    routes: [10.20.0.0/16, "fd00:20::/48"]
connector_groups:
  branch: {services: [printer, pacs]}
  lines: {routes: [10.30.0.0/24]}
"""


def test_a_connector_may_offer_what_its_name_and_its_groups_give() -> None:
    policy_set = parse(CONNECTORS)
    assert policy_set.connector_rights("stranger", ["staff"]) == ConnectorRights()
    rights = policy_set.connector_rights("site-a", ["branch", "lines"])
    assert rights.services == ("pacs", "echo-*", "printer")
    for name in ("pacs", "echo-", "echo-9", "printer"):
        assert rights.may_offer(name)
    for name in ("echo", "Pacs", "*", ""):
        assert not rights.may_offer(name)
    assert policy_set.connector_rights("x", ["lines"]).routes == (ip_network("10.30.0.0/24"),)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("10.20.0.0/16", True),
        ("10.20.4.0/24", True),
        ("10.20.0.5", True),
        ("10.0.0.0/8", False),
        ("10.21.0.0/16", False),
        ("0.0.0.0/0", False),
        ("::/0", False),
        ("fd00:20::/64", True),
        ("fd00::/32", False),
    ],
)
def test_networks_lie_inside_a_route_whole(network: str, expected: bool) -> None:
    rights = parse(CONNECTORS).connector_rights("site-a")
    assert rights.may_advertise(ip_network(network)) is expected


@pytest.mark.parametrize(
    ("entry", "mistake"),
    [
        ("{services: [pacs], route: [10.0.0.0/8]}", "unknown key"),
        ("{routes: [10.0.0.1/8]}", "without host bits"),
        ('{services: [""]}', "the name is empty"),
    ],
)
def test_mistakes_about_connectors(entry: str, mistake: str) -> None:
    for key in ("connectors", "connector_groups"):
        with pytest.raises(ConfigError, match=mistake):
            parse(f'version: "1.0"\n{key}: {{c: {entry}}}\n')
