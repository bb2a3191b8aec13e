"""What a check says of rules about services, without a gateway and with one's services."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from zgate_gateway.policy import PolicySet, check_policy

SERVICES = {
    "pacs": (ip_address("10.101.0.1"), ip_address("fd7a:7a67:6174:66::1")),
    "echo-1": (ip_address("10.101.0.2"), ip_address("fd7a:7a67:6174:66::2")),
}


def found(*rules: str, services: object = None) -> list[tuple[str, bool]]:
    lines = "".join(f"      - {{id: r{n}, {rule}}}\n" for n, rule in enumerate(rules))
    policy_set = PolicySet.parse(f'version: "1.0"\nclients:\n  a:\n    rules:\n{lines}')
    findings = check_policy(policy_set, services=services)  # type: ignore[arg-type]
    return [(one.text, one.is_note) for one in findings]


def about(action: str, *names: str, more: str = "") -> str:
    quoted = ", ".join(f'"{name}"' for name in names)
    return f"type: service, action: {action}, services: [{quoted}]{more}"


@pytest.mark.parametrize("services", [None, SERVICES])
def test_nothing_is_odd_about_services_by_name(services: object) -> None:
    assert found(about("allow", "pacs"), about("deny", "wiki"), services=services) == []


def test_a_pattern_that_nothing_matches_is_a_note() -> None:
    note = ('rule "r0": no service is known that "echo-*" matches', True)
    assert found(about("allow", "echo-*")) == [note]
    assert found(about("allow", "echo-*"), services=SERVICES) == []
    # A name that the file itself holds is known: it gets its virtual IPs with the file.
    assert found(about("allow", "echo-*", more=", ports: [7]"), about("allow", "echo-9")) == []


@pytest.mark.parametrize("services", [None, SERVICES])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (about("deny", "*"), about("allow", "pacs")),
        (about("deny", "echo-*"), about("allow", "echo-1")),
        (about("deny", "echo-*"), about("allow", "echo-x*")),
        (about("deny", "pacs", "wiki"), about("allow", "wiki", more=", ports: [80]")),
        ("type: default, action: deny", about("allow", "pacs")),
        (
            'type: ip_cidr, action: deny, destinations: [10.101.0.0/16, "fd7a:7a67:6174:66::/64"]',
            about("allow", "pacs"),
        ),
    ],
)
def test_a_rule_that_is_never_reached(services: object, first: str, second: str) -> None:
    warnings = [text for text, is_note in found(first, second, services=services) if not is_note]
    assert any(
        text.startswith('rule "r1" is never reached: rule "r0" (line 5, deny) comes first')
        for text in warnings
    )


@pytest.mark.parametrize("services", [None, SERVICES])
def test_what_is_reached_is_not_told(services: object) -> None:
    shown = found(
        about("deny", "echo-*"), about("allow", "*"), about("deny", "pacs", more=", ports: [1]"),
        services=services,
    )  # fmt: skip
    texts = [text for text, is_note in shown if not is_note]
    assert len(texts) == 1 and texts[0].startswith('rule "r2" is never reached: rule "r1"')
    assert all("r0" in text for text, is_note in shown if is_note)


@pytest.mark.parametrize("services", [None, SERVICES])
def test_an_overlap_names_the_service(services: object) -> None:
    first = about("deny", "pacs", "wiki", more=", protocols: [tcp]")
    second = about("allow", "pacs", "echo-1", more=", ports: [104]")
    (note,) = found(first, second, services=services)
    assert note[1] and note[0].endswith("decides what both match in service pacs")
