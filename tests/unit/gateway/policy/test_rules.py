"""Rules as they are compiled: what they match, and when two mean the same."""

from ipaddress import ip_address, ip_network

import pytest
from zgate_bpf.tables import Action
from zgate_gateway.policy.model import RuleModel
from zgate_gateway.policy.rules import EVERYWHERE, Rule, first_match
from zgate_gateway.policy.services import IcmpType, PortRange


def rule(**keys):
    model = {"id": "x", "type": "ip_cidr", "action": "allow", "destinations": ("10.0.0.0/8",)}
    model = RuleModel.model_validate({**model, **keys}, strict=False)
    return Rule.from_model(model, "clients.a.rules[0]", 7)


def default(action="deny"):
    model = RuleModel.model_validate({"id": "d", "type": "default", "action": action}, strict=False)
    return Rule.from_model(model, "clients.a.rules[1]", 8)


def test_default_is_everywhere_and_everything():
    made = default()
    assert made.destinations == EVERYWHERE
    assert made.action is Action.DENY
    for address in ("0.0.0.0", "255.255.255.255", "::", "ffff::"):
        assert made.matches(ip_address(address), 99, 12345)


@pytest.mark.parametrize(
    ("address", "protocol", "port", "matches"),
    [
        ("10.0.0.1", 6, 80, True),
        ("10.255.255.255", 17, 89, True),
        ("11.0.0.0", 6, 80, False),
        ("10.0.0.1", 6, 79, False),
        ("10.0.0.1", 6, 90, False),
        ("10.0.0.1", 132, 80, False),
        ("::a00:1", 6, 80, False),
    ],
)
def test_every_key_must_match(address, protocol, port, matches):
    assert rule(ports=("80-89",)).matches(ip_address(address), protocol, port) is matches


def test_the_first_match_decides():
    rules = [rule(ports=(80,)), rule(), default()]
    assert first_match(rules, ip_address("10.0.0.1"), 6, 80) == 0
    assert first_match(rules, ip_address("10.0.0.1"), 6, 81) == 1
    assert first_match(rules, ip_address("11.0.0.1"), 6, 81) == 2
    assert first_match(rules[:2], ip_address("11.0.0.1"), 6, 81) is None


def test_meaning_leaves_out_names_and_order():
    one = rule(id="a", destinations=("10.0.0.0/8", "1.1.1.1", "10.0.0.0/8"), ports=(1, 2))
    other = rule(id="b", destinations=("1.1.1.1", "10.0.0.0/8"), ports=("1-2",), metadata={"x": 1})
    assert one.meaning == other.meaning
    assert one.destinations == (ip_network("1.1.1.1/32"), ip_network("10.0.0.0/8"))
    for changed in (
        rule(id="a", action="deny", destinations=("10.0.0.0/8", "1.1.1.1"), ports=(1, 2)),
        rule(destinations=("10.0.0.0/8",), ports=(1, 2)),
        rule(destinations=("10.0.0.0/8", "1.1.1.1"), ports=(1,)),
        rule(destinations=("10.0.0.0/8", "1.1.1.1"), ports=(1, 2), protocols=("tcp",)),
    ):
        assert changed.meaning != one.meaning


def test_what_people_see_is_what_was_written():
    made = rule(protocols=("TCP",), ports=(80, "8000-8100"))
    assert (made.id, made.path, made.line) == ("x", "clients.a.rules[0]", 7)
    assert (made.protocols, made.ports) == (("tcp",), ("80", "8000-8100"))
    assert str(PortRange(1, 2)) == "1-2"
    assert rule(icmp_types=("3/4",)).icmp_types == (str(IcmpType(number=3, code=4)),)
