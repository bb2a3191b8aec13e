"""What a policy changes for services, by name."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from zgate_gateway.api.policy_report import diff_text, differences_of
from zgate_gateway.policy import PolicySet
from zgate_gateway.policy.diff import diff_sets

SERVICES = {
    name: (ip_address(f"10.101.0.{n}"), ip_address(f"fd7a:7a67:6174:66::{n}"))
    for n, name in enumerate(("pacs", "echo-1", "echo-2"), 1)
}


def text(*rules: str) -> str:
    lines = "".join(f"      - {{id: r{n}, {rule}}}\n" for n, rule in enumerate(rules))
    return f'version: "1.0"\nclients:\n  a:\n    rules:\n{lines or "      []"}\n'


def allow(names: str, more: str = "") -> str:
    return f"type: service, action: allow, services: [{names}]{more}"


def shown(
    before: str, after: str, *, services: Any = None
) -> list[tuple[str, list[str], list[str]]]:
    old = PolicySet.parse(before).bound_to(services or {})
    return [
        (change.action.value, change.destinations, change.services)
        for one in differences_of(old, PolicySet.parse(after))
        for change in one.changes
    ]


def test_a_service_is_told_once_for_both_families() -> None:
    new = text(allow("pacs", ", ports: [104], protocols: [tcp]"))
    for services in (None, SERVICES):
        assert shown(text(), new, services=services) == [("allow", ["service pacs"], ["tcp/104"])]
    assert shown(new, text()) == [("deny", ["service pacs"], ["tcp/104"])]
    assert shown(new, new) == []


def test_a_pattern_is_told_with_all_that_it_matches() -> None:
    new = text(allow('"echo-*"'))
    # For services that will come the pattern stands itself: the change is never silent.
    assert shown(text(), new) == [("allow", ["service echo-*"], ["any"])]
    ((_, destinations, _),) = shown(text(), new, services=SERVICES)
    assert set(destinations) == {"service echo-1", "service echo-2", "service echo-*"}
    # Against names that mean the same today, what is left is what will come.
    names = text(allow("echo-1, echo-2"))
    assert shown(names, new, services=SERVICES) == [("allow", ["service echo-*"], ["any"])]


@pytest.mark.parametrize("services", [None, SERVICES])
def test_where_one_family_changes_the_family_is_told(services: Any) -> None:
    old = text("type: ip_cidr, action: deny, destinations: [10.0.0.0/8]", allow("pacs"))
    changes = shown(old, text(allow("pacs")), services=services)
    assert changes == [("allow", ["service pacs (IPv4)"], ["any"])]
    icmp = shown(text(), text(allow("pacs", ", icmp_types: [echo-request]")), services=services)
    assert icmp == [
        ("allow", ["service pacs (IPv4)"], ["icmp type 8"]),
        ("allow", ["service pacs (IPv6)"], ["icmpv6 type 128"]),
    ]


def test_networks_stay_networks() -> None:
    new = text("type: ip_cidr, action: allow, destinations: [10.101.0.0/30, 192.0.2.1]")
    assert shown(text(), new, services=SERVICES) == [
        ("allow", ["10.101.0.0/30", "192.0.2.1/32"], ["any"])
    ]
    one = text("type: ip_cidr, action: allow, destinations: [10.101.0.2/31]")
    assert shown(text(), one, services=SERVICES) == [
        ("allow", ["service echo-1 (IPv4)", "service echo-2 (IPv4)"], ["any"])
    ]


def test_what_connectors_may_offer_is_a_change_too() -> None:
    old = PolicySet.parse(
        'version: "1.0"\nconnectors:\n  a: {services: [pacs, wiki], routes: [10.0.0.0/8]}\n'
        "  same: {services: [x, y]}\nconnector_groups: {g: {services: [pacs]}}\n"
    )
    new = (
        'version: "1.0"\nconnectors:\n  a: {services: [wiki, "echo-*"]}\n'
        "  same: {services: [y, x]}\n  b: {routes: [10.1.0.0/16]}\n"
    )
    answer = diff_text(old, 3, {}, new, "p.yaml")
    assert answer.changed and not answer.differences
    assert [(one.kind, one.name) for one in answer.rights] == [
        ("connector", "a"),
        ("connector", "b"),
        ("connector group", "g"),
    ]
    first = answer.rights[0]
    assert (first.before.routes, first.after.routes) == (["10.0.0.0/8"], [])
    assert first.after.services == ["wiki", "echo-*"]
    same = old.bound_to(SERVICES)
    assert not diff_text(same, 3, {}, 'version: "1.0"', "p.yaml").differences


def test_both_are_bound_to_the_same_services() -> None:
    """The set in force has services that the new one does not name, and the other way round."""
    old = PolicySet.parse(text(allow("pacs"))).bound_to(SERVICES)
    assert diff_sets(old, PolicySet.parse(text(allow("pacs")))) == ()
    answer = diff_text(old, 7, {}, text(allow("pacs, wiki")), "p.yaml")
    assert (answer.valid, answer.changed, answer.revision) == (True, True, 7)
    (difference,) = answer.differences
    assert [one.destinations for one in difference.changes] == [["service wiki"]]
