"""Whose limits hold for whom."""

import pytest
from zgate_gateway.policy import PolicySet
from zgate_gateway.policy.limits import UNLIMITED, Limits

POLICY = """\
version: "1.0"
clients:
  both: {limits: {bandwidth_mbit: 10, new_flows_per_s: 20}}
  one: {limits: {bandwidth_mbit: 11}}
  none: {}
groups:
  fast: {limits: {bandwidth_mbit: 900}}
  slow: {limits: {bandwidth_mbit: 1, new_flows_per_s: 2}}
  other: {}
"""
DEFAULT = POLICY + "default_limits: {new_flows_per_s: 500}\n"


@pytest.mark.parametrize(
    ("client", "groups", "expected"),
    [
        ("both", ["slow"], Limits(10, 20)),
        ("one", [], Limits(11, 500)),
        ("one", ["other", "fast", "slow"], Limits(11, 2)),
        ("none", ["fast", "slow"], Limits(900, 2)),
        ("none", ["slow", "fast"], Limits(1, 2)),
        ("stranger", ["fast"], Limits(900, 500)),
        ("stranger", [], Limits(None, 500)),
    ],
)
def test_each_limit_comes_from_the_first_that_says_it(client, groups, expected):
    assert PolicySet.parse(DEFAULT).limits_for(client, groups) == expected


def test_said_nowhere_is_unlimited():
    found = PolicySet.parse(POLICY).limits_for("none", ["other"])
    assert found == UNLIMITED == PolicySet.empty().limits_for("anyone", ["fast"])
    assert not found


def test_limits_in_words():
    assert Limits(50, 200).text == "50 Mbit/s, 200 new flows/s"
    assert Limits(new_flows_per_s=3).text == "3 new flows/s"
    assert UNLIMITED.text == "unlimited"
