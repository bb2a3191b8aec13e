"""The tests that a policy file carries."""

from pathlib import Path

import pytest
from zgate_bpf.tables import Action
from zgate_config import ConfigError
from zgate_gateway.policy import PolicySet

POLICY = """\
version: "1.0"
clients:
  alice:
    rules:
      - {id: web, type: ip_cidr, action: allow, destinations: [10.0.0.0/8], ports: [443]}
groups:
  staff:
    rules:
      - {id: ping, type: ip_cidr, action: allow, destinations: [10.0.0.0/8, "fd00::/8"],
         icmp_types: [echo-request]}
      - {id: rest, type: default, action: deny}
tests:
"""
WEB = "client: alice, destination: 10.1.2.3, protocol: tcp, port: 443"


def parse(*tests: str) -> PolicySet:
    return PolicySet.parse(POLICY + "".join(f"  - {{{test}}}\n" for test in tests), "p.yaml")


def refused(*tests: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(*tests)
    return caught.value.lines


@pytest.mark.parametrize(
    "test",
    [
        f"{WEB}, expect: allow",
        f"{WEB}, expect: allow, rule: web",
        "client: alice, destination: 10.1.2.3, protocol: '6', port: 80, expect: deny",
        "client: bob, destination: 10.1.2.3, protocol: tcp, port: 443, expect: deny",
        "client: bob, groups: [staff], destination: 10.1.2.3, protocol: icmp, expect: allow",
        "client: bob, groups: [staff], destination: 'fd00::1', protocol: icmp, expect: allow",
        "client: bob, groups: [staff], destination: 'fd00::1', protocol: icmpv6, expect: allow,"
        " rule: ping",
        "client: bob, groups: [staff], destination: 'fd00::1', protocol: 47, expect: deny,"
        " rule: rest",
        "client: alice, groups: [staff, staff], destination: 9.9.9.9, protocol: udp, port: 0,"
        " expect: deny, rule: rest",
    ],
)
def test_tests_that_pass_let_the_file_in(test: str) -> None:
    (outcome,) = parse(test).run_tests()
    assert outcome.passed


def test_every_failing_test_is_a_line_of_its_own() -> None:
    assert refused(
        f"{WEB}, expect: deny",
        f"{WEB}, expect: allow",
        f"{WEB}, expect: allow, rule: rest",
        "client: bob, destination: 10.1.2.3, protocol: icmp, expect: allow, rule: x",
        "client: bob, groups: [staff], destination: 10.1.2.3, protocol: sctp, port: 1,"
        " expect: allow",
    ) == (
        "p.yaml:13: tests[0]: test failed: alice -> 10.1.2.3 tcp/443: expected deny,"
        ' got allow by rule "web" (line 5)',
        'p.yaml:15: tests[2]: test failed: alice -> 10.1.2.3 tcp/443: expected allow by rule "rest"'
        ', got allow by rule "web" (line 5)',
        'p.yaml:16: tests[3]: test failed: bob -> 10.1.2.3 icmp: expected allow by rule "x",'
        " got deny by default_action (no rule matches)",
        "p.yaml:17: tests[4]: test failed: bob (staff) -> 10.1.2.3 sctp/1: expected allow,"
        ' got deny by rule "rest" (line 11)',
    )


def test_without_must_pass_the_outcomes_can_be_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(POLICY + f"  - {{{WEB}, expect: deny}}\n")
    with pytest.raises(ConfigError):
        PolicySet.load(path)
    (outcome,) = PolicySet.load(path, must_pass=False).run_tests()
    assert not outcome.passed and outcome.action is Action.ALLOW
    assert outcome.rule is not None and outcome.rule.id == "web"


@pytest.mark.parametrize(
    ("test", "named"),
    [
        (f"{WEB}", "tests[0].expect"),
        (f"{WEB}, expect: maybe", "tests[0].expect"),
        ("client: a, destination: 10.0.0.0/8, protocol: icmp, expect: deny", "destination"),
        ("client: a, destination: 10.0.0.1, protocol: tcp, expect: deny", "port"),
        ("client: a, destination: 10.0.0.1, protocol: icmp, port: 8, expect: deny", "port"),
        ("client: a, destination: 10.0.0.1, protocol: any, expect: deny", "protocol"),
        ("client: a, destination: 10.0.0.1, protocol: icmpv6, expect: deny", "protocol"),
        ("client: a, destination: 10.0.0.1, protocol: tcp, port: 65536, expect: deny", "port"),
        ("client: '', destination: 10.0.0.1, protocol: icmp, expect: deny", "client"),
        (f"{WEB}, expect: deny, ruel: x", "ruel"),
    ],
)
def test_tests_that_make_no_sense(test: str, named: str) -> None:
    (line,) = refused(test)
    assert line.startswith("p.yaml:13: tests[0]") and named in line


def test_more_rules_than_fit_a_test_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zgate_gateway.policy.compiler.MAX_RULES", 2)
    (line,) = refused(
        "client: alice, groups: [staff], destination: 10.0.0.1, protocol: icmp, expect: allow"
    )
    assert line.startswith("p.yaml:12: tests: 3 rules in one policy; the gateway takes 2")
