"""How many policies lists of rules are."""

from zgate_gateway.policy import PolicySet
from zgate_gateway.policy.capacity import count_policies


def test_rules_that_mean_the_same_count_once_whatever_their_names() -> None:
    rule = "type: ip_cidr, destinations: [10.0.0.1]"
    policy_set = PolicySet.parse(
        'version: "1.0"\nclients:\n'
        f"  a: {{rules: [{{id: x, action: allow, {rule}}}]}}\n"
        f"  b: {{rules: [{{id: y, action: allow, {rule}}}]}}\n"
        f"  c: {{rules: [{{id: x, action: deny, {rule}}}]}}\n"
        "  d: {}\n"
    )
    assert count_policies(policy_set.clients.values()) == 3
