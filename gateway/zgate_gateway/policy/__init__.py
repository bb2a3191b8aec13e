"""Policy: the file's format, what it means, and the kernel's tables made of it.

Imports nothing privileged. ``model`` documents the file format, ``compiler`` how a first match
becomes tables, ``periods`` what becomes of rules that hold for a time.
"""

from zgate_gateway.policy.check import Finding, check_policy, check_rules
from zgate_gateway.policy.compiler import PolicyTooLarge, compile_policy
from zgate_gateway.policy.expectations import Expectation, Outcome
from zgate_gateway.policy.policy_set import Explanation, PolicySet, explain
from zgate_gateway.policy.rules import Rule, first_match

__all__ = [
    "Expectation",
    "Explanation",
    "Finding",
    "Outcome",
    "PolicySet",
    "PolicyTooLarge",
    "Rule",
    "check_policy",
    "check_rules",
    "compile_policy",
    "explain",
    "first_match",
]
