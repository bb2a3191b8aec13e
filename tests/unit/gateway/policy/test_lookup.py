"""Lookups in compiled tables; `test_compiler.py` compares them with the first match."""

from ipaddress import ip_address

from zgate_bpf.tables import Action
from zgate_gateway.policy import PolicySet
from zgate_gateway.policy.lookup import Tables

POLICY = """\
version: "1.0"
default_action: allow
clients:
  a:
    rules:
      - {id: web, type: ip_cidr, action: allow, destinations: [10.0.0.0/8], ports: [80-90]}
      - {id: lan, type: ip_cidr, action: deny, destinations: [10.0.0.0/8]}
"""


def test_rule_and_action() -> None:
    tables = Tables(PolicySet.parse(POLICY).compiled_for("a"))
    inside, outside = ip_address("10.255.255.255"), ip_address("11.0.0.0")
    assert [tables.rule(inside, 6, port) for port in (79, 80, 90, 91)] == [1, 0, 0, 1]
    assert tables.rule(outside, 6, 80) is None
    assert tables.rule(ip_address("::a00:1"), 6, 80) is None
    assert tables.action(inside, 1, 0) is Action.DENY
    assert tables.action(outside, 1, 0) is Action.ALLOW
