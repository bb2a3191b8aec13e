"""Whose limits hold for whom."""

import pytest
from zgate_bpf.limits import UNLIMITED, ClientLimits
from zgate_gateway.policy import PolicySet

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
        ("both", ["slow"], ClientLimits(10, 20)),
        ("one", [], ClientLimits(11, 500)),
        ("one", ["other", "fast", "slow"], ClientLimits(11, 2)),
        ("none", ["fast", "slow"], ClientLimits(900, 2)),
        ("none", ["slow", "fast"], ClientLimits(1, 2)),
        ("stranger", ["fast"], ClientLimits(900, 500)),
        ("stranger", [], ClientLimits(None, 500)),
    ],
)
def test_each_limit_comes_from_the_first_that_says_it(client, groups, expected):
    assert PolicySet.parse(DEFAULT).limits_for(client, groups) == expected


def test_said_nowhere_is_unlimited():
    found = PolicySet.parse(POLICY).limits_for("none", ["other"])
    assert found == UNLIMITED == PolicySet.empty().limits_for("anyone", ["fast"])
